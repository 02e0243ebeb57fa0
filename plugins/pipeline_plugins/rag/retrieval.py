"""From a question to the passages for it: searched, screened, reranked, and with what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
from pydantic import Field

from pipeline import Call, Edge
from pipeline.errors import APIError
from pipeline_plugins.aside import aside
from pipeline_plugins.rag.chunk import Passage
from pipeline_plugins.rag.documents import Documents, DocumentsConfig, Mode
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.ranking import WORDS, joined
from pipeline_plugins.rag.rerank import reranked

MAX_K = 50
SPARE = 5
"""Passages beyond those wanted that are searched for, in the place of such as are screened out."""

log = structlog.get_logger("pipeline.rag")


class RetrievalConfig(DocumentsConfig):
    """How passages are found."""

    k: int = Field(5, ge=1, le=MAX_K, description="Passages, at most.")
    least: float = Field(
        0.25, ge=-1, le=1, description="Similarity to the question that a passage needs; not for `fulltext`."
    )
    words: float = Field(
        WORDS, ge=0, le=1, description="Weight of words in `hybrid`; the rest is that of meaning."
    )
    neighbours: int = Field(
        0, ge=0, le=8, description="Chunks before and after a passage that are added to it."
    )
    rerank_from: int = Field(
        20,
        ge=2,
        le=100,
        description="Passages of which the edge `rerank` picks the best, if there is one.",
    )
    rerank_model: str = Field("default", min_length=1, max_length=256, description="Model to ask for there.")


@dataclass(slots=True, frozen=True)
class Wanted:
    """What is searched for, where, and how."""

    collection: str
    query: str
    mode: Mode
    k: int
    filter: Filter | None = None
    least: float = -1.0
    rerank: bool = True


class Retrieval:
    """Finds passages of a tenant's documents for a call.

    Along `screen` each passage goes as a message of a tool's; those that are refused there are
    left out. `rerank` puts the best first.
    """

    def __init__(
        self, config: RetrievalConfig, documents: Documents, rerank: Edge | None, screen: Edge | None
    ) -> None:
        self._config = config
        self._documents = documents
        self._rerank = rerank
        self._screen = screen

    async def passages(self, call: Call, wanted: Wanted) -> list[Passage]:
        """The best passages, best first: chunks of their own. Raises `NoSuchCollection`."""
        config = self._config
        rerank = self._rerank if wanted.rerank else None
        pool = wanted.k + SPARE if self._screen is not None else wanted.k
        if rerank is not None:
            pool = max(pool, config.rerank_from)
        found = await self._documents.search(
            call.tenant.owner,
            wanted.collection,
            wanted.query,
            mode=wanted.mode,
            k=pool,
            filter=wanted.filter,
            least=wanted.least,
            words=config.words,
            record=call.record,
        )
        found = await self._screened(call, found)
        if rerank is not None:
            found = await reranked(call, rerank, wanted.query, found, config.rerank_model)
        return found[: wanted.k]

    def confidence(self, passage: Passage, *, reranked: bool) -> float:
        """How well a passage fits: the reranker's score, else its similarity, else BM25's."""
        if passage.similarity is None or (reranked and self._rerank is not None):
            return passage.score
        return max(0.0, passage.similarity)

    async def around(self, call: Call, collection: str, passages: Sequence[Passage]) -> list[Passage]:
        """The passages as a reader gets them: with their neighbours, and no part of a text twice."""
        beside: list[Passage] = []
        if reach := self._config.neighbours:
            places = _places_beside(passages, reach)
            if places:
                found = await self._documents.store.at(call.tenant.owner, collection, places)
                beside = await self._screened(call, found)
        return joined(passages, beside)

    async def _screened(self, call: Call, passages: list[Passage]) -> list[Passage]:
        screen = self._screen
        if screen is None or not passages:
            return passages

        async def passes(passage: Passage) -> bool:
            message = {"role": "tool", "tool_call_id": "passage", "content": passage.text}
            try:
                reply = await screen(aside(call, "chat", {"model": "default", "messages": [message]}))
            except APIError as error:
                if error.status >= 500:
                    raise
                return False
            return reply.status < 400

        kept = await asyncio.gather(*(passes(passage) for passage in passages))
        if dropped := kept.count(False):
            log.info("passages screened out", dropped=dropped, of=len(passages))
        return [passage for passage, stays in zip(passages, kept, strict=True) if stays]


def _places_beside(passages: Sequence[Passage], reach: int) -> dict[str, set[int]]:
    """The ordinals up to `reach` before and after each of these in its document, themselves left out."""
    places: dict[str, set[int]] = {}
    for one in passages:
        around = range(max(0, one.ordinal - reach), one.ordinal + reach + 1)
        places.setdefault(one.document, set()).update(around)
    for one in passages:
        places[one.document].discard(one.ordinal)
    return {document: ordinals for document, ordinals in places.items() if ordinals}
