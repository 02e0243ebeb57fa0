"""A static OpenAI-compatible server on uvicorn alone: prepared bytes, nothing parsed."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import orjson
import uvicorn

from pipeline.wire.responses import Choice, Stream, chat_completion
from pipeline.wire.usage import Usage

CHUNKS = 200
"""Chunks of text in a streamed answer."""

PACE = 0.002
"""Seconds between chunks, so that each one travels alone."""

TEXT = "A llama is a domesticated South American camelid, kept for its wool and as a pack animal."
USAGE = Usage(20, 20)

_stream = Stream("chat", model="static")
_chunks = [_stream.start(), *[_stream.text(" llama")] * CHUNKS, _stream.finish("stop"), _stream.end(USAGE)]
_body = orjson.dumps(chat_completion([Choice(TEXT, "stop")], USAGE, model="static"))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer any POST; a stream if the body asks for one."""
    body = (await receive())["body"]
    if b'"stream":true' not in body:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": _body})
        return
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in _chunks:
        await asyncio.sleep(PACE)
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def serve(app: Any) -> None:
    """Serve an ASGI app on a free port, told on stderr, with nothing but uvicorn around it."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(app, lifespan="off", log_level="critical", access_log=False, ws="none")
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    serve(app)
