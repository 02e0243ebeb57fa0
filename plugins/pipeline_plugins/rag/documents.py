"""Documents in and passages out: the splitter, the embedder and the store put together."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.call import Record
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.rag.choice import Choice, Chosen, load, make
from pipeline_plugins.rag.chunk import Chunk, Document, Passage, Piece
from pipeline_plugins.rag.embedder import Embedder
from pipeline_plugins.rag.filters import Filter
from pipeline_plugins.rag.known import EmbedCache, KnownVectors
from pipeline_plugins.rag.ranking import WORDS
from pipeline_plugins.rag.tending import Tending
from pipeline_plugins.rag.windows import windows
from pipeline_plugins.read.reader import Readers
from pipeline_plugins.split.splitter import Size, Splitter
from pipeline_plugins.state import STATE
from pipeline_plugins.store.store import NoSuchCollection, Search, Store, check_name

if TYPE_CHECKING:
    from pipeline_plugins.rag.chunk import Vector

R = TypeVar("R")

Mode = Literal["hybrid", "vector", "fulltext"]

TOGETHER = 1024
"""Documents that are deleted in one commit, at most."""

CUTTING = 4
"""Changes with what is stored of the same text, cut by the shipped splitters."""

FRAME = 8
"""Tokens of the embedder's that a piece leaves free: its frame, and what joining parts may add."""


