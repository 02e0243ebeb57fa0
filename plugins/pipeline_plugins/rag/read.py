"""Files as documents: Markdown, text, HTML and JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import orjson

from pipeline_plugins.rag.chunk import Document

MAX_FILE = 64 * 1024 * 1024
"""Bytes of a file that is read at once; JSON Lines are read by the line, up to as much each."""

SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "head"})
BLOCKS = frozenset(
    {"p", "div", "li", "tr", "br", "pre", "section", "article", "blockquote", "table", "ul", "ol", "dt", "dd"}
)
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}


@dataclass(slots=True, frozen=True)
class File:
    """A file to read, and the id of its document: its path from the folder above the one named."""

    path: Path
    id: str


class Unreadable(ValueError):
    """A file, or a line of one, is not what its name says; the message is for people."""


def files(paths: Iterable[Path]) -> Iterator[File]:
    """The files that can be read, those of folders in alphabetical order; hidden ones are left out.

    One that is named itself comes whatever its name is.
    """
    for path in paths:
        if not path.is_dir():
            yield File(path, path.name)
            continue
        root = path.resolve()
        for found in sorted(root.rglob("*")):
            inside = found.relative_to(root)
            hidden = any(part.startswith(".") for part in inside.parts)
            if found.suffix.lower() in READERS and found.is_file() and not hidden:
                yield File(found, (root.name / inside).as_posix())


def read(file: File) -> Iterator[Document]:
    """The documents of a file. Raises `Unreadable` or `OSError`."""
    reader = READERS.get(file.path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(READERS))
        raise Unreadable(f"`{file.path.suffix}` is not read here, only {known}")
    yield from reader(file)


def _text(file: File) -> str:
    if file.path.stat().st_size > MAX_FILE:
        raise Unreadable(f"larger than {MAX_FILE} bytes")
    try:
        return file.path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"no UTF-8 at byte {error.start}") from None


def _plain(file: File) -> Iterator[Document]:
    yield Document(file.id, _text(file), source=file.id)


def _html(file: File) -> Iterator[Document]:
    page = _Page()
    page.feed(_text(file))
    page.close()
    yield Document(file.id, page.text, source=file.id)


def _lines(file: File) -> Iterator[Document]:
    with file.path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_FILE), b""), 1):
            if line.strip():
                yield _row(file, number, line)


def _row(file: File, number: int, line: bytes) -> Document:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise Unreadable(f"line {number} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise Unreadable(f"line {number} needs a `text`: {{id, text, metadata}}")
    id, metadata = row.get("id", f"{file.id}#{number}"), row.get("metadata", {})
    flat = isinstance(metadata, dict) and all(isinstance(v, (str, int, float)) for v in metadata.values())
    if not isinstance(id, str) or not id or not flat:
        raise Unreadable(f"line {number}: `id` must be a text, and `metadata` hold texts and numbers")
    source, page = metadata.get("source"), metadata.get("page")
    return Document(
        id,
        row["text"],
        source=source if isinstance(source, str) else file.id,
        page=page if type(page) is int and 0 <= page < 2**31 else None,
        metadata=metadata,
    )


class _Page(HTMLParser):
    """The text of a page, its headings as Markdown's, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._skipping: list[str] = []

    @property
    def text(self) -> str:
        """All of it, with no more than one empty line in a row."""
        lines = [" ".join(line.split()) for line in "".join(self._parts).split("\n")]
        kept = [line for at, line in enumerate(lines) if line or (at and lines[at - 1])]
        return "\n".join(kept).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block, or what is left out."""
        if tag in SKIPPED:
            self._skipping.append(tag)
        elif tag in HEADINGS:
            self._parts.append(f"\n\n{HEADINGS[tag]} ")
        elif tag in BLOCKS:
            self._parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """End it."""
        if tag in self._skipping:
            while self._skipping.pop() != tag:
                pass
        elif tag in HEADINGS or tag in BLOCKS:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        if not self._skipping:
            self._parts.append(data.replace("\n", " "))


READERS: dict[str, Callable[[File], Iterator[Document]]] = {
    **dict.fromkeys((".md", ".markdown", ".txt", ".text", ".rst"), _plain),
    **dict.fromkeys((".html", ".htm"), _html),
    **dict.fromkeys((".jsonl", ".ndjson"), _lines),
}
