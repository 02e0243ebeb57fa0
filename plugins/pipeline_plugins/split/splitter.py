"""What a splitter is, and the packing of parts into pieces of a given size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline_plugins.rag.chunk import Document, Piece

Count = Callable[[Sequence[str]], list[int]]
"""Tokens of each text. One that is longer than a piece may be counted as any number above it."""

SENTENCE = re.compile(r"\S.*?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？]|(?=\n)|\Z)\s*", re.DOTALL)
"""A sentence or a line, with the white space after it."""

LINE = re.compile(r"[^\n]+\n*")
"""A line, and the empty ones after it."""

Span = tuple[int, int]


@dataclass(slots=True, frozen=True)
class Size:
    """How long pieces may be: at most `tokens`, of which up to `overlap` repeat the piece before."""

    tokens: int
    overlap: int
    count: Count


class Splitter(Protocol):
    """The contract of a plugin `split.NAME`.

    Its pieces are in the text's order, none is longer than `size.tokens`, and every character
    but white space is in some piece.
    """

    Config: ClassVar[type[BaseModel]]

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document. Called in a thread, for several documents at the same time."""
        ...


class Untold:
    """The beginning of a splitter that needs to be told nothing."""

    class Config(BaseModel):
        """Nothing to be told."""

        model_config = ConfigDict(extra="forbid")

    def __init__(self, config: Config) -> None:
        self.config = config


def packed(text: str, section: Piece, size: Size, parts: re.Pattern[str] = SENTENCE) -> Iterator[Piece]:
    """A section as pieces of as many parts as fit; a part that is too long is cut in halves.

    A piece begins with the last parts of the one before, up to `size.overlap` tokens.
    """
    spans = [match.span() for match in parts.finditer(text, section.start, section.end)]
    spans, sizes = halved(text, spans, size)
    for start, end in _packed(spans, sizes, size):
        if (piece := trimmed(text, replace(section, start=start, end=end))).end > piece.start:
            yield piece


def halved(text: str, spans: list[Span], size: Size) -> tuple[list[Span], list[int]]:
    """Spans that fit a piece each, and their tokens: what is too long is cut, if it can be at white space."""
    sizes = size.count([text[a:b] for a, b in spans])
    while any(found > size.tokens and b - a > 1 for (a, b), found in zip(spans, sizes, strict=True)):
        cut: list[tuple[Span, int | None]] = []
        for (a, b), found in zip(spans, sizes, strict=True):
            if found <= size.tokens or b - a <= 1:
                cut.append(((a, b), found))
                continue
            middle = _middle(text, a, b)
            cut += [((a, middle), None), ((middle, b), None)]
        new = iter(size.count([text[a:b] for (a, b), found in cut if found is None]))
        spans = [span for span, _ in cut]
        sizes = [next(new) if found is None else found for _, found in cut]
    return spans, sizes


def trimmed(text: str, piece: Piece) -> Piece:
    """The piece without white space at its ends."""
    own = text[piece.start : piece.end]
    start = piece.start + len(own) - len(own.lstrip())
    return replace(piece, start=start, end=max(start, piece.start + len(own.rstrip())))


def _packed(spans: list[Span], sizes: list[int], size: Size) -> Iterator[Span]:
    first = held = 0
    for at, found in enumerate(sizes):
        if held and held + found > size.tokens:
            yield spans[first][0], spans[at - 1][1]
            first, held = at, 0
            while first and held + sizes[first - 1] <= min(size.overlap, size.tokens - found):
                first -= 1
                held += sizes[first]
        held += found
    if spans:
        yield spans[first][0], spans[-1][1]


def _middle(text: str, a: int, b: int) -> int:
    """Where to cut: after white space in the middle third, else at the middle."""
    third = (b - a) // 3
    found = max((text.rfind(space, a + third, b - third) for space in (" ", "\t", "\n")), default=-1)
    return found + 1 if found > a else (a + b) // 2
