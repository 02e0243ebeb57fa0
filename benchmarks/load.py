"""A cheap load generator: keep-alive connections that each send one request at a time."""

from __future__ import annotations

import asyncio
import json
from itertools import count as counting
from typing import Any

CHAT = {
    "model": "default",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is a llama, in one sentence, and what is it kept for?"},
    ],
    "temperature": 0.7,
    "max_tokens": 64,
}
"""The request that is measured; about 200 bytes."""


def request(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    """One HTTP/1.1 request with the headers that the `openai` client sends."""
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: application/json\r\naccept-encoding: gzip\r\n"
        "authorization: Bearer not-needed\r\ncontent-type: application/json\r\nuser-agent: OpenAI/Python\r\n"
        f"x-stainless-lang: python\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


NUMBER = b"00000000"
"""In a payload, what is replaced by a number of its own in each request, so that no two are equal."""

NUMBERS = counting(1)


def run(port: int, payload: bytes, count: int, connections: int = 8, *, status: int = 200) -> int:
    """Send `count` requests. Returns the bytes read; raises for an answer of another status."""
    return asyncio.run(_run(port, payload, count, connections, status))


async def _run(port: int, payload: bytes, count: int, connections: int, status: int) -> int:
    shares = [count // connections + (index < count % connections) for index in range(connections)]
    return sum(await asyncio.gather(*(_connection(port, payload, share, status) for share in shares)))


async def _connection(port: int, payload: bytes, count: int, status: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = 0
    try:
        for _ in range(count):
            writer.write(payload.replace(NUMBER, b"%08d" % next(NUMBERS)))
            size += await _answer(reader, status)
    finally:
        writer.close()
    return size


async def _answer(reader: asyncio.StreamReader, status: int) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" %d " % status not in head[:16]:
        raise RuntimeError(f"not answered: {head[:64]!r} {await reader.read(300)!r}")
    if b"transfer-encoding: chunked" not in head:
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return len(head) + len(await reader.readexactly(length))
    size = len(head)
    while True:
        length = int(await reader.readline(), 16)
        size += len(await reader.readexactly(length + 2))
        if length == 0:
            return size
