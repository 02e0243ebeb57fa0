"""What prices, accounts and budgets cost: a call's CPU, a request's, and the journal's way into SQLite."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_plugins.price import journal
from pipeline_plugins.price.accounts import Accounts
from pipeline_plugins.price.charging import Charging
from pipeline_plugins.price.sqlite_store import SqliteStore
from pipeline_plugins.price.table import PriceTable

from benchmarks import load
from benchmarks.processes import Process, in_front_of, pipeline_server
from benchmarks.test_overhead import cpu_per_request
from pipeline import Call, Reply, Usage
from pipeline.stage import StageCall

BODY: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "a"}]}

LINES = 50_000


async def answer(call: Call) -> Reply:
    """A whole reply with usage."""
    return Reply(body=b"{}", usage=Usage(20, 20), model="gpt-4o-mini")


def seconds_per_call(stage: StageCall, calls: int = 20_000) -> float:
    """CPU seconds of making one call and having it answered."""

    async def go() -> float:
        started = time.process_time()
        for _ in range(calls):
            await stage(Call(id="", operation="chat", body=BODY, deadline=1e9, received=0))
        return (time.process_time() - started) / calls

    return asyncio.run(go())


def test_a_call(benchmark: Any, note: Callable[..., None]) -> None:
    charging = Charging(PriceTable({}), refuse=False)
    priced = charging.layer("infer")(answer)
    bare = min(seconds_per_call(answer) for _ in range(5))
    charged = benchmark.pedantic(lambda: min(seconds_per_call(priced) for _ in range(5)), rounds=1)
    note("a call's price, looked up and worked out", (charged - bare) * 1e6, "µs CPU", 5)
    with tempfile.TemporaryDirectory() as folder:
        accounts = Accounts(
            SqliteStore(Path(folder, "spend.sqlite"), durable=True),
            Path(folder, "lines"),
            sync="interval",
            zone="UTC",
        )
        accounts._journal.open()
        whole = accounts.layer(priced)
        written = min(seconds_per_call(whole) for _ in range(5))
        line = journal.line(("2026-11-25", "k", "o", "{}"), [], [["m", *range(8)]])
        started = time.process_time()
        for _ in range(20_000):
            accounts._journal.append(line)
        floor = (time.process_time() - started) / 20_000
        accounts._journal.close()
    beside = f"the write alone: {floor * 1e6:.1f} µs"
    note("a call's line in the journal, header included", (written - charged) * 1e6, "µs CPU", 20, beside)


def test_folding(benchmark: Any, note: Callable[..., None]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "lines")
        folder.mkdir()
        lines = [
            journal.line(("2026-11-25", f"k{n % 100}", "o", "{}"), [], [["m", *range(8)]])
            for n in range(LINES)
        ]
        (folder / "x.jsonl").write_bytes(b"".join(lines))

        async def fold() -> float:
            accounts = Accounts(
                SqliteStore(Path(name, "spend.sqlite"), durable=True), folder, sync="interval", zone="UTC"
            )
            started = time.process_time()
            await accounts.open(write=False)
            spent = time.process_time() - started
            await accounts.close()
            return spent

        seconds = benchmark.pedantic(lambda: asyncio.run(fold()), rounds=1)
    note("a journal's line added to SQLite, off the way", seconds / LINES * 1e6, "µs CPU")


def test_request(benchmark: Any, note: Callable[..., None], upstream: Process) -> None:
    given = in_front_of(upstream, "gpt-4o-mini")
    payload = load.request(load.CHAT)
    with tempfile.TemporaryDirectory() as folder:
        given.append(f"vars.state={folder}")
        with pipeline_server(*given, "price=none") as bare, pipeline_server(*given) as priced:
            pairs = [(cpu_per_request(bare, payload), cpu_per_request(priced, payload)) for _ in range(3)]
        with pipeline_server(*given, "limit=budget", "limit.usd_per_day=1000000") as held:
            budget = min(cpu_per_request(held, payload) for _ in range(3))
    without = min(pair[0] for pair in pairs)
    cost = benchmark.pedantic(lambda: min(pair[1] for pair in pairs), rounds=1)
    note(
        "proxied chat completion, priced and written down", cost, "µs CPU", 220, f"without: {without:.0f} µs"
    )
    note("the same, held to a budget", budget, "µs CPU", 220)
