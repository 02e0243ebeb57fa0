"""A TCP proxy between the gateway and a model server that breaks answers in the ways networks do."""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

CONNECTION = re.compile(rb"\r\nconnection:[^\r\n]*", re.IGNORECASE)


@dataclass
class Passage:
    """One request on its way through the proxy."""

    upstream: int
    request: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def whole(self) -> bytes:
        """All bytes of the upstream's answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            writer.write(self.request)
            return await reader.read()
        finally:
            writer.close()

    async def until_gone(self) -> None:
        """Wait for the gateway to hang up."""
        while await self.reader.read(65536):
            pass

    def reset(self) -> None:
        """Break the connection off with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Fault = Callable[[Passage], Awaitable[None]]


async def passes(passage: Passage) -> None:
    """No fault."""
    await passage.send(await passage.whole())


async def resets(passage: Passage) -> None:
    """The connection is reset once the request has come."""
    passage.reset()


async def stalls(passage: Passage) -> None:
    """Not a byte comes."""
    await passage.until_gone()


async def resets_midway(passage: Passage) -> None:
    """Half of the answer, then RST."""
    answer = await passage.whole()
    await passage.send(answer[: len(answer) // 2])
    await asyncio.sleep(0.1)  # RST discards what the other side has not read yet
    passage.reset()


async def stalls_midway(passage: Passage) -> None:
    """Half of the answer, then silence."""
    answer = await passage.whole()
    await passage.send(answer[: len(answer) // 2])
    await passage.until_gone()


async def half_closes(passage: Passage) -> None:
    """Half of the answer, then FIN, while the other direction stays open."""
    answer = await passage.whole()
    await passage.send(answer[: len(answer) // 2])
    passage.writer.write_eof()
    await passage.until_gone()


async def drips(passage: Passage) -> None:
    """All of the answer, a byte at a time, far too slowly; never silent."""
    for byte in await passage.whole():
        await passage.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def truncates(passage: Passage) -> None:
    """Half of the body, in framing that says it is all: JSON cut off, a stream without its end."""
    head, _, body = (await passage.whole()).partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        body = _dechunked(body)
    body = body[: len(body) // 2]
    kept = [
        line for line in head.split(b"\r\n") if not line.lower().startswith((b"transfer", b"content-len"))
    ]
    await passage.send(b"\r\n".join([*kept, b"content-length: %d" % len(body)]) + b"\r\n\r\n" + body)


async def garbles(passage: Passage) -> None:
    """A stream that is no server-sent events, and a body that is no JSON."""
    head, _, body = (await passage.whole()).partition(b"\r\n\r\n")
    garbage = b"\x00\xff{]" * 16
    if b"chunked" in head.lower():
        await passage.send(head + b"\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(garbage), garbage))
    else:
        await passage.send(head + b"\r\n\r\n" + (garbage * len(body))[: len(body)])


async def garbles_midway(passage: Passage) -> None:
    """No JSON in the middle: of a stream one event is cut, and its end comes as if all were well."""
    head, _, body = (await passage.whole()).partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        half = len(body) // 2
        await passage.send(head + b"\r\n\r\n" + body[:half] + b"\x00" + body[half + 1 :])
        return
    events = _dechunked(body).split(b"\n\n")
    at = len(events) // 2
    events[at] = events[at][: len(events[at]) // 2]
    first, rest = b"\n\n".join(events[:at]) + b"\n\n", b"\n\n".join(events[at:])
    await passage.send(head + b"\r\n\r\n" + b"%x\r\n%b\r\n" % (len(first), first))
    await asyncio.sleep(0.1)  # or all of it comes at once, and the fault before the first byte
    await passage.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))


def refuses_with(status: int, *headers: bytes, body: bytes = b"oops") -> Fault:
    """The upstream's own refusal."""

    async def fault(passage: Passage) -> None:
        lines = [b"HTTP/1.1 %d No" % status, b"content-length: %d" % len(body), *headers]
        await passage.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    fault.__name__ = f"refuses_with_{status}"
    return fault


def _dechunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        out += body[:length]
        body = body[length + 2 :]
    return out


class Proxy:
    """Use as `with Proxy(port) as proxy`: it runs in a thread and serves a request per connection.

    `faults` are taken by the next requests, one each; then `fault` is for all others.
    `requests` counts what came.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault: Fault = passes
        self.faults: list[Fault] = []
        self.requests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task] = set()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset(self) -> None:
        """Forget faults and counts of before."""
        self.fault, self.faults, self.requests = passes, [], 0

    def listen(self) -> None:
        """Accept connections."""
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", self.port))

    def refuse(self) -> None:
        """Stop listening: connections are refused until `listen`."""
        self._run(self._close())

    def _run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])
            body = await reader.readexactly(length)
            head = CONNECTION.sub(b"", head[:-4]) + b"\r\nconnection: close\r\n\r\n"
            self.requests += 1
            fault = self.faults.pop(0) if self.faults else self.fault
            await fault(Passage(self.upstream, head + body, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
