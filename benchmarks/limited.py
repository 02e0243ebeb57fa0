"""A model server that does `SLOTS` answers at a time and queues without bound, as many do."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from typing import Any

import orjson
import uvicorn

from pipeline.wire.responses import Choice, chat_completion
from pipeline.wire.usage import Usage

SLOTS = 4
SECONDS = 0.1
"""Mean time of an answer, between half and one and a half of it."""

CAPACITY = SLOTS / SECONDS
"""Answers a second at most."""

_body = orjson.dumps(chat_completion([Choice("A llama.", "stop")], Usage(20, 20), model="static"))
_slots = asyncio.Semaphore(SLOTS)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer any POST when its turn has come, unless the client has left by then."""
    await receive()
    gone = asyncio.create_task(receive())
    turn = asyncio.create_task(_answered())
    await asyncio.wait((gone, turn), return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not turn.done():
        turn.cancel()
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _body})


async def _answered() -> None:
    async with _slots:
        await asyncio.sleep(SECONDS * random.uniform(0.5, 1.5))


if __name__ == "__main__":
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app, lifespan="off", log_level="critical", access_log=False, ws="none", backlog=4096
    )
    uvicorn.Server(config).run([listener])
