"""Adding to a reply what it was made from: to a body as fields, to a stream as an event before its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import jiter
import orjson

from pipeline import Reply
from pipeline.wire import sse


def cite(reply: Reply, notes: dict[str, Any]) -> Reply:
    """The reply with these fields added. Errors are left as they are."""
    if reply.status >= 400:
        return reply
    if reply.chunks is not None:
        reply.chunks = _with_event(reply.chunks, notes)
        return reply
    try:
        body = reply.json
    except ValueError:
        return reply
    headers = [(name, value) for name, value in reply.headers if name.lower() != b"content-length"]
    return Reply(
        body=orjson.dumps({**body, **notes}),
        status=reply.status,
        headers=headers,
        usage=reply.usage,
        model=reply.model,
    )


async def _with_event(chunks: AsyncIterator[bytes], notes: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The events as they come; a chunk without choices before `[DONE]`, none if the stream breaks."""
    splitter = sse.Splitter()
    shared: dict[str, Any] | None = None
    try:
        async for chunk in chunks:
            out = b""
            for block in splitter.feed(chunk):
                data = sse.data_of(block)
                if data == b"[DONE]":
                    out += sse.encode({**(shared or {}), "choices": [], **notes})
                elif shared is None and data is not None:
                    shared = _shared(data)
                out += block + b"\n\n"
            if out:
                yield out
        if splitter.rest:
            yield splitter.rest
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _shared(data: bytes) -> dict[str, Any] | None:
    """What all chunks of a stream have in common."""
    try:
        event = jiter.from_json(data)
    except ValueError:
        return None
    if not isinstance(event, dict) or "choices" not in event:
        return None
    return {name: event[name] for name in ("id", "object", "created", "model") if name in event}
