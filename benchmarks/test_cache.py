"""What an exact hit costs over each store, and how many calls a hundred equal requests make."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load
from benchmarks.processes import Process, pipeline_server, post
from benchmarks.test_overhead import cpu_per_request

ASKED = {**load.CHAT, "temperature": 0}
ECHO = ("infer=echo", "infer@embed=none", "monitor.success=false")
ROUNDS = 5
CLIENTS = 100


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """A Redis on a free loopback port, without persistence."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("needs `redis-server` on the PATH")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        child.terminate()
        child.wait(20)


def hit_cost(
    benchmark: Any, note: Callable[..., None], upstream: Process, *overrides: str, **figure: Any
) -> None:
    """Alternates with the floor and with calls that pass the cache by; the best round of each counts."""
    payload, floor_costs, costs, passed = load.request(ASKED), [], [], []
    sampled = load.request(load.CHAT)
    with pipeline_server("cache=exact", *ECHO, *overrides) as server:
        post(f"{server.url}/v1/chat/completions", ASKED)

        def rounds() -> None:
            for _ in range(ROUNDS):
                floor_costs.append(cpu_per_request(upstream, payload, 2000))
                costs.append(cpu_per_request(server, payload, 2000))
                passed.append(cpu_per_request(server, sampled, 2000))

        benchmark.pedantic(rounds, rounds=1)
    beside = f"uvicorn alone: {min(floor_costs):.0f} µs; passed by to echo: {min(passed):.0f} µs"
    note(unit="µs CPU", value=min(costs), beside=beside, **figure)


def test_hit_in_memory(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    hit_cost(benchmark, note, upstream, what="exact hit in memory, whole request", budget=80)


def test_hit_on_disk(benchmark: Any, note: Callable[..., None], upstream: Process, tmp_path: Path) -> None:
    overrides = ("cache.store=disk", f"cache.path={tmp_path}")
    hit_cost(benchmark, note, upstream, *overrides, what="exact hit on disk, whole request")


def test_hit_in_redis(benchmark: Any, note: Callable[..., None], upstream: Process, tmp_path: Path) -> None:
    with redis(tmp_path) as url:
        overrides = ("cache.store=redis", f"cache.redis={url}", "cache.redis_timeout=5")
        hit_cost(benchmark, note, upstream, *overrides, what="exact hit in Redis, whole request")


def test_coalescing(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    """Equal requests at once, to a model that takes 0.2 s; each call that it gets is a miss."""

    async def ask(port: int, payload: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(payload)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return head

    async def together(port: int, number: int) -> int:
        payload = load.request({**ASKED, "seed": number, "stream": bool(number % 2)})
        heads = await asyncio.gather(*(ask(port, payload) for _ in range(CLIENTS)))
        hits = sum(b"x-pipeline-cache: hit" in head.lower() for head in heads)
        return CLIENTS - hits

    def factor(*overrides: str) -> float:
        with pipeline_server("cache=exact", "infer.latency=0.2", *ECHO, *overrides) as server:
            calls = [asyncio.run(together(server.port, number)) for number in range(ROUNDS)]
        return CLIENTS * ROUNDS / sum(calls)

    value = benchmark.pedantic(factor, rounds=1)
    with redis(tmp_path) as url:
        shared = factor("cache.store=redis", f"cache.redis={url}", "cache.redis_timeout=5")
    beside = f"in Redis: {shared:.4g}; half of them streams; a model that takes 0.2 s"
    what = f"requests answered by one call, {CLIENTS} equal ones at once"
    note(what, value, "requests", CLIENTS, beside, more_is_better=True)
