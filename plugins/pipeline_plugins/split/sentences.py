"""`split.sentences` and `split.headings`: cutting at Markdown headings and between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.splitter import Size, Untold, packed, trimmed

HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*)")
FENCE = re.compile(r"[ \t]{0,3}(?:```|~~~)")

NAME = 200
"""Characters that are kept of a heading: every chunk below has it."""


class Sentences(Untold):
    """Packs whole sentences into pieces, within the section of one heading."""

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        text = document.text
        return [piece for section in sections(text) for piece in packed(text, section, size)]


class Headings(Untold):
    """Makes a piece of every section, and of small ones in a row under the same heading.

    A section that is too long is cut between sentences.
    """

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        text = document.text
        pieces: list[Piece] = []
        for piece in self._joined(text, size):
            if size.count([text[piece.start : piece.end]])[0] <= size.tokens:
                pieces.append(trimmed(text, piece))
            else:
                pieces += packed(text, piece, size)
        return [piece for piece in pieces if piece.end > piece.start]

    def _joined(self, text: str, size: Size) -> Iterator[Piece]:
        """Sections, and runs of them that fit one piece and have headings in common."""
        found = [one for one in sections(text) if text[one.start : one.end].strip()]
        counts = size.count([text[one.start : one.end] for one in found])
        held: Piece | None = None
        tokens = 0
        for one, count in zip(found, counts, strict=True):
            common = () if held is None else _common(held.headings, one.headings)
            if held is not None and common and tokens + count <= size.tokens:
                held, tokens = replace(held, end=one.end, headings=common), tokens + count
                continue
            if held is not None:
                yield held
            held, tokens = one, count
        if held is not None:
            yield held


def sections(text: str) -> Iterator[Piece]:
    """The text from one Markdown heading to the next; headings without text go with what follows."""
    path: list[tuple[int, str]] = []
    start = at = 0
    body = fenced = False
    for line in text.splitlines(keepends=True):
        if FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else HEADING.fullmatch(line.rstrip())
        if heading is not None:
            if body:
                yield Piece(start, at, tuple(name for _, name in path))
                start, body = at, False
            level = len(heading[1])
            path = [(depth, name) for depth, name in path if depth < level] + [(level, _named(heading[2]))]
        elif line.strip():
            body = True
        at += len(line)
    yield Piece(start, len(text), tuple(name for _, name in path))


def _named(heading: str) -> str:
    """The heading without the signs that may close it; those of `C#` belong to it."""
    bare = heading.rstrip("#")
    return (bare.rstrip() if bare.endswith((" ", "\t")) else heading)[:NAME]


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    same = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:same]
