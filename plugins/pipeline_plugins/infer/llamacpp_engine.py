"""llama.cpp's server loop inside this process, asked from asyncio.

A request occupies one of llama.cpp's slots and one thread that waits for its tokens, so
there are as many threads as slots and the rest of the requests wait here, where they can
be given up. The threads hold the interpreter only to hand over a chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.errors import APIError, DeadlineExceeded, InternalError, InvalidRequest, Overloaded
from pipeline_plugins.infer.llamacpp_output import ERROR, OPENING, PROGRESS, error_of, is_progress

Handle = Callable[[bytes, Callable[[bytes], bool]], None]

CLOSE_SECONDS = 30.0
"""How long closing waits for generations to notice that they were cancelled."""


class Engine:
    """Slots of one loaded model: starts generations, at most `slots` at a time.

    `queue` is how many calls may wait for a slot. The server object is taken over and
    freed by `close`.
    """

    def __init__(self, server: Any, executor: ThreadPoolExecutor, slots: int, queue: int) -> None:
        self._handles: dict[bool, Handle] = {
            True: server.handle_chat_completions,
            False: server.handle_completions,
        }
        self._executor = executor
        self.slots = slots
        self._free = asyncio.Semaphore(slots)
        self._queue = queue
        self._waiting = 0
        self._runs: set[Run] = set()
        self._closing = False
        self._idle = asyncio.Event()

    @property
    def running(self) -> int:
        """Generations that occupy a slot now."""
        return len(self._runs)

    async def start(self, chat: bool, request: bytes, deadline: float, *, live: bool) -> Run:
        """Start a generation once a slot is free. With `live` its chunks can be had at once.

        Raises `Overloaded` when too many wait, `DeadlineExceeded` when none gets free.
        """
        await self._acquire(deadline)
        if self._closing:
            self._free.release()
            raise Overloaded("The model is being unloaded.")
        run = Run(self._handles[chat], request, live, self._ended)
        self._runs.add(run)
        run.begin(self._executor, deadline)
        return run

    async def _acquire(self, deadline: float) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        if self._waiting >= self._queue:
            raise Overloaded("All slots are busy and the queue is full.", headers=((b"retry-after", b"1"),))
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise DeadlineExceeded("No slot of the model got free in time.") from None
        finally:
            self._waiting -= 1

    def _ended(self, run: Run) -> None:
        self._runs.discard(run)
        self._free.release()
        if self._closing and not self._runs:
            self._idle.set()

    async def close(self) -> None:
        """Cancel what runs, wait for its threads, and free the model."""
        self._closing = True
        for run in tuple(self._runs):
            run.abort(Overloaded("The model is being unloaded."))
        if self._runs:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), CLOSE_SECONDS)
        self._handles.clear()


class Run:
    """One generation: a thread feeds it, one task reads it.

    Chunks that pile up while the event loop is busy are read together. What is held is
    bounded by the tokens of one context.
    """

    __slots__ = (
        "_chunks",
        "_ended",
        "_error",
        "_handle",
        "_live",
        "_loop",
        "_notified",
        "_on_end",
        "_progress",
        "_request",
        "_started",
        "_stopped",
        "_timer",
        "_waiter",
    )

    def __init__(self, handle: Handle, request: bytes, live: bool, on_end: Callable[[Run], None]) -> None:
        self._handle = handle
        self._request = request
        self._live = live
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._chunks: deque[bytes] = deque()
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._progress: bytes | None = None
        self._started = False
        self._stopped = False
        self._ended = False
        self._notified = False

    def begin(self, executor: ThreadPoolExecutor, deadline: float) -> None:
        """Hand the work to a thread; past the deadline it is cancelled."""
        self._timer = self._loop.call_at(deadline, self._expire)
        executor.submit(self._work)

    def cancel(self) -> None:
        """Stop the generation at its next token, or the next part of its prompt."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def abort(self, error: APIError) -> None:
        """Cancel, and raise this error where the generation is being read."""
        self._fail(error)
        self.cancel()

    async def read(self) -> tuple[list[bytes], bool]:
        """The chunks that have come since, waiting for one; and whether they are the last.

        Raises what the generation failed with.
        """
        while not self._chunks and not self._ended and self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None:
            raise self._error
        ended = self._ended
        chunks = []
        while self._chunks:
            chunks.append(self._chunks.popleft())
        return chunks, ended

    async def read_all(self) -> list[bytes]:
        """All chunks, once the generation has ended."""
        chunks, ended = await self.read()
        while not ended:
            more, ended = await self.read()
            chunks += more
        return chunks

    # In the thread

    def _work(self) -> None:
        failure: BaseException | None = None
        if not self._stopped:
            try:
                self._handle(self._request, self._take)
            except (ValueError, RuntimeError) as error:
                failure = _refusal(error, self._started)
            except BaseException as error:
                failure = error
        self._tell(self._end, failure)

    def _take(self, chunk: bytes) -> bool:
        """Receive one chunk; True stops the generation."""
        if self._stopped:
            return True
        if not self._started:
            if chunk.startswith(ERROR):
                self._tell(self._fail, error_of(chunk))
                return True
            if is_progress(chunk):
                self._progress = chunk
                return False
            self._started = True
            if self._progress is not None and OPENING not in chunk:
                # The chunk with the role is the one that told the progress.
                self._chunks.append(self._progress[: self._progress.rindex(PROGRESS)] + b"}")
        elif chunk.startswith(ERROR):
            self._tell(self._fail, error_of(chunk))
            return True
        self._chunks.append(chunk)
        if self._live and not self._notified:
            self._notified = True
            self._tell(self._wake)
        return False

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:
            self._stopped = True  # the event loop is closed: nobody reads any more

    # In the event loop

    def _wake(self) -> None:
        self._notified = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._wake()

    def _expire(self) -> None:
        self.abort(DeadlineExceeded("The call's time ran out while the model was answering."))

    def _end(self, failure: BaseException | None) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if failure is not None:
            self._fail(failure)
        self._on_end(self)
        self._wake()


def _refusal(error: Exception, started: bool) -> APIError:
    """What llama.cpp threw: while it takes a request in, the request's fault."""
    text = str(error)
    for prefix in ("Unable to generate parser for this template. ", "Automatic parser generation failed: "):
        text = text.removeprefix(prefix)
    if started:
        return InternalError(f"llama.cpp failed: {text}")
    return InvalidRequest(f"The model can't do this: {text}")
