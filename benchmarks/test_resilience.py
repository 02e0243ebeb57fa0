"""What resilience costs while nothing fails, and what it is worth when something does."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from pipeline_plugins.resilience.outliers import Member
from pipeline_plugins.resilience.policy import OutlierSettings, Policy
from pipeline_plugins.resilience.target import Target

from benchmarks import load
from benchmarks.limited import CAPACITY, SECONDS
from benchmarks.long import long
from benchmarks.processes import Process, in_front_of, pipeline_server, start
from benchmarks.tailed import SLOW, SLOW_SECONDS
from pipeline import Call, Reply, Usage

CHUNKS = 2000


def call(*, stream: bool = False) -> Call:
    body = {"model": "m", "stream": stream}
    deadline = asyncio.get_running_loop().time() + 60
    return Call(id="", operation="chat", body=body, deadline=deadline, received=0)


async def whole(call: Call) -> Reply:
    return Reply(body=b'{"usage": {}}', usage=Usage(1, 1))


async def stream(call: Call) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield b"data: {}\n\n"

    return Reply(chunks=chunks())


def layered(stage: Any, **policy: Any) -> Target:
    return Target("t", Policy.model_validate(policy), Member("t", OutlierSettings()), stage)


def per_call(stage: Any, calls: int = 5000) -> float:
    """CPU µs of one whole reply."""

    async def go() -> float:
        one = call()
        started = time.process_time()
        for _ in range(calls):
            await stage(one)
        return (time.process_time() - started) / calls * 1e6

    return asyncio.run(go())


def per_stream(stage: Any, streams: int = 5) -> float:
    """CPU µs of one stream of `CHUNKS` chunks."""

    async def go() -> float:
        one = call(stream=True)
        started = time.process_time()
        for _ in range(streams):
            async for _ in await stage(one):
                pass
        return (time.process_time() - started) / streams * 1e6

    return asyncio.run(go())


def added(measure: Callable[[Any], float], plain: Any, wrapped: Any, rounds: int = 9) -> float:
    """The least cost with a layer less the least without."""
    pairs = [(measure(plain), measure(wrapped)) for _ in range(rounds)]
    return min(pair[1] for pair in pairs) - min(pair[0] for pair in pairs)


def test_cost_without_failure(benchmark: Any, note: Callable[..., None]) -> None:
    cost = benchmark.pedantic(lambda: added(per_call, whole, layered(whole)), rounds=1)
    note("resilience of a whole reply", cost, "µs CPU", 10)
    limits = {"total": 30}
    cost = added(per_call, whole, layered(whole, timeouts=limits))
    note("resilience of a whole reply, with a total timeout", cost, "µs CPU", 10)
    cost = added(per_call, whole, layered(whole, hedge={"enabled": True}))
    note("resilience of a whole reply, hedged", cost, "µs CPU", None, "a task for each call")
    cost = added(per_stream, stream, layered(stream)) / CHUNKS
    note("resilience of a streamed chunk", cost, "µs CPU", 1)


ARRIVALS = 10.0
"""Seconds of open-loop arrivals at each load that are measured."""

SETTLING = 5.0
"""Seconds of them before, in which a limit may find its place, and a queue too."""

DEADLINE = 5
"""Seconds after which the gateway gives a call up."""


def gateway(upstream: Process, *overrides: str) -> Any:
    base = in_front_of(upstream, "static")
    return pipeline_server(*base, "monitor=none", f"server.call_timeout={DEADLINE}", *overrides)


async def arrivals(url: str, rate: float, seconds: float, settling: float = 0.0) -> list[tuple[int, float]]:
    """Status and latency of every call of a Poisson process, sent whether or not others are answered.

    Latency counts from the moment at which the call was due; calls due in the first
    `settling` seconds are left out.
    """
    connector = aiohttp.TCPConnector(limit=0)
    results: list[tuple[int, float]] = []

    async def one(session: aiohttp.ClientSession, due: float) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=load.CHAT) as answer:
            await answer.read()
        if due >= counted_from:
            results.append((answer.status, time.perf_counter() - due))

    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as tasks:
        due = time.perf_counter()
        counted_from = due + settling
        until = counted_from + seconds
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(session, due))
            due += random.expovariate(rate)
    return results


def metric(server: Process, name: str) -> float:
    """What a server's only target has of `pipeline_target_NAME`."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"pipeline_target_{name}{{")).split()[-1])


