"""Whether an attempt at a target went well, told before a byte of it reaches the client.

What retries, falls back or counts failures agrees here on what a failure is.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from pipeline import ChunkStream, Reply

TOO_MANY = 429


def is_failure(status: int) -> bool:
    """Whether a status says that the target failed: 5xx and 429, not the client's own 4xx."""
    return status >= 500 or status == TOO_MANY


def retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Seconds for which a refusal asks to be left alone: its `retry-after`, 0 without one.

    Reads both of HTTP's forms, seconds and a date (RFC 9110, 10.2.3).
    """
    for name, value in headers:
        if name == b"retry-after":
            return _seconds(value.decode("latin-1").strip())
    return 0.0


def _seconds(value: str) -> float:
    try:
        return max(0.0, float(value)) if value[:1].isdigit() else _until(value)
    except (ValueError, OverflowError):
        return 0.0


def _until(date: str) -> float:
    return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())


class Begun(ChunkStream):
    """Chunks of which the first has been waited for: what fails before it has failed already.

    A class and not a generator function, for closing one that was never started must
    close what it reads from.
    """

    __slots__ = ("_chunks", "_first")

    def __init__(self, chunks: AsyncIterator[bytes], first: bytes | None) -> None:
        self._chunks = chunks
        self._first = first

    async def __anext__(self) -> bytes:
        """The first chunk, then those that follow."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await self._chunks.__anext__()

    async def aclose(self) -> None:
        """Close what the chunks come from."""
        self._first = None
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()


async def begin(reply: Reply) -> None:
    """Wait for a stream's first chunk and keep it, unless that was done. Raises what breaks it.

    Observers of the reply see the chunks as whoever reads them does.
    """
    chunks = reply.chunks
    if chunks is None or isinstance(chunks, Begun):
        return
    reply.chunks = Begun(chunks, await first_chunk(reply))


async def first_chunk(reply: Reply) -> bytes | None:
    """The first chunk of a stream, None if it has none. A stream that breaks is closed."""
    assert reply.chunks is not None  # noqa: S101 — for the type checker
    try:
        return await anext(reply.chunks, None)
    except BaseException:
        await reply.aclose()
        raise
