"""Every fault of a network and of an upstream, made by a real proxy in front of a real server.

No client may see an answer that was cut and looks complete.
"""

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import Process, pipeline_server
from tests import faults
from tests.faults import Fault, Proxy

WORDS = " ".join(f"word{index}" for index in range(12))

GRAPH = """
# @package _global_
defaults:
  - /infer@a: openai
  - /infer@b: openai
graph:
  entry: monitor
  stages:
    monitor: {next: route}
    route: {next: [TARGETS]}
STAGES
"""

RESILIENCE = [
    "route=fallback",
    "resilience=standard",
    "resilience.retry.backoff=0.01",
    "resilience.breaker.enabled=false",
    "resilience.outliers.enabled=false",
    "monitor.success=false",
]


@dataclass
class Answer:
    """What a client saw. `whole` is a complete body or stream; `error` its error event or envelope."""

    status: int
    headers: dict[str, str]
    text: str
    whole: bool
    error: dict[str, Any] | None
    finish_reason: str | None


def ask(server: Process, *, stream: bool) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        body = {"messages": [{"role": "user", "content": WORDS}], "stream": stream}
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        data = response.read()  # raises for a body that ends before its framing says so
    finally:
        connection.close()
    if response.status != 200 or not stream:
        found = json.loads(data)
        if "error" in found:
            return Answer(response.status, headers, "", False, found["error"], None)
        choice = found["choices"][0]
        text = choice["message"]["content"]
        return Answer(response.status, headers, text, True, None, choice["finish_reason"])
    return read_events(response.status, headers, data)


def read_events(status: int, headers: dict[str, str], data: bytes) -> Answer:
    blocks = data.decode().split("\n\n")
    assert blocks.pop() == "", "a stream ends with a whole event"
    events = [block.removeprefix("data: ") for block in blocks]
    whole = events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[: len(events) - whole]]
    error = parsed.pop()["error"] if parsed and "error" in parsed[-1] else None
    choices = [event["choices"][0] for event in parsed if event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return Answer(status, headers, text, whole, error, reasons[0] if reasons else None)


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[Process, Process]]:
    with (
        pipeline_server("infer=echo", "infer.name=a", "infer@embed=none") as a,
        pipeline_server("infer=echo", "infer.name=b", "infer@embed=none") as b,
    ):
        yield a, b


@pytest.fixture(scope="module")
def module_proxy(upstreams: tuple[Process, Process]) -> Iterator[Proxy]:
    with Proxy(upstreams[0].port) as proxy:
        yield proxy


@pytest.fixture
def proxy(module_proxy: Proxy) -> Proxy:
    module_proxy.reset()
    return module_proxy


def gateway(folder: Path, proxy: Proxy, second: Process, targets: list[str], *overrides: str) -> Any:
    (folder / "graph").mkdir(exist_ok=True)
    stages = "".join(f"    {target}: {{}}\n" for target in targets)
    (folder / "graph" / "faulty.yaml").write_text(
        GRAPH.replace("TARGETS", ", ".join(targets)).replace("STAGES", stages)
    )
    return pipeline_server(
        "-c",
        str(folder),
        "graph=faulty",
        f"a.base_url={proxy.url}",
        "a.model=a",
        f"b.base_url={second.url}/v1",
        "b.model=b",
        *RESILIENCE,
        *overrides,
    )


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[Process, Process], module_proxy: Proxy
) -> Iterator[Process]:
    """A target behind the proxy that is tried once, and a sound one to fall back to."""
    folder = tmp_path_factory.mktemp("pair")
    timeouts = "{first_token: 1.5, between_tokens: 0.7, total: 1.5}"
    overrides = ["resilience.retry.attempts=1", f"+resilience.targets.a.timeouts={timeouts}"]
    with gateway(folder, module_proxy, upstreams[1], ["a", "b"], *overrides) as server:
        yield server


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, upstreams: tuple[Process, Process], module_proxy: Proxy
) -> Iterator[Process]:
    """The target behind the proxy alone, tried three times."""
    folder = tmp_path_factory.mktemp("alone")
    with gateway(folder, module_proxy, upstreams[1], ["a"], "resilience.retry.reserve=1000") as server:
        yield server


BEFORE: list[Fault] = [
    faults.resets,
    faults.stalls,
    faults.drips,
    faults.garbles,
    faults.refuses_with(500),
    faults.refuses_with(503),
    faults.refuses_with(429),
]
"""Faults that show before a byte of the answer has reached the client, also in a stream."""

