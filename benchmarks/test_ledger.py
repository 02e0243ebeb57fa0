"""What a ledger costs: a call's CPU on the way, and a row's off it."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipeline_plugins.ledger.postgres_database import Postgres
from pipeline_plugins.ledger.rows import DECISIONS
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Store
from pipeline_plugins.ledger.watch import Item, Watch
from pipeline_plugins.ledger.writer import Writer

from benchmarks import load
from benchmarks.long import long
from benchmarks.processes import Process, in_front_of, pipeline_server
from benchmarks.test_cost import answer, seconds_per_call
from benchmarks.test_overhead import cpu_per_request
from pipeline import Call
from pipeline.stage import StageCall
from tests.postgres_process import PostgresProcess, available

CALLS = 20_000


def test_a_call(benchmark: Any, note: Callable[..., None]) -> None:
    taken: list[Item] = []
    watch = Watch(taken.append, DECISIONS)
    watched = watch.entry(watch.attempt("infer")(answer))
    bare = min(seconds_per_call(answer) for _ in range(5))

    def once() -> float:
        taken.clear()
        return seconds_per_call(watched)

    cost = benchmark.pedantic(lambda: min(once() for _ in range(5)), rounds=1)
    note("a call and its attempt, handed to the ledger", (cost - bare) * 1e6, "µs CPU", 20)


async def pass_through(watched: StageCall, first: int, count: int) -> None:
    """Calls with numbers of their own, through the layers of a ledger."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a"}]}
    for n in range(first, first + count):
        now = time.perf_counter()
        await watched(Call(id=f"req_{n:024x}", operation="chat", body=body, deadline=1e9, received=now))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[dict[str, Callable[[], Store]]]:
    """Databases to write to; PostgreSQL where its server is installed."""
    found: dict[str, Callable[[], Store]] = {"SQLite": lambda: Store(SQLite(tmp_path / "ledger.sqlite"))}
    if not available():
        yield found
        return
    process = PostgresProcess()
    try:
        yield found | {"PostgreSQL": lambda: Store(Postgres(process.url, "pipeline"))}
    finally:
        process.close()


def test_rows(benchmark: Any, note: Callable[..., None], stores: dict[str, Callable[[], Store]]) -> None:
    taken: list[Item] = []
    watch = Watch(taken.append, DECISIONS)
    watched = watch.entry(watch.attempt("infer")(answer))
    numbers = itertools.count(step=CALLS)

    def write(connect: Callable[[], Store]) -> tuple[float, float]:
        asyncio.run(pass_through(watched, next(numbers), CALLS))
        writer = Writer(connect, flush=0.01, bound=CALLS)
        for item in taken:
            writer.put(item)
        taken.clear()
        started, cpu = time.perf_counter(), time.process_time()
        writer.open()
        writer.close()
        assert writer.written == CALLS
        return (time.perf_counter() - started) / CALLS, (time.process_time() - cpu) / CALLS

    def best() -> dict[str, tuple[float, ...]]:
        runs = {name: [write(connect) for _ in range(3)] for name, connect in stores.items()}
        return {name: tuple(map(min, zip(*times, strict=True))) for name, times in runs.items()}

    for name, (seconds, cpu) in benchmark.pedantic(best, rounds=1).items():
        what = f"calls written to {name}, each with an attempt and its sums"
        beside = f"{cpu * 1e6:.0f} µs CPU of the process each, off the way"
        note(what, 1 / seconds, "/s", None, beside, more_is_better=True)


@long(5)
def test_memory_is_flat(benchmark: Any, note: Callable[..., None], tmp_path: Path) -> None:
    writer = Writer(lambda: Store(SQLite(tmp_path / "ledger.sqlite")), flush=0.05, bound=20_000)
    watch = Watch(writer.put, DECISIONS)
    watched = watch.entry(watch.attempt("infer")(answer))
    own = psutil.Process()

    async def go(first: int, count: int) -> None:
        for at in range(first, first + count, 1000):
            await pass_through(watched, at, 1000)
            while writer.waiting > 10_000:  # noqa: ASYNC110 — a thread's progress
                await asyncio.sleep(0.01)

    writer.open()
    asyncio.run(go(0, 50_000))
    before = own.memory_info().rss
    benchmark.pedantic(lambda: asyncio.run(go(50_000, 1_000_000)), rounds=1)
    grown = (own.memory_info().rss - before) / 2**20
    writer.close()
    assert writer.dropped == 0
    note("memory grown by a ledger over 1,000,000 calls", grown, "MiB", 5)


def test_request(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = in_front_of(upstream, "gpt-4o-mini")
    payload = load.request(load.CHAT)
    with tempfile.TemporaryDirectory() as folder:
        given.append(f"vars.state={folder}")
        kept = [*given, "ledger=sqlite"]
        with (
            pipeline_server(*given) as bare,
            pipeline_server(*kept) as lean,
            pipeline_server(*kept, "ledger.path=${vars.state}/full.sqlite", "ledger.bodies=full") as full,
        ):
            servers = (bare, lean, full)
            runs = [[cpu_per_request(server, payload) for server in servers] for _ in range(3)]
    without, cost, with_bodies = (min(figures) for figures in zip(*runs, strict=True))
    benchmark.pedantic(lambda: None, rounds=1)
    beside = f"without: {without:.0f} µs, with bodies: {with_bodies:.0f} µs"
    note("proxied chat completion with a ledger, its thread included", cost, "µs CPU", None, beside)
