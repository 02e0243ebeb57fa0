"""Load on real graphs and servers, and what is told of it."""

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from pipeline_plugins.bench.arrivals import Arrival
from pipeline_plugins.bench.generator import Generator, Prompts
from pipeline_plugins.bench.result import Result
from pipeline_plugins.bench.targets import Answer, Chunk, answered

from benchmarks.processes import PIPELINE, Process, pipeline_server
from pipeline import Usage

ECHO = ("infer=echo", "infer@embed=none", "monitor=none")


def bench(*arguments: str, status: int = 0) -> str:
    given = [PIPELINE, "bench", *arguments]
    done = subprocess.run(given, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout if status != 2 else done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with pipeline_server(*ECHO) as server:
        yield server


class Stalls:
    """Answers one request at a time; the first takes long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = asyncio.Lock()

    async def send(self, number: int, raw: bytes, chunk: Chunk) -> Answer:
        async with self._lock:
            await asyncio.sleep(self._seconds if number == 0 else 0)
            chunk(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
            return Answer(200, None, Usage(1, 1))

    async def close(self) -> None:
        pass


def run(target: Stalls, arrivals: list[Arrival], most: int) -> Result:
    async def go() -> Result:
        generator = Generator(target, Prompts(), most=most)
        return await generator.run(enumerate(arrivals), time.monotonic())

    return asyncio.run(go())


@pytest.mark.parametrize("most", [100, 1])
def test_what_waits_behind_a_slow_answer_counts_from_when_it_was_due(most: int) -> None:
    """A closed loop would have seen one slow answer among ten."""
    arrivals = [Arrival(n * 0.01, 1, 1) for n in range(10)]
    result = run(Stalls(0.5), arrivals, most)
    tenth = result.total.histogram.quantile(0.1)
    assert (result.sent, result.completed) == (10, 10)
    assert tenth is not None
    assert tenth >= 350
    assert result.most_in_flight <= most
    assert most > 1 or not result.kept_up  # all but the first were sent late


def test_results_of_several_generators_add_up() -> None:
    arrivals = [Arrival(0, 1, 1)] * 5
    one, two = run(Stalls(0), arrivals, 10), run(Stalls(0), arrivals, 10)
    whole = Result()
    for part in (one, two):
        whole.merge(Result.load(json.loads(json.dumps(part.dump()))))
    assert whole.report()["sent"] == 10
    assert whole.total.max == max(one.total.max, two.total.max)
    assert whole.total.histogram.count == 10
    assert whole.completion_tokens == 10


def test_prompts_differ_unless_they_are_to_be_the_same() -> None:
    arrival = Arrival(0, 20, 5)
    prompts, same = Prompts(), Prompts(same=True)
    assert len({prompts.body(n, arrival) for n in range(50)}) == 50
    assert len({same.body(n, arrival) for n in range(50)}) == 1
    body = json.loads(Prompts(extra={"top_p": 0.5}).body(1, arrival))
    assert (body["max_tokens"], body["top_p"], body["stream"]) == (5, 0.5, True)
    assert len(body["messages"][0]["content"].split()) == 21  # its number comes first


@pytest.mark.parametrize(
    ("status", "end", "streaming", "code"),
    [
        (200, b"data: x\n\ndata: [DONE]\n\n", True, None),
        (200, b'data: {"choices":[]}\n\n', True, "cut_off"),
        (200, b'data: {"a":1}\n\ndata: {"error":{"code":"overloaded"}}\n\n', True, "overloaded"),
        (429, b'{"error":{"code":"rate_limit_exceeded","type":"x"}}', False, "rate_limit_exceeded"),
        (502, b"<html>", False, "502"),
    ],
)
def test_answers_are_told_apart(status: int, end: bytes, streaming: bool, code: str | None) -> None:
    assert answered(status, end, streaming=streaming).code == code


def test_a_graph_in_this_process_is_measured_with_its_cost() -> None:
    given = ["--in-process", "--json", "--requests", "40", "--rate", "400", *ECHO]
    report = json.loads(bench(*given, "+price.models.echo={prompt: 1500}"))
    assert (report["sent"], report["completed"], report["failed"]) == (40, 40, 0)
    assert report["prompt_tokens"] == 40 * 65  # its number comes before the words
    assert report["usd"] == pytest.approx(report["prompt_tokens"] * 1500 / 1e6)
    assert 0 < report["first_ms"]["p50"] <= report["total_ms"]["p50"] <= report["total_ms"]["max"] * 1.02
    assert report["gap_ms"]["count"] > 0


def test_a_server_is_measured_by_several_generators(server: Process) -> None:
    given = ["--url", f"{server.url}/v1", "--processes", "2", "--requests", "60", "--rate", "300", "--json"]
    report = json.loads(bench(*given))
    assert (report["sent"], report["completed"]) == (60, 60)
    assert report["completion_tokens"] == 60 * 32
    assert report["usd"] is None
    assert report["generator"]["late_ms"]["count"] == 60


def test_refusals_are_counted_by_their_code(server: Process) -> None:
    given = ["--url", f"{server.url}/v1", "--requests", "5", "--model", "nobody"]
    assert "5 × model_not_found" in bench(*given, status=1)


def test_the_composed_graph_is_served_and_its_cost_read() -> None:
    given = ["--json", "--requests", "20", "--rate", "200", *ECHO, "+price.models.echo={prompt: 1500}"]
    report = json.loads(bench(*given))
    assert report["completed"] == 20
    assert report["usd"] == pytest.approx(report["prompt_tokens"] * 1500 / 1e6, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "ftp://x"], "must be a URL"),
        (["--url", "http://127.0.0.1:1/v1", "infer=echo"], "no overrides"),
        (["--extra", "[]"], "--extra must be a JSON object"),
        (["infer=ekko"], "No option `ekko`"),
    ],
)
def test_mistakes_are_told(arguments: list[str], said: str) -> None:
    assert said in bench(*arguments, status=2)
