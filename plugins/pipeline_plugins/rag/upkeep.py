"""Keeping collections in order: compaction, indexes, and going back to an earlier version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from pipeline.errors import APIError, NotFound
from pipeline_plugins.rag.store import Store, guarded

INDEXED = 50_000
"""Chunks from which vectors get an index: fewer are compared one by one as fast."""

BRIEF = timedelta(minutes=10)
"""Age up to which versions are kept in any case: a search takes far less."""

QUIET = 2.0
"""Seconds without a write after which what was written is put in order."""

LATEST = 30.0
"""Seconds after which it is put in order though writes go on."""

log = structlog.get_logger("pipeline.rag")


class NoSuchVersion(NotFound):
    """The collection has no such version, or has it no more (404)."""

    code = "version_not_found"


@dataclass(slots=True, frozen=True)
class Version:
    """A commit to a collection."""

    version: int
    at: datetime

    def shown(self) -> dict[str, Any]:
        """As clients read it."""
        return {"version": self.version, "at": self.at.astimezone().isoformat(timespec="seconds")}


async def tidy(store: Store, owner: str, name: str, keep: timedelta) -> None:
    """Put many small files into one, and what is new into the indexes; forget versions older than `keep`.

    The last few minutes' are always kept, for searches under way. Large collections get an index of
    their vectors. Raises `NoSuchCollection`.
    """
    async with guarded():
        table = await store.table(owner, name)
        indexed = {column for index in await table.list_indices() for column in index.columns}
        if "vector" not in indexed and await table.count_rows() >= INDEXED:
            await index(table)
        await table.optimize(cleanup_older_than=max(keep, BRIEF))


async def index(table: Any) -> None:
    """Build the index of a table's vectors anew.

    RaBitQ with 4 bits a number: of 100,000 chunks it found 0.998 of what comparing all does, where
    product quantisation found 0.43 (`benchmarks/rag_scale.py`).
    """
    from lancedb.index import IvfRq

    await table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=4), replace=True)


async def rebuild(store: Store, owner: str, name: str) -> None:
    """Build all indexes of a collection anew; that of vectors only where there are enough for one."""
    from lancedb.index import FTS

    async with guarded():
        table = await store.table(owner, name)
        await table.create_index("text", config=FTS(with_position=False), replace=True)
        if await table.count_rows() >= 256:
            await index(table)


async def versions(store: Store, owner: str, name: str) -> list[Version]:
    """The versions that can be gone back to, the latest first. Raises `NoSuchCollection`."""
    async with guarded():
        table = await store.table(owner, name)
        found = await table.list_versions()
    return [Version(one["version"], one["timestamp"]) for one in reversed(found)]


async def restore(store: Store, owner: str, name: str, version: int) -> None:
    """Make a collection what it was; that is a new version. Raises `NoSuchVersion`."""
    async with guarded():
        table = await store.table(owner, name)
        known = {one["version"] for one in await table.list_versions()}
        if version not in known:
            raise NoSuchVersion(f"The collection `{name}` has no version {version}.", param="version")
        await table.checkout(version)
        await table.restore()


class Tending:
    """Puts collections in order some time after they were written to, one after the other."""

    def __init__(self, work: Callable[[str, str], Awaitable[None]]) -> None:
        self._work = work
        self._written: dict[tuple[str, str], tuple[float, float]] = {}
        self._task: asyncio.Task[None] | None = None

    def written(self, owner: str, name: str) -> None:
        """Note a write."""
        now = asyncio.get_running_loop().time()
        first, _ = self._written.get((owner, name), (now, now))
        self._written[owner, name] = first, now
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tend())

    async def close(self) -> None:
        """Stop; what is left is put in order after the next write."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _tend(self) -> None:
        loop = asyncio.get_running_loop()
        while self._written:
            which, due = min(
                ((key, min(last + QUIET, first + LATEST)) for key, (first, last) in self._written.items()),
                key=lambda one: one[1],
            )
            if (left := due - loop.time()) > 0:
                await asyncio.sleep(left)
                continue
            del self._written[which]
            try:
                await self._work(*which)
            except NotFound:
                continue  # It was deleted meanwhile.
            except APIError as error:
                log.warning("a collection was not put in order", name=which[1], error=type(error).__name__)