def percentile(seconds: list[float], share: float) -> float:
    """By the nearest rank; not a number where there is none."""
    ordered = sorted(seconds)
    return ordered[int(len(ordered) * share)] if ordered else float("nan")


def overloaded(times: float, *overrides: str) -> tuple[float, float, float, str]:
    """At a multiple of capacity: p99 of admitted calls (s), answers a second, share refused, the limit."""
    with (
        start([sys.executable, "-m", "benchmarks.limited"]) as upstream,
        gateway(upstream, *overrides) as server,
    ):
        asyncio.run(arrivals(server.url, CAPACITY / 4, 4))  # learns what an answer takes
        started = time.perf_counter()
        results = asyncio.run(arrivals(server.url, CAPACITY * times, ARRIVALS, SETTLING))
        elapsed = time.perf_counter() - started - SETTLING
        limit, shed = metric(server, "concurrency_limit"), metric(server, "shed_total")
    served = [seconds for status, seconds in results if status == 200]
    p99 = percentile(served, 0.99)
    told = f"limit {limit:.0f} after {shed:.0f} refusals"
    return p99, len(served) / elapsed, 1 - len(served) / len(results), told


@long(2)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_overload(benchmark: Any, note: Callable[..., None], times: int) -> None:
    on = ["resilience=standard", "resilience.retry.attempts=1", "resilience.breaker.enabled=false"]
    off = [*on, "resilience.concurrency.enabled=false"]
    p99, rate, refused, limit = benchmark.pedantic(lambda: overloaded(times, *on), rounds=1)
    p99_off, rate_off, refused_off, _ = overloaded(times, *off)
    beside = (
        f"{rate:.0f} answers/s, {refused:.0%} refused, {limit}; without shedding {p99_off * 1e3:.0f} ms, "
        f"{rate_off:.0f} answers/s, {refused_off:.0%} failed; an answer takes {SECONDS * 1e3:.0f} ms, "
        f"capacity {CAPACITY:.0f}/s"
    )
    note(f"p99 of admitted calls at {times}x capacity, shedding", p99 * 1e3, "ms", None, beside)


async def until_answered(url: str) -> float:
    """Seconds of asking, without a pause, until a call is answered well."""
    started = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.post(f"{url}/v1/chat/completions", json=load.CHAT) as answer:
                await answer.read()
                if answer.status == 200:
                    return time.perf_counter() - started
            await asyncio.sleep(0.01)


@long(2)
def test_recovery(benchmark: Any, note: Callable[..., None]) -> None:
    command = [sys.executable, "-m", "benchmarks.limited"]

    def recovered() -> float:
        with start(command) as first, gateway(first, "resilience=standard") as server:
            asyncio.run(until_answered(server.url))
            first.process.kill()
            first.process.wait()
            asyncio.run(arrivals(server.url, 50, 2))  # opens the breaker
            with start([*command, str(first.port)]):
                return asyncio.run(until_answered(server.url))

    seconds = benchmark.pedantic(lambda: [recovered() for _ in range(3)], rounds=1)
    beside = f"least {min(seconds):.2f} s; a breaker stays open for 5 s"
    note("answers again after an upstream has returned, at most", max(seconds), "s", 5.2, beside)


def tail(*overrides: str) -> tuple[float, float, float, float]:
    """Median and p99 (s) of calls to a model with a slow tail; second attempts, and those that won."""
    with (
        start([sys.executable, "-m", "benchmarks.tailed"]) as upstream,
        gateway(upstream, "resilience=standard", *overrides) as server,
    ):
        results = asyncio.run(arrivals(server.url, 50, 20, SETTLING))
        hedges, won = metric(server, "hedges_total"), metric(server, "hedges_won_total")
    seconds = [seconds for status, seconds in results if status == 200]
    return percentile(seconds, 0.5), percentile(seconds, 0.99), hedges, won


@long(2)
def test_slow_tail(benchmark: Any, note: Callable[..., None]) -> None:
    _, p99, hedges, won = benchmark.pedantic(lambda: tail("resilience.hedge.enabled=true"), rounds=1)
    p50_off, p99_off, _, _ = tail()
    beside = (
        f"without {p99_off * 1e3:.0f} ms, median {p50_off * 1e3:.0f} ms; {hedges:.0f} second attempts, "
        f"{won:.0f} won; {SLOW:.0%} of answers take {SLOW_SECONDS:g} s"
    )
    note("p99 with a slow tail, hedged", p99 * 1e3, "ms", None, beside)
