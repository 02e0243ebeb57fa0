"""Documents in collections: owners apart, nothing twice, nothing left of what was replaced."""

from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import InvalidRequest
from pipeline.problems import ConfigError

pytest.importorskip("lancedb")
pytest.importorskip("onnxruntime")

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.chunk import Document, Passage
from pipeline_plugins.rag.documents import Documents, DocumentsConfig, Ingested
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.ranking import Candidate, fuse
from pipeline_plugins.store import lancedb_search
from pipeline_plugins.store.store import NoSuchCollection

from tests.plugins.rag.opened import within

T = TypeVar("T")
FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)

CATS = Document("cats", "Cats sleep for sixteen hours a day.", metadata={"lang": "en", "year": 2020})
TAX = Document("tax", "The income tax is due in April.", metadata={"lang": "en", "year": 2024})
HUNDE = Document(
    "hunde", "Hunde bellen laut.", source="hunde.md", page=3, metadata={"lang": "de", "year": "x"}
)


async def ids(search: Coroutine[Any, Any, list[Passage]]) -> list[str]:
    return [passage.document for passage in await search]


def test_each_mode_finds_the_document_that_answers(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        await documents.put("alice", "notes", [CATS, TAX, HUNDE])
        text = "When is tax due?"
        modes = ("hybrid", "vector", "fulltext")
        return [(await ids(documents.search("alice", "notes", text, mode=mode)))[0] for mode in modes]

    assert within(tmp_path, work) == ["tax"] * 3


def test_an_owner_sees_nothing_of_another_ones(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        await documents.put("alice", "notes", [CATS])
        await documents.put("bob", "notes", [TAX])
        mine = await ids(documents.search("bob", "notes", "cats sleep", k=50))
        names = await documents.store.names("carol")
        with pytest.raises(NoSuchCollection):
            await documents.search("carol", "notes", "cats")
        with pytest.raises(NoSuchCollection):
            await documents.store.drop("carol", "notes")
        await documents.store.drop("bob", "notes")
        return mine, names, await ids(documents.search("alice", "notes", "cats"))

    assert within(tmp_path, work) == (["tax"], [], ["cats"])


def test_ingesting_again_changes_nothing(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        first = await documents.put("alice", "notes", [CATS, TAX])
        before = await documents.store.describe("alice", "notes")
        again = await documents.put("alice", "notes", [CATS, TAX])
        return first, again, before == await documents.store.describe("alice", "notes")

    assert within(tmp_path, work) == (Ingested(2, 0, 2), Ingested(0, 2, 0), True)


def test_another_size_of_chunks_cuts_again(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Ingested:
        return await documents.put("alice", "notes", [CATS])

    assert within(tmp_path, work).changed == 1
    assert within(tmp_path, work, chunk_tokens=100).changed == 1


def test_a_replaced_document_leaves_nothing_behind(tmp_path: Path) -> None:
    long = "\n\n".join(f"Paragraph {n} is about zebras and their stripes." * 4 for n in range(20))

    async def work(documents: Documents) -> Any:
        await documents.put("alice", "notes", [Document("a", long), TAX])
        many = await documents.store.describe("alice", "notes")
        await documents.put("alice", "notes", [Document("a", "Only giraffes now.")])
        await documents.store.tidy("alice", "notes", timedelta(0))
        left = await documents.search("alice", "notes", "zebras", mode="fulltext")
        return many.chunks > 2, left, (await documents.store.describe("alice", "notes")).chunks

    assert within(tmp_path, work) == (True, [], 2)


def test_a_document_without_text_is_as_good_as_deleted(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        await documents.put("alice", "notes", [CATS, TAX])
        await documents.put("alice", "notes", [Document("cats", " \n ")])
        return await ids(documents.search("alice", "notes", "cats"))

    assert within(tmp_path, work) == ["tax"]


def test_a_deleted_document_is_found_no_more(tmp_path: Path) -> None:
    async def work(documents: Documents) -> Any:
        await documents.put("alice", "notes", [CATS, TAX])
        deleted = await documents.store.delete("alice", "notes", ["cats", "never was"])
        return deleted, await ids(documents.search("alice", "notes", "cats sleep"))

    assert within(tmp_path, work) == (1, ["tax"])


def test_what_one_process_commits_another_finds(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        other = Documents(DocumentsConfig(path=str(tmp_path)))
        await other.open()
        await documents.put("alice", "notes", [CATS])
        await ids(documents.search("alice", "notes", "tax"))
        await other.put("alice", "notes", [TAX])
        await other.close()
        return (await ids(documents.search("alice", "notes", "tax")))[:1]

    assert within(tmp_path, work) == ["tax"]


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({"field": "metadata.lang", "value": "en"}, {"cats", "tax"}),
        ({"field": "metadata.lang", "op": "!=", "value": "en"}, {"hunde"}),
        ({"field": "metadata.year", "op": ">=", "value": 2021}, {"tax"}),
        ({"field": "page", "op": "<", "value": 4}, {"hunde"}),
        ({"field": "document", "op": "in", "value": ["cats", "hunde"]}, {"cats", "hunde"}),
        (
            {"and": [{"field": "metadata.lang", "value": "en"}, {"field": "metadata.year", "value": 2020}]},
            {"cats"},
        ),
        ({"field": "source", "value": "x' or 'a' = 'a"}, set()),
        ({"field": "source", "value": "x') or (true"}, set()),
        ({"field": "metadata.lang", "value": "' or true --"}, set()),
        ({"field": "metadata.lang", "value": "\\' or true --"}, set()),
    ],
)
def test_a_filter_means_what_it_says_and_no_more(
    tmp_path: Path, filter: dict[str, Any], found: set[str]
) -> None:
    async def work(documents: Documents) -> list[set[str]]:
        await documents.put("alice", "notes", [CATS, TAX, HUNDE])
        chosen = FILTER.validate_python(filter)
        text = "cats tax hunde sleep income bellen"
        return [
            set(await ids(documents.search("alice", "notes", text, mode=mode, filter=chosen)))
            for mode in ("vector", "fulltext", "hybrid")
        ]

    assert within(tmp_path, work) == [found] * 3


@pytest.mark.parametrize(
    "filter",
    [
        {"field": "digest", "value": "x"},
        {"field": "metadata.a') = 'x' or ('", "value": "x"},
        {"field": "source", "op": "like", "value": "%"},
        {"field": "source", "op": "in", "value": "x"},
        {"field": "source", "value": ["x"]},
        {"field": "page", "value": "1 or true"},
        {"field": "source", "value": "x", "or": []},
        {"and": []},
    ],
)
def test_what_is_not_of_the_grammar_is_refused(filter: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FILTER.validate_python(filter)


@pytest.mark.parametrize("name", ["", "../other", "a/b", "a.b", "x" * 65])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    async def work(documents: Documents) -> None:
        with pytest.raises(InvalidRequest):
            await documents.put("alice", name, [CATS])
        with pytest.raises(NoSuchCollection):
            await documents.search("alice", name, "cats")

    within(tmp_path, work)


@given(st.lists(st.integers(0, 30), unique=True), st.lists(st.integers(0, 30), unique=True))
def test_fusing_loses_nothing_and_keeps_what_both_agree_on(a: list[int], b: list[int]) -> None:
    fused = [one.row for one in fuse([Candidate(n, 0.0) for n in a], [Candidate(n, 0.0) for n in b])]
    assert set(fused) == {*a, *b}
    assert len(fused) == len(set(fused))
    if a and b and a[0] == b[0]:
        assert fused[0] == a[0]


def test_texts_that_come_often_leave_room_for_the_others(tmp_path: Path) -> None:
    same = [Document(f"same{n:02}", "Cats sleep for sixteen hours a day.") for n in range(30)]

    async def work(documents: Documents) -> list[list[str]]:
        await documents.put("alice", "notes", [*same, TAX, HUNDE])
        return [
            sorted(await ids(documents.search("alice", "notes", "cats sleep hours tax", mode=mode, k=2)))
            for mode in ("vector", "fulltext", "hybrid")
        ]

    assert within(tmp_path, work) == [["same00", "tax"]] * 3


def test_a_search_that_began_before_a_commit_reads_the_rows_that_it_ranked(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[str]:
        await documents.put("alice", "notes", [CATS, TAX])
        table = await documents.store.table("alice", "notes")
        ranked = await lancedb_search.matching(table, "cats sleep tax", 10)
        await documents.store.delete("alice", "notes", ["cats"])
        await documents.store.tidy("alice", "notes", timedelta(0))
        return sorted(passage.document for passage in await lancedb_search.read(table, ranked, 5))

    assert within(tmp_path, work) == ["cats", "tax"]


def test_a_reader_that_cannot_be_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        Documents(DocumentsConfig(path=str(tmp_path), readers={"pdf": Choice(plugin="pfd")}))
    assert raised.value.problems[0].path == "readers.pdf.plugin"


def test_a_way_to_ingest_that_is_not_there_is_told_before_anyone_ingests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        Documents(DocumentsConfig(path=str(tmp_path), ingest=Choice(plugin="nope")))
    assert raised.value.problems[0].path == "ingest.plugin"
