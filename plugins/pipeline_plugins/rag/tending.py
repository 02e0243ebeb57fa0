"""Collections put in order some time after they were written to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from pipeline.errors import APIError, NotFound

QUIET = 2.0
"""Seconds without a write after which what was written is put in order."""

LATEST = 30.0
"""Seconds after which it is put in order though writes go on."""

log = structlog.get_logger("pipeline.rag")


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
