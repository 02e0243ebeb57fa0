"""Figures of a page from a ledger's rows, in either database."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.dashboard import figures as made
from pipeline_plugins.dashboard.source import EXACT, RECENT, Source, SourceDown
from pipeline_plugins.dashboard.window import SPANS, Range, Window, pieces
from pipeline_plugins.ledger.database import Unavailable
from pipeline_plugins.ledger.store import Batch, Entry, Store

from pipeline.call import Step, Tenant
from pipeline.kinds import Cached, Exposed, Validated
from pipeline.price import Charge, Spent
from pipeline.stage import Edge
from pipeline.wire.usage import Usage
from tests.plugins.ledger.test_rollup import entry

MINUTE, DAY = 60, 86_400
EDGES = frozenset({("route", "infer"), ("validate", "judge")})
ALICE = Tenant(key="k1", owner="alice/team")
BOB = Tenant(key="k2", owner="bob")
USAGE = Usage(10, 5)


@pytest.fixture
def now() -> float:
    """The middle of a minute, and of an hour and a day."""
    return int(time.time()) // DAY * DAY + 12 * 3600 + 30 * MINUTE + 30.0


@pytest.fixture
def store(connect: Callable[[], Store], now: float) -> Iterator[Store]:
    with contextlib.closing(connect()) as store:
        store.database.execute("UPDATE meta SET value = ? WHERE name = 'folded'", (int(now) - 40 * DAY,))
        yield store


@pytest.fixture
def source(connect: Callable[[], Store], store: Store) -> Iterator[Source]:
    with contextlib.closing(Source(connect, flush=0.1)) as source:
        yield source


@pytest.fixture
def shown(source: Source, now: float, monkeypatch: pytest.MonkeyPatch) -> Callable[[Range], Any]:
    """A page's figures, as a browser reads them."""
    monkeypatch.setattr("time.time", lambda: now)
    return lambda asked: orjson.loads(orjson.dumps(made.figures(source, asked, EDGES)))


def lasted(number: int, at: float, seconds: float = 1.0, **changes: Any) -> Entry:
    """A call that took some seconds."""
    return entry(number, at, received=10.0, ended=10.0 + seconds, tenant=ALICE, usage=USAGE, **changes)


def costly(usd: float, saved: dict[str, float], *others: object) -> dict[type, Any]:
    spent = Spent([Charge("infer", "m", USAGE, usd)], saved)
    return {Spent: spent, **{type(one): one for one in others}}


