"""Server-sent events: what goes on now, told to every open page.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog

from pipeline.errors import APIError, Overloaded
from pipeline_plugins.dashboard.assets import GUARDED

RETRY = 2000
"""Milliseconds after which a browser comes back."""

log = structlog.get_logger("pipeline.dashboard")


class Live:
    """Makes one event every `interval` seconds while somebody listens, the same for all of them.

    `bound` is how many may listen at once, `now` makes what an event says.
    """

    def __init__(self, now: Callable[[], Awaitable[Any]], *, bound: int, interval: float) -> None:
        self._now = now
        self._bound = bound
        self._interval = interval
        self._listeners = 0
        self._latest = b""
        self._next: asyncio.Future[None] | None = None
        self._maker: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def listeners(self) -> int:
        """Streams that are open."""
        return self._listeners

    def end(self) -> None:
        """End every stream: browsers come back, and find another graph, another server or none."""
        self._ended = True
        if self._maker is not None:
            self._maker.cancel()
        self._tell()

    async def stream(self, admit: Callable[[], Awaitable[None]], send: Any) -> None:
        """Answer one request until its client leaves, may no longer listen, or the server stops.

        Raises `Overloaded` where as many listen as may.
        """
        if self._ended or self._listeners >= self._bound:
            raise Overloaded(
                f"{self._bound} pages follow this server already.", headers=((b"retry-after", b"15"),)
            )
        self._listeners += 1
        try:
            head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *GUARDED]
            head.append((b"x-accel-buffering", b"no"))  # nginx would keep events back
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await _send(send, b"retry: %d\n\n" % RETRY + self._latest)
            if self._maker is None:
                self._maker = asyncio.create_task(self._make())
            while not self._ended:
                if self._next is None:
                    self._next = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._next)
                await admit()
                if not self._ended:
                    await _send(send, self._latest)
        except APIError:
            await _send(send, b"event: out\ndata: {}\n\n")  # the session has expired
        finally:
            self._listeners -= 1
            if not self._listeners and self._maker is not None:
                self._maker.cancel()
                self._maker = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _make(self) -> None:
        well = True
        while True:
            try:
                self._latest = b"event: now\ndata: %b\n\n" % orjson.dumps(await self._now())
                well = True
            except Exception as error:
                # A ledger that is away has been told of by who writes it.
                if well and not isinstance(error, APIError):
                    log.exception("the dashboard's events can't be made")
                self._latest = b"event: trouble\ndata: {}\n\n"
                well = False
            self._tell()
            await asyncio.sleep(self._interval)

    def _tell(self) -> None:
        """Wake who waits for the next event."""
        waiting, self._next = self._next, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


async def _send(send: Any, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})
