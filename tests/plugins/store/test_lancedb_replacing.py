"""Documents replaced in a table: whole at any moment, whoever else writes, and nothing left of before."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from pipeline_plugins.rag.chunk import Chunk, Document, Piece
from pipeline_plugins.store import lancedb_search
from pipeline_plugins.store.lancedb import LanceDB
from pipeline_plugins.store.lancedb_replacing import BLANK, replace

DIMENSIONS = 8
AXIS = np.eye(DIMENSIONS, dtype=np.float32)[0]


def chunks(id: str, count: int, digest: str) -> list[Chunk]:
    """A document of so many chunks, all of whose vectors are far from `AXIS`."""
    document = Document(id, "word " * count)
    windows = np.eye(DIMENSIONS, dtype=np.float32)[1:2]
    return [Chunk(document, Piece(5 * at, 5 * at + 5), windows, digest) for at in range(count)]


def within(folder: Path, work: Callable[[LanceDB], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        store = LanceDB(LanceDB.Config(path=str(folder)))
        await store.open("echo")
        try:
            await store.create("alice", "notes", DIMENSIONS)
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def content(store: LanceDB) -> list[tuple[str, int, str]]:
    """Every chunk that a search could find: its document, place and digest."""
    table = await store.table("alice", "notes")
    found = await table.query().where("windows is not null").to_arrow()
    return sorted((row["document"], row["ordinal"], row["digest"]) for row in found.to_pylist())


def parts(*documents: tuple[str, int, str]) -> list[tuple[str, int, str]]:
    return sorted((id, at, digest) for id, count, digest in documents for at in range(count))


@pytest.mark.parametrize("counts", [(1, 1), (2, 5), (5, 2)])
def test_a_document_that_two_writers_add_at_once_is_one_of_the_two(
    tmp_path: Path, counts: Sequence[int]
) -> None:
    async def work(store: LanceDB) -> list[tuple[str, int, str]]:
        first, second = [await store.table("alice", "notes") for _ in range(2)]
        await replace(first, {"a": chunks("a", counts[0], "one")})
        await replace(second, {"a": chunks("a", counts[1], "two")})
        return await content(store)

    assert within(tmp_path, work) == parts(("a", counts[1], "two"))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_chunks_that_another_writer_has_just_added_do_not_outlive_their_document(
    tmp_path: Path, count: int
) -> None:
    async def work(store: LanceDB) -> list[tuple[str, int, str]]:
        await store.replace("alice", "notes", {"a": chunks("a", 2, "old"), "b": chunks("b", 2, "old")})
        first, second = [await store.table("alice", "notes") for _ in range(2)]
        await replace(first, {"a": chunks("a", 6, "one")})
        await replace(second, {"a": chunks("a", count, "two"), "b": chunks("b", 1, "two")})
        return await content(store)

    assert within(tmp_path, work) == parts(("a", count, "two"), ("b", 1, "two"))


def test_a_document_is_whole_at_any_moment_while_it_shrinks_and_grows(tmp_path: Path) -> None:
    async def work(store: LanceDB) -> list[list[tuple[str, int, str]]]:
        versions = [parts(("a", count, str(number))) for number, count in enumerate([7, 2, 0, 5, 1] * 3)]
        seen = []
        writing = True

        async def read() -> None:
            while writing:
                seen.append(await content(store))

        await store.replace("alice", "notes", {"other": chunks("other", 1, "same"), "a": chunks("a", 1, "-")})
        reading = asyncio.create_task(read())
        for number, version in enumerate(versions):
            await store.replace(
                "alice",
                "notes",
                {"a": chunks("a", len(version), str(number)), "other": chunks("other", 1, "same")},
            )
        writing = False
        await reading
        whole = [sorted([*version, ("other", 0, "same")]) for version in [*versions, parts(("a", 1, "-"))]]
        return [one for one in seen if one not in whole]

    assert within(tmp_path, work) == []


def test_what_a_killed_writer_left_blank_is_found_by_nothing_and_goes_when_put_in_order(
    tmp_path: Path,
) -> None:
    class Killed:
        """A table whose writer does not come to its second commit."""

        def __init__(self, table: Any) -> None:
            self._table = table

        def __getattr__(self, name: str) -> Any:
            return getattr(self._table, name)

        async def delete(self, which: str) -> None:
            raise SystemError

    async def work(store: LanceDB) -> tuple[Any, ...]:
        await store.replace("alice", "notes", {"a": chunks("a", 5, "old")})
        with pytest.raises(SystemError):
            await replace(Killed(await store.table("alice", "notes")), {"a": chunks("a", 2, "new")})
        table = await store.table("alice", "notes")
        left = await table.count_rows(BLANK)
        near = len(await lancedb_search.near(table, AXIS, 10))
        described = (await store.describe("alice", "notes")).chunks
        await store.tidy("alice", "notes", timedelta(days=1))
        return left, near, described, await (await store.table("alice", "notes")).count_rows()

    assert within(tmp_path, work) == (3, 2, 2, 2)
