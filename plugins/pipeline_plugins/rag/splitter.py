"""Cutting a text into pieces of a few hundred tokens, at headings and between sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline_plugins.rag.chunk import Piece

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text. One that is longer than a piece may be counted as any number above it."""

Splitter = Callable[[str], list[Piece]]
"""What cuts texts: another one may stand in the place of `Sentences`."""

HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*?)[ \t#]*")
FENCE = re.compile(r"[ \t]{0,3}(?:```|~~~)")
SENTENCE = re.compile(r"\S.*?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？]|(?=\n)|\Z)\s*", re.DOTALL)
"""A sentence or a line, with the white space after it."""

Span = tuple[int, int]


@dataclass(slots=True, frozen=True)
class Sentences:
    """Packs whole sentences into pieces of at most `tokens`, within the section of one heading.

    A piece begins with the last sentences of the one before, up to `overlap` tokens. Every
    character but white space is in some piece; a sentence longer than a piece is cut in halves,
    at white space where there is some.
    """

    count: Count
    tokens: int
    overlap: int

    def __call__(self, text: str) -> list[Piece]:
        """The pieces of a text, in its order."""
        pieces = []
        for section in _sections(text):
            spans, sizes = self._sentences(text, section)
            pieces += [replace(section, start=a, end=b) for a, b in self._pack(spans, sizes)]
        return [trimmed for piece in pieces if (trimmed := _trimmed(text, piece)).end > trimmed.start]

    def _sentences(self, text: str, section: Piece) -> tuple[list[Span], list[int]]:
        """Spans that fit a piece each, and their tokens."""
        spans = [match.span() for match in SENTENCE.finditer(text, section.start, section.end)]
        sizes = self.count([text[a:b] for a, b in spans])
        while any(size > self.tokens and b - a > 1 for (a, b), size in zip(spans, sizes, strict=True)):
            cut: list[tuple[Span, int | None]] = []
            for (a, b), size in zip(spans, sizes, strict=True):
                if size <= self.tokens or b - a <= 1:
                    cut.append(((a, b), size))
                    continue
                middle = _middle(text, a, b)
                cut += [((a, middle), None), ((middle, b), None)]
            new = iter(self.count([text[a:b] for (a, b), size in cut if size is None]))
            spans = [span for span, _ in cut]
            sizes = [next(new) if size is None else size for _, size in cut]
        return spans, sizes

    def _pack(self, spans: list[Span], sizes: list[int]) -> Iterator[Span]:
        first = held = 0
        for at, size in enumerate(sizes):
            if held and held + size > self.tokens:
                yield spans[first][0], spans[at - 1][1]
                first, held = at, 0
                while first and held + sizes[first - 1] <= min(self.overlap, self.tokens - size):
                    first -= 1
                    held += sizes[first]
            held += size
        if spans:
            yield spans[first][0], spans[-1][1]


def _sections(text: str) -> Iterator[Piece]:
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
            path = [(depth, name) for depth, name in path if depth < level] + [(level, heading[2])]
        elif line.strip():
            body = True
        at += len(line)
    yield Piece(start, len(text), tuple(name for _, name in path))


def _middle(text: str, a: int, b: int) -> int:
    """Where to cut: after white space in the middle third, else at the middle."""
    third = (b - a) // 3
    found = max((text.rfind(space, a + third, b - third) for space in (" ", "\t", "\n")), default=-1)
    return found + 1 if found > a else (a + b) // 2


def _trimmed(text: str, piece: Piece) -> Piece:
    own = text[piece.start : piece.end]
    start = piece.start + len(own) - len(own.lstrip())
    return replace(piece, start=start, end=max(start, piece.start + len(own.rstrip())))
