"""Collections: versions, going back, compaction and indexes, by command and in the store."""

import asyncio
import json
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.app import run

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.documents import Documents, DocumentsConfig
from pipeline_plugins.store.store import NoSuchCollection, NoSuchVersion, all_of

from tests.plugins.rag import opened

CATS, TAX = Document("cats", "Cats sleep."), Document("tax", "Tax is due.")

within = partial(opened.within, embed=Choice(plugin="echo"))
"""With vectors that mean nothing."""


async def present(documents: Documents) -> list[str]:
    return sorted(await documents.store.digests("alice", "notes", ["cats", "tax"]))


async def unindexed(documents: Documents) -> int:
    table = await documents.store.table("alice", "notes")
    return int((await table.index_stats("text_idx")).num_unindexed_rows)


def test_a_collection_goes_back_to_a_version(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        await documents.put("alice", "notes", [CATS, TAX])
        before = (await documents.store.versions("alice", "notes"))[0]
        await documents.store.delete("alice", "notes", ["cats"])
        gone = await present(documents)
        await documents.store.restore("alice", "notes", before.version)
        latest = (await documents.store.versions("alice", "notes"))[0].version
        return gone, await present(documents), latest > before.version

    assert within(tmp_path, work) == (["tax"], ["cats", "tax"], True)


def test_a_version_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    async def work(documents: Documents) -> None:
        await documents.put("alice", "notes", [CATS])
        with pytest.raises(NoSuchVersion):
            await documents.store.restore("alice", "notes", 999)

    within(tmp_path, work)


def test_compaction_keeps_the_documents_and_the_latest_versions(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        for number in range(5):
            await documents.put("alice", "notes", [Document(str(number), f"Number {number}.")])
        await documents.store.tidy("alice", "notes", timedelta(0))
        table = await documents.store.table("alice", "notes")
        stats = await table.index_stats("text_idx")
        fragments = (await table.stats())["fragment_stats"]["num_fragments"]
        return await table.count_rows(), fragments, stats.num_unindexed_rows

    assert within(tmp_path, work) == (5, 1, 0)


def test_indexes_that_are_built_anew_find_the_same(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        await documents.put("alice", "notes", [Document(f"d{n}", f"Text number n{n}.") for n in range(300)])
        await documents.store.rebuild("alice", "notes")
        table = await documents.store.table("alice", "notes")
        found = await documents.search("alice", "notes", "n17", mode="fulltext", k=1)
        return sorted(c for i in await table.list_indices() for c in i.columns), found[0].document

    assert within(tmp_path, work) == (["document", "file", "id", "text", "vector"], "d17")


def test_a_version_is_never_the_same_again_though_the_collection_is_made_anew(tmp_path: Path) -> None:
    async def work(documents: Documents) -> set[str]:
        seen = {await documents.store.version("alice", "notes")}
        for _ in range(2):
            await documents.put("alice", "notes", [CATS])
            seen.add(await documents.store.version("alice", "notes"))
            await documents.store.drop("alice", "notes")
        return seen

    found = within(tmp_path, work)
    assert len(found) == 3
    assert "" in found


def test_what_is_written_is_put_in_order_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_plugins.rag.tending.QUIET", 0.0)

    async def work(documents: Documents) -> int:
        await documents.put("alice", "notes", [CATS])
        documents.tending.written("alice", "notes")
        documents.tending.written("alice", "gone")
        async with asyncio.timeout(30):
            while await unindexed(documents):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return 0

    assert within(tmp_path, work) == 0


def test_an_owners_collections_are_seen_to_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(documents: Documents) -> int:
        await documents.put("alice", "notes", [CATS])
        version = (await documents.store.versions("alice", "notes"))[0].version
        await documents.put("alice", "notes", [TAX])
        return version

    version = within(tmp_path, work)
    mine = ["--owner", "alice", f"rag.path={tmp_path}"]

    def said(*arguments: str, status: int = 0) -> str:
        assert run(["collections", *arguments]) == status
        return capsys.readouterr().out

    assert json.loads(said("list", *mine))["documents"] == 2
    assert said("list", f"rag.path={tmp_path}") == ""
    assert version in [json.loads(line)["version"] for line in said("versions", "notes", *mine).splitlines()]
    said("restore", "notes", str(version), *mine)
    assert json.loads(said("describe", "notes", *mine))["documents"] == 1
    said("compact", "notes", "--forget", *mine)
    said("index", "notes", *mine)
    said("delete", "notes", "--owner", "bob", f"rag.path={tmp_path}", status=2)
    said("delete", "notes", *mine)
    said("describe", "notes", *mine, status=2)


def test_a_collection_whose_maker_was_killed_gets_the_indexes_that_it_lacks(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        await documents.put("alice", "notes", [CATS])
        table = await documents.store.table("alice", "notes")
        await table.drop_index("text_idx")
        await table.drop_index("file_idx")
        await documents.put("alice", "notes", [TAX])
        found = await documents.search("alice", "notes", "cats", mode="fulltext")
        return [passage.document for passage in found]

    assert within(tmp_path, work) == ["cats"]


def test_a_collection_without_a_first_commit_is_not_there_until_it_is_made(tmp_path: Path) -> None:
    def begun() -> None:
        (folder,) = tmp_path.iterdir()
        (folder / "notes.lance").mkdir()  # all that whoever began to make it came to

    async def work(documents: Documents) -> list[str]:
        await documents.put("alice", "other", [TAX])
        begun()
        with pytest.raises(NoSuchCollection):
            await present(documents)
        assert [found.name for found in await all_of(documents.store, "alice")] == ["other"]
        await documents.put("alice", "notes", [CATS])
        return await present(documents)

    assert within(tmp_path, work) == ["cats"]


def test_two_who_make_a_collection_at_once_both_put_into_it(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        other = Documents(documents.config)
        await other.open()
        try:
            putting = (documents.put("alice", "notes", [CATS]), other.put("alice", "notes", [TAX]))
            await asyncio.gather(*putting)
        finally:
            await other.close()
        return await present(documents)

    assert within(tmp_path, work) == ["cats", "tax"]


def test_collections_can_be_below_a_url(tmp_path: Path) -> None:
    async def work() -> list[str]:
        documents = Documents(DocumentsConfig(path=f"file://{tmp_path}/store", embed=Choice(plugin="echo")))
        await documents.open()
        try:
            await documents.put("alice", "notes", [CATS])
            return await documents.store.names("alice")
        finally:
            await documents.close()

    assert asyncio.run(work()) == ["notes"]
    assert list((tmp_path / "store").rglob("*.lance"))
