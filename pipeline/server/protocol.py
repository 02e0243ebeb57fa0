"""The HTTP/1.1 connection: uvicorn's, with the bounds that an open port needs.

Added to uvicorn's protocol: a deadline and a size for the request's head, a deadline
for clients that stop reading, a bound on connections, refusals in the API's envelope,
and the cancellation of a request's task as soon as its client is gone.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.errors import APIError, InvalidRequest, Overloaded, RequestTimeout
from pipeline.settings import ServerConfig


class HeadersTooLarge(InvalidRequest):
    """The request line and headers are larger than `server.max_header_bytes` (431)."""

    status = 431
    code = "headers_too_large"


class Protocol(HttpToolsProtocol):
    """One client connection."""

    settings: ServerConfig = ServerConfig()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._running: asyncio.Task[None] | None = None
        self._in_head = False
        self._head_bytes = 0
        self._head_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a client, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(Overloaded("Too many connections.", headers=((b"retry-after", b"1"),)))
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client was waiting for."""
        self._stop_timers()
        unfinished = self.cycle is not None and not self.cycle.response_complete
        if unfinished:
            self.cycle.scope["gone"] = True  # type: ignore[typeddict-unknown-key]
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        if unfinished and self._running is not None:
            self._running.cancel()
        self._running = None

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and bound how long and how large a head may be."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.settings.max_header_bytes:
            self._refuse(self._too_large())
        elif self._head_timer is None and (self._in_head or self._idle()):
            self._await_head()

    def on_message_begin(self) -> None:
        """A request starts."""
        self._in_head = True
        super().on_message_begin()

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
        if self.transport.is_closing():
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Body bytes of a request that was accepted."""
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request that was accepted."""
        self._head_bytes = 0
        if self.cycle is not None:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """The client reads slower than it is written to: give it a deadline."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.settings.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
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
        elif not self.transport.is_closing() and self._idle():
            self.transport.close()

    def _idle(self) -> bool:
        """Whether no request is under way, nor a keep-alive timer set that would end it."""
        free = self.cycle is None or self.cycle.response_complete
        return free and self.timeout_keep_alive_task is None

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(f"The headers are larger than {self.settings.max_header_bytes} bytes.")

    def _refuse(self, error: APIError) -> None:
        """Answer outside of a request's task, and hang up."""
        self._stop_timers()
        if self.transport.is_closing():
            return
        body = error.body()
        head = [STATUS_LINE[error.status], b"content-type: application/json\r\nconnection: close\r\n"]
        head.extend(b"%s: %s\r\n" % header for header in error.headers)
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(b"".join([*head, body]))
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._write_timer = None
