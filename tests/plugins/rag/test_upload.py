"""Files in a request: what becomes of them, and what is refused."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import APIError, BodyTooLarge, InvalidRequest

pytest.importorskip("python_multipart")

from pipeline_plugins.rag.chunk import Document
from pipeline_plugins.rag.upload import documents_in, receive_files
from pipeline_plugins.read.reader import Readers

READERS = Readers({})
TYPE = "multipart/form-data; boundary=b0undary"


def form(*parts: tuple[str, str, str]) -> bytes:
    """A body of (disposition, content type, content)."""
    body = ""
    for disposition, kind, content in parts:
        kind = f"content-type: {kind}\r\n" if kind else ""
        body += f"--b0undary\r\ncontent-disposition: form-data; {disposition}\r\n{kind}\r\n{content}\r\n"
    return f"{body}--b0undary--\r\n".encode()


def uploaded(body: bytes, folder: Path, *, limit: int = 10_000, pieces: int = 7) -> list[Document]:
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[at : at + pieces], "more_body": True}
        for at in range(0, len(body), pieces)
    ]
    messages.append({"type": "http.request", "body": b""})
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

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
