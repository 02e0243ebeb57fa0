"""One HTTP/1.1 connection to an upstream, and the exchange of a request for a response.

Only what calling a model server takes: POST and GET with a whole body, answers read
whole or as they come. The parser is the server's own, llhttp.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import httptools

from pipeline.errors import APIError, DeadlineExceeded, UpstreamFailed

HEAD_LIMIT = 65_536
"""Bytes that a response's status line and headers may take."""

HIGH_WATER = 262_144
"""Bytes of a stream that may wait for its reader before the upstream is held back."""


class Await(enum.Enum):
    """What the reader of an exchange waits for."""

    HEAD = enum.auto()
    DATA = enum.auto()
    END = enum.auto()


class Severed(UpstreamFailed):
    """The connection ended before the response did."""


@dataclass(slots=True, frozen=True)
class Limits:
    """Bounds of every exchange. Times are seconds, `body` is bytes."""

    first_byte: float
    between_chunks: float
    body: int


class Exchange:
    """One request under way and the response as far as it has come.

    `deadline` is event-loop time. With `stream` the body of a 200 is handed over as it
    arrives, of any size; every other body is bounded by `limits.body`.
    """

    __slots__ = (
        "complete",
        "connection",
        "content_encoding",
        "content_type",
        "deadline",
        "error",
        "host",
        "last_data",
        "limits",
        "loop",
        "parts",
        "retry_after",
        "size",
        "status",
        "stream",
        "timer",
        "waiter",
        "waits_for",
    )

    def __init__(self, host: str, limits: Limits, deadline: float, stream: bool) -> None:
        self.host = host
        self.limits = limits
        self.deadline = deadline
        self.stream = stream
        self.loop = asyncio.get_running_loop()
        self.status = 0
        self.content_type = b""
        self.content_encoding = b""
        self.retry_after = b""
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False
        self.error: APIError | None = None
        self.connection: Connection | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.last_data = 0.0
        self.waiter: asyncio.Future[None] | None = None
        self.waits_for = Await.HEAD

    @property
    def streaming(self) -> bool:
        """Whether the body is handed over in pieces."""
        return self.stream and self.status == 200

    async def head(self) -> None:
        """Wait for status and headers; for the whole response unless it is `streaming`.

        Raises `Severed`, `UpstreamFailed` or `DeadlineExceeded`.
        """
        if self.stream:
            await self._wait(Await.HEAD)
        if not self.streaming:
            await self._wait(Await.END)

    async def chunk(self) -> bytes:
        """The next bytes of the body, all that have come; empty at its end. Raises as `head`."""
        parts = self.parts
        if not parts and not self.complete:
            await self._wait(Await.DATA)
        if not parts:
            if self.error is not None:
                raise self.error
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.size = 0
        if self.connection is not None and self.connection.paused:
            self.connection.resume()
        return data

    def body(self) -> bytes:
        """All of the body that has come."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)

    def end_by(self, deadline: float) -> None:
        """Bring the deadline forward."""
        self.deadline = min(self.deadline, deadline)
        if self.connection is not None:
            self.watch()

    def abort(self) -> None:
        """Give the exchange up: the upstream sees its connection closed."""
        if self.connection is not None:
            self.connection.finish(reusable=False)

    def fail(self, error: APIError) -> None:
        """End it with an error for its reader."""
        self.error = error
        self.abort()
        self.wake()

    async def _wait(self, what: Await) -> None:
        self.waits_for = what
        if not self._ready():
            waiter = self.waiter = self.loop.create_future()
            try:
                await waiter
            except BaseException:
                self.abort()
                raise
            finally:
                self.waiter = None
        if self.error is not None and not (what is Await.DATA and self.parts):
            raise self.error

    def _ready(self) -> bool:
        if self.complete or self.error is not None:
            return True
        if self.waits_for is Await.DATA:
            return bool(self.parts)
        return self.waits_for is Await.HEAD and self.status != 0

    def wake(self) -> None:
        """Let the reader go on if what it waits for is there."""
        waiter = self.waiter
        if waiter is not None and self._ready() and not waiter.done():
            waiter.set_result(None)

    def watch(self) -> None:
        """Set the timer to the next moment at which the upstream may be too late."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(min(self.deadline, self._due()), self._on_timer)

    def _due(self) -> float:
        if self.status == 0:
            return self.last_data + self.limits.first_byte
        if self.connection is not None and self.connection.paused:
            return self.loop.time() + self.limits.between_chunks
        return self.last_data + self.limits.between_chunks

    def _on_timer(self) -> None:
        # The timer is not moved with every chunk, which would cost more than the chunk:
        # it looks when it fires whether there was one.
        self.timer = None
        now = self.loop.time()
        if now >= self.deadline:
            self.fail(DeadlineExceeded("The call's deadline passed while waiting for the upstream."))
        elif now < self._due():
            self.watch()
        elif self.status == 0:
            limit = self.limits.first_byte
            self.fail(DeadlineExceeded(f"The upstream {self.host} did not answer within {limit:g} s."))
        else:
            limit = self.limits.between_chunks
            self.fail(
                DeadlineExceeded(f"The upstream {self.host} fell silent for {limit:g} s in its answer.")
            )


