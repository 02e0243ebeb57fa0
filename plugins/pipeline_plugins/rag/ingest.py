"""Many documents into a collection: reading, cutting, embedding and storing at the same time.

Each step works on what the one before has ready, through queues of a few batches, so the
embedder, which takes the longest, is never without work, and memory is bounded whatever is
read. A kill loses what is not committed: the next run finds the rest unchanged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta

from pipeline_plugins.rag.chunk import Chunk, Document
from pipeline_plugins.rag.documents import Cut, Documents, Ingested
from pipeline_plugins.rag.sources import Source, read
from pipeline_plugins.rag.store import NoSuchCollection
from pipeline_plugins.rag.upkeep import tidy
from pipeline_plugins.read.reader import File

BATCH = 64
BATCH_CHARACTERS = 256 * 1024
"""Documents and characters that are cut and embedded at once."""

AHEAD = 2
"""Batches that wait before each step."""

EMBEDDING = 2
"""Batches that are embedded at the same time: while one ends, the other keeps the embedder busy."""

COMMIT_CHUNKS = 4096
COMMIT_SECONDS = 15.0
"""How much is stored in one commit, at most, and how long it may wait for that."""

TIDY_COMMITS = 64
"""Commits after which a collection is put in order while the work goes on."""

Step = Callable[[float], None]
Cuts = asyncio.Queue[tuple[Cut, float] | None]
Embedded = asyncio.Queue[dict[str, list[Chunk]] | None]


@dataclass(slots=True, frozen=True)
class Batch:
    """Documents that are cut at once, and the bytes of files that are behind them."""

    documents: list[Document]
    bytes: float


@dataclass(slots=True, frozen=True)
class Fault:
    """What could not be read, and why."""

    what: str
    reason: str


class Ingestion:
    """One run over sources; `faults` are those of what was read so far.

    With `sync`, documents of the sources that are gone go from the collection, too. The rows
    of a file that is read to its end always take the place of all that it had before.
    `keep` is how old a version of the collection must be to be forgotten.
    """

    def __init__(
        self,
        documents: Documents,
        owner: str,
        collection: str,
        *,
        sync: bool = False,
        keep: timedelta = timedelta(days=7),
    ) -> None:
        self.faults: list[Fault] = []
        self._documents = documents
        self._owner = owner
        self._collection = collection
        self._sync = sync
        self._keep = keep
        self._private = documents.config.private_addresses
        self._seen: set[bytes] = set()
        self._unread: set[str] = set()
        self._rows: list[str] = []
        self._done = Ingested()
        self._commits = 0

    async def run(self, sources: Sequence[Source], step: Step) -> Ingested:
        """Put all of them in; `step` is told of the bytes of files as they are read.

        Raises `InvalidRequest` for a collection of another embedding model, and what the store or
        the embedder fails with.
        """
        to_embed: Cuts = asyncio.Queue(AHEAD)
        to_store: Embedded = asyncio.Queue(AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(sources, step, to_embed))
                group.create_task(self._embed(to_embed, to_store, step))
                group.create_task(self._store(to_store))
        except ExceptionGroup as failed:
            raise _cause(failed) from None
        await self._remove(sources)
        if self._commits or self._done.deleted:
            await tidy(self._documents.store, self._owner, self._collection, self._keep)
        return self._done

    async def _read(self, sources: Sequence[Source], step: Step, to_embed: Cuts) -> None:
        loop = asyncio.get_running_loop()
        batches = self._batches(sources)
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
            while (batch := await loop.run_in_executor(thread, next, batches, None)) is not None:
                cut = await self._documents.cut(self._owner, self._collection, batch.documents)
                self._done += Ingested(unchanged=cut.unchanged)
                if cut.documents:
                    await to_embed.put((cut, batch.bytes))
                else:
                    step(batch.bytes)
        for _ in range(EMBEDDING):
            await to_embed.put(None)

    async def _embed(self, to_embed: Cuts, to_store: Embedded, step: Step) -> None:
        async def work() -> None:
            while (found := await to_embed.get()) is not None:
                await to_store.put(await self._documents.embed(self._owner, found[0], patient=True))
                step(found[1])

        async with asyncio.TaskGroup() as group:
            for _ in range(EMBEDDING):
                group.create_task(work())
        await to_store.put(None)

    async def _store(self, to_store: Embedded) -> None:
        loop = asyncio.get_running_loop()
        held: dict[str, list[Chunk]] = {}
        chunks, since = 0, loop.time()
        while True:
            embedded = await to_store.get()
            if embedded is not None:
                since = since if held else loop.time()
                held |= embedded
                chunks += sum(map(len, embedded.values()))
            full = chunks >= COMMIT_CHUNKS or loop.time() - since >= COMMIT_SECONDS
            if held and (full or embedded is None):
                await self._commit(held)
                held, chunks = {}, 0
            if embedded is None:
                return

    async def _commit(self, held: dict[str, list[Chunk]]) -> None:
        documents, owner, name = self._documents, self._owner, self._collection
        await documents.store.create(owner, name, await documents.embedder.dimensions())
        await documents.store.replace(owner, name, held)
        self._commits += 1
        self._done += Ingested(changed=len(held), chunks=sum(map(len, held.values())))
        if self._commits % TIDY_COMMITS == 0:
            await tidy(documents.store, owner, name, self._keep)

    def _batches(self, sources: Sequence[Source]) -> Iterator[Batch]:
        """Documents to be cut at once. What can't be read becomes a fault."""
        batch: list[Document] = []
        characters = 0
        amount = 0.0
        for document, part in self._all(sources):
            amount += part
            if document is not None:
                batch.append(document)
                characters += len(document.text)
            if len(batch) >= BATCH or characters >= BATCH_CHARACTERS:
                yield Batch(batch, amount)
                batch, characters, amount = [], 0, 0.0
        if batch or amount:
            yield Batch(batch, amount)

    def _all(self, sources: Sequence[Source]) -> Iterator[tuple[Document | None, float]]:
        """Documents, each with the bytes of its file that are behind it; None for the rest of a file."""
        for source in sources:
            for file in source.files():
                left = float(file.size)
                rows = False
                try:
                    for document in read(file, self._documents.readers, private=self._private):
                        part = min(left, len(document.text))
                        left -= part
                        rows = rows or document.id != file.id
                        yield self._first(document, file), part
                    if rows:
                        self._rows.append(file.id)
                except (OSError, ValueError) as error:
                    self._unread.add(file.id)
                    self.faults.append(Fault(file.id, str(error)))
                yield None, left

    def _first(self, document: Document, file: File) -> Document | None:
        """A document, unless its id came before in this run: that is a fault."""
        if (name := _name(document.id)) in self._seen:
            self.faults.append(Fault(file.id, f"the id `{document.id[:200]}` came before in this run"))
            return None
        self._seen.add(name)
        return replace(document, file=file.id)

    async def _remove(self, sources: Sequence[Source]) -> None:
        """Delete what files had before and have no more; with `sync`, also what is of files that are gone."""
        try:
            for file in self._rows:
                await self._delete(file, file.__eq__)
            if self._sync:
                for source in sources:
                    await self._delete(source.root, source.covers)
        except NoSuchCollection:
            return

    async def _delete(self, root: str, covers: Callable[[str], bool]) -> None:
        store, owner, name = self._documents.store, self._owner, self._collection
        gone: list[str] = []
        async for found in store.read_from(owner, name, root):
            gone += [
                document
                for document, file in found
                if covers(file) and file not in self._unread and _name(document) not in self._seen
            ]
        for start in range(0, len(gone), 512):
            await store.delete(owner, name, gone[start : start + 512])
        self._done += Ingested(deleted=len(gone))


def _cause(failed: Exception) -> Exception:
    """What failed first, out of the groups of tasks that it ended."""
    while isinstance(failed, ExceptionGroup):
        failed = failed.exceptions[0]
    return failed


def _name(id: str) -> bytes:
    """An id in 16 bytes: there may be millions of them."""
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
