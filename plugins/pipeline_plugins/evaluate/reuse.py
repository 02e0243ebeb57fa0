"""Answers of models, shared by the points of a sweep: equal work is done once.

A layer around each model, outside of all others: what the first point paid for an answer, and
how long it took, is what the others are told. A price's accounts are charged once.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, ChunkStream, End, Reply, Usage, hookimpl
from pipeline.price import Charge, Spent, charge
from pipeline_plugins.sqlite_file import write_ahead

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline.stage import Layer, StageCall

MODELS = "infer."
BUSY = 60.0
"""Seconds to wait for another process's transaction."""

LONGEST = 4 * 1024 * 1024
"""Bytes of a stream that are kept."""

TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, status INTEGER, headers BLOB, body BLOB, streamed INTEGER,
    seconds REAL, first REAL, model TEXT, usage BLOB, charges BLOB) WITHOUT ROWID"""


@dataclass(slots=True)
class Reused:
    """What a call did not wait for: a decision in its record, added to in place.

    seconds  that whole answers took when they were made; `first` that the last one's first chunk did
    asked    how often the call asked for the same, so that a retry is a new attempt
    """

    answers: int = 0
    seconds: float = 0.0
    first: float = 0.0


@dataclass(slots=True)
class _Asked:
    times: dict[bytes, int]


class Answers:
    """The SQLite file of answers, which several processes may share. A kill loses nothing written."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        write_ahead(self._db, BUSY)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute(TABLE)

    def get(self, key: bytes) -> tuple[Any, ...] | None:
        """The columns after `key`."""
        row = self._db.execute("SELECT * FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[1:]

    def put(self, key: bytes, *columns: Any) -> None:
        """Keep an answer; of two at once the first."""
        self._db.execute(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (key, *columns)
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class Reuse:
    """Keeps whole, successful answers of models, by what was asked and how the model is configured."""

    class Config(BaseModel):
        """Where they are kept."""

        model_config = ConfigDict(extra="forbid")
        path: str = Field(..., description="SQLite file.")

    def __init__(self, config: Config) -> None:
        self._answers = Answers(Path(config.path))
        self._stages: dict[str, bytes] = {}
        self._under_way: dict[bytes, asyncio.Future[None]] = {}

    async def close(self) -> None:
        """Close the file."""
        self._answers.close()

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn how each model is configured, and which files it loaded."""
        for part in graph.plan.parts.values():
            if part.plugin.startswith(MODELS):
                files = [(file, file.stat()) for file in getattr(graph.stages[part.name], "files", ())]
                versions = [[str(file), found.st_size, found.st_mtime_ns] for file, found in files]
                told = [part.plugin, part.config.model_dump(mode="json"), versions]
                self._stages[part.name] = hashlib.sha256(orjson.dumps(told)).digest()

    @hookimpl
    def pipeline_layer(self, stage: str, plugin: str, entry: bool) -> Layer | None:
        """Goes around models."""
        return self._around(stage) if plugin.startswith(MODELS) else None

    def _around(self, stage: str) -> Layer:
        def layer(inner: StageCall) -> StageCall:
            async def shared(call: Call) -> Reply:
                key = self._key(stage, call)
                while (waiting := self._under_way.get(key)) is not None:
                    await asyncio.wait([waiting])
                kept = self._answers.get(key)
                if kept is not None:
                    return _again(call, *kept)
                self._under_way[key] = asyncio.get_running_loop().create_future()
                try:
                    reply = await self._first(call, key, inner)
                except BaseException:
                    self._done(key)
                    raise
                if not reply.streaming:
                    self._done(key)
                return reply

            return shared

        return layer

    def _key(self, stage: str, call: Call) -> bytes:
        """Of what was asked, and for which time in this call."""
        digest = hashlib.sha256(self._stages[stage] + call.operation.encode() + b"\0" + call.raw).digest()
        asked = call.record.decision(_Asked)
        if asked is None:
            call.record.decide(asked := _Asked({}))
        times = asked.times[digest] = asked.times.get(digest, 0) + 1
        return digest if times == 1 else hashlib.sha256(digest + bytes([times % 256])).digest()

    def _done(self, key: bytes) -> None:
        future = self._under_way.pop(key)
        if not future.done():
            future.set_result(None)

    async def _first(self, call: Call, key: bytes, inner: StageCall) -> Reply:
        started = perf_counter()
        spent = call.record.decision(Spent)
        before = len(spent.charges) if spent is not None else 0
        reply = await inner(call)
        kept = None
        if reply.chunks is not None:
            # The reply's own end is that of what other stages make of its chunks.
            reply.chunks = kept = _Kept(reply.chunks)

        def ended(end: End) -> None:
            body = reply.body if kept is None else kept.whole()
            if end.outcome == "completed" and reply.status == 200 and body is not None:
                spent = call.record.decision(Spent)
                charges = spent.charges[before:] if spent is not None else []
                last = perf_counter() if kept is None else kept.ended
                first = last if kept is None else kept.first
                self._answers.put(
                    key,
                    reply.status,
                    orjson.dumps([[name.decode(), value.decode("latin-1")] for name, value in reply.headers]),
                    body,
                    reply.streaming,
                    last - started,
                    first - started,
                    reply.model,
                    orjson.dumps(asdict(end.usage)) if end.usage is not None else None,
                    orjson.dumps([asdict(charge) for charge in charges]),
                )
            if reply.streaming:
                self._done(key)

        reply.on_end(ended)
        return reply


class _Kept(ChunkStream):
    """A model's chunks as they come, kept up to `LONGEST` bytes."""

    __slots__ = ("_chunks", "_size", "ended", "first", "parts")

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.parts: list[bytes] = []
        self.first = self.ended = 0.0
        self._size = 0

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._chunks.__anext__()
        except StopAsyncIteration:
            self.ended = perf_counter()
            raise
        self.first = self.first or perf_counter()
        self._size += len(chunk)
        if self._size <= LONGEST:
            self.parts.append(chunk)
        return chunk

    async def aclose(self) -> None:
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    def whole(self) -> bytes | None:
        """All of it, None if it was too long or its end was not reached."""
        return b"".join(self.parts) if self.ended and self._size <= LONGEST else None


def _again(
    call: Call,
    status: int,
    headers: bytes,
    body: bytes,
    streamed: int,
    seconds: float,
    first: float,
    model: str | None,
    usage: bytes | None,
    charges: bytes,
) -> Reply:
    """A kept answer as a reply; its time and charges go into the call's record."""
    reused = call.record.growing(Reused)
    reused.answers += 1
    reused.first = reused.seconds + first
    reused.seconds += seconds
    for one in orjson.loads(charges):
        charge(call.record, Charge(**{**one, "usage": Usage(**one["usage"])}))
    return Reply(
        body=None if streamed else body,
        chunks=_chunks(body) if streamed else None,
        status=status,
        headers=[(name.encode(), value.encode("latin-1")) for name, value in orjson.loads(headers)],
        usage=Usage(**orjson.loads(usage)) if usage is not None else None,
        model=model,
    )


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body
