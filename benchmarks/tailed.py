"""A model server of which most answers are quick, and a few take long for no reason of theirs."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import orjson

from benchmarks.upstream import serve
from pipeline.wire.responses import Choice, chat_completion
from pipeline.wire.usage import Usage

SECONDS = 0.02
"""Time of an answer, between half and one and a half of it."""

SLOW = 0.03
"""Share of answers that take `SLOW_SECONDS`."""

SLOW_SECONDS = 1.0

_body = orjson.dumps(chat_completion([Choice("A llama.", "stop")], Usage(20, 20), model="static"))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer any POST."""
    await receive()
    slow = random.random() < SLOW
    await asyncio.sleep(SLOW_SECONDS if slow else SECONDS * random.uniform(0.5, 1.5))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _body})


if __name__ == "__main__":
    serve(app)
