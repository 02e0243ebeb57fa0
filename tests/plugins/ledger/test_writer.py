"""Rows on their way into the file: bounds, a store that fails, and what grows old."""

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.ledger.report import report, wilson
from pipeline_plugins.ledger.rows import DECISIONS, answer_id
from pipeline_plugins.ledger.store import Filter, Store
from pipeline_plugins.ledger.watch import Ended, Item, Watch
from pipeline_plugins.ledger.writer import Writer

from pipeline import Call, Reply, Usage


def ended(id: str = "req_1", taken: list[Item] | None = None) -> Ended:
    """What a call leaves that goes through the layers of a ledger."""
    found: list[Item] = [] if taken is None else taken
    watch = Watch(found.append, DECISIONS)

    async def answer(call: Call) -> Reply:
        return Reply(body=b'{"id": "chatcmpl-1", "choices": []}', usage=Usage(1, 2), model="m")

    async def go() -> None:
        call = Call(id=id, operation="chat", body={"messages": []}, deadline=1e12, received=0)
        await watch.entry(watch.attempt("infer")(answer))(call)

    asyncio.run(go())
    assert isinstance(found[0], Ended)
    return found[0]


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        (found,) = db.execute("SELECT count(*) FROM calls").fetchone()
        return int(found)


def wait(until: object) -> None:
    end = time.monotonic() + 20
    while not until():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_drops_and_counts() -> None:
    writer = Writer(flush=60, bound=3, days=None)
    for n in range(5):
        writer.put(ended(f"req_{n}"))
    assert (writer.waiting, writer.dropped) == (3, 2)


def test_calls_wait_while_another_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_plugins.ledger.store.BUSY", 0.05)
    path = tmp_path / "ledger.sqlite"
    writer = Writer(flush=0.01, bound=10, days=None)
    writer.open(Store(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        writer.put(ended())
        wait(lambda: writer.failing)
        assert (writer.waiting, writer.dropped) == (1, 0)
        holder.execute("ROLLBACK")
    wait(lambda: not writer.failing)
    writer.close()
    assert count(path) == 1


def test_calls_that_are_too_old_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    old = ended("req_old")
    old.time -= 3 * 86_400
    first = Writer(flush=0.01, bound=10, days=None)
    first.open(Store(path))
    first.put(old)
    first.put(ended("req_new"))
    first.close()
    assert count(path) == 2
    second = Writer(flush=0.01, bound=10, days=2)
    second.open(Store(path))
    wait(lambda: count(path) == 1)
    second.close()
    store = Store(path)
    assert [call["id"] for call in store.calls(Filter())] == ["req_new"]
    store.close()


def test_a_call_is_found_by_either_id_within_its_owner(tmp_path: Path) -> None:
    writer = Writer(flush=0.01, bound=10, days=None)
    writer.open(Store(tmp_path / "ledger.sqlite"))
    writer.put(ended())
    writer.close()
    store = Store(tmp_path / "ledger.sqlite")
    assert store.find("chatcmpl-1", "anonymous") == store.find("req_1", None) == "req_1"
    assert store.find("chatcmpl-1", "somebody-else") is None
    store.close()


def test_an_attempt_that_outlasts_its_call_is_handed_on_when_it_ends() -> None:
    taken: list[Item] = []
    watch = Watch(taken.append, DECISIONS)
    left: list[asyncio.Task[Reply]] = []

    async def slow(call: Call) -> Reply:
        await asyncio.sleep(0.01)
        return Reply(body=b"{}")

    async def races(call: Call) -> Reply:
        left.append(asyncio.create_task(watch.attempt("infer")(slow)(call)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return Reply(body=b"{}")

    async def go() -> None:
        call = Call(id="req_1", operation="chat", body={"messages": []}, deadline=1e12, received=0)
        await watch.entry(races)(call)
        assert isinstance(taken[0], Ended)
        assert taken[0].attempts.attempts[0].outcome == "running"
        await left[0]

    asyncio.run(go())
    assert len(taken) == 2
    assert taken[1].attempts[0].outcome == "completed"  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("head", "id"),
    [
        (b'{"id":"chatcmpl-1","choices":[]}', "chatcmpl-1"),
        (b'data: {"id": "chatcmpl-2", "object": "x", "choices"', "chatcmpl-2"),
        (b'{"choices":[{"message":{"tool_calls":[{"id":"call_1"', None),
        (b"", None),
    ],
)
def test_an_answers_id_is_found_before_its_choices(head: bytes, id: str | None) -> None:
    assert answer_id(head) == id


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_its_share(counts: tuple[int, int]) -> None:
    positive, count = counts
    low, high = wilson(positive, count)
    assert 0 <= low <= positive / count + 1e-12
    assert positive / count - 1e-12 <= high <= 1


def test_the_interval_is_the_textbooks() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998's method 3


def test_a_rating_counts_for_each_tag_and_variant() -> None:
    rated = [("5", "m", '{"team":"a","site":"b"}', '{"exp":"x"}'), ("up", "m", "{}", '{"exp":"y"}')]
    found = report(rated, ("tag",))
    assert [(row["tag"], row["ratings"]) for row in found["rows"]] == [("", 1), ("site=b", 1), ("team=a", 1)]
    assert found["total"] == {
        "ratings": 2,
        "average": 5,
        "distribution": {"5": 1, "up": 1},
        "positive": 1,
        "low": pytest.approx(0.3424, abs=1e-4),
        "high": 1,
    }
    assert [row["variant"] for row in report(rated, ("variant",))["rows"]] == ["exp=x", "exp=y"]
