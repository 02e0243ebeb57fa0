"""One call under way for everybody who asks the same: a flight, and the seats in it.

The call belongs to a task of its own, not to the client who came first, so it goes on while
anybody wants its answer and is cancelled when nobody does. A stream is kept from its first
chunk up to `hold` bytes, so that who comes late misses nothing; beyond that nobody can join,
and the slowest reader sets the pace.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from copy import copy
from typing import Any

from pipeline import Call, Reply
from pipeline.errors import APIError, DeadlineExceeded, Overloaded
from pipeline.kinds import Limited
from pipeline.wire.usage import find_usage
from pipeline_plugins.cache.replay import entry_of, form_asked, reply_of
from pipeline_plugins.cache.savings import spent
from pipeline_plugins.cache.store import Entry

Ask = Callable[[Call], Awaitable[Reply]]
Fly = Callable[["Flight"], Awaitable[None]]

RECENT = 4096
"""Flights whose ends are remembered: more than there are lookups under way at any time."""

MARGIN = 0.01
"""Seconds that a call must have left for asking again to be worth it."""


class Flight:
    """A call on its way, in the form in which the first client asked for it.

    entry   the complete answer once `done`, None if it was cut off, refused or too large
    error   what the call failed with
    reply   the reply as soon as it has begun
    spilled whether the answer was too large to hold, so that it can't be joined any more
    """

    __slots__ = (
        "_first",
        "_parts",
        "_size",
        "_waiting",
        "call",
        "done",
        "entry",
        "error",
        "form",
        "hold",
        "reply",
        "seats",
        "spilled",
        "task",
    )

    def __init__(self, call: Call, hold: int) -> None:
        self.call = call
        self.form = form_asked(call)
        self.hold = hold
        self.reply: Reply | None = None
        self.entry: Entry | None = None
        self.error: Exception | None = None
        self.done = False
        self.spilled = False
        self.seats: set[Seat] = set()
        self.task: asyncio.Task[None] | None = None
        self._parts: list[bytes] = []
        self._first = 0
        self._size = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def run(self, ask: Ask, ttl: float) -> None:
        """Make the call and see it to its end. Its failure goes into `error`."""
        before = spent(self.call)
        try:
            async with asyncio.timeout_at(self.call.deadline):
                self.reply = reply = await ask(self.call)
                try:
                    self.tell()
                    if reply.body is None:
                        async for chunk in reply:
                            await self._add(chunk)
                finally:
                    await reply.aclose()
            self.entry = self._landed(reply, ttl, spent(self.call) - before)
        except asyncio.CancelledError:
            # Nobody is left, or the server stops: who is still there must not take it for the end.
            self.error = Overloaded("The call was stopped.", code="shutting_down")
            raise
        except TimeoutError:
            self.error = _late()
        except Exception as error:
            self.error = error
        finally:
            self.done = True
            self.tell()

    def stop(self) -> None:
        """End a flight that never got to `run`."""
        self.error = Overloaded("The call was stopped.", code="shutting_down")
        self.done = True
        self.tell()

    def tell(self) -> None:
        """Wake all who wait for news."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def news(self) -> None:
        """Wait until something has changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def read(self, position: int) -> tuple[bytes, int]:
        """What has come since a position, and the position after it."""
        at = position - self._first
        if at < 0:
            raise RuntimeError("a seat fell behind what its flight holds")
        parts = self._parts[at:]
        return (parts[0] if len(parts) == 1 else b"".join(parts)), position + len(parts)

    async def _add(self, chunk: bytes) -> None:
        self._parts.append(chunk)
        self._size += len(chunk)
        self.tell()
        if self._size > self.hold:
            self.spilled = True
            self._forget()
            while self._size > self.hold and self.seats:
                await self.news()
                self._forget()

    def _forget(self) -> None:
        """Drop the chunks that every seat has read."""
        positions = [seat.position for seat in self.seats if seat.live]
        count = min(positions, default=self._first + len(self._parts)) - self._first
        if count > 0:
            self._size -= sum(map(len, self._parts[:count]))
            del self._parts[:count]
            self._first += count

    def _landed(self, reply: Reply, ttl: float, usd: float) -> Entry | None:
        if reply.status != 200 or self.spilled:
            return None
        streamed = reply.body is None
        if not streamed and self.form != "json":
            return None
        content = b"".join(self._parts) if streamed else reply.body or b""
        if len(content) > self.hold:
            return None
        usage = reply.usage or find_usage(content[-4096:])
        parsed = reply.parsed
        return entry_of(self.form, content, ttl=ttl, parsed=parsed, model=reply.model, usage=usage, usd=usd)


class Seat(AsyncGenerator[bytes, None]):
    """One client's place in a flight: its reply, and the chunks of it.

    Leaves by itself when it is read to the end, closed or cancelled.
    """

    def __init__(self, flight: Flight, call: Call) -> None:
        self.flight = flight
        self.call = call
        self.position = 0
        self.live = form_asked(call) == flight.form
        self.expired = False
        self.on_end: Callable[[Entry | None], None] | None = None
        self._reply: Reply | None = None
        self._timer = asyncio.get_running_loop().call_at(call.deadline, self._expire)
        flight.seats.add(self)

    async def reply(self) -> Reply | None:
        """The reply in the form that this client asked for; None if it must ask for itself.

        Raises what the call failed with, and `DeadlineExceeded` by the client's own deadline.
        """
        flight = self.flight
        try:
            while not (flight.done or self._begun() or (flight.spilled and not self.live)):
                await self._wait()
            if flight.error is not None:
                raise _own(flight.error)
        except BaseException:
            self.leave()
            raise
        source = flight.reply
        if self.live and source is not None:
            return self._same(source)
        self.leave()
        return None if flight.entry is None else reply_of(flight.entry, self.call)

    def _same(self, source: Reply) -> Reply:
        headers = source.headers
        if self.call is not self.flight.call:
            headers = [header for header in headers if header[0] == b"content-type"]
        if source.body is not None:
            self.leave()
            return Reply(
                body=source.body,
                status=source.status,
                headers=headers,
                usage=source.usage,
                model=source.model,
            )
        self._reply = Reply(
            chunks=self,
            status=source.status,
            headers=headers,
            usage=source.usage,
            model=source.model,
        )
        return self._reply

    async def asend(self, value: None) -> bytes:
        """The chunks that have come since the last time, as one."""
        flight = self.flight
        try:
            while True:
                if self not in flight.seats and not self.expired:
                    raise StopAsyncIteration
                if self.expired:
                    raise _late()
                chunk, self.position = flight.read(self.position)
                if chunk:
                    if flight.spilled:
                        flight.tell()  # what was read makes room
                    return chunk
                if flight.error is not None:
                    raise _own(flight.error)
                if flight.done:
                    self._finish()
                    raise StopAsyncIteration
                await self._wait()
        except BaseException:
            self.leave()
            raise

    async def athrow(self, *error: Any) -> bytes:
        """Leave."""
        self.leave()
        raise error[0]

    async def aclose(self) -> None:
        """Leave."""
        self.leave()

    def leave(self) -> None:
        """Give the seat up. The last to leave a flight that is not done cancels it."""
        flight = self.flight
        self._timer.cancel()
        if self not in flight.seats:
            return
        flight.seats.discard(self)
        if flight.done:
            return
        if not flight.seats and flight.task is not None:
            flight.task.cancel()
        elif flight.spilled:
            flight.tell()

    def _finish(self) -> None:
        if self._reply is not None and self.flight.reply is not None:
            self._reply.usage = self.flight.reply.usage
        if self.on_end is not None:
            self.on_end(self.flight.entry)

    def _begun(self) -> bool:
        """Whether there are chunks to pass on; a body is not given before its cost is known."""
        return self.live and self.flight.reply is not None and self.flight.reply.body is None

    async def _wait(self) -> None:
        if self.expired:
            raise _late()
        await self.flight.news()

    def _expire(self) -> None:
        """Give the seat up at the deadline, also where nobody reads from it any more."""
        self.expired = True
        self.leave()
        self.flight.tell()

    __hash__ = object.__hash__


class Flights:
    """The flights that can be joined, by the digests of their keys."""

    def __init__(self, hold: int) -> None:
        self._hold = hold
        self._flights: dict[bytes, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._landed: OrderedDict[bytes, int] = OrderedDict()
        self.joined = 0
        self.landed = 0

    def landed_since(self, digest: bytes, landed: int) -> bool:
        """Whether a flight of this key ended well after `landed` was read from here.

        Then its answer is in the store, and who looked there before must look again.
        """
        return self._landed.get(digest, 0) > landed

    def get(self, digest: bytes) -> Flight | None:
        """The flight that a call of this key can join."""
        flight = self._flights.get(digest)
        if flight is None or flight.spilled or flight.error is not None or not (flight.seats or flight.done):
            return None
        return flight

    def start(self, digest: bytes, call: Call, fly: Fly, *, shared: bool = True) -> Flight:
        """Start a flight; `fly` runs it in its own task, and it can be joined until that ends."""
        flight = Flight(call, self._hold)
        shared = shared and self.get(digest) is None
        if shared:
            self._flights[digest] = flight

        async def run() -> None:
            try:
                await fly(flight)
            finally:
                if not flight.done:
                    flight.stop()
                if flight.error is None:
                    self._note_landing(digest)
                if self._flights.get(digest) is flight:
                    del self._flights[digest]

        flight.task = task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight

    def _note_landing(self, digest: bytes) -> None:
        self.landed += 1
        self._landed[digest] = self.landed
        self._landed.move_to_end(digest)
        if len(self._landed) > RECENT:
            self._landed.popitem(last=False)

    async def answer(
        self, digest: bytes, call: Call, fly: Fly, *, shared: bool = True
    ) -> tuple[Reply | None, Seat, bool]:
        """A call's reply by a flight of its own or another's: the reply, the seat, and whether it joined.

        A call whose flight ran into its first client's deadline or limit, not into its own, asks
        again; every other failure goes to all: to ask again would multiply it.
        """
        while True:
            flight = self.get(digest) if shared else None
            joins = flight is not None
            seat = Seat(flight or self.start(digest, call, fly, shared=shared), call)
            try:
                reply = await seat.reply()
            except APIError as error:
                others = isinstance(error, DeadlineExceeded) or _limited(seat.flight.call, call)
                if not (joins and others) or seat.expired or call.remaining <= MARGIN:
                    raise
            else:
                self.joined += joins
                return reply, seat, joins

    async def close(self) -> None:
        """Cancel all flights and wait for their ends."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("The call's deadline passed.")


def _limited(first: Call, call: Call) -> bool:
    """Whether a limit refused the first client's call that need not refuse another's."""
    found = first.record.decision(Limited)
    return found is not None and not found.admitted and first.tenant.key != call.tenant.key


def _own(error: Exception) -> Exception:
    """An error that a client can be given: its traceback is not shared with other clients."""
    return copy(error) if isinstance(error, APIError) else error
