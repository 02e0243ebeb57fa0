"""Every index of the semantic cache passes the same tests; those that are shared, some more."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_plugins.cache import semantic_lancedb, semantic_redis
from pipeline_plugins.cache.semantic_candidates import History
from pipeline_plugins.cache.semantic_decision import Verdict
from pipeline_plugins.cache.semantic_guard import facts_of
from pipeline_plugins.cache.semantic_known import Index, Known, Lesson, MemoryIndex
from pipeline_plugins.cache.semantic_lancedb import LanceIndex
from pipeline_plugins.cache.semantic_redis import RedisIndex
from pipeline_plugins.cache.store import Key
from pipeline_plugins.redis_link import RedisLink

from tests.redis_process import RedisProcess

DIMENSIONS = 32
A, B = b"a" * 32, b"b" * 32
Make = Callable[..., Index]


def make_index(kind: str, place: str, hear: Callable[[Lesson], None], capacity: int = 1000) -> Index:
    shape: dict[str, Any] = {"model": "m", "dimensions": DIMENSIONS, "capacity": capacity}
    if kind == "lancedb":
        return LanceIndex(place, **shape, hear=hear, poll=0.01)
    if kind == "redis":
        return RedisIndex(place, **shape, hear=hear, poll=0.01, timeout=5)
    return MemoryIndex(DIMENSIONS, capacity)


def place_of(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "redis":
        name = f"{{{uuid.uuid4().hex}}}:"
        request.getfixturevalue("monkeypatch").setattr(semantic_redis, "PREFIX", name)
        return str(request.getfixturevalue("redis_url"))
    return str(request.getfixturevalue("tmp_path") / "semantic")


@pytest.fixture(params=["memory", "lancedb", "redis"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an index of one kind; all that a test makes share one place."""
    place = place_of(request.param, request)
    return lambda hear=lambda lesson: None, **more: make_index(request.param, place, hear, **more)


@pytest.fixture(params=["lancedb", "redis"])
def shared(request: pytest.FixtureRequest) -> Make:
    """Like `make`, of those kinds that outlive a process."""
    place = place_of(request.param, request)
    return lambda hear=lambda lesson: None, **more: make_index(request.param, place, hear, **more)


def vector(number: int) -> np.ndarray:
    found = np.random.default_rng(number).standard_normal(DIMENSIONS, dtype=np.float32)
    return found / np.linalg.norm(found)


def known(number: int, **more: Any) -> Known:
    digest = number.to_bytes(32, "big")
    item = Known(
        Key(digest, b"s" * 16),
        facts_of(f"How is Rome in {number}?"),
        None,
        None,
        History(),
        digest,
        time.time() + 60,
    )
    for name, value in more.items():
        setattr(item, name, value)
    return item


def names(found: list[tuple[float, Known]]) -> list[int]:
    return [int.from_bytes(item.key.digest, "big") for _, item in found]


def run(make: Make, *scenes: Callable[..., Awaitable[None]], **more: Any) -> None:
    """Play each scene with an index of its own, one after the other."""

    async def go() -> None:
        for scene in scenes:
            index = make(**more)
            await index.open()
            try:
                await scene(index)
            finally:
                await index.close()

    asyncio.run(go())


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 20
    while not await check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_the_nearest_are_found_with_their_cosines_nearest_first(make: Make) -> None:
    async def scene(index: Index) -> None:
        for number in range(50):
            await index.add(A, vector(number), known(number))
        assert len(index) == 50
        query = vector(7) + 0.3 * vector(8)
        query /= np.linalg.norm(query)
        found = await index.search(A, query, 8)
        cosines = {number: float(vector(number) @ query) for number in range(50)}
        assert names(found) == sorted(cosines, key=lambda number: -cosines[number])[:8]
        assert [s for s, _ in found] == pytest.approx([cosines[n] for n in names(found)], abs=1e-5)
        assert found[0][1].facts == facts_of("How is Rome in 7?")

    run(make, scene)


def test_a_partition_never_gives_what_is_in_another(make: Make) -> None:
    async def scene(index: Index) -> None:
        for number in range(20):
            await index.add(A, vector(number), known(number))
        assert await index.search(B, vector(3), 20) == []
        await index.add(B, vector(3), known(100))
        assert names(await index.search(B, vector(3), 20)) == [100]
        assert 100 not in names(await index.search(A, vector(3), 40))

    run(make, scene)