MIDWAY: list[Fault] = [
    faults.resets_midway,
    faults.stalls_midway,
    faults.half_closes,
    faults.truncates,
    faults.garbles_midway,
]
"""Faults that show in the middle of an answer."""


def names(fault: Fault) -> str:
    return fault.__name__


@pytest.mark.parametrize("fault", [*BEFORE, *MIDWAY], ids=names)
def test_a_whole_answer_comes_from_the_other_target_whatever_the_fault(
    pair: Process, proxy: Proxy, fault: Fault
) -> None:
    proxy.fault = fault
    answer = ask(pair, stream=False)
    assert (answer.status, answer.text, answer.finish_reason) == (200, WORDS, "stop")
    assert answer.headers["x-pipeline-route"] == "b"
    assert proxy.requests == 1


@pytest.mark.parametrize("fault", BEFORE, ids=names)
def test_a_stream_comes_from_the_other_target_when_the_fault_shows_before_its_first_byte(
    pair: Process, proxy: Proxy, fault: Fault
) -> None:
    proxy.fault = fault
    answer = ask(pair, stream=True)
    assert (answer.status, answer.text, answer.whole) == (200, WORDS, True)
    assert answer.headers["x-pipeline-route"] == "b"


@pytest.mark.parametrize("fault", MIDWAY, ids=names)
def test_a_stream_that_breaks_midway_ends_with_an_error_event_and_nothing_that_looks_like_an_end(
    pair: Process, proxy: Proxy, fault: Fault
) -> None:
    proxy.fault = fault
    answer = ask(pair, stream=True)
    assert answer.status == 200
    assert answer.text
    assert WORDS.startswith(answer.text)
    assert len(answer.text) < len(WORDS)
    assert not answer.whole
    assert answer.finish_reason is None
    assert answer.error is not None
    assert answer.error["type"] in ("upstream_error", "timeout_error")
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert proxy.requests == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_connection_is_answered_by_the_other_target(
    pair: Process, proxy: Proxy, stream: bool
) -> None:
    proxy.refuse()
    try:
        answer = ask(pair, stream=stream)
    finally:
        proxy.listen()
    assert (answer.text, answer.whole, answer.headers["x-pipeline-route"]) == (WORDS, True, "b")
    assert ask(pair, stream=stream).headers["x-pipeline-route"] == "a"


@pytest.mark.parametrize("status", [429, 503])
def test_a_target_that_asks_to_be_left_alone_is_until_its_time_is_over(
    pair: Process, proxy: Proxy, status: int
) -> None:
    proxy.faults = [faults.refuses_with(status, b"retry-after: 1")]
    asked = time.monotonic()
    while ask(pair, stream=False).headers["x-pipeline-route"] != "a":
        assert proxy.requests == 1
        time.sleep(0.05)
    assert time.monotonic() - asked >= 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", [faults.resets, faults.garbles, faults.refuses_with(500), faults.refuses_with(502)], ids=names
)
def test_a_burst_of_failures_is_sat_out_by_retries(
    alone: Process, proxy: Proxy, fault: Fault, stream: bool
) -> None:
    proxy.faults = [fault, fault]
    answer = ask(alone, stream=stream)
    assert (answer.text, answer.whole, proxy.requests) == (WORDS, True, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_429_is_retried_when_its_retry_after_is_over(alone: Process, proxy: Proxy, stream: bool) -> None:
    proxy.faults = [faults.refuses_with(429, b"retry-after: 1")]
    started = time.monotonic()
    answer = ask(alone, stream=stream)
    assert time.monotonic() - started >= 1
    assert (answer.text, answer.whole, proxy.requests) == (WORDS, True, 2)


def test_a_storm_of_429_that_outlasts_the_deadline_is_told_at_once(alone: Process, proxy: Proxy) -> None:
    proxy.fault = faults.refuses_with(429, b"retry-after: 86400")
    answer = ask(alone, stream=True)
    assert (answer.status, answer.headers["retry-after"], proxy.requests) == (429, "86400", 1)
    assert answer.error is not None
    assert answer.error["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [faults.resets, faults.garbles, faults.refuses_with(500)], ids=names)
def test_a_fault_that_lasts_is_an_error_in_the_envelope_after_all_attempts(
    alone: Process, proxy: Proxy, fault: Fault, stream: bool
) -> None:
    proxy.fault = fault
    answer = ask(alone, stream=stream)
    assert answer.status == 502
    assert answer.error is not None
    assert proxy.requests == 3
