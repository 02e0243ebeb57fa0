"""What every store must do, and what disk and Redis must survive."""

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_plugins.cache import disk, memory
from pipeline_plugins.cache import redis as redis_store
from pipeline_plugins.cache.disk import DiskStore
from pipeline_plugins.cache.memory import MemoryStore
from pipeline_plugins.cache.redis import RedisStore
from pipeline_plugins.cache.store import Entry, Key, Store, StoreDown, pack, unpack

from pipeline import Usage
from tests.redis_process import RedisProcess

LABELS = ("all", "owner:ana", "model:m", "tag:a\nb")


def key(number: int, scope: bytes = b"s" * 16) -> Key:
    return Key(number.to_bytes(32, "big"), scope, LABELS[:3])


def entry(content: bytes = b"{}", ttl: float = 60, **changes: Any) -> Entry:
    now = time.time()
    known = Entry("json", content, now, now + ttl, "m", Usage(1, 2, 1), 0.25, LABELS, ("",) * len(LABELS))
    return replace(known, **changes)


def test_what_is_put_is_got_whole(with_store: Any) -> None:
    async def scenario(store: Store) -> None:
        kept = entry(os.urandom(2000), form="sse+usage", status=404)
        await store.put(key(1), kept)
        assert await store.get(key(1)) == kept
        assert await store.get(key(2)) is None
        await store.put(key(1), replace(kept, content=b"new"))
        assert (await store.get(key(1))).content == b"new"  # type: ignore[union-attr]
        await store.delete(key(1))
        assert await store.get(key(1)) is None

    with_store(scenario)


def test_another_scope_is_never_given_an_entry(with_store: Any) -> None:
    async def scenario(store: Store) -> None:
        await store.put(key(1), entry())
        assert await store.get(key(1, b"t" * 16)) is None

    with_store(scenario)


def test_an_entry_ends_with_its_time(with_store: Any) -> None:
    async def scenario(store: Store) -> None:
        await store.put(key(1), entry(ttl=0.1))
        await store.put(key(2), entry(ttl=-1))
        await store.put(key(3), entry(ttl=600))
        assert await store.get(key(2)) is None
        async with asyncio.timeout(20):
            while await store.get(key(1)) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await store.get(key(3)) is not None

    with_store(scenario)


@pytest.mark.parametrize("label", LABELS)
def test_invalidating_a_label_makes_its_entries_misses(with_store: Any, label: str) -> None:
    async def scenario(store: Store) -> None:
        await store.put(key(1), entry())
        await store.put(key(2), entry(labels=("owner:bob",), stamps=("",)))
        await store.invalidate(label)
        assert await store.get(key(1)) is None
        assert await store.get(key(2)) is not None
        await store.put(key(1), entry())
        assert await store.get(key(1)) is None, "its call began before the invalidation"
        await store.put(key(1), entry(stamps=await store.stamps(LABELS)))
        assert await store.get(key(1)) is not None

    with_store(scenario)


def test_many_are_put_and_got_in_order(with_store: Any) -> None:
    async def scenario(store: Store) -> None:
        await store.put_many({key(n): entry(b"%d" % n) for n in range(0, 200, 2)})
        found = await store.get_many([key(n) for n in range(200)])
        assert [one and one.content for one in found] == [None if n % 2 else b"%d" % n for n in range(200)]

    # Larger than the small stores of this suite, which is what the next test is about.
    disk_bytes, memory_bytes = disk.OVERHEAD, memory.OVERHEAD
    disk.OVERHEAD = memory.OVERHEAD = 0
    try:
        with_store(scenario)
    finally:
        disk.OVERHEAD, memory.OVERHEAD = disk_bytes, memory_bytes