def test_what_has_expired_or_was_removed_is_not_found_and_takes_no_place(make: Make) -> None:
    async def scene(index: Index) -> None:
        await index.add(A, vector(0), known(0, expires=time.time() - 1))
        await index.add(A, vector(1), gone := known(1))
        await index.add(A, vector(2), known(2))
        await index.remove(gone)
        assert names(await index.search(A, vector(0), 1)) == [2]

    run(make, scene)


def test_a_question_that_is_added_again_is_found_once(make: Make) -> None:
    async def scene(index: Index) -> None:
        await index.add(A, vector(1), known(1))
        await index.add(A, vector(1), known(1))
        assert names(await index.search(A, vector(1), 8)) == [1]

    run(make, scene)


def test_the_oldest_make_room(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_lancedb, "TIDY", 1)

    async def scene(index: Index) -> None:
        for number in range(12):
            await index.add(A, vector(number), known(number))
        assert len(index) == 10
        assert sorted(names(await index.search(A, vector(0), 20))) == list(range(2, 12))

    run(make, scene, capacity=10)


def test_questions_with_one_answer_share_its_history(make: Make) -> None:
    async def scene(index: Index) -> None:
        first = known(1)
        await index.add(A, vector(1), first)
        await index.add(A, vector(2), known(2, history=first.history, answer=first.answer))
        await index.add(A, vector(3), known(3))
        found = {name: item for name, (_, item) in zip([1, 2, 3], await by_name(index), strict=True)}
        found[1].history.right += 1
        assert found[2].history is found[1].history is not found[3].history

    async def by_name(index: Index) -> list[tuple[float, Known]]:
        return sorted(await index.search(A, vector(1), 8), key=lambda one: one[1].key.digest)

    run(make, scene)


def test_many_at_once_are_all_kept(make: Make) -> None:
    async def scene(index: Index) -> None:
        await asyncio.gather(*(index.add(A, vector(n), known(n)) for n in range(100)))
        assert sorted(names(await index.search(A, vector(0), 200))) == list(range(100))

    run(make, scene)


def test_a_restart_keeps_questions_conversations_and_lessons(shared: Make) -> None:
    spoken = facts_of("We spoke of 3 rivers.")
    verdict = Verdict("explore", 0, 0.9, np.arange(10) / 7)
    heard: list[Lesson] = []

    async def before(index: Index) -> None:
        await index.add(A, vector(1), known(1, context=spoken, context_vector=vector(9)))
        await index.add(A, vector(2), gone := known(2))
        await index.remove(gone)
        await index.learned(Lesson(known(1).answer, True, verdict))

    async def after(index: Index) -> None:
        ((similarity, item),) = await index.search(A, vector(1), 8)
        assert similarity == pytest.approx(1, abs=1e-5)
        assert item.context == spoken
        np.testing.assert_array_equal(item.context_vector, vector(9))
        assert (item.history.right, item.history.wrong) == (1, 0)
        (lesson,) = heard
        assert (lesson.answer, lesson.right, lesson.verdict.action) == (known(1).answer, True, "explore")
        np.testing.assert_allclose(lesson.verdict.features, verdict.features, atol=1e-6)

    run(shared, before)
    run(shared, after, hear=heard.append)


def test_two_that_are_open_share_what_is_added_and_removed(shared: Make) -> None:
    async def go() -> None:
        one, other = shared(), shared()
        await one.open()
        await other.open()
        try:
            await one.add(A, vector(1), item := known(1))

            async def there() -> bool:
                return names(await other.search(A, vector(1), 8)) == [1]

            async def away() -> bool:
                return await other.search(A, vector(1), 8) == []

            await until(there)
            await one.remove(item)
            await until(away)
        finally:
            await one.close()
            await other.close()

    asyncio.run(go())


WRITER = """
import asyncio, sys
from pipeline_plugins.cache import semantic_redis
from tests.plugins.cache.test_semantic_indexes import A, known, make_index, vector

async def go():
    kind, place, semantic_redis.PREFIX, start = sys.argv[1:]
    index = make_index(kind, place, print, capacity=100_000)
    await index.open()
    for number in range(int(start), int(start) + 100_000):
        await index.add(A, vector(number), known(number))
        if number == int(start) + 20:
            print("writing", flush=True)

asyncio.run(go())
"""


