"""Sums beside the rows: the same as the rows' own, in every span."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.histogram import Histogram
from pipeline_plugins.ledger import rollup, rows, sqlite_database
from pipeline_plugins.ledger.database import Unavailable
from pipeline_plugins.ledger.schema import ATTEMPTS, CALLS, COUNTS, HISTOGRAMS, ROLLUP
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Batch, Entry, Filter, Store

from pipeline.call import ANONYMOUS, Step
from pipeline.kinds import Cached, Exposed, Limited, Routed, Validated
from pipeline.price import Charge, Spent
from pipeline.stage import Edge
from pipeline.wire.usage import Usage
from tests.plugins.ledger.test_writer import ended

HOUR = 3600


def entry(number: int, time: float, **changes: Any) -> Entry:
    """A call that ended at a time, as it is written."""
    row = replace(ended(f"req_{number}"), time=time, **changes)
    return Entry(rows.of_call(row, "c"), rows.of_attempts(row.attempts))


def folded_at(store: Store, minute: int) -> None:
    store.database.execute("UPDATE meta SET value = ? WHERE name = 'folded'", (minute,))


def total(store: Store, size: int) -> dict[str, Any]:
    """All models' sums of all spans of a size."""
    found = store.spans("model", size, 0, 1 << 40)
    sums: dict[str, Any] = {name: round(sum(row[name] for row in found), 6) for name in COUNTS}
    sums |= {name: Histogram.from_bytes(*(row[name] for row in found)).buckets for name in HISTOGRAMS}
    return sums


def test_rows_have_the_columns_in_their_order() -> None:
    made = entry(1, 0)
    assert list(made.row) == list(CALLS)
    assert len(made.attempts[0]) == len(ATTEMPTS)
    (sums,) = (s for k, s in rollup.summed([(made.row, made.attempts)]).items() if k[0] == "model")
    assert len(sums.values(("model", 0, "m"), 60)) == len(ROLLUP)


def test_every_span_has_the_same_sums_however_late_a_call_is_written(connect: Callable[[], Store]) -> None:
    start = 100 * HOUR
    with contextlib.closing(connect()) as store:
        folded_at(store, start)
        for n in range(6):
            store.add(Batch([entry(n, start + n * 700), entry(100 + n, start + n * 700 + 1)]))
        while store.fold(start + 2 * HOUR):
            pass
        store.add(Batch([entry(50, start + 10), entry(51, start + 2 * HOUR)]))
        while store.fold(start + 3 * HOUR):
            pass
        minutes = total(store, 60)
        assert minutes["calls"] == 14
        assert [total(store, size) for size in rollup.LARGER] == [minutes] * 3
        hours = [row["start"] for row in store.spans("model", HOUR, 0, 1 << 40)]
        assert hours == [start, start + 2 * HOUR]


def test_a_batch_that_fails_leaves_no_sums(connect: Callable[[], Store]) -> None:
    with contextlib.closing(connect()) as store:
        with pytest.raises(Exception, match=r"(?i)unique"):
            store.add(Batch([entry(1, 60), entry(1, 60)]))
        assert store.spans("model", 60, 0, 1 << 40) == []


def test_a_call_counts_by_each_kind(connect: Callable[[], Store]) -> None:
    spent = Spent([Charge("infer", "m", Usage(5, 7), 0.5)], {"cache": 0.25})
    decisions = {
        Spent: spent,
        Cached: Cached("hit"),
        Routed: Routed("large"),
        Limited: Limited(False, "rpm"),
        Exposed: Exposed({"prompts": "short"}),
    }
    failed = entry(1, 60, decisions=decisions, outcome="refused", status=429, error="rate_limited")
    with contextlib.closing(connect()) as store:
        store.add(Batch([failed]))
        found = {kind: store.spans(kind, 60, 0, 100) for kind in rollup.KINDS}
    names = {kind: [row["name"] for row in rows] for kind, rows in found.items()}
    assert names == {
        "model": ["m"],
        "target": ["large"],
        "stage": ["infer"],
        "variant": ["prompts=short"],
        "error": ["rate_limited"],
        "owner": ["anonymous"],
        "key": ["anonymous/anonymous"],
        "score": [],
    }
    (model,) = found["model"]
    assert {name: model[name] for name in ("calls", "refused", "limited", "hits", "usd", "slowest")} == {
        "calls": 1,
        "refused": 1,
        "limited": 1,
        "hits": 1,
        "usd": 0.5,
        "slowest": "req_1",
    }
    assert model["saved_cache_usd"] == 0.25


