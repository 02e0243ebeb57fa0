"""Where requests go: to an address, or to a graph in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import jiter

from pipeline import Call, Usage
from pipeline.errors import APIError, DeadlineExceeded
from pipeline.graph import Graph
from pipeline.price import Spent
from pipeline.wire.usage import find_usage
from pipeline_plugins.infer.openai_client import Address, Client
from pipeline_plugins.infer.openai_connection import Limits

LARGEST = 64 * 1024 * 1024
"""Bytes of an answer that is not streamed."""

Chunk = Callable[[bytes], None]
"""Is told each piece of a stream as it comes."""


@dataclass(slots=True, frozen=True)
class Answer:
    """How a request was answered: 200 and no code, or a status (0 without any) and what was wrong."""

    status: int
    code: str | None
    usage: Usage | None = None
    usd: float | None = None


class Target(Protocol):
    """Answers requests; `chunk` is told of a stream's pieces."""

    async def send(self, number: int, raw: bytes, chunk: Chunk) -> Answer:
        """Send a request's body; what is wrong is in the answer, and not raised."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


class Remote:
    """An OpenAI-compatible server at a base URL such as `http://127.0.0.1:8000/v1`.

    `seconds` is how long an answer may take; `connections` how many may be open.
    """

    def __init__(
        self, url: str, key: str | None, *, streaming: bool, seconds: float, connections: int
    ) -> None:
        headers = {"user-agent": "pipeline bench"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._streaming = streaming
        self._seconds = seconds
        self._client = Client(
            Address.parse(url),
            headers,
            Limits(seconds, seconds, LARGEST),
            connect_timeout=seconds,
            max_connections=connections,
        )
        self._client.open()

    async def send(self, number: int, raw: bytes, chunk: Chunk) -> Answer:
        """Send a request's body."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            exchange = await self._client.request(
                "POST", "/chat/completions", raw, deadline, stream=self._streaming
            )
            if not exchange.streaming:
                return answered(exchange.status, exchange.body(), streaming=False)
            before = last = b""
            while part := await exchange.chunk():
                chunk(part)
                before, last = last, part
        except DeadlineExceeded:
            return Answer(0, "timeout")
        except APIError:
            return Answer(0, "connection_failed")
        return answered(200, before + last, streaming=True)

    async def close(self) -> None:
        """Hang up."""
        await self._client.close()


class Local:
    """A graph that is open in this process: no HTTP, no key."""

    def __init__(self, graph: Graph, *, seconds: float) -> None:
        self._graph = graph
        self._seconds = seconds

    async def send(self, number: int, raw: bytes, chunk: Chunk) -> Answer:
        """Send a request's body through the graph."""
        deadline = asyncio.get_running_loop().time() + self._seconds
        call = Call(
            id=f"bench_{number}", operation="chat", raw=raw, deadline=deadline, received=perf_counter()
        )
        try:
            async with asyncio.timeout_at(deadline):
                found = await self._answer(call, chunk)
        except APIError as error:
            found = Answer(error.status, error.error_code or error.type)
        except TimeoutError:
            found = Answer(504, "timeout")
        spent = call.record.decision(Spent)
        return replace(found, usd=spent.usd) if spent is not None else found

    async def _answer(self, call: Call, chunk: Chunk) -> Answer:
        reply = await self._graph(call)
        if reply.body is not None:
            return answered(reply.status, reply.body, streaming=False)
        before = last = b""
        async for part in reply:
            chunk(part)
            before, last = last, part
        return answered(reply.status, before + last, streaming=True)

    async def close(self) -> None:
        """Close the graph."""
        await self._graph.close()


def answered(status: int, end: bytes, *, streaming: bool) -> Answer:
    """Read the answer from its whole body, or from the end of its stream."""
    if status == 200 and (not streaming or b"[DONE]" in end):
        return Answer(200, None, find_usage(end))
    return Answer(status, _code(end) or ("cut_off" if status == 200 else str(status)))


def _code(end: bytes) -> str | None:
    """The code of the error envelope that an answer ends with."""
    _, _, rest = end.rpartition(b"data: ")
    try:
        error = jiter.from_json(rest.strip())["error"]
        return str(error.get("code") or error.get("type") or "")[:64] or None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