@pytest.mark.parametrize("kind", ["lancedb", "redis"])
def test_writers_killed_at_any_moment_leave_what_they_had_added(
    kind: str, request: pytest.FixtureRequest
) -> None:
    place = place_of(kind, request)
    for turn in range(2):
        writers = []
        for start in (1_000_000 * turn, 1_000_000 * turn + 500_000):
            words = [sys.executable, "-c", WRITER, kind, place, semantic_redis.PREFIX, str(start)]
            writers.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
        time.sleep(0.03 * turn)
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()

    async def scene(index: Index) -> None:
        for start in (0, 500_000, 1_000_000, 1_500_000):
            for number in range(start, start + 21):
                assert names(await index.search(A, vector(number), 1)) == [number]
        await index.add(A, vector(1), known(-1 % 2**31))

    run(lambda: make_index(kind, place, lambda lesson: None, capacity=100_000), scene)


def test_damaged_and_foreign_events_in_the_log_are_passed_over(
    redis_url: str, request: pytest.FixtureRequest
) -> None:
    place = place_of("redis", request)

    async def go() -> None:
        index = make_index("redis", place, lambda lesson: pytest.fail("no lesson"))
        assert isinstance(index, RedisIndex)
        link = RedisLink(redis_url, timeout=5)
        good = semantic_redis.described(known(1))
        one = vector(1).tobytes()
        for fields in (
            ["p", A, "q", good, "v", one[:-1]],
            ["p", A, "q", good, "v", (2 * vector(1)).tobytes()],
            ["p", A, "q", good[:-9], "v", one],
            ["p", A, "q", b"[1,2,3,4,5,6]", "v", one],
            ["x", b"y"],
        ):
            await link.command("XADD", index._questions, "*", *fields)
        await link.command("XADD", index._lessons, "*", "l", b'["00", true, "serve", 7, null]')
        await link.command("XADD", index._questions, "*", "p", A, "q", good, "v", one)
        await link.close()
        await index.open()
        try:
            assert names(await index.search(A, vector(1), 8)) == [1]
        finally:
            await index.close()

    asyncio.run(go())


def test_without_redis_an_index_goes_on_with_what_it_has_and_catches_up(
    redis_process: RedisProcess,
) -> None:
    async def go() -> None:
        one = RedisIndex(
            redis_process.url, model="m", dimensions=DIMENSIONS, capacity=99, hear=print, poll=0.01
        )
        other = RedisIndex(
            redis_process.url, model="m", dimensions=DIMENSIONS, capacity=99, hear=print, poll=0.01
        )
        await one.open()
        await other.open()
        try:
            await one.add(A, vector(1), known(1))
            redis_process.kill()
            await one.add(A, vector(2), known(2))
            assert sorted(names(await one.search(A, vector(1), 8))) == [1, 2]
            redis_process.start()

            async def shared_again() -> bool:
                await one.add(A, vector(3), known(3))
                return 3 in names(await other.search(A, vector(3), 8))

            await until(shared_again)
        finally:
            await one.close()
            await other.close()

    asyncio.run(go())


def test_a_folder_that_lancedb_cannot_use_is_named(tmp_path: Path) -> None:
    def damage() -> None:
        for manifest in tmp_path.rglob("*.manifest"):
            manifest.write_bytes(b"?")

    async def go() -> None:
        index = make_index("lancedb", str(tmp_path), print)
        await index.open()
        await index.add(A, vector(1), known(1))
        await index.close()
        damage()
        with pytest.raises(ValueError, match=f"{tmp_path}: LanceDB can't use this folder"):
            await make_index("lancedb", str(tmp_path), print).open()

    asyncio.run(go())


def test_partitions_stay_apart_and_complete_when_lancedb_has_an_index_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic_lancedb, "INDEXED_FROM", 300)
    rows = {n.to_bytes(32, "big"): (B if n % 60 == 0 else A, vector(n)) for n in range(700)}

    async def scene(index: Index) -> None:
        assert isinstance(index, LanceIndex)
        for start in (0, 350):
            await asyncio.gather(
                *(
                    index.add(rows[known(n).key.digest][0], vector(n), known(n))
                    for n in range(start, start + 350)
                )
            )
        assert len(await index._table.list_indices()) == 2
        await index.add(B, vector(1000), known(1000))  # What the index does not have yet is found too.
        for n in (0, 60, 660, 1000):
            assert names(await index.search(B, vector(n), 1)) == [n]
        found = names(await index.search(B, vector(0), 50))
        assert set(found) <= {*range(0, 700, 60), 1000}
        nearest = [names(await index.search(A, vector(n), 1)) == [n] for n in range(1, 60)]
        assert sum(nearest) >= 57

    run(lambda: make_index("lancedb", str(tmp_path), print), scene)
