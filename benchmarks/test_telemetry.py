"""What seeing it costs: the CPU that metrics, traces and log lines add to a call."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from pipeline_plugins.metrics.labels import Names
from pipeline_plugins.metrics.watch import Watch
from pipeline_plugins.monitor.log import Log
from pipeline_plugins.trace.context import Ended
from pipeline_plugins.trace.spans import Spans
from pipeline_plugins.trace.watch import Watch as Following
from structlog.contextvars import bind_contextvars, clear_contextvars

from benchmarks import load
from benchmarks.processes import Process, in_front_of, pipeline_server
from benchmarks.test_overhead import cpu_per_request
from pipeline import Call, Edge, Reply, Usage
from pipeline.logging import Lines, render
from pipeline.stage import StageCall

BODY: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "a"}]}

PASSED = ("monitor", "limit", "cache", "route")
"""The stages that pass a call on in the default graph, before the one that answers."""


async def answer(call: Call) -> Reply:
    """A whole reply with usage."""
    return Reply(body=b"{}", usage=Usage(20, 20), model="m")


def chain(entry: Callable[[StageCall], StageCall], attempt: Callable[[StageCall], StageCall]) -> StageCall:
    """The default graph's passages and nothing else, with layers at its ends."""
    inner = attempt(answer)
    names = [*PASSED, "infer"]
    for source, target in reversed(list(pairwise(names))):
        inner = Edge(source, "next", target, inner)
    return Edge("", "entry", names[0], entry(inner))


def plain(inner: StageCall) -> StageCall:
    """No layer."""
    return inner


def seconds_per_call(stage: StageCall, calls: int = 20_000) -> float:
    """CPU seconds of making one call and having it answered."""

    async def go() -> float:
        started = time.process_time()
        for _ in range(calls):
            received = time.perf_counter()
            await stage(Call(id="", operation="chat", body=BODY, deadline=1e9, received=received))
        return (time.process_time() - started) / calls

    return asyncio.run(go())


def test_metrics_of_a_call(benchmark: Any, note: Callable[..., None]) -> None:
    watch = Watch(Names())
    watch.router("route")
    counted = chain(watch.entry, watch.attempt("infer", "openai"))
    bare = chain(plain, plain)
    without = min(seconds_per_call(bare) for _ in range(5))
    cost = benchmark.pedantic(lambda: min(seconds_per_call(counted) for _ in range(5)), rounds=1)
    beside = f"the same call alone: {without * 1e6:.1f} µs; five stages, an attempt"
    note("metrics of a call", (cost - without) * 1e6, "µs CPU", 10, beside)


def test_metrics_of_a_request(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = in_front_of(upstream, "static")
    payload = load.request(load.CHAT)
    with pipeline_server(*given, "metrics=none") as bare, pipeline_server(*given) as counted:
        pairs = [(cpu_per_request(bare, payload), cpu_per_request(counted, payload)) for _ in range(3)]
    without = min(pair[0] for pair in pairs)
    cost = benchmark.pedantic(lambda: min(pair[1] for pair in pairs), rounds=1)
    note("proxied chat completion with metrics", cost, "µs CPU", None, f"without: {without:.0f} µs")


def test_traces_of_a_call(benchmark: Any, note: Callable[..., None]) -> None:
    waiting: deque[Ended] = deque(maxlen=1024)
    spans = Spans(Resource({}), {name: f"{name}.x" for name in (*PASSED, "infer")})
    bare = chain(plain, plain)
    kept, left = Following(waiting.append, ratio=1.0), Following(waiting.append, ratio=0.0)

    def cost(watch: Following) -> float:
        followed = chain(watch.entry, watch.attempt("infer", "openai"))
        waiting.clear()
        return seconds_per_call(followed)

    without = min(seconds_per_call(bare) for _ in range(5))
    unsampled = min(cost(left) for _ in range(5))
    sampled = benchmark.pedantic(lambda: min(cost(kept) for _ in range(5)), rounds=1)

    def encode() -> float:
        started = time.process_time()
        for at in range(0, 1024, 256):
            made = [span for ended in list(waiting)[at : at + 256] for span in spans.of(ended)]
            encode_spans(made).SerializeToString()
        return (time.process_time() - started) / 1024

    beside = f"off its way, spans and protobuf: {min(encode() for _ in range(3)) * 1e6:.0f} µs"
    note("a call whose trace is kept, on its way", (sampled - without) * 1e6, "µs CPU", 20, beside)
    note("a call whose trace is not kept", (unsampled - without) * 1e6, "µs CPU", 10)


def test_traces_of_a_request(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = in_front_of(upstream, "static")
    on = ["trace=otlp", f"trace.endpoint={upstream.url}"]
    payload = load.request(load.CHAT)
    with (
        pipeline_server(*given) as off,
        pipeline_server(*given, *on) as all,
        pipeline_server(*given, *on, "trace.sample=0.1") as some,
    ):
        rounds = [[cpu_per_request(server, payload) for server in (off, all, some)] for _ in range(3)]
    without, kept, sampled = (min(costs) for costs in zip(*rounds, strict=True))
    benchmark.pedantic(lambda: kept, rounds=1)
    beside = f"without: {without:.0f} µs; spans made, encoded and sent by a thread"
    note("proxied chat completion, every trace kept", kept, "µs CPU", None, beside)
    note("the same, one trace in ten kept", sampled, "µs CPU", None, f"without: {without:.0f} µs")


def test_log_line(benchmark: Any, note: Callable[..., None]) -> None:
    written = Lines(os.open(os.devnull, os.O_WRONLY))
    structlog.configure(
        processors=[render],
        logger_factory=lambda *_: written,
        wrapper_class=structlog.make_filtering_bound_logger(20),
    )
    bind_contextvars(request_id="req_0123456789abcdef01234567")
    bare = chain(plain, plain)

    def logged(**config: Any) -> StageCall:
        # The stage stands where the chain's own `monitor` does, around what follows it.
        inner: StageCall = answer
        names = [*PASSED, "infer"]
        for source, target in reversed(list(pairwise(names))):
            inner = Edge(source, "next", target, inner)
        assert isinstance(inner, Edge)
        return Edge("", "entry", "monitor", Log(Log.Config(**config), inner))

    without = min(seconds_per_call(bare) for _ in range(5))
    every, some = logged(), logged(sample=0.1)
    cost = benchmark.pedantic(lambda: min(seconds_per_call(every) for _ in range(5)), rounds=1)
    sampled = min(seconds_per_call(some) for _ in range(5))
    structlog.reset_defaults()
    clear_contextvars()
    beside = f"one in ten logged: {(sampled - without) * 1e6:.1f} µs"
    note("a call's log line, masked and written", (cost - without) * 1e6, "µs CPU", 10, beside)
