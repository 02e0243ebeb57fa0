"""A request and its response on a connection: uvicorn's cycle, with a shorter way to answer.

ASGI's `send` is there for whoever speaks it. The endpoints that carry the load write by
`whole`, or `start`, `write` and `end`: without a message to build and to check for each
piece, and with the head and what follows it in one system call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

HEAD = re.compile(rb"(?:[A-Za-z0-9!#$%&'*+.^_`|~-]+: [\t\x20-\x7e\x80-\xff]*\r\n)*")
"""Header lines that can't be mistaken for anything else."""

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
"""Headers that only the one who writes the body can know."""

CONNECTION = frozenset({"connection", *(name.decode() for name in FRAMING)})
"""Headers that are not a stage's to set."""

Headers = Iterable[tuple[bytes, bytes]]
Texts = Mapping[str, str]

NO_TEXTS: Texts = {}


class Cycle(RequestResponseCycle):
    """One request under way."""

    def identify(self, id: str) -> None:
        """Have the response say by which id its request is known."""
        self.default_headers = [*self.default_headers, (b"x-request-id", id.encode())]

    def body_so_far(self) -> bytes:
        """Take what has come of the request's body, without waiting; all of it once it is `whole`."""
        body, self.body = self.body, bytearray()
        self.flow.resume_reading()
        return bytes(body)

    async def whole(self, status: int, headers: Headers, body: bytes, texts: Texts = NO_TEXTS) -> None:
        """Write a response that is known to its end. Raises ValueError for a bad header.

        `texts` are further headers; a character that no header can hold becomes a `?`.
        """
        await self.drained()
        if not self.disconnected:
            head = self._head(status, headers, texts)
            self.transport.writelines((b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body))
            self._complete()

    async def start(self, status: int, headers: Headers, first: bytes, texts: Texts = NO_TEXTS) -> None:
        """Begin a response with the first piece of its body. Headers are as `whole` has them.

        HTTP/1.0 knows no chunks: there the body ends with the connection.
        """
        await self.drained()
        if not self.disconnected:
            self.chunked_encoding = self.scope["http_version"] != "1.0"
            head = self._head(status, headers, texts)
            if not self.chunked_encoding:
                self.transport.write(b"%b\r\n%b" % (head, first))
                return
            head += b"transfer-encoding: chunked\r\n\r\n"
            self.transport.write(b"%b%x\r\n%b\r\n" % (head, len(first), first) if first else head)

    def write(self, piece: bytes) -> bool:
        """Write a piece of the body. If the client reads too slowly, False: wait until `drained`."""
        if piece and not self.disconnected:
            self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked_encoding else piece)
        return not self.flow.write_paused

    def end(self) -> None:
        """End a response that was begun by `start`."""
        if not self.disconnected:
            if self.chunked_encoding:
                self.transport.write(b"0\r\n\r\n")
            self._complete()

    async def drained(self) -> None:
        """Wait until the client has read most of what was written, or has left."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()

    def _head(self, status: int, headers: Headers, texts: Texts) -> bytes:
        lines = [b"%b: %b\r\n" % header for header in self.default_headers]
        for name, value in headers:
            lowered = name.lower()
            if lowered in FRAMING:
                continue
            if lowered == b"connection" and value.strip().lower() == b"close":
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        for title, text in texts.items():
            if title.lower() not in CONNECTION:
                lines.append(f"{title}: {text}\r\n".encode("latin-1", "replace"))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if HEAD.fullmatch(head) is None or head.count(b"\n") != len(lines):
            raise ValueError("a response header has characters that no header can hold")
        self.response_started = True
        self.waiting_for_100_continue = False
        return STATUS_LINE[status] + head

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