@pytest.mark.parametrize("kind", ["memory", "disk"], indirect=True)
def test_bytes_are_bounded_and_the_least_used_go_first(with_store: Any) -> None:
    async def scenario(store: Store) -> None:
        for number in range(100):
            await store.put(key(number), entry(bytes(4000)))
            assert await store.get(key(0)) is not None, "used all the time"
            assert store.stats.bytes <= 64 * 1024
        assert store.stats.evictions == 100 - store.stats.entries > 0
        assert await store.get(key(1)) is None
        assert await store.get(key(99)) is not None
        await store.put(key(100), entry(bytes(64 * 1024)))
        assert await store.get(key(100)) is None
        assert await store.get(key(99)) is not None

    with_store(scenario)


CONTENT = b'{"choices":[{"message":{"content":"Hello"}}]}'
PACKED = pack(key(1), replace(entry(CONTENT), created=1e9, expires=4e9))
DAMAGE = st.one_of(
    st.tuples(st.integers(0, len(PACKED) - 1), st.integers(1, 255)).map(
        lambda flip: PACKED[: flip[0]] + bytes([PACKED[flip[0]] ^ flip[1]]) + PACKED[flip[0] + 1 :]
    ),
    st.integers(0, len(PACKED) - 1).map(lambda length: PACKED[:length]),
    st.binary(min_size=1, max_size=8).map(lambda more: PACKED + more),
)


@given(DAMAGE)
def test_bytes_that_are_not_whole_are_no_entry(data: bytes) -> None:
    assert unpack(key(1), PACKED) is not None
    assert unpack(key(1), data) is None


def test_another_keys_bytes_are_no_entry() -> None:
    assert unpack(key(2), PACKED) is None
    assert unpack(key(1, b"t" * 16), PACKED) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=DAMAGE)
def test_a_damaged_value_in_redis_is_a_miss_and_removed(
    data: bytes, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = RedisStore(redis_url, timeout=5)
        await store.put(key(1), entry(CONTENT))
        with redis_py.Redis.from_url(redis_url) as client:
            client.hset(redis_store._name(key(1)), "entry", data)
            assert await store.get(key(1)) is None
            assert not client.exists(redis_store._name(key(1)))
        await store.close()

    monkeypatch.setattr(redis_store, "PREFIX", "{damage}:")
    asyncio.run(scenario())


def test_another_answer_under_a_key_in_redis_is_a_miss(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = RedisStore(redis_url, timeout=5)
        await store.put(key(5), entry(b"bob's"))
        with redis_py.Redis.from_url(redis_url) as client:
            client.copy(redis_store._name(key(5)), redis_store._name(key(6)))
        assert await store.get(key(6)) is None
        assert await store.get(key(5)) is not None
        await store.close()

    monkeypatch.setattr(redis_store, "PREFIX", "{moved}:")
    asyncio.run(scenario())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=DAMAGE)
def test_a_damaged_value_on_disk_is_a_miss_and_removed(data: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        await store.put(key(1), entry(CONTENT))
        with sqlite3.connect(tmp_path / "entries.db") as database:
            database.execute("UPDATE entries SET value = ?", (data,))
        database.close()
        assert await store.get(key(1)) is None
        assert store.stats.entries == 0
        await store.close()

    asyncio.run(scenario())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.data())
def test_a_file_damaged_anywhere_gives_right_answers_or_none_and_works_again(
    tmp_path: Path, data: st.DataObject
) -> None:
    kept = {key(n): entry(b"%d" % n * 300) for n in range(12)}

    async def fill() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        await store.put_many(kept)
        await store.close()

    async def read() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        for one in kept:
            try:
                found = await store.get(one)
            except StoreDown:
                continue
            assert found is None or found == kept[one]
        for one in kept:
            for _ in range(3):
                try:
                    await store.put(one, kept[one])
                    break
                except StoreDown:
                    continue
            else:
                raise AssertionError("the store did not recover")
        await store.close()

    (tmp_path / "entries.db").unlink(missing_ok=True)
    asyncio.run(fill())
    content = bytearray((tmp_path / "entries.db").read_bytes())
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, len(content) - 1))
        for at in range(start, min(start + data.draw(st.integers(1, 64)), len(content))):
            content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    (tmp_path / "entries.db").write_bytes(content)
    asyncio.run(read())


