"""`ingest.ray`: reading, cutting and embedding by Ray Data, on one machine or on many.

    pipeline ingest docs rag.ingest=ray
    pipeline ingest /shared/docs rag.ingest.plugin=ray rag.ingest.address=ray://head:10001 \\
      rag.ingest.embedders=8 rag.ingest.gpus=1

Files go out to workers that read and cut them; what they give, some documents at a time, goes on to
workers that embed. What is ready comes back to the process that was started, which alone writes.
Ray Data works within a cluster alone: for a process that is outside, by `ray://`, an actor there runs it.
Ray moves objects between its processes in its own way, which trusts all who reach the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.errors import APIError, UpstreamFailed
from pipeline.problems import ConfigError
from pipeline_plugins.ingest import ray_cluster
from pipeline_plugins.rag.choice import load
from pipeline_plugins.rag.chunk import Chunk
from pipeline_plugins.rag.documents import Cut, Documents, DocumentsConfig, Ingested
from pipeline_plugins.rag.ingest import Embedded, Ingestion, Step
from pipeline_plugins.rag.reading import Fault, Reading, twice
from pipeline_plugins.rag.sources import Source
from pipeline_plugins.read.reader import File
from pipeline_plugins.store.store import NoSuchCollection, Store

if TYPE_CHECKING:
    import numpy as np

    Digests = np.ndarray[tuple[int], np.dtype[np.bytes_]]
    Row = dict[str, np.ndarray[tuple[int], np.dtype[np.object_]]]

BLOCK = 1024 * 1024
"""Bytes after which what a worker has ready goes on: one large file shall keep all embedders busy."""


class Ray:
    """Runs ingestions by Ray Data."""

    class Config(BaseModel):
        """Where, and by how many."""

        model_config = ConfigDict(extra="forbid")

        address: str | None = Field(
            None,
            description="Of the cluster: `auto`, `HOST:PORT` or `ray://HOST:PORT`; null: this machine alone.",
        )
        cutters: int = Field(1, ge=1, le=10_000, description="Workers that read and cut.")
        embedders: int = Field(1, ge=1, le=10_000, description="Workers that embed, each with a model.")
        cpus: float = Field(0.5, gt=0, le=1024, description="Cores that each worker is counted as.")
        gpus: float = Field(0.0, ge=0, le=64, description="GPUs of each worker that embeds.")

        @field_validator("address")
        @classmethod
        def _is_address(cls, value: str | None) -> str | None:
            if value is not None and not ray_cluster.is_address(value):
                raise ValueError(f"expected {ray_cluster.FORMS}")
            return value

        @field_validator("gpus")
        @classmethod
        def _is_share(cls, value: float) -> float:
            if value > 1 and value % 1:
                raise ValueError("expected a share of one, such as 0.5, or a whole number")
            return value

    def __init__(self, config: Config) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise ImportError(f"this needs llm-pipeline's extra `ray` ({error})") from None
        self.config = config

    def ingestion(
        self, documents: Documents, owner: str, collection: str, *, sync: bool, keep: timedelta
    ) -> Ingestion:
        """A run by Ray Data. Connects to Ray, or starts it; raises `ConfigError`."""
        config = self.config
        ray_cluster.connect(config.address)
        ray_cluster.require_room(
            cutters=config.cutters, embedders=config.embedders, cpus=config.cpus, gpus=config.gpus
        )
        return _Ingestion(config, documents, owner, collection, sync=sync, keep=keep)


@dataclass(slots=True, frozen=True)
class Part:
    """Some documents of a file: cut first, then embedded. The last of a file says how reading it went."""

    ids: list[str]
    size: float
    file: str
    cut: Cut | None = None
    chunks: dict[str, list[Chunk]] = field(default_factory=dict)
    unchanged: int = 0
    faults: tuple[Fault, ...] = ()
    unread: bool = False
    rows: bool = False
    failure: APIError | None = None

    def row(self) -> Row:
        """As Ray Data passes it on."""
        import numpy as np

        row = np.empty(1, dtype=object)
        row[0] = self
        return {"part": row}


class _Ingestion(Ingestion):
    """Its parts come from Ray Data, in no order that is told."""

    def __init__(self, config: Ray.Config, documents: Documents, *given: Any, **named: Any) -> None:
        super().__init__(documents, *given, **named)
        self._config = config

    async def fill(self, sources: Sequence[Source], step: Step, to_store: Embedded) -> None:
        """Put the chunks of all documents that are new or changed into a queue, and None at the end."""
        loop = asyncio.get_running_loop()
        known = await _known(self.documents.store, self.owner, self.collection)
        # What Ray hears of its machines it prints on stdout, which is for the results.
        with (
            contextlib.redirect_stdout(sys.stderr),
            ThreadPoolExecutor(1, thread_name_prefix="ray") as thread,
        ):
            parts = self._parts([file for source in sources for file in source.files()], known)
            try:
                while (part := await loop.run_in_executor(thread, next, parts, None)) is not None:
                    if chunks := self._taken(part):
                        await to_store.put(chunks)
                    step(part.size)
            finally:
                await loop.run_in_executor(thread, parts.close)
        await to_store.put(None)

    def _parts(self, files: list[File], known: Digests) -> Generator[Part]:
        """The parts of all files, as they are ready. Raises `UpstreamFailed` for what Ray fails with."""
        if not files:
            return
        import ray
        from ray.exceptions import RayError

        run = Run(self._config, self.documents.config, self.owner, [_absolute(file) for file in files])
        outside = ray.util.client.ray.is_connected()
        try:
            yield from _from_outside(run, known) if outside else run.parts(known)
        except (RayError, ConnectionError) as error:
            raise UpstreamFailed(f"Ray fails: {_cause(error)}") from None

    def _taken(self, part: Part) -> dict[str, list[Chunk]]:
        """The chunks to store of a part; what else it says is noted. Raises what its worker failed with."""
        if part.failure is not None:
            raise part.failure
        reading = self.reading
        again = {id for id in part.ids if not reading.seen.add(id)}
        reading.faults += [*part.faults, *(twice(id, part.file) for id in again)]
        if part.unread:
            reading.unread.add(part.file)
        if part.rows:
            reading.rows.append(part.file)
        self.done += Ingested(unchanged=part.unchanged)
        return {id: chunks for id, chunks in part.chunks.items() if id not in again}


@dataclass(slots=True, frozen=True)
class Run:
    """What Ray Data is to do, for a process of the cluster."""

    config: Ray.Config
    documents: DocumentsConfig
    owner: str
    files: list[File]

    def parts(self, known: Digests) -> Generator[Part]:
        """The parts of all files, as they are ready; `known` is what `_known` made."""
        import ray.data

        config, context = self.config, ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = BLOCK
        found = ray.data.from_items([{"file": file} for file in self.files])
        pool, workers = ray.data.ActorPoolStrategy, {"batch_size": 1, "num_cpus": config.cpus}
        cut = found.map_batches(
            Cutter,
            # Who cuts has the embedder count tokens alone.
            fn_constructor_args=(_embedding_on(self.documents, "cpu"), self.owner, known),
            compute=pool(size=config.cutters),
            **workers,
        )
        documents = _embedding_on(self.documents, "cuda") if config.gpus else self.documents
        done = cut.map_batches(
            Embedding,
            fn_constructor_args=(documents, self.owner),
            compute=pool(size=config.embedders),
            num_gpus=config.gpus,
            **workers,
        )
        for row in done.iter_rows():
            yield row["part"]


class Inside:
    """A run in an actor of the cluster, asked for one part after the other."""

    def __init__(self, run: Run, known: Digests) -> None:
        self._parts = run.parts(known)

    def next(self) -> Part | None:
        """The next part; None at the end."""
        return next(self._parts, None)


def _from_outside(run: Run, known: Digests) -> Generator[Part]:
    """The parts of a run in the cluster; one comes while the one before is stored."""
    import ray
    from ray.exceptions import RayError

    actor = ray.remote(num_cpus=0)(Inside).remote(run, ray.put(known))
    try:
        coming = actor.next.remote()
        while (part := ray.get(coming)) is not None:
            coming = actor.next.remote()
            yield part
    finally:
        with contextlib.suppress(RayError, ConnectionError):
            ray.kill(actor)


class _Worker:
    """Documents without a store, loaded once, in a process of Ray's.

    Ray would start anew what fails as it starts, so `failure` is told with the first part instead.
    """

    def __init__(self, config: DocumentsConfig, owner: str) -> None:
        self.owner = owner
        self.machine = socket.gethostname()
        self.loop = asyncio.new_event_loop()
        self.failure: APIError | None = None
        try:
            self.documents = Documents(config)
            self.loop.run_until_complete(self.documents.load())
        except ConfigError as error:
            self.failure = UpstreamFailed(f"A worker on `{self.machine}` can't start: {error}")


class Cutter(_Worker):
    """Reads files and cuts what is not known; `known` is what `_known` made."""

    def __init__(self, config: DocumentsConfig, owner: str, known: Digests) -> None:
        super().__init__(config, owner)
        self._known = known

    def __call__(self, batch: Row) -> Iterator[Row]:
        """The parts of a file."""
        file: File = batch["file"][0]
        if self.failure is not None:
            yield Part([], 0.0, file.id, failure=self.failure).row()
            return
        if file.path.name and not file.path.exists():
            fault = Fault(file.id, f"there is no `{file.path}` on `{self.machine}`, which was to read it")
            yield Part([], 0.0, file.id, faults=(fault,), unread=True).row()
            return
        reading = Reading(self.documents.readers, private=self.documents.config.private_addresses)
        for found in reading.batches(iter([file])):
            ids = [document.id for document in found.documents]
            cut = self.documents.cut_new(found.documents, self._is_known)
            yield Part(ids, found.bytes, file.id, cut=cut, unchanged=cut.unchanged).row()
        faults, unread, rows = tuple(reading.faults), bool(reading.unread), bool(reading.rows)
        yield Part([], 0.0, file.id, faults=faults, unread=unread, rows=rows).row()

    def _is_known(self, id: str, digest: str) -> bool:
        own = _fingerprint(id, digest)
        at = self._known.searchsorted(own)
        # numpy drops zeros at the end of what it gives out.
        return bool(at < len(self._known)) and bytes(self._known[at]).ljust(16, b"\0") == own


class Embedding(_Worker):
    """Embeds what was cut."""

    def __call__(self, rows: Row) -> Row:
        """The same part with its chunks."""
        part: Part = rows["part"][0]
        if part.cut is None or not part.cut.documents:
            return replace(part, cut=None).row()
        if self.failure is not None:
            return replace(part, cut=None, failure=self.failure).row()
        try:
            work = self.documents.embed(self.owner, part.cut, patient=True)
            return replace(part, cut=None, chunks=self.loop.run_until_complete(work)).row()
        except APIError as error:
            return replace(part, cut=None, failure=error).row()


async def _known(store: Store, owner: str, name: str) -> Digests:
    """Fingerprints of the documents that the collection has, sorted: workers share one copy of them."""
    import numpy as np

    found: list[bytes] = []
    try:
        async for documents in store.all_digests(owner, name):
            found += [_fingerprint(id, part) for id, digest in documents for part in (digest, "")]
    except NoSuchCollection:
        pass
    return np.sort(np.array(found, dtype="S16"))


def _fingerprint(id: str, digest: str) -> bytes:
    data = f"{len(id)}:{id}:{digest}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, person=b"rag-known").digest()


def _absolute(file: File) -> File:
    """The same file for a process that has another working directory."""
    return replace(file, path=file.path.absolute()) if file.path.name else file


def _embedding_on(config: DocumentsConfig, device: str) -> DocumentsConfig:
    """The same with an embedder that runs there, where it can be told: not just on what it finds."""
    embed = config.embed
    if "device" not in load("infer", embed, "embed").config.model_fields:
        return config
    if device != "cpu" and (embed.model_extra or {}).get("device", "auto") != "auto":
        return config
    return config.model_copy(update={"embed": embed.model_copy(update={"device": device})})


def _cause(error: BaseException) -> str:
    """What made Ray fail, in a line: Ray's own texts end with the worker's traceback."""
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:500] if lines else ''}"
