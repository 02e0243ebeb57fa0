"""`index=redis`: questions and lessons of all processes that share a Redis.

Redis as Debian has it finds no neighbours. So each process searches its own memory, and Redis keeps
two logs, streams of bounded length: what was added and removed, and what was learned. Every process
reads them when it opens and follows them by polling. What one adds, the others know within `poll`
seconds and a round trip; what is removed likewise, and until then the store says that it is gone.

While Redis is down a process goes on with what it has, and what it adds stays its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

from pipeline_plugins.cache.semantic_known import (
    Hear,
    Histories,
    Known,
    Lesson,
    MemoryIndex,
    described,
    known_from,
    lesson_from,
    taught,
    vector_from,
)
from pipeline_plugins.cache.store import MAX_TTL
from pipeline_plugins.redis_link import RedisDown, RedisLink

if TYPE_CHECKING:
    from pipeline_plugins.cache.semantic_index import Vector

PREFIX = "{pipeline-semantic}:"
"""The braces keep all keys on one node of a cluster."""

BATCH = 100
"""Events in one answer: about 200 KB, which fits the link's time limit."""

PATIENCE = 2.0
"""Seconds that opening waits for the past; the rest comes while calls are answered already."""

LESSONS = 10_000
"""Lessons kept. The law is learned from some hundred; more are for the entries' own histories."""

BREATH = 2
"""Events taken in between two turns of the event loop: a graph takes up to 1 ms for each."""


class RedisIndex:
    """Questions in memory, kept equal to those of others by logs in Redis.

    model   the embedding model: vectors of another are not comparable, so have logs of their own
    poll    seconds between two looks at the logs
    hear    takes in what others have learned
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        dimensions: int,
        capacity: int,
        hear: Hear,
        poll: float = 1.0,
        timeout: float = 0.2,
    ) -> None:
        self._link = RedisLink(url, timeout=timeout, user="cache")
        self._near = MemoryIndex(dimensions, capacity)
        self._histories = Histories(capacity)
        self._dimensions = dimensions
        self._capacity = capacity
        self._hear = hear
        self._poll = poll
        self._me = token_bytes(8)
        name = hashlib.blake2b(f"{model}\n{dimensions}".encode(), digest_size=8).hexdigest()
        self._questions = f"{PREFIX}questions:{name}"
        self._lessons = f"{PREFIX}lessons:{name}"
        self._seen = {self._questions: b"0-0", self._lessons: b"0-0"}
        self._following: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read the logs, as far as `PATIENCE` reaches, and follow them from then on."""
        await self._link.open()
        self._past = asyncio.Event()
        self._following = asyncio.create_task(self._follow())
        waiting = asyncio.create_task(self._past.wait())
        await asyncio.wait([self._following, waiting], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def close(self) -> None:
        """Follow no more, and close the connection."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            self._following = None
        await self._link.close()

    def __len__(self) -> int:
        return len(self._near)

    async def search(self, partition: bytes, vector: Vector, count: int) -> list[tuple[float, Known]]:
        """The nearest questions of this partition that this process knows of."""
        return await self._near.search(partition, vector, count)

    async def add(self, partition: bytes, vector: Vector, known: Known) -> None:
        """Add a question here at once, and for the others."""
        self._histories.put(known)
        self._near.put(partition, vector, known)
        words: list[bytes | str] = [
            "p",
            partition,
            "q",
            described(known),
            "v",
            vector.astype("<f4").tobytes(),
        ]
        if known.context_vector is not None:
            words += ["c", known.context_vector.astype("<f4").tobytes()]
        await self._tell(self._questions, self._capacity, words)

    async def remove(self, known: Known) -> None:
        """Forget a question here at once, and for the others."""
        self._near.drop(known.key.digest)
        await self._tell(self._questions, self._capacity, ["gone", known.key.digest])

    def touch(self, known: Known) -> None:
        """Note that a question was of use, for this process alone."""
        self._near.touch(known)

    async def learned(self, lesson: Lesson) -> None:
        """Tell the others, and those that start later."""
        await self._tell(self._lessons, LESSONS, ["l", taught(lesson)])

    async def _tell(self, stream: str, length: int, words: list[bytes | str]) -> None:
        command = ["XADD", stream, "MAXLEN", "~", length, "*", "w", self._me, *words]
        # A day more than any answer lives: a log that nobody writes to any more goes.
        keep = ["EXPIRE", stream, MAX_TTL + 86_400]
        for result in await asyncio.gather(
            self._link.command(*command), self._link.command(*keep), return_exceptions=True
        ):
            if isinstance(result, BaseException) and not isinstance(result, RedisDown):
                raise result

    async def _follow(self) -> None:
        """Take in what is new, again and again."""
        while True:
            try:
                for stream in (self._lessons, self._questions):
                    await self._catch_up(stream)
            except RedisDown:
                pass  # The link has said so.
            self._past.set()
            await asyncio.sleep(self._poll)

    async def _catch_up(self, stream: str) -> None:
        while True:
            start = b"(" + self._seen[stream]
            events = await self._link.command("XRANGE", stream, start, "+", "COUNT", BATCH)
            for number, (name, fields) in enumerate(events or ()):
                self._take(dict(zip(fields[::2], fields[1::2], strict=False)))
                self._seen[stream] = name
                if number % BREATH == BREATH - 1:
                    await asyncio.sleep(0)
            if not events or len(events) < BATCH:
                return

    def _take(self, event: dict[bytes, Any]) -> None:
        """Take in one event of another process. What is damaged or foreign is passed over."""
        if event.get(b"w") == self._me:
            return
        if (gone := event.get(b"gone")) is not None:
            self._near.drop(gone)
        elif (told := event.get(b"l")) is not None:
            lesson = lesson_from(told)
            if lesson is not None:
                self._histories.hear(lesson)
                self._hear(lesson)
        else:
            vector = vector_from(event.get(b"v"), self._dimensions)
            context = vector_from(event.get(b"c"), self._dimensions)
            known = known_from(event.get(b"q"), context, self._histories)
            partition = event.get(b"p")
            if vector is not None and known is not None and partition and known.expires > time.time():
                self._near.put(partition, vector, known)