class Connection(asyncio.Protocol):
    """A connection, free or serving one exchange.

    `released` is called once for each exchange, with whether another can follow.
    """

    def __init__(self, released: Callable[[Connection, bool], None]) -> None:
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.served = 0
        self.idle_since = 0.0
        self.paused = False
        self._released = released
        self._parser = httptools.HttpResponseParser(self)
        self._unfinished_head = 0
        self._header_bytes = 0
        self._declared = 0
        self._framed = False
        self._keep_alive = False
        self._surplus = False
        self._responding = False

    @property
    def usable(self) -> bool:
        """Whether the upstream has not hung up."""
        return self.transport is not None and not self.transport.is_closing()

    @property
    def silent(self) -> bool:
        """Whether not a byte of the exchange's response has come."""
        return not self._responding

    def begin(self, exchange: Exchange, head: bytes, body: bytes) -> None:
        """Send a request. The connection must be free."""
        transport = cast("asyncio.Transport", self.transport)
        self.exchange = exchange
        self.served += 1
        self._unfinished_head = self._header_bytes = self._declared = 0
        self._framed = self._surplus = self._responding = self._keep_alive = False
        exchange.connection = self
        exchange.last_data = exchange.loop.time()
        exchange.watch()
        if len(body) < HEAD_LIMIT:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    def finish(self, *, reusable: bool) -> None:
        """Part from the exchange; without `reusable` hang up as well."""
        exchange, self.exchange = self.exchange, None
        if not reusable and self.transport is not None:
            self.transport.abort()
        if exchange is None:
            return
        exchange.connection = None
        if exchange.timer is not None:
            exchange.timer.cancel()
            exchange.timer = None
        self._released(self, reusable)

    def resume(self) -> None:
        """Read on after the reader has caught up."""
        if self.paused and self.transport is not None:
            self.paused = False
            if self.exchange is not None:
                self.exchange.last_data = self.exchange.loop.time()
            self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came and tell the reader."""
        exchange = self.exchange
        if exchange is None:
            # Bytes that nobody asked for: whatever follows could be taken for an answer.
            self.finish(reusable=False)
            return
        self._responding = True
        exchange.last_data = exchange.loop.time()
        head_was_open = exchange.status == 0
        parts = exchange.parts
        before = len(parts)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not exchange.complete:
                exchange.fail(UpstreamFailed(f"The upstream {exchange.host} does not speak HTTP/1.1."))
                return
            self._surplus = True
        if len(parts) > before + 1:
            # A body in a million tiny chunks would otherwise take fifty times its size.
            parts[before:] = [b"".join(parts[before:])]
        if excess := self._excess(exchange, len(data)):
            exchange.fail(UpstreamFailed(f"The upstream {exchange.host} {excess}."))
            return
        if exchange.complete:
            transport = cast("asyncio.Transport", self.transport)
            unsent = transport.get_write_buffer_size() > 0
            self.finish(reusable=self._keep_alive and not self._surplus and not unsent)
        elif head_was_open and exchange.status:
            exchange.watch()
        elif exchange.size > HIGH_WATER and exchange.streaming and not self.paused:
            self.paused = True
            cast("asyncio.Transport", self.transport).pause_reading()
        exchange.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of the connection, which may be the end of a body or of a hope."""
        if not self.closed.done():
            self.closed.set_result(None)
        exchange = self.exchange
        if exchange is None:
            return
        if exc is None and exchange.status and not self._framed:
            exchange.complete = True
            self.finish(reusable=False)
            exchange.wake()
        else:
            when = "in the middle of its answer" if self._responding else "without an answer"
            exchange.fail(Severed(f"The upstream {exchange.host} closed the connection {when}."))

    def on_message_begin(self) -> None:
        """A response starts; a second one to the same request is not welcome."""
        if self.exchange is None or self.exchange.complete:
            self._surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the few headers that matter."""
        exchange = self.exchange
        if exchange is None or self._surplus:
            return
        self._header_bytes += len(name) + len(value)
        name = name.lower()
        if name == b"content-type":
            exchange.content_type = value
        elif name == b"content-length":
            self._framed = True
            self._declared = int(value) if value.isdigit() and len(value) < 20 else 0
        elif name == b"transfer-encoding":
            self._framed = True
        elif name == b"retry-after":
            exchange.retry_after = value
        elif name == b"content-encoding":
            exchange.content_encoding = value.lower()

    def on_headers_complete(self) -> None:
        """Status and headers are known; an interim response (1xx) is passed over."""
        status = self._parser.get_status_code()
        if self.exchange is not None and not self._surplus and status >= 200:
            self.exchange.status = status

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        exchange = self.exchange
        if exchange is not None and not self._surplus:
            exchange.parts.append(body)
            exchange.size += len(body)

    def on_message_complete(self) -> None:
        """The whole response is there."""
        exchange = self.exchange
        if exchange is not None and exchange.status and not self._surplus:
            exchange.complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def _excess(self, exchange: Exchange, size: int) -> str | None:
        """What of the response is too large, if anything."""
        if exchange.status == 0:
            self._unfinished_head += size
        if self._unfinished_head > HEAD_LIMIT or self._header_bytes > HEAD_LIMIT:
            return f"answered with more than {HEAD_LIMIT} bytes of headers"
        limit = exchange.limits.body
        if exchange.status and not exchange.streaming and max(exchange.size, self._declared) > limit:
            return f"answered with more than {limit} bytes"
        return None
