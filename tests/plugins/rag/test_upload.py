"""Files in a request: what becomes of them, and what is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import APIError, BodyTooLarge, InvalidRequest

pytest.importorskip("python_multipart")

from pipeline_plugins.rag.choice import Choice
from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.documents import Documents, Ingested
from pipeline_plugins.rag.upload import documents_in, receive_files
from pipeline_plugins.rag.upload import uploaded as uploaded_to
from pipeline_plugins.read.reader import Readers

from tests.plugins.rag import opened

READERS = Readers({})
TYPE = "multipart/form-data; boundary=b0undary"


def form(*parts: tuple[str, str, str]) -> bytes:
    """A body of (disposition, content type, content)."""
    body = ""
    for disposition, kind, content in parts:
        kind = f"content-type: {kind}\r\n" if kind else ""
        body += f"--b0undary\r\ncontent-disposition: form-data; {disposition}\r\n{kind}\r\n{content}\r\n"
    return f"{body}--b0undary--\r\n".encode()


def receiving(body: bytes, pieces: int = 7) -> Callable[[], Awaitable[dict[str, Any]]]:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[at : at + pieces], "more_body": True}
        for at in range(0, len(body), pieces)
    ]
    messages.append({"type": "http.request", "body": b""})
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    return receive


def uploaded(body: bytes, folder: Path, *, limit: int = 10_000, pieces: int = 7) -> list[Document]:
    receive = receiving(body, pieces)
    found = asyncio.run(receive_files(receive, TYPE, folder, READERS, limit=limit, seconds=30))
    return documents_in(found, READERS)


def test_each_file_is_a_document_of_its_name(tmp_path: Path) -> None:
    body = form(
        ('name="file"; filename="a.md"', "text/markdown", "# One"),
        ('name="file"; filename="table.csv"', "text/csv", "name\nPump\nSeal"),
        ('name="metadata"', "", '{"team": "search"}'),
    )
    found = uploaded(body, tmp_path)
    assert [(one.id, one.text) for one in found] == [
        ("a.md", "# One"),
        ("table.csv#1", "name: Pump"),
        ("table.csv#2", "name: Seal"),
    ]
    assert [one.metadata["team"] for one in found] == ["search"] * 3


def test_two_files_of_one_name_are_refused_rather_than_one_lost(tmp_path: Path) -> None:
    body = form(('name="file"; filename="a.md"', "", "One"), ('name="file"; filename="a.md"', "", "Two"))
    with pytest.raises(InvalidRequest, match=r"`a\.md` comes twice"):
        uploaded(body, tmp_path)


def test_a_file_without_suffix_is_read_by_its_content_type(tmp_path: Path) -> None:
    (found,) = uploaded(form(('name="file"; filename="page"', "text/html", "<h1>Hi</h1>")), tmp_path)
    assert (found.id, found.text) == ("page", "# Hi")


def test_a_name_leads_nowhere(tmp_path: Path) -> None:
    body = form(('name="file"; filename="../../etc/passwd.txt"', "text/plain", "x"))
    assert [one.id for one in uploaded(body, tmp_path)] == ["passwd.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_large_file_goes_by_way_of_the_disk(tmp_path: Path) -> None:
    text = "word " * 500_000
    body = form(('name="file"; filename="a.txt"', "text/plain", text))
    (found,) = uploaded(body, tmp_path, limit=4_000_000, pieces=65_536)
    assert found.text == text


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (form(('name="file"; filename="a.txt"', "text/plain", "x" * 80_000)), BodyTooLarge),
        (form(('name="metadata"', "", "{}")), InvalidRequest),
        (form(('name="file"; filename=""', "text/plain", "x")), InvalidRequest),
        (form(('name="file"; filename="a.pdf"', "application/pdf", "no")), InvalidRequest),
        (form(('name="file"; filename="a.bin"', "application/x-odd", "no")), InvalidRequest),
        (form(*[('name="file"; filename="a.txt"', "text/plain", "x")] * 65), InvalidRequest),
        (form(('name="file"; filename="a.csv"', "text/csv", "n\n" + "1\n" * 1100)), InvalidRequest),
        (form(('name="file"; filename="a.txt"', "", "x"), ('name="fliter"', "", "x")), InvalidRequest),
        (form(('name="file"; filename="a.txt"', "", "x"), ('name="metadata"', "", "[1]")), InvalidRequest),
        (
            form(('name="file"; filename="a.txt"', "", "x"), ('name="metadata"', "", '{"a":[]}')),
            InvalidRequest,
        ),
        (b"no form at all", InvalidRequest),
        (b"", InvalidRequest),
    ],
)
def test_what_is_no_form_with_files_is_refused(tmp_path: Path, body: bytes, error: type[APIError]) -> None:
    with pytest.raises(error):
        uploaded(body, tmp_path, pieces=1000)


def rows(name: str, *texts: str) -> bytes:
    return form((f'name="file"; filename="{name}"', "text/csv", "\n".join(["part", *texts])))


within = partial(opened.within, embed=Choice(plugin="echo"))


async def upload(documents: Documents, owner: str, body: bytes) -> Ingested:
    return await documents.put(owner, "parts", *await uploaded_to(documents, TYPE, receiving(body)))


async def stored(documents: Documents, owner: str) -> set[str]:
    return {id async for batch in documents.store.all_digests(owner, "parts") for id, _ in batch}


def test_the_rows_of_an_uploaded_file_take_the_place_of_all_that_it_had(tmp_path: Path) -> None:
    async def work(documents: Documents) -> tuple[Any, ...]:
        await upload(documents, "alice", rows("a.csv", "Pump", "Seal", "Valve"))
        await upload(documents, "alice", rows("b.csv", "Hose", "Tank"))
        await upload(documents, "bob", rows("a.csv", "Pump", "Seal"))
        done = await upload(documents, "alice", rows("a.csv", "Pump"))
        return done, await stored(documents, "alice"), await stored(documents, "bob")

    done, alice, bob = within(tmp_path, work)
    assert done == Ingested(unchanged=1, deleted=2)
    assert alice == {"a.csv#1", "b.csv#1", "b.csv#2"}
    assert bob == {"a.csv#1", "a.csv#2"}


def test_what_a_file_has_new_and_no_more_comes_and_goes_at_once(tmp_path: Path) -> None:
    async def work(documents: Documents) -> list[set[str]]:
        await upload(documents, "alice", rows("a.csv", "Pump", "Seal"))
        table = await documents.store.table("alice", "parts")
        before = await table.version()
        body = '{"id": "valve", "text": "Valve"}'
        await upload(documents, "alice", form(('name="file"; filename="a.csv"', "", "part\nHose")))
        await upload(documents, "alice", form(('name="file"; filename="a.jsonl"', "", body)))
        await table.checkout_latest()
        seen = []
        for version in range(before, await table.version() + 1):
            await table.checkout(version)
            found = await table.query().where("ordinal = 0").select(["document", "text"]).to_arrow()
            seen.append({f"{row['document']} {row['text']}" for row in found.to_pylist()})
        return seen

    old, new = {"a.csv#1 part: Pump", "a.csv#2 part: Seal"}, {"a.csv#1 part: Hose"}
    assert all(seen in (old, new, {*new, "valve Valve"}) for seen in within(tmp_path, work))


def test_an_uploaded_table_without_rows_leaves_none(tmp_path: Path) -> None:
    async def work(documents: Documents) -> tuple[Any, ...]:
        await upload(documents, "alice", rows("a.csv", "Pump", "Seal"))
        return await upload(documents, "alice", rows("a.csv")), await stored(documents, "alice")

    assert within(tmp_path, work) == (Ingested(deleted=2), set())


def test_documents_that_are_no_file_are_added_and_replaced_alone(tmp_path: Path) -> None:
    async def work(documents: Documents) -> set[str]:
        await upload(documents, "alice", rows("a.csv", "Pump", "Seal"))
        await documents.put("alice", "parts", [Document("a.csv", "x"), Document("note", "y")])
        await documents.put("alice", "parts", [Document("note", "z")])
        await upload(documents, "alice", rows("a.csv", "Pump"))
        return await stored(documents, "alice")

    assert within(tmp_path, work) == {"a.csv", "a.csv#1", "note"}