class DocumentsConfig(BaseModel):
    """Where documents are kept, and how they are read, cut and embedded."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        f"{STATE}/rag", min_length=1, description="Where a store keeps them: a folder, or a URL it knows."
    )
    store: Chosen = Field(
        Choice(plugin="lancedb"), description="The `store` plugin that keeps them, and what it is told."
    )
    embed: Chosen = Field(
        Choice(plugin="minilm"), description="The `infer` plugin that embeds, and what it is told."
    )
    embed_batch: int = Field(64, ge=1, le=2048, description="Texts in one call of the embedder.")
    embed_timeout: float = Field(60.0, gt=0, le=3600, description="Seconds that such a call may take.")
    embed_cache: EmbedCache = Field(
        None, description="Store of vectors known already: `memory`, `disk`, `redis`, or as caches have it."
    )
    splitter: Chosen = Field(
        Choice(plugin="auto"), description="The `split` plugin that cuts documents, and what it is told."
    )
    chunk_tokens: int = Field(200, ge=16, le=8192, description="Tokens of a chunk, at most.")
    overlap_tokens: int = Field(
        30, ge=0, le=4096, description="Tokens that a chunk repeats of the one before, at most."
    )
    ingest: Chosen | None = Field(
        None, description="The `ingest` plugin that `pipeline ingest` works by; null: in one process."
    )
    readers: dict[str, Chosen] = Field(
        default_factory=dict, description="`read` plugins by suffix, where not the only one is to be taken."
    )
    max_file_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, le=2**32, description="Bytes of a file, page or upload, at most."
    )
    keep_days: float = Field(
        7.0, ge=0, le=3650, description="Days for which earlier versions of a collection are kept."
    )
    private_addresses: bool = Field(
        False, description="Whether pages may be fetched from this machine and from private networks."
    )

    @field_validator("readers")
    @classmethod
    def _suffixes(cls, readers: dict[str, Choice]) -> dict[str, Choice]:
        for suffix in readers:
            if not suffix or suffix != suffix.lower() or "." in suffix:
                raise ValueError(f"`{suffix}` must be in small letters and without dots, such as `pdf`")
        return readers

    @model_validator(mode="after")
    def _fits(self) -> DocumentsConfig:
        if self.overlap_tokens >= self.chunk_tokens:
            raise ValueError("overlap_tokens must be less than chunk_tokens")
        return self


@dataclass(slots=True, frozen=True)
class Ingested:
    """How many documents were put in, how many were the same as before, and how many went."""

    changed: int = 0
    unchanged: int = 0
    chunks: int = 0
    deleted: int = 0

    def __add__(self, other: Ingested) -> Ingested:
        return Ingested(
            self.changed + other.changed,
            self.unchanged + other.unchanged,
            self.chunks + other.chunks,
            self.deleted + other.deleted,
        )


@dataclass(slots=True, frozen=True)
class Cut:
    """Documents that have changed, with their pieces and their digests, ready to be embedded."""

    documents: Sequence[Document]
    pieces: Sequence[tuple[Document, Piece]]
    digests: Mapping[str, str]
    unchanged: int


class Documents:
    """The documents of all owners. Reading and cutting happen in a thread of its own.

    Raises `ConfigError` for a store, embedder, splitter, reader or way to ingest that is not there.
    """

    def __init__(self, config: DocumentsConfig) -> None:
        self.config = config
        self.store: Store = make("store", config.store, "store", path=config.path)
        self.embedder = Embedder(config.embed, batch=config.embed_batch, timeout=config.embed_timeout)
        self._known: KnownVectors | None = None
        if config.embed_cache is not None:
            by = config.embed.model_dump(mode="json")
            self._known = KnownVectors(config.embed_cache, self.embedder, by)
        self._splitter: Splitter = make("split", config.splitter, "splitter")
        self.readers = Readers(config.readers)
        if config.ingest is not None:
            load("ingest", config.ingest, "ingest")  # made by whoever ingests
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="rag")
        self._source = _source(config)
        self.tending = Tending(self._tidy)

    async def open(self) -> None:
        """Load the embedder and open the store. Raises what `load` and the store do."""
        await self.load()
        await self.store.open(self.embedder.model)

    async def load(self) -> None:
        """Load the embedder alone: for cutting and embedding without a store.

        Raises `ConfigError` for one that is missing or reads less than a chunk.
        """
        config = self.config
        await self.embedder.open()
        if self._known is not None:
            await self._known.open()
        most = (self.embedder.max_tokens or sys.maxsize) - FRAME
        if config.chunk_tokens > most:
            problem = f"the embedder reads {most} tokens at most, not {config.chunk_tokens}."
            raise ConfigError([Problem("chunk_tokens", problem)])
        self._size = Size(config.chunk_tokens, config.overlap_tokens, self.embedder.count)

    async def close(self) -> None:
        """Let go of the store, the thread and the embedder."""
        await self.tending.close()
        await self.store.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._known is not None:
            await self._known.close()
        await self.embedder.close()

    async def put(
        self, owner: str, collection: str, documents: Sequence[Document], files: Sequence[str] = ()
    ) -> Ingested:
        """Add documents, or replace those that have changed, in one commit; a new collection is made.

        They are all that these files have: what the files had before and have no more is deleted, in the
        same commit unless it is a lot. Their ids must differ. Memory is bounded by what the caller puts in
        at once.
        """
        check_name(collection)
        cut = await self.cut(owner, collection, documents)
        chunks = await self.embed(owner, cut)
        await self.store.create(owner, collection, await self.embedder.dimensions())
        gone = await self._gone(owner, collection, files, {document.id for document in documents})
        await self.store.replace(owner, collection, {**chunks, **dict.fromkeys(gone[:TOGETHER], ())})
        await self.delete(owner, collection, gone[TOGETHER:])
        return Ingested(len(cut.documents), cut.unchanged, len(cut.pieces), len(gone))

    async def delete(self, owner: str, collection: str, ids: Sequence[str]) -> None:
        """Delete any number of documents, some at a time."""
        for start in range(0, len(ids), TOGETHER):
            await self.store.delete(owner, collection, ids[start : start + TOGETHER])

    async def _gone(self, owner: str, collection: str, files: Sequence[str], ids: set[str]) -> list[str]:
        """The documents of these files that are stored and not among these ids."""
        gone: list[str] = []
        for name in dict.fromkeys(files):
            async for found in self.store.read_from(owner, collection, name):
                gone += [document for document, file in found if file == name and document not in ids]
        return gone

    async def cut(self, owner: str, collection: str, documents: Sequence[Document]) -> Cut:
        """What of these documents the collection does not have yet, in pieces."""
        try:
            found = await self.store.digests(owner, collection, [document.id for document in documents])
        except NoSuchCollection:
            found = {}
        known = {*found.items(), *((id, "") for id in found)}
        return await self.in_thread(self.cut_new, documents, lambda *pair: pair in known)

    def cut_new(self, documents: Sequence[Document], known: Callable[[str, str], bool]) -> Cut:
        """What of these documents is new or changed, in pieces. Blocks.

        `known` says of an id and a digest whether they are stored; with an empty one, whether the id is.
        """
        digests = {document.id: self._digest(document) for document in documents}
        changed, pieces = [], []
        for document in documents:
            if known(document.id, digests[document.id]):
                continue
            own = self._splitter(document, self._size)
            if own or known(document.id, ""):
                changed.append(document)
                pieces += [(document, piece) for piece in own]
        return Cut(changed, pieces, digests, len(documents) - len(changed))

    async def embed(self, owner: str, cut: Cut, *, patient: bool = False) -> dict[str, list[Chunk]]:
        """The chunks of each document that was cut. Raises what the embedder does."""
        chunks: dict[str, list[Chunk]] = {document.id: [] for document in cut.documents}
        if not cut.pieces:
            return chunks
        parts = [windows(document.text[piece.start : piece.end]) for document, piece in cut.pieces]
        rows = await self._vectors(owner, [window for part in parts for window in part], patient)
        at = 0
        for (document, piece), part in zip(cut.pieces, parts, strict=True):
            own, at = rows[at : at + len(part)], at + len(part)
            chunks[document.id].append(Chunk(document, piece, own, cut.digests[document.id]))
        return chunks

    async def _vectors(
        self, owner: str, texts: Sequence[str], patient: bool = False, record: Record | None = None
    ) -> Vector:
        if self._known is not None:
            return await self._known.embed(owner, texts, patient=patient, record=record)
        return await self.embedder.embed(texts, patient=patient, record=record)

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
        words: float = WORDS,
        record: Record | None = None,
    ) -> list[Passage]:
        """The `k` best passages, best first, without repeats of a text.

        Those whose similarity to the query is below `least` are left out; `fulltext` has none.
        `words` is their weight in `hybrid`; what embedding the query costs goes into `record`.
        Raises `NoSuchCollection`.
        """
        vector = None if mode == "fulltext" else (await self._vectors(owner, [query], record=record))[0]
        text = None if mode == "vector" else query
        return await self.store.search(owner, collection, Search(k, text, vector, filter, least, words))

    async def in_thread(self, work: Callable[..., R], *arguments: Any) -> R:
        """Read or cut off the event loop, one after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

    async def _tidy(self, owner: str, collection: str) -> None:
        await self.store.tidy(owner, collection, timedelta(days=self.config.keep_days))

    async def note(self, record: Record, owner: str, collection: str) -> None:
        """Say in a call's record that its answer is made of what the collection has now."""
        source = orjson.dumps([self._source, owner, collection]).decode()
        record.sources[source] = await self.store.version(owner, collection)

    def version(self, source: str) -> Awaitable[str] | None:
        """The version of a source that was noted; None for one that is not of these documents."""
        try:
            where, owner, collection = orjson.loads(source)
        except ValueError:
            return None
        return self.store.version(owner, collection) if where == self._source else None

    def _digest(self, document: Document) -> str:
        """Of all that decides what is stored of a document."""
        config = self.config
        parts: list[Any] = [document.text, document.source, document.page, dict(document.metadata)]
        parts += [document.file, document.pages, config.splitter.model_dump()]
        parts += [config.chunk_tokens, config.overlap_tokens, CUTTING]
        data = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(data, digest_size=32, person=b"rag-document").hexdigest()


def _source(config: DocumentsConfig) -> str:
    """What these documents are called where answers of them are cached: by the store and its place."""
    place = orjson.dumps([config.path, config.store.model_dump(mode="json")], option=orjson.OPT_SORT_KEYS)
    return "rag:" + hashlib.blake2b(place, digest_size=16, person=b"rag-source").hexdigest()
