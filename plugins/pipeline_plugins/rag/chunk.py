"""Documents, the chunks that they are cut into, and the passages that are found again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


@dataclass(slots=True, frozen=True)
class Document:
    """A text to be searched.

    id        unique in its collection: a later document with the same id replaces it
    source    what citations name, say its file
    page      the page that the text is of, None where there are none
    metadata  for filters
    file      what it was read from; a file that is read again leaves nothing of what it had before
    language  of source code, for splitters; empty for all else
    pages     where each page begins, in characters of the text; empty where there are none
    """

    id: str
    text: str
    source: str = ""
    page: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    language: str = ""
    pages: tuple[int, ...] = ()


@dataclass(slots=True, frozen=True)
class Piece:
    """A part of a text: `text[start:end]`, and the headings that it stands under, outermost first."""

    start: int
    end: int
    headings: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Chunk:
    """A piece of a document with its vectors, as it is stored.

    windows  a unit vector for each of its windows, as rows: see `pipeline_plugins.rag.windows`
    digest   of the whole document and of how it was cut: equal means unchanged
    """

    document: Document
    piece: Piece
    windows: Vector
    digest: str

    @property
    def text(self) -> str:
        """The piece's own text."""
        return self.document.text[self.piece.start : self.piece.end]

    @property
    def page(self) -> int | None:
        """The page on which the piece begins."""
        pages = self.document.pages
        return bisect_right(pages, self.piece.start) if pages else self.document.page


@dataclass(slots=True, frozen=True)
class Passage:
    """A chunk that a search has found.

    start, end  characters of the document's text
    score       what it was ranked by: similarity, BM25 or the sum of reciprocal ranks
    similarity  of its vectors with the query's, a cosine, None where no vectors were compared
    ordinal     the place of its chunk in the document, from 0
    """

    id: str
    document: str
    text: str
    source: str
    page: int | None
    heading: str
    start: int
    end: int
    metadata: Mapping[str, Any]
    score: float
    similarity: float | None = None
    ordinal: int = 0

    def shown(self, *, text: bool = True) -> dict[str, Any]:
        """What a client is told of it."""
        told: dict[str, Any] = {
            "document": self.document,
            "source": self.source,
            "page": self.page,
            "heading": self.heading,
            "start": self.start,
            "end": self.end,
            "score": round(self.score, 6),
            "similarity": None if self.similarity is None else round(self.similarity, 6),
            "metadata": dict(self.metadata),
        }
        return {**told, "text": self.text} if text else told
