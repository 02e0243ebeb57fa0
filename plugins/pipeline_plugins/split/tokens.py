"""`split.tokens`: windows of a number of tokens, whatever the text is."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from pipeline_plugins.rag.chunk import Document, Piece
from pipeline_plugins.split.splitter import Size, Span, Untold, halved, trimmed

WORD = re.compile(r"\S+\s*")


class Tokens(Untold):
    """Makes windows of as many whole words as fit, each repeating the end of the one before."""

    def __call__(self, document: Document, size: Size) -> list[Piece]:
        """The pieces of a document."""
        text = document.text
        words = _words(text, size)
        pieces: list[Piece] = []
        first = 0
        while first < len(words):
            end = _fitting(text, words, first, size)
            pieces.append(trimmed(text, Piece(words[first][0], words[end - 1][1])))
            if end == len(words):
                break
            first = _overlapping(text, words, first, end, size)
        return pieces


def _words(text: str, size: Size) -> list[Span]:
    """Words, of which those that could be too long for a piece are cut."""
    words: list[Span] = []
    for match in WORD.finditer(text):
        if match.end() - match.start() <= size.tokens:  # no token is shorter than a character
            words.append(match.span())
        else:
            words += halved(text, [match.span()], size)[0]
    return words


def _fitting(text: str, words: Sequence[Span], first: int, size: Size) -> int:
    """The end of the longest run of words from `first` that fits a piece, of one word at least."""

    def tokens(end: int) -> int:
        return size.count([text[words[first][0] : words[end - 1][1]]])[0]

    most = min(len(words), first + size.tokens)
    if tokens(most) <= size.tokens:
        return most
    end = first + max(1, bisect_right(range(first + 1, most), size.tokens, key=tokens))
    while end > first + 1 and tokens(end) > size.tokens:  # one word more can make for fewer tokens
        end -= 1
    return end


def _overlapping(text: str, words: Sequence[Span], first: int, end: int, size: Size) -> int:
    """Where the next window begins: as far before `end` as the overlap goes, after `first`."""

    def tokens(back: int) -> int:
        return size.count([text[words[end - back][0] : words[end - 1][1]]])[0]

    most = min(end - first - 1, size.overlap)
    return end - bisect_right(range(1, most + 1), size.overlap, key=tokens) if most else end
