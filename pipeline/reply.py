"""The answer to a call: a body, or a stream of chunks, and what is known about it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import jiter
import orjson

from pipeline.wire import sse
from pipeline.wire.usage import Usage, find_usage

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


@dataclass(slots=True)
class End:
    """How a reply ended, given to the observers that `Reply.on_end` added.

    outcome     `completed`; `failed` (the stream broke, see `error`); `cancelled`
                (nobody wanted the rest: the client left, or a stage stopped reading)
    chunks      chunks passed on; 0 for a reply that was not streamed
    first_chunk `time.perf_counter()` of the first chunk, None without one
    ended       `time.perf_counter()` of the end
    usage       tokens used, None where the reply does not say
    head, tail  the first chunk, and the last three together, as they were passed on
    times       `time.perf_counter()` of the first chunks, as many as an observer asked for
    """

    outcome: str
    chunks: int
    first_chunk: float | None
    ended: float
    usage: Usage | None
    error: BaseException | None = None
    _parts: tuple[bytes, ...] | None = None
    head: bytes = b""
    tail: bytes = b""
    times: array[float] | None = None

    def content(self) -> bytes | None:
        """All bytes of the reply, where an observer asked to `collect` them."""
        return None if self._parts is None else b"".join(self._parts)

    def assembled(self) -> dict[str, Any] | None:
        """The reply as one parsed object, a stream put together as if not streamed.

        None without `collect`, or when the collected bytes exceeded the bound.
        """
        content = self.content()
        if content is None:
            return None
        return sse.assemble(content) if self.chunks else _parse_object(content)


class Reply:
    """An answer on its way back through the graph.

    Either `body` holds all of it, or `chunks` yields server-sent-event bytes, cut
    anywhere. `headers` are the response's, names in lower case. A reply belongs to one
    call: a stage may add headers to it. Iterating works for both forms, once. `parsed` is
    the body's object, None as long as nobody has read it.
    """

    __slots__ = (
        "_collect",
        "_observed_chunks",
        "_observers",
        "_times",
        "_usage",
        "body",
        "chunks",
        "headers",
        "model",
        "parsed",
        "status",
    )

    def __init__(
        self,
        *,
        body: bytes | None = None,
        chunks: AsyncIterator[bytes] | None = None,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] | None = None,
        usage: Usage | None = None,
        model: str | None = None,
        parsed: dict[str, Any] | None = None,
    ) -> None:
        if (body is None) == (chunks is None):
            raise ValueError("a reply has either a body or chunks")
        self.status = status
        self.body = body
        self.chunks = chunks
        self.headers = list(headers) if headers is not None else [JSON if chunks is None else EVENTS]
        self.model = model
        self._usage = usage
        self.parsed = parsed
        self._observers: list[Callable[[End], None]] | None = None
        self._observed_chunks: AsyncGenerator[bytes, None] | None = None
        self._collect = 0
        self._times = 0

    @classmethod
    def of(cls, body: dict[str, Any], *, status: int = 200, usage: Usage | None = None) -> Reply:
        """A reply that holds this object as JSON."""
        return cls(body=orjson.dumps(body), status=status, usage=usage, parsed=body)

    @property
    def streaming(self) -> bool:
        """Whether the answer comes in chunks."""
        return self.chunks is not None

    @property
    def json(self) -> dict[str, Any]:
        """The body's JSON object, parsed on first use. Raises ValueError for a stream."""
        if self.parsed is None:
            if self.body is None:
                raise ValueError("a streamed reply has no body; use on_end or iterate")
            self.parsed = _parse_object(self.body)
        return self.parsed

    @property
    def usage(self) -> Usage | None:
        """Tokens used, as its maker said or as the body's end tells; None if unknown."""
        if self._usage is None and self.body is not None:
            if self.parsed is None:
                self._usage = find_usage(self.body)
            elif isinstance(counts := self.parsed.get("usage"), dict):
                self._usage = Usage.from_dict(counts)
        return self._usage

    @usage.setter
    def usage(self, usage: Usage | None) -> None:
        self._usage = usage

    def on_end(self, observer: Callable[[End], None], *, collect: int = 0, times: int = 0) -> None:
        """Have `observer` called once, when all of the reply is known.

        At once for a body, at the stream's end for chunks, which are not delayed.
        `collect` is how many bytes of a stream to keep for `End.assembled`, `times` of how
        many chunks the time.
        """
        if self.body is not None:
            now = perf_counter()
            observer(End("completed", 0, None, now, self.usage, None, (self.body,)))
            return
        if self._observers is None:
            self._observers = []
        self._observers.append(observer)
        self._collect = max(self._collect, collect)
        self._times = max(self._times, times)

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self.chunks is None:
            return _once(self.body or b"")
        if not self._observers:
            return self.chunks
        self._observed_chunks = self._observed(self.chunks)
        return self._observed_chunks

    async def aclose(self) -> None:
        """Stop a stream that nobody will read to its end, and free what it holds."""
        if self._observed_chunks is not None:
            await self._observed_chunks.aclose()
        if isinstance(self.chunks, AsyncGenerator):
            await self.chunks.aclose()
        if self._observers:
            self._end(End("cancelled", 0, None, perf_counter(), self._usage))

    async def _observed(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        end = End("cancelled", 0, None, 0.0, None)
        parts: list[bytes] | None = [] if self._collect else None
        times = array("d")
        size = 0
        tail = previous = before = b""
        try:
            async for chunk in chunks:
                if end.first_chunk is None:
                    end.first_chunk = perf_counter()
                    end.head = chunk
                if end.chunks < self._times:
                    times.append(perf_counter())
                end.chunks += 1
                before, previous, tail = previous, tail, chunk
                if parts is not None:
                    size += len(chunk)
                    parts.append(chunk)
                    if size > self._collect:
                        parts = None
                yield chunk
            end.outcome = "completed"
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            end.outcome, end.error = "failed", error
            raise
        finally:
            end.ended = perf_counter()
            end._parts = None if parts is None else tuple(parts)
            end.tail, end.times = before + previous + tail, times
            try:
                # What is inside ends first, so that its observers have said what they know.
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()
            finally:
                end.usage = self._usage or find_usage(end.tail)
                self._end(end)

    def _end(self, end: End) -> None:
        observers, self._observers = self._observers or [], None
        for observer in observers:
            observer(end)


class ChunkStream(AsyncGenerator[bytes, None]):
    """A reply's chunks as a class: its `aclose` runs even if nobody has begun to read.

    That of a generator function does not. A subclass has `__anext__` and `aclose`.
    """

    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    async def asend(self, value: None) -> bytes:
        """As `__anext__`: nothing can be sent."""
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> bytes:
        """Close, and raise what was thrown."""
        await self.aclose()
        raise typ


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _parse_object(body: bytes) -> dict[str, Any]:
    value = jiter.from_json(body)
    if not isinstance(value, dict):
        raise ValueError("the reply is not a JSON object")
    return value
