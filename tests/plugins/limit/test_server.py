"""Limits in a server: headers, clients that leave, and what they held."""

import asyncio
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from benchmarks.processes import Process, pipeline_server

LIMITS = [
    "infer=echo",
    "infer@embed=none",
    "infer.tokens_per_second=20",
    "limit=sliding_window",
    "limit.tokens_per_minute=2000",
    "+limit@slots=concurrency",
    "slots.concurrent=2",
    "slots.queue_timeout=20",
    "graph.stages.limit.next=slots",
    "+graph.stages.slots={next: cache}",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with pipeline_server(*LIMITS) as server:
        yield server


def metric(server: Process, name: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def test_clients_that_leave_give_back_slots_and_tokens(server: Process) -> None:
    words = [{"role": "user", "content": "word " * 40}]
    long: dict[str, Any] = {"messages": words, "stream": True, "max_tokens": 850}
    short: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    url = f"{server.url}/v1/chat/completions"

    async def leave(session: aiohttp.ClientSession) -> None:
        async with session.post(url, json=long) as answer:
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-tokens"] == "2000"
            await answer.content.readany()

    async def left(session: aiohttp.ClientSession) -> int:
        async with session.post(url, json=short) as answer:
            assert answer.status == 200
            return int(answer.headers["x-ratelimit-remaining-tokens"])

    async def go() -> None:
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            # Two reserve 1800 of 2000 tokens and take both slots: without returns, once and never again.
            # Prompts are charged, and the few chunks that were sent.
            for _ in range(2):
                await asyncio.gather(leave(session), leave(session))
                while await left(session) < 1500:  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.02)

    asyncio.run(go())
    assert metric(server, 'pipeline_limit_calls_total{stage="slots",result="admitted"}') >= 6
    assert metric(server, "pipeline_limit_waiting") == 0