def test_a_header_damaged_to_that_of_a_newer_sqlite_does_not_end_the_store(tmp_path: Path) -> None:
    async def put() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        for last in (False, True):
            try:
                await store.put(key(1), entry())
            except StoreDown:
                assert not last
        await store.close()

    asyncio.run(put())
    content = bytearray((tmp_path / "entries.db").read_bytes())
    content[18] = 3
    (tmp_path / "entries.db").write_bytes(content)
    asyncio.run(put())


@pytest.mark.parametrize("content", [b"no database" * 500, b"SQLite format 3\0"])
def test_a_damaged_file_does_not_keep_the_store_from_opening(content: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "entries.db").write_bytes(content)
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        await store.put(key(1), entry())
        assert await store.get(key(1)) is not None
        await store.close()

    asyncio.run(scenario())


def test_a_file_that_can_not_be_opened_is_said_with_its_folder(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "entries.db").mkdir()
        store = DiskStore(str(tmp_path), 10**6)
        with pytest.raises(OSError, match=f"the cache in {tmp_path} can't be used"):
            await store.open()
        await store.close()

    asyncio.run(scenario())


WRITER = """
import asyncio, sys, time
from pipeline_plugins.cache.disk import DiskStore
from pipeline_plugins.cache.store import Entry, Key

async def go():
    store = DiskStore(sys.argv[1], 10**6)
    await store.open()
    for n in range(10**6):
        now = time.time()
        number = (int(sys.argv[2]) + n) % 500
        content = number.to_bytes(4, "big") * (1 + n % 4000)
        await store.put(Key(number.to_bytes(32, "big"), b"s" * 16), Entry("json", content, now, now + 60))
        if n == 20:
            print("writing", flush=True)

asyncio.run(go())
"""