def test_what_is_forgotten_of_an_owner_leaves_the_sums_by_model(connect: Callable[[], Store]) -> None:
    other = replace(ANONYMOUS, owner="bob%", key="k")
    with contextlib.closing(connect()) as store:
        store.add(Batch([entry(1, 60), entry(2, 60, tenant=other)]))
        assert store.forget("bob%") == 1
        assert [row["calls"] for row in store.spans("model", 60, 0, 100)] == [2]
        assert [row["name"] for row in store.spans("owner", 60, 0, 100)] == ["anonymous"]
        assert [row["name"] for row in store.spans("key", 60, 0, 100)] == ["anonymous/anonymous"]
        assert store.spans("model", 60, 0, 100)[0]["slowest"] in ("req_1", None)


def test_an_owner_is_not_forgotten_with_one_whose_name_its_own_begins_with(
    connect: Callable[[], Store],
) -> None:
    owners = ("acme", "acme/billing")
    with contextlib.closing(connect()) as store:
        store.add(
            Batch(
                [entry(n, 60, tenant=replace(ANONYMOUS, owner=one, key="k")) for n, one in enumerate(owners)]
            )
        )
        assert store.forget("acme") == 1
        assert [row["name"] for row in store.spans("key", 60, 0, 100)] == ["acme/billing/k"]


def test_what_a_reader_keeps_from_being_overwritten_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "BUSY", 0.05)
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(Store(SQLite(path))) as store, contextlib.closing(SQLite(path)) as reader:
        store.add(Batch([entry(1, 60)]))
        with reader.transaction():
            reader.execute("SELECT * FROM calls")
            with pytest.raises(Unavailable, match="try again"):
                store.database.wipe()
        assert store.forget("anonymous") == 1
    assert b"req_1" not in path.read_bytes()


def test_scores_of_checks_are_kept_with_the_call_and_summed(connect: Callable[[], Store]) -> None:
    scores = ({"judge": 8, "grounds": 0.9}, {"judge": 3}, {})
    rows = [
        entry(n, 60, decisions={Validated: Validated(n != 1, scores=one)}) for n, one in enumerate(scores)
    ]
    with contextlib.closing(connect()) as store:
        store.add(Batch(rows))
        assert [json.loads(row["scores"] or "{}") for row in store.calls(Filter())] == list(scores)
        grounds, judge = store.spans("score", 60, 0, 100)
    assert (judge["name"], judge["calls"], judge["score"]) == ("judge", 2, 11)
    assert Histogram.from_bytes(judge["total"]).quantile(1) == pytest.approx(8, rel=0.01)
    assert (grounds["name"], grounds["calls"], grounds["score"]) == ("grounds", 1, pytest.approx(0.9))


def test_small_spans_are_pruned_with_age(connect: Callable[[], Store]) -> None:
    with contextlib.closing(connect()) as store:
        folded_at(store, 0)
        store.add(Batch([entry(1, 60)]))
        store.fold(10 * HOUR)
        store.prune(500 * 86_400)
        assert [len(store.spans("model", size, 0, 1 << 40)) for size in (60, *rollup.LARGER)] == [0, 0, 0, 1]


spans = st.lists(st.tuples(st.floats(0.5, 10), st.floats(0.5, 10)).map(sorted), max_size=6)


@given(spans)
def test_the_own_time_of_a_stage_is_what_no_other_had(inner: list[list[float]]) -> None:
    async def unused(call: Any) -> Any: ...

    outer = Step(Edge("", "entry", "a", unused), 0.0)
    outer.ended, outer.outcome = 10.0, "ok"
    steps = [outer]
    for started, stopped in sorted(inner):
        step = Step(Edge("a", "next", "b", unused), started)
        step.ended, step.outcome = stopped, "ok"
        steps.append(step)
    row = replace(ended(), steps=steps, received=0.0, ended=10.0)
    grid = [n / 64 + 1e-9 for n in range(640)]
    covered = sum(any(s <= at < e for s, e in inner) for at in grid) / 64
    own = rows.path(row)[0]["own_ms"]
    assert 0 <= own <= 10_000
    assert abs(own - (10 - covered) * 1000) <= 1000 * (len(inner) + 1) / 32


def test_latency_is_of_completed_calls_alone(connect: Callable[[], Store]) -> None:
    refused = entry(1, 60, outcome="refused", status=429, first=0.0)
    with contextlib.closing(connect()) as store:
        store.add(Batch([refused, entry(2, 60)]))
        (model,) = store.spans("model", 60, 0, 100)
    assert model["calls"] == 2
    assert Histogram.from_bytes(model["total"]).count == 1
    assert not model["first"]
