"""A stream on its way through: watched for silence, and counted when it ends."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

from pipeline.errors import DeadlineExceeded
from pipeline_plugins.attempts import Begun


class Stream(Begun):
    """Chunks whose first is there. `ended` is called once: well, failed, or None for given up.

    `silence` is how many seconds the target may take for a chunk, None for any; the time
    that the reader takes does not count. Whoever stops waiting for a chunk at the call's
    `deadline` has not given up: the target took too long. One timer serves the whole stream: moving it with
    every chunk would cost more than the chunk.
    """

    __slots__ = (
        "__weakref__",
        "_deadline",
        "_ended",
        "_silence",
        "_since",
        "_target",
        "_task",
        "_timer",
        "_too_late",
    )

    def __init__(
        self,
        target: str,
        chunks: AsyncIterator[bytes],
        first: bytes | None,
        silence: float | None,
        deadline: float,
        ended: Callable[[bool | None], None],
    ) -> None:
        super().__init__(chunks, first)
        self._target = target
        self._silence = silence
        self._deadline = deadline
        self._ended: Callable[[bool | None], None] | None = ended
        self._since = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._too_late = False
        self._timer: asyncio.TimerHandle | None = None
        if silence is not None:
            self._arm(silence)

    async def __anext__(self) -> bytes:
        """The next chunk. Raises `DeadlineExceeded` for a target that falls silent."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._timer is not None:
            self._task = asyncio.current_task()
            self._since = monotonic()
        try:
            chunk = await self._chunks.__anext__()
        except StopAsyncIteration:
            self._end(True)
            raise
        except asyncio.CancelledError:
            await self._cancelled()
            raise
        except GeneratorExit:
            self._end(None)
            raise
        except Exception:
            self._end(False)
            raise
        self._since = 0.0
        return chunk

    async def aclose(self) -> None:
        """Give the rest up."""
        self._end(None)
        await super().aclose()

    def __del__(self) -> None:
        # A stage that drops a stream must not take a place of the target with it.
        if self._ended is not None:
            self._end(None)

    async def _cancelled(self) -> None:
        """Tell the timer's cancellation from the client's."""
        if not self._too_late or self._task is None or self._task.uncancel() > 0:
            self._end(False if monotonic() >= self._deadline else None)
            return
        self._end(False)
        await super().aclose()
        raise DeadlineExceeded(
            f"The target `{self._target}` fell silent for {self._silence:g} s in its answer."
        ) from None

    def _end(self, well: bool | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(well)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        # The loop must not keep a stream that everyone else has dropped.
        self._timer = asyncio.get_running_loop().call_later(seconds, _on_timer, weakref.ref(self))

    def look(self) -> None:
        """Has the timer gone off because of silence? Then interrupt the wait; else set it anew."""
        silence, task = self._silence, self._task
        if silence is None or self._ended is None:
            return
        now = monotonic()
        if self._since and now >= self._since + silence and task is not None and not task.cancelling():
            self._too_late = True
            self._timer = None
            task.cancel()
            return
        due = self._since + silence if self._since else now + silence
        self._arm(max(due - now, 0.001))


def _on_timer(stream: weakref.ref[Stream]) -> None:
    found = stream()
    if found is not None:
        found.look()