def test_writers_killed_at_any_moment_leave_whole_entries(tmp_path: Path) -> None:
    """Two processes at once, each killed amid its writes, five times over."""
    for turn in range(5):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(start)], stdout=subprocess.PIPE
            )
            for start in (0, 250)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
        time.sleep(0.01 * turn)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()

    async def read() -> int:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        found = 0
        for n in range(500):
            one = await store.get(Key(n.to_bytes(32, "big"), b"s" * 16))
            if one is not None:
                assert one.content == n.to_bytes(4, "big") * (len(one.content) // 4)
                found += 1
        await store.put(key(1), entry())
        with sqlite3.connect(tmp_path / "entries.db") as database:
            (checked,) = database.execute("PRAGMA integrity_check").fetchone()
            size, count = database.execute("SELECT sum(size), count(*) FROM entries").fetchone()
        database.close()
        assert checked == "ok"
        assert (size, count) == (store.stats.bytes, store.stats.entries)
        assert store.stats.errors == 0
        await store.close()
        return found

    assert asyncio.run(read()) > 0


def test_disk_entries_outlive_the_process_and_are_shared(tmp_path: Path) -> None:
    async def scenario() -> None:
        one, two = DiskStore(str(tmp_path), 10**6), DiskStore(str(tmp_path), 10**6)
        await one.open()
        await one.put(key(1), entry())
        await one.close()
        one = DiskStore(str(tmp_path), 10**6)
        await one.open()
        await two.open()
        assert await one.get(key(1)) is not None
        await two.invalidate("model:m")
        assert await one.get(key(1)) is None
        (tmp_path / "entries.db").unlink()
        await two.put(key(2), entry())
        assert await one.get(key(2)) is not None, "it follows to the new file"
        await one.close()
        await two.close()

    asyncio.run(scenario())
    assert (tmp_path / "entries.db").stat().st_mode & 0o077 == 0


def test_calls_do_not_queue_behind_waits_for_a_file_that_another_process_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BUSY", 0.05)
    monkeypatch.setattr(disk, "REST", 3600)

    async def scenario() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        await store.put(key(1), entry())
        other = sqlite3.connect(tmp_path / "entries.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(store.put(key(n), entry()) for n in range(50)), return_exceptions=True
        )
        assert {type(result) for result in results} == {StoreDown}
        assert store.stats.errors == 1, "one of them waited"
        other.close()
        store._rests_until = 0.0
        assert await store.get(key(1)) is not None
        await store.close()

    asyncio.run(scenario())


def test_a_disk_that_does_not_answer_is_a_store_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        monkeypatch.setattr(disk, "PATIENCE", 0.05)
        answers = threading.Event()
        monkeypatch.setattr(store, "_connected", answers.wait)
        for _ in range(2):
            with pytest.raises(StoreDown):
                await store.get(key(1))
        assert store.stats.errors == 1, "the second did not wait"
        answers.set()
        monkeypatch.undo()
        store._rests_until = 0.0
        await store.put(key(1), entry())
        assert await store.get(key(1)) is not None
        await store.close()

    asyncio.run(scenario())


def test_a_full_disk_is_logged_once_however_many_answers_it_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store = DiskStore(str(tmp_path), 10**6)
        await store.open()
        await store.put(key(1), entry())
        (pages,) = await store._do(lambda db: db.execute("PRAGMA page_count").fetchone())
        await store._do(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with structlog.testing.capture_logs() as logs:
            for number in range(2, 6):
                with pytest.raises(StoreDown):
                    await store.put(key(number), entry(os.urandom(100_000)))
                assert await store.get(key(1)) is not None
        assert [line["reason"] for line in logs] == ["database or disk is full"]
        await store.close()

    asyncio.run(scenario())


def test_a_folder_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = DiskStore(str(tmp_path / "cache"), 10**6)
        await store.open()
        await store.put(key(1), entry())
        shutil.rmtree(tmp_path / "cache")
        assert await store.get(key(1)) is None
        await store.put(key(1), entry())
        assert await store.get(key(1)) is not None
        await store.close()

    asyncio.run(scenario())


def test_a_redis_that_is_frozen_or_gone_is_said_at_once(redis_process: RedisProcess) -> None:
    async def scenario() -> None:
        store = RedisStore(redis_process.url, timeout=0.2)
        await store.put(key(1), entry())
        redis_process.freeze()
        with pytest.raises(StoreDown):
            await store.get(key(1))
        for attempt in (store.get(key(1)), store.put(key(2), entry()), store.invalidate("all")):
            with pytest.raises(StoreDown):
                await attempt
        redis_process.thaw()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert await store.get(key(1)) is not None
                    break
                except StoreDown:
                    await asyncio.sleep(0.05)
        redis_process.kill()
        with pytest.raises(StoreDown):
            await store.get(key(1))
        await store.close()

    asyncio.run(scenario())


def test_a_redis_that_refuses_commands_is_a_store_that_is_down(redis_process: RedisProcess) -> None:
    async def scenario() -> None:
        store = RedisStore(redis_process.url, timeout=5)
        await store.open()
        with redis_py.Redis.from_url(redis_process.url) as client:
            client.execute_command("ACL", "SETUSER", "default", "-@scripting", "-mget")  # type: ignore[no-untyped-call]
        with pytest.raises(StoreDown):
            await store.get(key(1))
        with pytest.raises(StoreDown):
            await store.put(key(1), entry())
        with pytest.raises(StoreDown):
            await store.stamps(LABELS)
        assert store.stats.errors == 3
        await store.close()

    asyncio.run(scenario())


def test_whoever_uses_redis_needs_no_more_than_its_extra() -> None:
    modules = [
        f"pipeline_plugins.{name}"
        for name in ("cache.redis", "cache.semantic_redis", "keys.redis_store", "limit.redis_buckets")
    ]
    code = f"import sys; sys.modules['redis'] = None; import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_step_of_the_wall_clock_does_not_change_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = MemoryStore(10**6)
        await store.put(key(1), entry(ttl=60))
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        assert await store.get(key(1)) is not None

    asyncio.run(scenario())
