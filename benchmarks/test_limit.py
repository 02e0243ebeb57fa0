"""What a limit costs: the stage alone and the whole request, admitted and refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop
from pipeline_plugins.limit.concurrency import Concurrency
from pipeline_plugins.limit.sliding_window import SlidingWindow
from pipeline_plugins.limit.token_bucket import TokenBucket
from pydantic import SecretStr

from benchmarks import load
from benchmarks.processes import Process, pipeline_server
from pipeline import Call, Edge, Model, Reply, Usage
from pipeline.errors import APIError
from tests.redis_process import BINARY, RedisProcess

CALLS = 5_000
REQUESTS = 4_000
MANY = 10**9

ECHO = ("infer=echo", "infer@embed=none")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    if BINARY is None:
        pytest.skip("needs `redis-server` on the PATH")
    process = RedisProcess()
    yield process
    process.close()


def cpu_per_call(stage: Any, redis: RedisProcess | None, *, refused: bool, **config: Any) -> float:
    """CPU µs of one call through a limit alone, eight at a time, its reply included."""

    async def answer(call: Call) -> Reply:
        return Reply(body=b"{}", usage=Usage(30, 20))

    async def go() -> float:
        edge = Edge("limit", "next", "infer", answer)
        edge.models = (Model("m", frozenset({"chat"}), context_window=8192),)
        store = {} if redis is None else {"store": "redis", "redis": SecretStr(redis.url)}
        limit = stage(stage.Config(**store, **config), edge, f"bench{time.monotonic_ns()}")
        await limit.open()
        deadline = asyncio.get_running_loop().time() + 3600

        async def some(count: int) -> None:
            for _ in range(count):
                call = Call(id="", operation="chat", raw=b"{}", body=load.CHAT, deadline=deadline, received=0)
                with contextlib.suppress(APIError):
                    await limit(call)

        await some(100)
        started = time.process_time()
        await asyncio.gather(*(some(CALLS // 8) for _ in range(8)))
        spent = (time.process_time() - started) / CALLS * 1e6
        assert (limit.refused if refused else limit.admitted) >= CALLS
        await limit.close()
        return spent

    return min(uvloop.run(go()) for _ in range(3))


@pytest.mark.parametrize("stage", [TokenBucket, SlidingWindow])
def test_rate_stage(benchmark: Any, note: Callable[..., None], redis: RedisProcess, stage: Any) -> None:
    name = stage.algorithm
    for where in (None, redis):
        store = "in memory" if where is None else "over Redis"
        admitted = cpu_per_call(stage, where, refused=False, requests_per_minute=MANY)
        tokens = cpu_per_call(stage, where, refused=False, requests_per_minute=MANY, tokens_per_minute=MANY)
        beside = f"with tokens counted, reserved and given back: {tokens:.1f} µs"
        note(f"limit={name} alone, admitted, {store}", admitted, "µs CPU", None, beside)
        refused = cpu_per_call(stage, where, refused=True, requests_per_minute=1)
        note(f"limit={name} alone, refused, {store}", refused, "µs CPU", 100)
    benchmark.pedantic(lambda: cpu_per_call(stage, None, refused=True, requests_per_minute=1), rounds=1)


def test_concurrency_stage(benchmark: Any, note: Callable[..., None], redis: RedisProcess) -> None:
    for where in (None, redis):
        store = "in memory" if where is None else "over Redis"
        cost = cpu_per_call(Concurrency, where, refused=False, concurrent=100)
        note(f"limit=concurrency alone, admitted, {store}", cost, "µs CPU")
    benchmark.pedantic(lambda: cpu_per_call(Concurrency, None, refused=False, concurrent=100), rounds=1)


def cpu_per_request(server: Process, status: int) -> float:
    """CPU µs of a server for one request that is answered with this status."""
    payload = load.request(load.CHAT)
    load.run(server.port, payload, REQUESTS // 10, status=status)
    costs = []
    for _ in range(3):
        before = server.cpu()
        load.run(server.port, payload, REQUESTS, status=status)
        costs.append((server.cpu() - before) / REQUESTS * 1e6)
    return min(costs)


def test_whole_request(
    benchmark: Any, note: Callable[..., None], redis: RedisProcess, upstream: Process, echo: Process
) -> None:
    floor = cpu_per_request(upstream, 200)
    bare = cpu_per_request(echo, 200)
    for where in ("memory", "redis"):
        limit = ("limit=token_bucket", f"limit.store={where}", f"limit.redis={redis.url}")
        with pipeline_server(*ECHO, *limit, "limit.requests_per_minute=1") as server:
            load.run(server.port, load.request(load.CHAT), 1, 1)
            cost = cpu_per_request(server, 429)
        with pipeline_server(*ECHO, *limit, "limit.requests_per_minute=1", "monitor=none") as server:
            # With Redis, the server before has used up the limit.
            load.run(server.port, load.request(load.CHAT), 1, 1, status=200 if where == "memory" else 429)
            silent = cpu_per_request(server, 429)
        beside = f"without its log line: {silent:.0f} µs; uvicorn alone: {floor:.0f} µs"
        note(f"refused, whole request, {where}", cost, "µs CPU", 80, beside)
        with pipeline_server(*ECHO, *limit, f"limit.requests_per_minute={MANY}") as server:
            cost = cpu_per_request(server, 200)
            note(f"admitted, whole request, {where}", cost, "µs CPU", None, f"without limit: {bare:.0f} µs")
    benchmark.pedantic(lambda: cpu_per_request(echo, 200), rounds=1)
