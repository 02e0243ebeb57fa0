"""A streamed answer on its way through: whole events only, and never a silent end."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jiter

from pipeline import ChunkStream, Reply, Usage
from pipeline.errors import APIError, UpstreamFailed
from pipeline.wire.sse import Splitter, data_of

if TYPE_CHECKING:
    from pipeline_plugins.infer.openai_connection import Exchange

EVENT_LIMIT = 8 * 1024 * 1024
"""Bytes that one event may take."""

AFTER_DONE = 1.0
"""Seconds to wait for the end of a stream that has said `[DONE]`."""

CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\{')
"""What an event that is part of an answer has."""

BLANK = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Events(ChunkStream):
    """The bytes of an upstream's stream, cut where events end.

    What comes of an event is held until all of it is there, so that a stream that breaks
    leaves the client no half of one. With `hide_usage` the event that holds just the
    token counts, which the client did not ask for, goes into `reply.usage` instead.

    Raises `UpstreamFailed` or `DeadlineExceeded` for a stream that does not come to its
    `data: [DONE]`, and what `failed` makes of an error that the upstream tells of. A class
    and not a generator function, for closing one that was never started must hang up too.
    """

    __slots__ = ("_done", "_ended", "_exchange", "_failed", "_held", "_hide_usage", "_some", "reply")

    def __init__(self, exchange: Exchange, *, hide_usage: bool, failed: Callable[[Any], APIError]) -> None:
        self._exchange = exchange
        self._failed = failed
        self._hide_usage = hide_usage
        self._held = bytearray()
        self._done = False
        self._ended = False
        self._some = False
        self.reply: Reply | None = None

    async def __anext__(self) -> bytes:
        """The next whole events."""
        exchange = self._exchange
        while not self._ended:
            try:
                data = await exchange.chunk()
            except APIError:
                await self.aclose()
                if self._done:
                    break
                raise
            except BaseException:
                await self.aclose()
                raise
            out = self._whole(data) if data else self._end()
            if out and not _sound(out):
                await self.aclose()
                raise UpstreamFailed(f"The upstream {exchange.host} sent an event that is cut or no JSON.")
            # In a text the quotes would be escaped.
            if out and b'"error"' in out and (error := _error_in(out)):
                await self.aclose()
                raise self._failed(error)
            self._some = self._some or CHOICE.search(out) is not None
            if self._done and not self._some:
                await self.aclose()
                raise UpstreamFailed(f"The upstream {exchange.host} ended its stream without an answer.")
            if out:
                return out
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Hang up, unless the stream has ended."""
        self._ended = True
        self._held.clear()
        self._exchange.abort()

    def _whole(self, data: bytes) -> bytes:
        """The events that `data` completes."""
        if self._held or not data.endswith(b"\n\n"):
            data = self._cut(data)
        if self._hide_usage and b'"usage"' in data and b"[]" in data:
            data = self._without_usage(data)
        if b"[DONE]" in data[-24:] and _is_done(data):
            self._done = True
            self._exchange.end_by(self._exchange.loop.time() + AFTER_DONE)
        return data

    def _cut(self, data: bytes) -> bytes:
        held = self._held
        searched = max(0, len(held) - 3)
        held += data
        end = max(_after(held, blank, searched) for blank in BLANK)
        whole = bytes(held[:end])
        del held[:end]
        if len(held) > EVENT_LIMIT:
            self._exchange.abort()
            self._ended = True
            raise UpstreamFailed(f"The upstream {self._exchange.host} sent an event without end.")
        return whole

    def _end(self) -> bytes:
        """The upstream has closed its stream: rightly, or too early."""
        self._ended = True
        rest = bytes(self._held)
        if not self._done and _is_done(rest):
            self._done = True
            return rest
        if not self._done:
            raise UpstreamFailed(
                f"The upstream {self._exchange.host} ended its stream before it was complete."
            )
        return b""

    def _without_usage(self, data: bytes) -> bytes:
        kept = []
        for block in _blocks(data):
            usage = _usage_alone(block)
            if usage is None:
                kept.append(block)
            elif self.reply is not None:
                self.reply.usage = usage
        return b"".join(kept)


def _after(data: bytearray, blank: bytes, start: int) -> int:
    """Where the last such blank line ends; 0 without one."""
    at = data.rfind(blank, start)
    return at + len(blank) if at >= 0 else 0


def _sound(data: bytes) -> bool:
    """Whether the data of whole events are objects from brace to brace, or `[DONE]`.

    Parsing them would cost as much as all else. What is cut shows by its end; a client that
    skips what it can't parse would take the rest for the whole answer.
    """
    if data.startswith(b"data: {") and data.endswith(b"}\n\n"):
        between = data.count(b"\n\n") - 1
        if not between or between == data.count(b"}\n\ndata: {"):
            return True
    texts = (data_of(block) for block in Splitter().feed(data if data.endswith(BLANK) else data + b"\n\n"))
    return all(
        text is None
        or text.strip() in (b"", b"[DONE]")
        or (text.startswith(b"{") and text.rstrip().endswith(b"}"))
        for text in texts
    )


def _error_in(data: bytes) -> Any:
    """The error that one of these events tells of, None where none does."""
    for block in Splitter().feed(data if data.endswith(BLANK) else data + b"\n\n"):
        if error := error_of(data_of(block) or b""):
            return error
    return None


def error_of(body: bytes) -> Any:
    """What an answer or event has as its `error`, None where it has none."""
    try:
        value = jiter.from_json(body)
    except ValueError:
        return None
    return (value.get("error") or None) if isinstance(value, dict) else None


def _is_done(data: bytes) -> bool:
    return data.rstrip().endswith((b"data: [DONE]", b"data:[DONE]"))


def _blocks(data: bytes) -> list[bytes]:
    """The events of `data`, each with the blank line that ends it."""
    blank = b"\r\n\r\n" if data.endswith(b"\r\n\r\n") else data[-2:]
    return [block + blank for block in data.split(blank) if block]


def _usage_alone(block: bytes) -> Usage | None:
    """The counts of an event that has no choices and nothing else to tell."""
    if b'"usage"' not in block:
        return None
    data = data_of(block.replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    try:
        event: Any = jiter.from_json(data or b"")
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("choices") != [] or not isinstance(event.get("usage"), dict):
        return None
    return Usage.from_dict(event["usage"]) or Usage()
