"""Rows on their way into either database: bounds, a database that fails, and what grows old."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.ledger import writer as writing
from pipeline_plugins.ledger.database import Unusable
from pipeline_plugins.ledger.report import report, wilson
from pipeline_plugins.ledger.rows import DECISIONS, answer_id, finish_reason, of_call
from pipeline_plugins.ledger.sqlite_database import SQLite
from pipeline_plugins.ledger.store import Filter, Store
from pipeline_plugins.ledger.watch import Ended, Item, Watch
from pipeline_plugins.ledger.writer import Writer

from pipeline import Call, Reply, Usage

Connect = Callable[[], Store]


def ended(id: str = "req_1", taken: list[Item] | None = None) -> Ended:
    """What a call leaves that goes through the layers of a ledger."""
    found: list[Item] = [] if taken is None else taken
    watch = Watch(found.append, DECISIONS)

    async def answer(call: Call) -> Reply:
        return Reply(body=b'{"id": "chatcmpl-1", "choices": []}', usage=Usage(1, 2), model="m")

    async def go() -> None:
        now = time.perf_counter()
        call = Call(id=id, operation="chat", body={"messages": []}, deadline=1e12, received=now)
        await watch.entry(watch.attempt("infer")(answer))(call)

    asyncio.run(go())
    assert isinstance(found[0], Ended)
    return found[0]


def ids(connect: Connect) -> list[str]:
    """The calls that are written, by time."""
    with contextlib.closing(connect()) as store:
        return [call["id"] for call in store.calls(Filter())]


def wait(until: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_full_queue_drops_and_counts(connect: Connect) -> None:
    writer = Writer(connect, flush=60, bound=3)
    for n in range(5):
        writer.put(ended(f"req_{n}"))
    assert (writer.waiting, writer.dropped) == (3, 2)


def test_calls_wait_while_another_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_plugins.ledger.sqlite_database.BUSY", 0.05)
    path = tmp_path / "ledger.sqlite"
    writer = Writer(lambda: Store(SQLite(path)), flush=0.01, bound=10)
    writer.open()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        writer.put(ended())
        wait(lambda: writer.down)
        assert (writer.waiting, writer.dropped) == (1, 0)
        holder.execute("ROLLBACK")
    wait(lambda: not writer.down)
    writer.close()
    assert ids(lambda: Store(SQLite(path))) == ["req_1"]


def test_a_call_that_the_database_refuses_keeps_no_other_out(connect: Connect) -> None:
    writer = Writer(connect, flush=0.01, bound=10)
    for id in ("req_1", "req_2", "req_2", "req_3"):
        writer.put(ended(id))
    writer.open()
    writer.close()
    assert ids(connect) == ["req_1", "req_2", "req_3"]
    assert (writer.written, writer.dropped, writer.waiting) == (3, 1, 0)


def test_a_table_that_is_missing_ends_the_writing_once(connect: Connect) -> None:
    writer = Writer(connect, flush=0.01, bound=10)
    writer.open()
    with contextlib.closing(connect()) as store:
        store.database.execute("DROP TABLE attempts")
    writer.put(ended("req_1"))
    wait(lambda: writer.dropped == 1)
    writer.put(ended("req_2"))
    assert (writer.dropped, writer.waiting, writer.down) == (2, 0, True)
    writer.close()


def test_a_full_disk_is_waited_for_and_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SLOWEST", 0.05)
    monkeypatch.setattr(writing, "log", structlog.get_logger())
    room = 24

    def connect() -> Store:
        store = Store(SQLite(tmp_path / "ledger.sqlite"))
        store.database.execute(f"PRAGMA max_page_count = {room}")
        return store

    writer = Writer(connect, flush=0.01, bound=1000)
    with structlog.testing.capture_logs() as lines:
        writer.open()
        for n in range(300):
            writer.put(ended(f"req_{n:03}"))
        wait(lambda: writer.down)
        room = 1_000_000
        wait(lambda: not writer.waiting and not writer.down)
    writer.close()
    assert len(ids(connect)) == 300
    assert [line["event"] for line in lines if "full" in line.get("error", "")] == [
        "the ledger can't be written, calls wait"
    ]


def test_calls_that_are_too_old_are_removed(connect: Connect) -> None:
    old = ended("req_old")
    old.time -= 3 * 86_400
    first = Writer(connect, flush=0.01, bound=10)
    first.open()
    first.put(old)
    first.put(ended("req_new"))
    first.close()
    assert ids(connect) == ["req_old", "req_new"]
    second = Writer(connect, flush=0.01, bound=10, days=2)
    second.open()
    wait(lambda: ids(connect) == ["req_new"])
    second.close()


def test_a_call_is_found_by_either_id_within_its_owner(connect: Connect) -> None:
    writer = Writer(connect, flush=0.01, bound=10)
    writer.open()
    writer.put(ended())
    writer.close()
    with contextlib.closing(connect()) as store:
        assert store.find("chatcmpl-1", "anonymous") == store.find("req_1", None) == "req_1"
        assert store.find("chatcmpl-1", "somebody-else") is None


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


def test_a_key_in_place_of_a_models_name_is_masked() -> None:
    one = ended()
    one.model = "sk-0123456789abcdef0123"
    assert of_call(one, "")["model"] == "sk-***"


def test_two_ledgers_each_have_all_attempts_once() -> None:
    taken: tuple[list[Item], list[Item]] = ([], [])
    outer, inner = (Watch(items.append, DECISIONS) for items in taken)

    async def answer(call: Call) -> Reply:
        return Reply(body=b"{}")

    async def go() -> None:
        call = Call(id="req_1", operation="chat", body={"messages": []}, deadline=1e12, received=0)
        attempt = outer.attempt("infer")(inner.attempt("infer")(answer))
        await outer.entry(inner.entry(attempt))(call)

    asyncio.run(go())
    assert [len(items[0].attempts.attempts) for items in taken] == [1, 1]  # type: ignore[union-attr]


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


@pytest.mark.parametrize(
    ("head", "tail", "reason"),
    [
        (b"", b'"message":{"content":"\\"finish_reason\\":\\"no\\""},"finish_reason":"length"}]}', "length"),
        (b'{"choices":[{"finish_reason":"stop","message":', b"", "stop"),
        (b"", b'"finish_reason":null}]}', None),
    ],
)
def test_a_finish_reason_is_found_at_either_end(head: bytes, tail: bytes, reason: str | None) -> None:
    assert finish_reason(head, tail) == reason


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_its_share(counts: tuple[int, int]) -> None:
    positive, count = counts
    low, high = wilson(positive, count)
    assert 0 <= low <= positive / count + 1e-12
    assert positive / count - 1e-12 <= high <= 1


def test_the_interval_is_the_textbooks() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998's method 3


def test_a_rating_counts_for_each_tag_and_variant() -> None:
    rated = [
        ("5", "m", '{"team":"a","site":"b"}', '{"exp":"x"}', "tone"),
        ("up", "m", "{}", '{"exp":"y"}', None),
    ]
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
    assert [row["label"] for row in report(rated, ("label",))["rows"]] == ["", "tone"]


def test_a_file_that_is_no_ledger_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(Unusable, match=r"ledger.sqlite.*not a database"):
        SQLite(path)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=rf"`{tmp_path}` can't be opened"):
        SQLite(tmp_path)


def test_rows_are_written_though_the_sums_can_not_be_tidied(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(self: Store, now: float) -> bool:
        raise ValueError("no histogram")

    monkeypatch.setattr(Store, "fold", damaged)
    writer = Writer(connect, flush=0.01, bound=10)
    writer.open()
    for n in range(2):
        writer.put(ended(f"req_{n}"))
        wait(lambda n=n: writer.written > n)  # type: ignore[misc]
    writer.close()
    assert len(ids(connect)) == 2


def test_a_ledger_of_a_newer_release_is_left_alone(connect: Connect) -> None:
    with contextlib.closing(connect()) as store:
        if isinstance(store.database, SQLite):
            store.database.execute("PRAGMA user_version = 99")
        else:
            store.database.execute("UPDATE meta SET value = 99 WHERE name = 'version'")
    with pytest.raises(Unusable, match="newer release"):
        connect()


def test_columns_that_an_older_release_did_not_have_are_added(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(SQLite(path)) as database:
        database.execute("ALTER TABLE calls DROP COLUMN finish")
        database.execute("ALTER TABLE rollup DROP COLUMN score")
        database.execute("PRAGMA user_version = 1")
    writer = Writer(lambda: Store(SQLite(path)), flush=0.01, bound=10)
    writer.put(ended())
    writer.open()
    writer.close()
    assert ids(lambda: Store(SQLite(path))) == ["req_1"]
