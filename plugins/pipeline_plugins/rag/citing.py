"""Adding to a reply what it was made from: to a body as fields, to a stream as an event before its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import jiter
import orjson

from pipeline import Reply
from pipeline.wire import sse
from pipeline_plugins.attempts import Begun


def cite(reply: Reply, notes: dict[str, Any]) -> Reply:
    """The reply with these fields added. Errors are left as they are."""
    if reply.status >= 400:
        return reply
    if reply.chunks is not None:
        reply.chunks = Cited(reply.chunks, notes)
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


class Cited(Begun):
    """The events as they come; a chunk without choices before `[DONE]`, none if the stream breaks."""

    __slots__ = ("_notes", "_shared", "_splitter")

    def __init__(self, chunks: AsyncIterator[bytes], notes: dict[str, Any]) -> None:
        super().__init__(chunks, None)
        self._notes = notes
        self._splitter = sse.Splitter()
        self._shared: dict[str, Any] | None = None

    async def __anext__(self) -> bytes:
        """The events that are complete, as bytes; at the end what is left of one."""
        while True:
            try:
                chunk = await super().__anext__()
            except StopAsyncIteration:
                rest, self._splitter = self._splitter.rest, sse.Splitter()
                if rest:
                    return rest
                raise
            if events := b"".join(map(self._event, self._splitter.feed(chunk))):
                return events

    def _event(self, block: bytes) -> bytes:
        data = sse.data_of(block)
        if data == b"[DONE]":
            return sse.encode({**(self._shared or {}), "choices": [], **self._notes}) + sse.DONE
        if self._shared is None and data is not None:
            self._shared = _shared(data)
        return block + b"\n\n"


def _shared(data: bytes) -> dict[str, Any] | None:
    """What all chunks of a stream have in common."""
    try:
        event = jiter.from_json(data)
    except ValueError:
        return None
    if not isinstance(event, dict) or "choices" not in event:
        return None
    return {name: event[name] for name in ("id", "object", "created", "model") if name in event}
