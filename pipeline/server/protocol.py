"""The HTTP/1.1 connection: uvicorn's, with the bounds that an open port needs.

Added to uvicorn's protocol: a deadline and a size for the request's head, a deadline
for clients that stop reading, bounds on connections and on pipelined requests, refusals
in the API's envelope that the client gets to read, and the cancellation of a request's
task as soon as its client is gone.

The scope of a request has its `cycle`, `whole` once its body has arrived, and `gone` when
its client left before it was answered.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.errors import APIError, InvalidRequest, Overloaded, RequestTimeout
from pipeline.server.cycle import Cycle
from pipeline.settings import ServerConfig

MAX_PIPELINED = 128
"""Requests of one connection that may wait for the answer to an earlier one."""

LINGER = 1.0
"""Seconds for a refused client to stop sending and to read why."""


class HeadersTooLarge(InvalidRequest):
    """The request line and headers are larger than `server.max_header_bytes` (431)."""

    status = 431
    code = "headers_too_large"


class Line:
    """A connection's transport, closed by its protocol rather than at once."""

    __slots__ = ("abort", "close", "closing", "transport", "write", "writelines")

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.transport = transport
        self.write = transport.write
        self.writelines = transport.writelines
        self.abort = transport.abort
        self.close = close
        self.closing = False

    def is_closing(self) -> bool:
        """Whether nothing more is to be read or written."""
        return self.closing or self.transport.is_closing()


class Protocol(HttpToolsProtocol):
    """One client connection."""

    settings: ServerConfig = ServerConfig()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line: Line
        self._running: asyncio.Task[None] | None = None
        self._current: Cycle | None = None
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._close_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a client, unless there are too many."""
        super().connection_made(transport)
        self.transport = self._line = Line(transport, self._close)  # type: ignore[assignment]
        if len(self.connections) > self.settings.max_connections:
            refusal = Overloaded("Too many connections.", headers=((b"retry-after", b"1"),))
            self._refuse(refusal, linger=False)
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client was waiting for."""
        for timer in (self._head_timer, self._write_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._drop()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        """The server stops: nothing new is read, and the application is told."""
        drain = getattr(self.app, "drain", None)
        if drain is not None:
            drain()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and bound how long and how large a head may be.

        What is neither head nor body counts as head: trailers, a chunk's extensions.
        """
        if self._line.closing:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.settings.max_header_bytes:
            self._refuse(self._too_large())
        elif self._head_timer is None and (self._in_head or self._idle()):
            self._await_head()

    def on_message_begin(self) -> None:
        """A request starts."""
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header. Trailers are dropped: they came too late to say anything about the request."""
        if not self._in_head:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start the request's task, now that its head is known."""
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        seen, self._head_bytes = self._head_bytes, 0
        if seen > self.settings.max_header_bytes and self._head_size() > self.settings.max_header_bytes:
            self._refuse(self._too_large())
            return
        if self._line.is_closing():
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(Overloaded("Too many requests wait on one connection."))
            return
        if self.parser.should_upgrade() and self._has_body():
            # The parser would take the body for the next request.
            self._refuse(InvalidRequest("No upgrade is served with a body.", code="invalid_http"))
            return
        self._begin()

    def _begin(self) -> None:
        """Make the request's scope whole and start its task, after those of earlier requests."""
        parser, scope = self.parser, self.scope
        version = parser.get_http_version()
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["method"] = parser.get_method().decode("ascii")
        scope["http_version"] = version
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        earlier = self.cycle
        self.cycle = cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            False,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue,
            version != "1.0" and parser.should_keep_alive(),
            self.on_response_complete,
        )
        scope["cycle"] = cycle  # type: ignore[typeddict-unknown-key]
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """Body bytes of a request that was accepted."""
        self._head_bytes = 0
        if self.cycle is not None and not self._line.closing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request that was accepted."""
        self._head_bytes = 0
        if self.cycle is not None and not self._line.closing:
            self.scope["whole"] = True  # type: ignore[typeddict-unknown-key]
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client reads slower than it is written to: give it a deadline."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout, self._line.abort)

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _unsupported_upgrade_warning(self) -> None:
        """A wish to upgrade is not granted, and not worth a line in the log."""

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._current = cycle
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        self._running = task

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.header_timeout, self._head_too_late)

    def _head_too_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(RequestTimeout("The request's headers did not arrive in time."))
        elif not self._line.is_closing() and self._idle():
            self._line.close()

    def _idle(self) -> bool:
        """Whether no request is under way, nor a keep-alive timer set that would end it."""
        free = self.cycle is None or self.cycle.response_complete
        return free and self.timeout_keep_alive_task is None

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The headers are larger than {self.settings.max_header_bytes} bytes.")

    def _refuse(self, error: APIError, *, linger: bool = True) -> None:
        """Answer outside of a request's task, unless that has begun to answer, and hang up."""
        if self._line.is_closing():
            return
        current = self._current
        free = current is None or current.response_complete
        own = current is self.cycle and self.cycle is not None and self.cycle.more_body
        unanswered = own and not self.cycle.response_started
        self._drop()
        if free or unanswered:
            body = error.body()
            head = [STATUS_LINE[error.status], b"content-type: application/json\r\nconnection: close\r\n"]
            head.extend(b"%s: %s\r\n" % header for header in error.headers)
            head.append(b"content-length: %d\r\n\r\n" % len(body))
            self._line.write(b"".join([*head, body]))
        self._hang_up(linger=linger)

    def _drop(self) -> None:
        """Cancel the request under way, and forget those that wait for it."""
        self.pipeline.clear()
        current, running = self._current, self._running
        self._current = self._running = None
        if current is not None and not current.response_complete:
            current.scope["gone"] = True  # type: ignore[typeddict-unknown-key]
            current.disconnected = True
            if running is not None:
                running.cancel()

    def _close(self) -> None:
        unread = self._in_head or (self.cycle is not None and self.cycle.more_body)
        self._hang_up(linger=unread)

    def _hang_up(self, *, linger: bool) -> None:
        """Close the connection once what was written is sent, in bounded time.

        A socket that is closed while its client still sends is reset, and the client may
        never read its answer. To `linger` is to end the writing side first, and to throw
        away what still arrives.
        """
        line = self._line
        if line.is_closing():
            return
        line.closing = True
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        unsent = line.transport.get_write_buffer_size() > 0
        if linger:
            self.flow.resume_reading()
            line.transport.write_eof()
        else:
            line.transport.close()
        if linger or unsent:
            seconds = self.settings.write_timeout if unsent else LINGER
            self._close_timer = self.loop.call_later(seconds, line.abort)
