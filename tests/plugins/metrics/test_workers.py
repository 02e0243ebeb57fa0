"""One page for all workers of a server, those included that were killed."""

import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import psutil

from benchmarks.processes import Process, pipeline_server, post

COUNTS = {
    "calls": r'pipeline_calls_total\{.*outcome="completed"\} (\d+)',
    "durations": r"gen_ai_server_request_duration_seconds_count\{.*\} (\d+)",
    "admitted": r'pipeline_limit_calls_total\{stage="limit",result="admitted"\} (\d+)',
    "workers": r"pipeline_workers (\d+)",
    "under way": r"pipeline_calls_in_flight\{.*\} (\d+)",
}


def counts(server: Process) -> dict[str, int]:
    """What a worker says, once one answers that has loaded."""
    end = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{server.url}/metrics") as answer:
                text = answer.read().decode()
            break
        except (urllib.error.HTTPError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            assert time.monotonic() < end
            time.sleep(0.05)
    return {name: sum(map(int, re.findall(pattern, text))) for name, pattern in COUNTS.items()}


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def send(server: Process, calls: int) -> None:
    for _ in range(calls):
        post(f"{server.url}/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})


def workers(server: Process) -> list[psutil.Process]:
    living = [child for child in server.process.children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "spawn_main" in " ".join(child.cmdline())]


def test_any_worker_answers_for_all_and_for_those_that_were_killed() -> None:
    overrides = ["infer=echo", "infer@embed=none", "limit.requests_per_minute=100000", "server.workers=2"]
    with pipeline_server(*overrides) as server:
        until(lambda: counts(server)["workers"] == 2)
        send(server, 60)
        for _ in range(8):
            found = counts(server)
            assert (found["calls"], found["durations"], found["under way"]) == (60, 60, 0)
        until(lambda: counts(server)["admitted"] == 60)
        before = workers(server)
        before[0].send_signal(signal.SIGKILL)
        until(lambda: any(worker not in before for worker in workers(server)))
        until(lambda: counts(server)["workers"] == 2)
        for _ in range(8):
            found = counts(server)
            assert (found["calls"], found["durations"], found["admitted"]) == (60, 60, 60)
        send(server, 20)
        assert counts(server)["calls"] == 80
        until(lambda: counts(server)["admitted"] == 80)


def test_a_reload_takes_no_count_away() -> None:
    with pipeline_server("infer=echo", "infer@embed=none", "limit.requests_per_minute=100000") as server:
        send(server, 3)
        assert counts(server)["admitted"] == 3
        post(f"{server.url}/v1/admin/reload", {})
        send(server, 2)
        found = counts(server)
        assert (found["calls"], found["admitted"]) == (5, 5)
