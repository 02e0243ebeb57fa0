"""How long the dashboard's questions take to a ledger of a million calls, or ten with BENCH_LONG=1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.dashboard.figures import figures
from pipeline_plugins.dashboard.source import Source
from pipeline_plugins.dashboard.window import SPANS, Listing, Window
from pipeline_plugins.experiment.standing import STRETCH
from pipeline_plugins.experiment.status import Experiments
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Filter, Store

from benchmarks.ledger_rows import fill
from benchmarks.long import long

MILLIONS = (1, pytest.param(10, marks=long(15)))

EDGES = frozenset({("route", "small"), ("route", "large"), ("validate", "route"), ("judge", "large")})

LISTINGS: tuple[Listing, ...] = ("slowest", "failed", "recent")


@pytest.fixture(scope="module", params=MILLIONS)
def millions(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Path]]:
    """How many millions of calls there are, and the file that has them."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    fill(path, request.param * 1_000_000)
    yield request.param, path
    path.unlink()


def milliseconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """The least of five times."""
    times = []
    for _ in range(5):
        started = clock()
        work()
        times.append(clock() - started)
    return min(times) * 1000


def test_questions(benchmark: Any, note: Callable[..., None], millions: tuple[int, Path]) -> None:
    count, path = millions
    with closing(Source(lambda: Store(SQLite(path)), flush=0.25)) as source:
        pages = {range: partial(figures, source, range, EDGES) for range in SPANS}

        def ask() -> dict[str, float]:
            return {range: milliseconds(page) for range, page in pages.items()}

        found = benchmark.pedantic(ask, rounds=1)
        cpu = {range: milliseconds(page, time.process_time) for range, page in pages.items()}
        each = "CPU: " + ", ".join(f"{range} {taken:.0f}" for range, taken in cpu.items())
        what = f"all figures of a page, {count}M calls, the slowest range"
        note(what, max(found.values()), "ms", 100, each)
        window = Window.of("30d", time.time())
        for listing in LISTINGS:
            taken = milliseconds(partial(source.calls, window, listing, 12))
            note(f"{listing} calls of 30 days, {count}M calls", taken, "ms", 100)
        taken = milliseconds(partial(source.call, f"req_{7:024x}"))
        note(f"one call, {count}M calls", taken, "ms", 100)


def test_an_experiment(benchmark: Any, note: Callable[..., None], millions: tuple[int, Path]) -> None:
    """What a dashboard reads of an experiment of all calls: each once, in turns, off the event loop."""
    count, path = millions
    found = Experiments()
    with closing(Store(SQLite(path))) as store:
        last = store.newest(time.time())

        def read() -> tuple[float, float]:
            started, cpu = time.perf_counter(), time.process_time()
            for low in range(0, last, STRETCH):
                found.read(store, Filter(rows=(low, low + STRETCH)))
            return time.perf_counter() - started, time.process_time() - cpu

        seconds, cpu = benchmark.pedantic(read, rounds=1)
        beside = f"CPU: {cpu / last * 1e6:.1f} µs; all of them {seconds:.0f} s"
        note(
            f"a call that an experiment reads, once, {count}M calls", seconds / last * 1e6, "µs", None, beside
        )
        rated = milliseconds(lambda: found.rate(store, Filter(rows=(0, last))))
    note(f"all ratings of an experiment, {count}M calls, 2 % rated", rated, "ms")
