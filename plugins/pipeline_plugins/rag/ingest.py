"""Many documents into a collection: reading, cutting, embedding and storing at the same time.

Each step works on what the one before has ready, through queues of a few batches, so the
embedder, which takes the longest, is never without work, and memory is bounded whatever is
read. A kill loses what is not committed: the next run finds the rest unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from pipeline_plugins.rag.choice import make
from pipeline_plugins.rag.chunk import Chunk
from pipeline_plugins.rag.documents import Cut, Documents, Ingested
from pipeline_plugins.rag.reading import Reading
from pipeline_plugins.rag.sources import Source
from pipeline_plugins.store.store import NoSuchCollection

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


class Ingestion:
    """One run over sources.

    With `sync`, documents of the sources that are gone go from the collection, too. The rows
    of a file that is read to its end always take the place of all that it had before.
    `keep` is how old a version of the collection must be to be forgotten. A plugin `ingest.NAME` has
    a method `ingestion` that takes the same and gives one of these whose `fill` works elsewhere:
    there is one writer, in the process that runs.
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
        self.documents = documents
        self.owner = owner
        self.collection = collection
        self.reading = Reading(documents.readers, private=documents.config.private_addresses)
        self.done = Ingested()
        self._sync = sync
        self._keep = keep
        self._commits = 0

    async def run(self, sources: Sequence[Source], step: Step) -> Ingested:
        """Put all of them in; `step` is told of the bytes of files as they are read.

        Raises `InvalidRequest` for a collection of another embedding model, and what the store or
        the embedder fails with.
        """
        to_store: Embedded = asyncio.Queue(AHEAD)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.fill(sources, step, to_store))
                group.create_task(self._store(to_store))
        except ExceptionGroup as failed:
            raise _cause(failed) from None
        await self._remove(sources)
        if self._commits or self.done.deleted:
            await self.documents.store.tidy(self.owner, self.collection, self._keep)
        return self.done

    async def fill(self, sources: Sequence[Source], step: Step, to_store: Embedded) -> None:
        """Put the chunks of all documents that are new or changed into a queue, and None at the end."""
        to_embed: Cuts = asyncio.Queue(AHEAD)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(sources, step, to_embed))
            group.create_task(self._embed(to_embed, to_store, step))

    async def _read(self, sources: Sequence[Source], step: Step, to_embed: Cuts) -> None:
        loop = asyncio.get_running_loop()
        batches = self.reading.batches(file for source in sources for file in source.files())
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
            while (batch := await loop.run_in_executor(thread, next, batches, None)) is not None:
                cut = await self.documents.cut(self.owner, self.collection, batch.documents)
                self.done += Ingested(unchanged=cut.unchanged)
                if cut.documents:
                    await to_embed.put((cut, batch.bytes))
                else:
                    step(batch.bytes)
        for _ in range(EMBEDDING):
            await to_embed.put(None)

    async def _embed(self, to_embed: Cuts, to_store: Embedded, step: Step) -> None:
        async def work() -> None:
            while (found := await to_embed.get()) is not None:
                await to_store.put(await self.documents.embed(self.owner, found[0], patient=True))
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
        documents, owner, name = self.documents, self.owner, self.collection
        await documents.store.create(owner, name, await documents.embedder.dimensions())
        await documents.store.replace(owner, name, held)
        self._commits += 1
        self.done += Ingested(changed=len(held), chunks=sum(map(len, held.values())))
        if self._commits % TIDY_COMMITS == 0:
            await documents.store.tidy(owner, name, self._keep)

    async def _remove(self, sources: Sequence[Source]) -> None:
        """Delete what files had before and have no more; with `sync`, also what is of files that are gone."""
        try:
            for file in self.reading.rows:
                await self._delete(file, file.__eq__)
            if self._sync:
                for source in sources:
                    await self._delete(source.root, source.covers)
        except NoSuchCollection:
            return

    async def _delete(self, root: str, covers: Callable[[str], bool]) -> None:
        store, owner, name = self.documents.store, self.owner, self.collection
        gone: list[str] = []
        async for found in store.read_from(owner, name, root):
            gone += [
                document
                for document, file in found
                if covers(file) and not self.reading.missed(file) and document not in self.reading.seen
            ]
        await self.documents.delete(owner, name, gone)
        self.done += Ingested(deleted=len(gone))


def ingestion_of(
    documents: Documents, owner: str, collection: str, *, sync: bool, keep: timedelta
) -> Ingestion:
    """The run that `rag.ingest` chooses. Raises `ConfigError` for a plugin that is not there."""
    made: type[Ingestion] | Callable[..., Ingestion] = Ingestion
    if documents.config.ingest is not None:
        made = make("ingest", documents.config.ingest, "ingest").ingestion
    return made(documents, owner, collection, sync=sync, keep=keep)


def _cause(failed: Exception) -> Exception:
    """What failed first, out of the groups of tasks that it ended."""
    while isinstance(failed, ExceptionGroup):
        failed = failed.exceptions[0]
    return failed
