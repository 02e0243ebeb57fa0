"""What a ledger costs: a call's CPU on the way, and a row's off it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_plugins.ledger.rows import DECISIONS
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Store
from pipeline_plugins.ledger.watch import Item, Watch
from pipeline_plugins.ledger.writer import Writer

from benchmarks import load
from benchmarks.processes import Process, pipeline_server
from benchmarks.test_cost import answer, seconds_per_call
from benchmarks.test_overhead import cpu_per_request
from pipeline import Call

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


def test_rows(benchmark: Any, note: Callable[..., None]) -> None:
    taken: list[Item] = []
    watch = Watch(taken.append, DECISIONS)
    watched = watch.entry(watch.attempt("infer")(answer))
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a"}]}

    async def go() -> None:
        for n in range(CALLS):
            await watched(Call(id=f"req_{n:024x}", operation="chat", body=body, deadline=1e9, received=0))

    def write() -> float:
        asyncio.run(go())
        with tempfile.TemporaryDirectory() as folder:
            writer = Writer(lambda: Store(SQLite(Path(folder, "ledger.sqlite"))), flush=0.01, bound=CALLS)
            for item in taken:
                writer.put(item)
            started = time.perf_counter()
            writer.open()
            writer.close()
            seconds = time.perf_counter() - started
        taken.clear()
        return CALLS / seconds

    rows = benchmark.pedantic(lambda: max(write() for _ in range(3)), rounds=1)
    note("calls written to SQLite, each with an attempt", rows, "/s", more_is_better=True)


def test_request(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = [
        "infer=openai",
        f"infer.base_url={upstream.url}/v1",
        "infer.model=gpt-4o-mini",
        "infer@embed=none",
    ]
    payload = load.request(load.CHAT)
    with tempfile.TemporaryDirectory() as folder:
        given.append(f"vars.state={folder}")
        with pipeline_server(*given) as bare, pipeline_server(*given, "ledger=sqlite") as kept:
            pairs = [(cpu_per_request(bare, payload), cpu_per_request(kept, payload)) for _ in range(3)]
    without = min(pair[0] for pair in pairs)
    cost = benchmark.pedantic(lambda: min(pair[1] for pair in pairs), rounds=1)
    note("proxied chat completion with a ledger", cost, "µs CPU", None, f"without: {without:.0f} µs")