def test_every_call_is_in_one_outcome_and_cached_ones_are_told_apart(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    entries = [
        lasted(1, now - 70),
        lasted(2, now - 10),
        lasted(3, now - 9, decisions={Cached: Cached("hit")}),
        lasted(4, now - 8, outcome="refused", status=400, error="validation_failed"),
        lasted(5, now - 7, outcome="failed", status=503, error="overloaded"),
        lasted(6, now - 6, outcome="cancelled", status=0),
    ]
    store.add(Batch(entries))
    page = shown("15m")
    parts = {name: page["totals"][name] for name in made.SPLIT}
    assert parts == {"completed": 2, "cached": 1, "refused": 1, "failed": 1, "cancelled": 1}
    assert page["totals"]["calls"] == 6
    assert page["series"]["completed"][-2:] == [1, 1]
    assert {row["error"]: row["calls"] for row in page["errors"]} == {
        "validation_failed": 1,
        "overloaded": 1,
        "0": 1,
    }


def test_latency_is_of_what_was_answered(store: Store, shown: Callable[[Range], Any], now: float) -> None:
    refused = [lasted(n, now - 20, 0.0, outcome="refused", status=429) for n in range(50)]
    store.add(Batch([*refused, *(lasted(100 + n, now - 20, 2.0) for n in range(3))]))
    page = shown("1h")
    assert page["totals"]["total_ms"]["p50"] == pytest.approx(2000, rel=made.ERROR)
    assert page["series"]["total_ms"]["p99"][-1] == pytest.approx(2000, rel=made.ERROR)
    assert page["series"]["total_ms"]["p50"][0] is None


@pytest.mark.parametrize("range", list(SPANS))
def test_a_range_has_the_calls_of_its_time_wherever_the_rollup_keeps_them(
    store: Store, shown: Callable[[Range], Any], now: float, range: Range
) -> None:
    window = Window.of(range, now)
    outside, inside = window.since - 1, (window.since, now - 200, now - 1)
    store.add(Batch([lasted(0, outside), *(lasted(1 + n, at) for n, at in enumerate(inside))]))
    while store.fold(now):
        pass
    page = shown(range)
    series = page["series"]
    assert page["totals"]["calls"] == sum(series["completed"]) == 3
    assert (series["completed"][0], series["completed"][-1]) == (
        1,
        sum(at >= window.steps[-1] for at in inside),
    )
    assert (
        len(series["time"]) == len(series["total_ms"]["p95"]) == (window.until - window.since) / window.step
    )
    assert page["before"]["calls"] == 0  # the last moment before, of which less than all is compared


def test_what_is_compared_with_is_as_long_and_one_range_earlier(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    store.add(Batch([lasted(1, now - 61 * MINUTE), lasted(2, now - 100 * MINUTE), lasted(3, now - 30)]))
    assert shown("1h")["before"]["calls"] == 2


def test_money_is_added_up_by_day_and_by_what_saved_it(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    days = [lasted(n, now - n * DAY, decisions=costly(2.0, {})) for n in range(1, 11)]
    today = lasted(50, now - 5, decisions=costly(1.5, {"cache": 0.25, "route": 0.5}))
    store.add(Batch([*days, today]))
    page = shown("24h")
    assert page["cost"]["today"] == 1.5
    totals = page["totals"]
    assert (totals["saved_cache_usd"], totals["saved_route_usd"]) == (0.25, 0.5)
    projected = page["cost"]["projected"]
    assert projected["low"] <= projected["usd"] <= projected["high"]
    assert shown("30d")["totals"]["usd"] == 21.5


def test_a_month_is_not_projected_from_a_day(store: Store, shown: Callable[[Range], Any], now: float) -> None:
    store.add(Batch([lasted(1, now - 5, decisions=costly(1.0, {}))]))
    assert shown("1h")["cost"]["projected"] is None


def test_keys_are_ranked_and_an_owner_may_have_a_slash(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    bobs = [entry(n, now - 5, tenant=BOB) for n in range(2)]
    store.add(Batch([*bobs, lasted(9, now - 5)]))
    keys = shown("15m")["keys"]
    assert [(row["owner"], row["key"], row["calls"]) for row in keys] == [
        ("bob", "k2", 2),
        ("alice/team", "k1", 1),
    ]


def test_ratings_and_failures_are_told_of_each_variant(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    for n, (variant, rating, outcome) in enumerate(
        [
            ("short", "up", "completed"),
            ("short", "2", "completed"),
            ("long", "5", "failed"),
            ("long", "", "failed"),
        ]
    ):
        store.add(
            Batch([lasted(n, now - 30, decisions={Exposed: Exposed({"prompts": variant})}, outcome=outcome)])
        )
        if rating:
            store.rate(f"req_{n}", rating, None, None)
    page = shown("15m")
    assert page["quality"]["ratings"]["distribution"] == {"2": 1, "5": 1, "up": 1}
    long, short = page["experiments"]
    assert (short["variant"], short["positive"], short["rated"], short["failed"]) == ("short", 1, 2, 0)
    assert (long["variant"], long["positive"], long["rated"], long["failed"]) == ("long", 1, 1, 2)
    low, high = short["positive_interval"]
    assert 0 < low < 0.5 < high < 1


def test_failed_checks_are_counted_by_name(store: Store, shown: Callable[[Range], Any], now: float) -> None:
    said = (
        "pii: messages[0].content has an address",
        "pii: messages[0].content has a name",
        "judge: scored 3",
    )
    failed = [Validated(False, said), Validated(False, ("judge: scored 2",)), Validated(True)]
    store.add(Batch([lasted(n, now - 9, decisions={Validated: one}) for n, one in enumerate(failed)]))
    assert shown("1h")["quality"]["checks"] == [{"check": "judge", "calls": 2}, {"check": "pii", "calls": 1}]


def test_scores_of_checks_are_told_passed_or_not(
    store: Store, shown: Callable[[Range], Any], now: float
) -> None:
    scores = [2, *[8] * 18, 9]
    given = [Validated(score > 5, scores={"judge": score}) for score in scores]
    store.add(Batch([lasted(n, now - 9, decisions={Validated: one}) for n, one in enumerate(given)]))
    (judge,) = shown("1h")["quality"]["scores"]
    assert (judge["check"], judge["calls"], judge["mean"]) == ("judge", 20, sum(scores) / 20)
    assert [judge["tenth"], judge["median"]] == pytest.approx([8, 8], rel=made.ERROR)


def test_stages_have_the_time_of_their_own(store: Store, shown: Callable[[Range], Any], now: float) -> None:
    store.add(Batch([lasted(n, now - 9) for n in range(4)]))
    stages = shown("1h")["graph"]["stages"]
    assert stages["infer"]["calls"] == 4
    assert sum(one["share"] for one in stages.values()) == pytest.approx(1)
    assert shown("1h")["graph"]["edges"] == [{"from": "route", "to": "infer", "calls": 4}]


def test_where_a_stage_has_several_callers_paths_tell_the_part_of_each(
    source: Source, store: Store, now: float
) -> None:
    async def unused(call: Any) -> Any: ...

    steps = []
    for caller in ("route", "route", "route", "validate"):
        step = Step(Edge(caller, "next", "infer", unused), 10.0)
        step.ended, step.outcome = 11.0, "ok"
        steps.append(step)
    store.add(Batch([lasted(n, now - 9, steps=steps) for n in range(2)]))
    edges = frozenset({("route", "infer"), ("validate", "infer")})
    graph = made._graph(source, Window.of("1h", now), edges)
    infer = graph["stages"]["infer"]["calls"]
    assert {edge["from"]: edge["calls"] / infer for edge in graph["edges"]} == {
        "route": 0.75,
        "validate": 0.25,
    }


def test_lists_of_calls(source: Source, store: Store, now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window.of("1h", now)
    slow = lasted(1, now - 300, 9.0)
    failed = lasted(2, now - 200, outcome="failed", status=503, error="overloaded")
    store.add(
        Batch([slow, failed, lasted(3, now - 100), lasted(4, now - 90, outcome="cancelled"), lasted(5, 0)])
    )

    def ids(listing: Any) -> list[str]:
        return [call["id"] for call in source.calls(window, listing, 2)[1]]

    assert (ids("slowest")[0], ids("failed"), ids("recent")) == ("req_1", ["req_2"], ["req_4", "req_3"])
    assert EXACT > 5
    monkeypatch.setattr("pipeline_plugins.dashboard.source.EXACT", 1)
    exact, calls = source.calls(window, "slowest", 2)
    assert (exact, calls[0]["id"]) == (False, "req_1")


def test_the_slowest_calls_that_are_left_are_listed_where_slower_ones_were_removed(
    source: Source, store: Store, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_plugins.dashboard.source.EXACT", 0)
    window = Window.of("1h", now)
    store.add(Batch([lasted(n, now - 120 * n - 60, 9.0 - n) for n in range(6)]))
    for slowest in ("req_0", "req_1"):
        store.database.execute("DELETE FROM calls WHERE id = ?", (slowest,))
    store.database.execute("UPDATE rollup SET slowest = NULL WHERE slowest IN ('req_0', 'req_2')")
    exact, calls = source.calls(window, "slowest", 2)
    assert (exact, [call["id"] for call in calls]) == (False, ["req_3", "req_4"])
    store.database.execute("UPDATE rollup SET slowest = NULL")
    assert source.calls(window, "slowest", 2) == (False, [])


def test_one_call_is_told_whole(source: Source, store: Store, now: float) -> None:
    store.add(Batch([lasted(1, now, decisions={Exposed: Exposed({"prompts": "short"})})]))
    store.rate("req_1", "4", "well said", "tone")
    call = source.call("req_1")
    assert call is not None
    assert orjson.dumps(call)
    assert (call["owner"], call["variants"], call["total_ms"]) == ("alice/team", {"prompts": "short"}, 1000)
    assert call["attempts"][0]["stage"] == "infer"
    assert (call["feedback"]["rating"], call["feedback"]["comment"]) == ("4", "well said")
    assert source.call("req_2") is None


def test_the_last_minute_is_counted_by_second_and_late_rows_too(
    source: Source, store: Store, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: now)
    store.add(Batch([lasted(1, now - 30), lasted(2, now - 2 * RECENT)]))
    before = source.revision()
    first, seconds = source.seconds()
    assert (first, seconds) == (int(now) - RECENT, [(int(now - 30), 1, 0, 5)])
    store.add(Batch([lasted(3, now - 1, outcome="failed", status=500)]))
    assert source.seconds()[1] == [(int(now - 30), 1, 0, 5), (int(now - 1), 1, 1, 5)]
    assert source.revision() > before


def test_an_empty_ledger_has_figures(shown: Callable[[Range], Any]) -> None:
    for range in SPANS:
        page = shown(range)
        assert page["totals"]["calls"] == 0
        assert page["totals"]["total_ms"]["p50"] is None


def test_a_ledger_that_is_away_is_asked_again(connect: Callable[[], Store], store: Store, now: float) -> None:
    away = [True]

    def perhaps() -> Store:
        if away[0]:
            raise Unavailable("nobody answers")
        return connect()

    with contextlib.closing(Source(perhaps, flush=0.1)) as source:
        with pytest.raises(SourceDown, match="nobody answers"):
            source.revision()
        away[0] = False
        assert source.revision() == 0


@given(
    st.integers(0, 10**5), st.integers(0, 10**5), st.sampled_from([60, 600, 3600, DAY]), st.integers(0, 10**5)
)
def test_pieces_are_whole_spans_that_cover_every_minute_once(
    first: int, minutes: int, largest: int, folded: int
) -> None:
    since, until = first * MINUTE, (first + minutes) * MINUTE
    reached = since
    for size, start, end in pieces(since, until, largest, folded * MINUTE):
        assert start == reached < end
        assert start % size == end % size == 0
        assert size <= largest
        assert size == MINUTE or end <= folded * MINUTE
        reached = end
    assert reached == until or minutes == 0
