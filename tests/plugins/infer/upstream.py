"""A model server for tests: real sockets, answers as scripted, misbehaves on request."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

COMPLETION = (
    b'{"id":"chatcmpl-1",  "object":"chat.completion","created":1,"model":"upstream-model","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"caf\xc3\xa9"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n'
)

HELLO = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hel"}}],"usage":null}\n\n'
LO = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"lo []"},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@dataclass
class Exchange:
    """One request as it came, and the means to answer it in any way, also a wrong one."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: int

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200, *headers: str, type: str = "application/json"):
        lines = [f"HTTP/1.1 {status} X", f"content-type: {type}", f"content-length: {len(body)}", *headers]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def start_stream(self, *headers: str) -> None:
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers]
        await self.raw("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def stream(self, *chunks: bytes) -> None:
        """A whole stream, each chunk on its way before the next is written."""
        await self.start_stream()
        for chunk in chunks:
            await self.chunk(chunk)
            await asyncio.sleep(0.002)
        await self.chunk(b"")

    def reset(self) -> None:
        """Break the connection, so that the other side sees an error and no end."""
        self.writer.transport.abort()

    async def until_gone(self) -> None:
        """Wait for the other side to leave; what it sends until then is not read as requests."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Answer = Callable[[Exchange], Awaitable[None]]


async def completion(exchange: Exchange) -> None:
    """What a well-behaved server does."""
    if exchange.path.endswith("/models"):
        await exchange.answer(b'{"object":"list","data":[{"id":"upstream-model"},{"id":"other"}]}')
    elif exchange.body and exchange.json.get("stream"):
        asked = (exchange.json.get("stream_options") or {}).get("include_usage")
        await exchange.stream(HELLO, LO, *([USAGE] if asked else []), DONE)
    else:
        await exchange.answer(COMPLETION)


@dataclass
class Upstream:
    """Use as `async with Upstream(answer) as upstream`; `answer` may be changed at any time.

    `seen` holds all requests, `arrived` is set with the first; `gone` is set when a client
    has hung up while its answer was being written; `connections` were ever accepted.
    """

    answer: Answer = completion
    tls: ssl.SSLContext | None = None
    seen: list[Exchange] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task] = field(default_factory=set)

    async def __aenter__(self) -> "Upstream":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        number = self.connections
        try:
            while exchange := await _read(reader, writer, number):
                self.seen.append(exchange)
                self.arrived.set()
                await self._answer(exchange)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def _answer(self, exchange: Exchange) -> None:
        try:
            await self.answer(exchange)
        except ConnectionError:
            self.gone.set()
            raise


async def _read(reader, writer, number: int) -> Exchange | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(method, path, headers, body, reader, writer, number)
