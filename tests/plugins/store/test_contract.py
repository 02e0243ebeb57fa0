"""What every store of collections does: the shipped one, and a third party's."""

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("lancedb")

import numpy as np
from pipeline_plugins.rag.chunk import Chunk, Document, Passage, Piece
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.store.lancedb import LanceDB
from pipeline_plugins.store.store import NoSuchCollection, NoSuchVersion, Search, Store, all_of

from pipeline.errors import InvalidRequest

ACME = Path(__file__).parents[2] / "acme" / "acme_cache" / "store.py"
WHERE = ("alice", "notes")
EAST, NORTH = np.array([1.0, 0.0], "f4"), np.array([0.0, 1.0], "f4")

Kept = Callable[[Callable[[Store], Awaitable[Any]]], Any]


def acme() -> ModuleType:
    spec = importlib.util.spec_from_file_location("acme_store", ACME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["lancedb", "acme"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    """Does work on an open store that has an empty collection."""
    if request.param == "lancedb":
        store: Any = LanceDB(LanceDB.Config(path=str(tmp_path)))
    else:
        store = (found := acme().Store)(found.Config())

    def within(work: Callable[[Store], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            await store.open("model")
            try:
                await store.create(*WHERE, 2)
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    return within


def cut(id: str, *texts: str, vector: Any = EAST, digest: str = "1", **document: Any) -> list[Chunk]:
    whole = Document(id, "".join(texts), **document)
    chunks, start = [], 0
    for text in texts:
        piece = Piece(start, start + len(text))
        chunks.append(Chunk(whole, piece, np.stack([vector]), digest))
        start += len(text)
    return chunks


async def ids(store: Store, search: Search) -> list[str]:
    return [passage.document for passage in await store.search(*WHERE, search)]


def test_vectors_words_and_both_find_each_their_own(kept: Kept) -> None:
    async def work(store: Store) -> list[list[str]]:
        east, north = cut("east", "cats sleep"), cut("north", "taxes are due", vector=NORTH)
        await store.replace(*WHERE, {"east": east, "north": north})
        return [
            await ids(store, Search(1, vector=NORTH)),
            await ids(store, Search(5, text="cats")),
            sorted(await ids(store, Search(5, text="cats", vector=NORTH))),
            await ids(store, Search(5, vector=NORTH, least=0.5)),
        ]

    assert kept(work) == [["north"], ["east"], ["east", "north"], ["north"]]


def test_equal_texts_are_found_once(kept: Kept) -> None:
    async def work(store: Store) -> int:
        await store.replace(*WHERE, {id: cut(id, "the same") for id in "abc"})
        return len(await store.search(*WHERE, Search(5, vector=EAST)))

    assert kept(work) == 1


def test_a_filter_bounds_what_is_found(kept: Kept) -> None:
    async def work(store: Store) -> list[str]:
        documents = {lang: cut(lang, f"text {lang}", metadata={"lang": lang}) for lang in ("de", "en", "fr")}
        await store.replace(*WHERE, documents)
        wanted = Filter.model_validate({"field": "metadata.lang", "op": "in", "value": ["de", "fr"]})
        return sorted(await ids(store, Search(5, vector=EAST, filter=wanted)))

    assert kept(work) == ["de", "fr"]


def test_what_is_replaced_leaves_nothing_and_what_is_deleted_is_gone(kept: Kept) -> None:
    async def work(store: Store) -> list[Any]:
        await store.replace(*WHERE, {"a": cut("a", "one ", "two ", "three"), "b": cut("b", "four")})
        await store.replace(*WHERE, {"a": cut("a", "five", digest="2")})
        after = await store.describe(*WHERE)
        digests = await store.digests(*WHERE, ["a", "b", "c"])
        everything = [pair async for pairs in store.all_digests(*WHERE) for pair in pairs]
        gone = await store.delete(*WHERE, ["a", "c"])
        return [after.documents, after.chunks, digests, sorted(everything), gone, await texts(store)]

    known = {"a": "2", "b": "1"}
    assert kept(work) == [2, 2, known, sorted(known.items()), 1, ["four"]]


async def texts(store: Store) -> list[str]:
    return sorted(one.text for one in await store.search(*WHERE, Search(50, vector=EAST)))


def test_a_document_without_chunks_is_one_that_is_gone(kept: Kept) -> None:
    async def work(store: Store) -> list[str]:
        await store.replace(*WHERE, {"a": cut("a", "one"), "b": cut("b", "two")})
        await store.replace(*WHERE, {"a": []})
        return await texts(store)

    assert kept(work) == ["two"]


def test_chunks_are_found_by_their_places(kept: Kept) -> None:
    async def work(store: Store) -> list[Passage]:
        documents = {"a": cut("a", "one ", "two ", "three"), "b": cut("b", "four ", "five")}
        await store.replace(*WHERE, documents)
        return await store.at(*WHERE, {"b": {0, 7}, "a": {2, 0}})

    found = [(one.document, one.ordinal, one.text, one.start, one.end) for one in kept(work)]
    assert found == [("a", 0, "one ", 0, 4), ("a", 2, "three", 8, 13), ("b", 0, "four ", 0, 5)]


def test_documents_are_found_by_the_file_that_they_were_read_from(kept: Kept) -> None:
    async def work(store: Store) -> list[list[tuple[str, str]]]:
        files = {"a": "docs/a.md", "b": "docs/b.csv", "c": "docs-2/c.md"}
        await store.replace(*WHERE, {id: cut(id, id, file=file) for id, file in files.items()})
        roots = ("docs", "docs/b.csv", "doc")
        return [[one async for found in store.read_from(*WHERE, root) for one in found] for root in roots]

    below, one, none = kept(work)
    assert sorted(below) == [("a", "docs/a.md"), ("b", "docs/b.csv")]
    assert (one, none) == ([("b", "docs/b.csv")], [])


def test_an_owner_neither_sees_nor_reaches_anothers(kept: Kept) -> None:
    async def work(store: Store) -> tuple[list[str], list[str]]:
        await store.replace(*WHERE, {"a": cut("a", "mine")})
        with pytest.raises(NoSuchCollection):
            await store.search("bob", "notes", Search(5, vector=EAST))
        with pytest.raises(NoSuchCollection):
            await store.drop("bob", "notes")
        return await store.names("bob"), [one.name for one in await all_of(store, "alice")]

    assert kept(work) == ([], ["notes"])


def test_a_version_changes_with_each_commit_and_never_comes_again(kept: Kept) -> None:
    async def work(store: Store) -> list[str]:
        seen = [await store.version(*WHERE)]
        await store.replace(*WHERE, {"a": cut("a", "one")})
        seen.append(await store.version(*WHERE))
        await store.drop(*WHERE)
        seen.append(await store.version(*WHERE))
        await store.create(*WHERE, 2)
        await store.replace(*WHERE, {"a": cut("a", "one")})
        return [*seen, await store.version(*WHERE)]

    seen = kept(work)
    assert len(set(seen)) == 4
    assert seen[2] == ""


def test_a_collection_goes_back_to_what_it_was(kept: Kept) -> None:
    async def work(store: Store) -> list[str]:
        await store.replace(*WHERE, {"a": cut("a", "one")})
        before = (await store.versions(*WHERE))[0].version
        await store.delete(*WHERE, ["a"])
        with pytest.raises(NoSuchVersion):
            await store.restore(*WHERE, 999)
        await store.restore(*WHERE, before)
        assert (await store.versions(*WHERE))[0].version > before
        await store.tidy(*WHERE, timedelta(days=1))
        await store.rebuild(*WHERE)
        return await texts(store)

    assert kept(work) == ["one"]


def test_a_collection_is_put_in_order_while_others_write(tmp_path: Path) -> None:
    config = LanceDB.Config(path=str(tmp_path))
    writer, *keepers = LanceDB(config), LanceDB(config), LanceDB(config)

    async def write() -> None:
        for n in range(12):
            await writer.replace(*WHERE, {f"{n}": cut(f"{n}", f"text {n}")})

    async def keep(keeper: LanceDB) -> None:
        for _ in range(4):
            await keeper.rebuild(*WHERE)
            await keeper.tidy(*WHERE, timedelta(days=1))

    async def run() -> int:
        for store in (writer, *keepers):
            await store.open("model")
        await writer.create(*WHERE, 2)
        await asyncio.gather(write(), *map(keep, keepers))
        return (await writer.describe(*WHERE)).documents

    assert asyncio.run(run()) == 12


def test_vectors_of_another_model_or_size_are_refused(kept: Kept) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(InvalidRequest, match="was made with the embedding model"):
            await store.create(*WHERE, 3)
        await store.open("another")
        with pytest.raises(InvalidRequest, match="was made with the embedding model `model`"):
            await store.search(*WHERE, Search(5, vector=EAST))
        with pytest.raises(InvalidRequest, match="ingest its documents into a new one"):
            await store.digests(*WHERE, ["a"])

    kept(work)


def test_a_collection_of_another_model_is_seen_and_taken_away_all_the_same(kept: Kept) -> None:
    async def work(store: Store) -> list[Any]:
        await store.replace(*WHERE, {id: cut(id, id) for id in "abc"})
        await store.open("another")
        (found,) = await all_of(store, "alice")
        gone = await store.delete(*WHERE, ["a", "b", "x"])
        version = await store.version(*WHERE)
        await store.drop(*WHERE)
        return [found.embedding, found.documents, gone, bool(version), await store.names("alice")]

    assert kept(work) == ["model", 3, 2, True, []]


@pytest.mark.parametrize("name", ["", "../notes", "a/b", "n" * 65, "-notes"])
def test_a_name_that_could_lead_elsewhere_is_refused(kept: Kept, name: str) -> None:
    async def work(store: Store) -> None:
        with pytest.raises(InvalidRequest, match="can't be the name of a collection"):
            await store.create("alice", name, 2)

    kept(work)
