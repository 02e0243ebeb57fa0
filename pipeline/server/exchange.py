"""What routes share: reading a request's body within bounds, and answering with JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson

from pipeline.errors import BodyTooLarge, Overloaded, RequestTimeout

CLOSING = ((b"connection", b"close"),)
"""For an answer to a request of which not all was read."""


async def read_body(receive: Callable[[], Awaitable[dict[str, Any]]], limit: int, seconds: float) -> bytes:
    """A body of at most `limit` bytes, which has `seconds` to arrive.

    Raises `BodyTooLarge` and `RequestTimeout`; is cancelled if the client leaves.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise asyncio.CancelledError
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large(limit)
                more = message.get("more_body", False)
    except TimeoutError:
        raise RequestTimeout("The body did not arrive in time.", headers=CLOSING) from None
    return bytes(body)


def too_large(limit: int) -> BodyTooLarge:
    """The error for a body of more than `limit` bytes."""
    return BodyTooLarge(f"The body is larger than {limit} bytes.", headers=CLOSING)


def still_loading() -> Overloaded:
    """The error for what only an open graph can answer."""
    return Overloaded("The models are still loading.", code="not_ready", headers=((b"retry-after", b"1"),))


async def send_json(
    send: Callable[[dict[str, Any]], Awaitable[None]],
    content: Any,
    *,
    status: int = 200,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with JSON that nobody keeps."""
    body = orjson.dumps(content)
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
