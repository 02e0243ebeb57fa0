"""Reading the ledger for many pages at once: off the event loop, and not twice for the same figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

from pipeline.errors import Overloaded
from pipeline_plugins.dashboard.figures import Edges, figures
from pipeline_plugins.dashboard.source import Source, SourceDown
from pipeline_plugins.dashboard.window import FRESH, Range

PATIENCE = 10.0
"""Seconds after which a question is given up."""

WAITING = 32
"""Questions that may wait for their turn; more are shed."""

T = TypeVar("T")


class Reader:
    """A source that many ask, one question at a time, in a thread."""

    def __init__(self, source: Source, edges: Edges) -> None:
        self._source = source
        self._edges = edges
        self._turn = asyncio.Lock()
        self._asked: set[asyncio.Task[Any]] = set()
        self._figures: dict[Range, tuple[float, asyncio.Task[Any]]] = {}

    async def figures(self, range: Range) -> Any:
        """A range's figures, as fresh as they need to be. Raises `Overloaded`."""
        made, known = self._figures.get(range, (0.0, None))
        if known is None or (known.done() and time.monotonic() - made > FRESH[range]):
            known = self._begin(lambda source: figures(source, range, self._edges))
            known.add_done_callback(lambda done: self._made(range, done))
            self._figures[range] = time.monotonic(), known
        return await asyncio.shield(known)

    async def ask(self, question: Callable[[Source], T]) -> T:
        """What a question to the source gives. Raises `Overloaded` where it does not answer."""
        return await asyncio.shield(self._begin(question))

    async def close(self) -> None:
        """Let the source go, once it has answered."""
        await asyncio.gather(*self._asked, return_exceptions=True)
        await asyncio.to_thread(self._source.close)

    def _begin(self, question: Callable[[Source], T]) -> asyncio.Task[T]:
        """A question on its way: whoever waits for it may leave without stopping it."""
        if len(self._asked) >= WAITING:
            raise _unread("too many pages ask at once")
        task = asyncio.create_task(self._answer(question))
        self._asked.add(task)
        task.add_done_callback(self._answered)
        return task

    async def _answer(self, question: Callable[[Source], T]) -> T:
        async with self._turn:
            timer = asyncio.get_running_loop().call_later(PATIENCE, self._source.abort)
            try:
                return await asyncio.to_thread(question, self._source)
            except SourceDown as error:
                raise _unread(str(error)) from None
            finally:
                timer.cancel()

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # everyone who waited may have left

    def _made(self, range: Range, done: asyncio.Task[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._figures.pop(range, None)
        else:
            self._figures[range] = time.monotonic(), done


def _unread(why: str) -> Overloaded:
    message = f"The ledger can't be read now: {why}."
    return Overloaded(message, code="ledger_unavailable", headers=((b"retry-after", b"2"),))
