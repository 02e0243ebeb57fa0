"""An upstream's event stream on its way to the client: passed on, watched, never parsed.

Bytes go through as they came, cut at the ends of events. Only an event that is out of
the ordinary (token counts, an error, the end) is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

import jiter

from pipeline.errors import APIError, DeadlineExceeded, UpstreamFailed
from pipeline.reply import Reply
from pipeline.wire.sse import data_of
from pipeline.wire.usage import Usage

EVENT_LIMIT = 8 * 1024 * 1024
"""Bytes that one event may have."""

DRAIN = 1.0
"""Seconds that an upstream may take to end its response after `[DONE]`."""

_BLOCK = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
_NEVER = float("inf")


class Source(Protocol):
    """What is needed of aiohttp's `StreamReader`."""

    async def readany(self) -> bytes:
        """The bytes that have arrived, waiting for some; empty at the end."""

    def is_eof(self) -> bool:
        """Whether the end has arrived."""

    def set_exception(self, exc: BaseException) -> None:
        """Make this and all further reads raise `exc`."""


class Events(AsyncGenerator[bytes, None]):
    """The chunks of a streamed reply.

    `where` names the upstream in errors. `close` ends the upstream's response, `describe`
    turns what a read raised into an error for the client, `clean` makes the upstream's
    words fit to be shown. With `strip` the event that only has token counts is kept from
    the client, who did not ask for it. Set `reply` to have its usage noted.

    Iterating raises `UpstreamFailed` when the stream breaks, reports an error, or ends
    without saying that it is complete; `DeadlineExceeded` when nothing arrives for
    `stall` seconds, or at `deadline`.
    """

    def __init__(
        self,
        source: Source,
        *,
        where: str,
        deadline: float,
        stall: float,
        strip: bool,
        close: Callable[[], None],
        describe: Callable[[Exception], Exception],
        clean: Callable[[bytes], str],
    ) -> None:
        self.reply: Reply | None = None
        self._source = source
        self._where = where
        self._deadline = deadline
        self._stall = stall
        self._strip = strip
        self._close_response = close
        self._describe = describe
        self._clean = clean
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since = _NEVER
        self._rest = b""
        self._finished = False
        self._done = False
        self._closed = False
        self._failure: APIError | None = None

    async def __anext__(self) -> bytes:
        """The next events. Raises what the class says."""
        if self._closed:
            raise StopAsyncIteration
        if self._timer is None:
            self._timer = self._loop.call_at(self._next_check(), self._check)
        try:
            if self._failure is not None:
                raise self._failure
            while not self._done:
                self._waiting_since = self._loop.time()
                data = await self._source.readany()
                self._waiting_since = _NEVER
                events = self._take(data) if data else self._last()
                if events:
                    return events
            await self._drain()
        except Exception as error:
            self._close()
            raise self._describe(error) from None
        except BaseException:
            self._close()
            raise
        self._close()
        raise StopAsyncIteration

    async def asend(self, value: None) -> bytes:
        """Iterate; nothing can be sent."""
        return await self.__anext__()

    async def athrow(self, *error: Any) -> bytes:
        """End the stream, and raise what was thrown in."""
        self._close()
        raise error[0]

    async def aclose(self) -> None:
        """Hang up on the upstream. A stream that has ended is left alone."""
        self._close()

    def _close(self) -> None:
        self._closed = True
        self.reply = None
        if self._timer is not None:
            self._timer.cancel()
        self._close_response()

    def _take(self, data: bytes) -> bytes:
        """What can be passed on now that `data` has arrived: whole events."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if not data.endswith(b"\n\n"):
            data = self._cut(data)
        if not self._finished and _FINISHED.search(data):
            self._finished = True
        if b"[DONE]" in data or b'"error"' in data or b'"usage":{' in data or b'"usage": {' in data:
            return self._look(data)
        return data

    def _cut(self, data: bytes) -> bytes:
        end = data.rfind(b"\n\n") + 2
        if b"\r" in data:
            end = max(end, data.rfind(b"\r\n\r\n") + 4, data.rfind(b"\r\r") + 2)
        end = end if end > 4 or data[:end].isspace() else 0
        self._rest = data[end:]
        if len(self._rest) > EVENT_LIMIT:
            raise UpstreamFailed(f"The upstream at {self._where} sent an event without an end.")
        return data[:end]

    def _look(self, data: bytes) -> bytes:
        """Pass on events of which some are out of the ordinary."""
        passed = []
        for block in _BLOCK.findall(data):
            content = data_of(block.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
            if content is None or not content.startswith((b"{", b"[DONE]")):
                passed.append(block)
            elif content.startswith(b"[DONE]"):
                if not self._finished:
                    self._failure = self._cut_short()
                    break
                passed.append(block)
                self._done = True
                break
            elif self._is_for_client(content):
                passed.append(block)
            elif self._failure is not None:
                break
        if not passed and self._failure is not None:
            raise self._failure
        return b"".join(passed)

    def _is_for_client(self, content: bytes) -> bool:
        """Note the counts or the error that an event has, and say whether to pass it on."""
        try:
            event = jiter.from_json(content)
        except ValueError:
            return True
        choices = event.get("choices")
        error = event.get("error")
        if error and not choices:
            words = error.get("message") if isinstance(error, dict) else error
            said = self._clean(str(words).encode(errors="replace"))
            self._failure = UpstreamFailed(f"The upstream at {self._where} failed as it answered: {said}")
            return False
        usage = event.get("usage")
        if isinstance(usage, dict):
            if self.reply is not None and (counts := Usage.from_dict(usage)) is not None:
                self.reply.usage = counts
            return not (self._strip and choices == [])
        return True

    def _last(self) -> bytes:
        """The upstream has ended its response: right only after `[DONE]`."""
        rest, self._rest = self._rest, b""
        events = self._take(rest + b"\n\n") if rest.strip() else b""
        if not self._done and self._failure is None:
            self._failure = self._cut_short()
        if self._failure is not None and not events:
            raise self._failure
        return events

    def _cut_short(self) -> UpstreamFailed:
        return UpstreamFailed(f"The upstream at {self._where} ended its answer before it was complete.")

    async def _drain(self) -> None:
        """Read to the response's end, so that its connection can be used again."""
        if self._source.is_eof():
            return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(DRAIN):
                while await self._source.readany():
                    pass

    def _next_check(self) -> float:
        since = self._waiting_since if self._waiting_since is not _NEVER else self._loop.time()
        return min(self._deadline, since + self._stall)

    def _check(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._expire("The call ran past its deadline.")
        elif now >= self._waiting_since + self._stall:
            self._expire(f"The upstream at {self._where} sent nothing for {self._stall:g} s.")
        else:
            self._timer = self._loop.call_at(self._next_check(), self._check)

    def _expire(self, message: str) -> None:
        self._failure = DeadlineExceeded(message)
        self._source.set_exception(self._failure)
        self._close_response()
