"""The pool of connections to one upstream.

A client of its own, because a proxy's cost is its client's: per request it takes a
third of aiohttp's time, and it does just what a gateway needs. No redirects, cookies,
proxies, compression or retries, apart from one: a pooled connection that the upstream
closed in the meantime, which is found out only by writing to it, is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.errors import DeadlineExceeded, UpstreamFailed
from pipeline_plugins.infer.openai_connection import Connection, Exchange, Limits, Severed

IDLE = 60.0
"""Seconds after which a free connection is not used again."""


@dataclass(slots=True, frozen=True)
class Address:
    """Where an upstream is. `prefix` starts every path; `host` is as errors name it."""

    tls: bool
    hostname: str
    port: int
    prefix: str
    host: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a base URL. Raises ValueError that says what is wrong, without its secrets."""
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise ValueError("must be a URL such as http://127.0.0.1:8001/v1, without spaces")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL such as http://127.0.0.1:8001/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold credentials; put the key in `api_key`")
        if parts.query or parts.fragment:
            raise ValueError("must end with its path, without `?` or `#`")
        tls = parts.scheme == "https"
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host = f"{name}:{parts.port}" if parts.port else name
        port = parts.port or (443 if tls else 80)
        return cls(tls, parts.hostname, port, parts.path.rstrip("/"), host)


class Client:
    """Requests to one upstream over at most `max_connections` kept-alive connections.

    `headers` go with every request; `connect_timeout` is in seconds.
    """

    def __init__(
        self,
        address: Address,
        headers: dict[str, str],
        limits: Limits,
        *,
        connect_timeout: float,
        max_connections: int,
    ) -> None:
        self.address = address
        self._limits = limits
        self._connect_timeout = connect_timeout
        self._max = max_connections
        lines = [f"host: {address.host}", "accept-encoding: identity", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._headers = "\r\n".join(lines).encode("latin-1")
        self._heads: dict[tuple[str, str], bytes] = {}
        self._busy = 0
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._tls: ssl.SSLContext | None = None

    def open(self) -> None:
        """Read the system's certificates where they are needed."""
        if self.address.tls:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])

    async def close(self) -> None:
        """Hang up all connections, also those in use."""
        connections = list(self._all)
        self._idle.clear()
        for connection in connections:
            if connection.exchange is not None:
                connection.exchange.fail(UpstreamFailed("The gateway is shutting down."))
            else:
                connection.finish(reusable=False)
        if connections:
            await asyncio.wait([c.closed for c in connections], timeout=1)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes,
        deadline: float,
        *,
        stream: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Exchange:
        """Send a request and wait for its head, or all of it unless it is `streaming`.

        `headers` are this request's own, besides those of all. Raises ValueError for one that
        no HTTP header can hold.
        Raises `UpstreamFailed`, and `DeadlineExceeded` at the deadline (event-loop time)
        or at a timeout of its own. Whoever gets a streaming exchange must read it to
        its end or abort it.
        """
        own = _lines(headers) if headers else b""
        head = b"%b%d\r\n%b\r\n" % (self._head(method, path), len(body), own)
        fresh = False
        while True:
            connection = await self._acquire(deadline, fresh)
            exchange = Exchange(self.address.host, self._limits, deadline, stream)
            connection.begin(exchange, head, body)
            try:
                await exchange.head()
            except Severed:
                if fresh or connection.served == 1 or not connection.silent:
                    raise
                fresh = True
                continue
            return exchange

    def _head(self, method: str, path: str) -> bytes:
        key = (method, path)
        head = self._heads.get(key)
        if head is None:
            line = f"{method} {self.address.prefix}{path} HTTP/1.1\r\n".encode("ascii")
            head = self._heads[key] = line + self._headers + b"\r\ncontent-length: "
        return head

    async def _acquire(self, deadline: float, fresh: bool) -> Connection:
        if self._busy >= self._max:
            await self._wait_for_room(deadline)
        else:
            self._busy += 1
        try:
            if not fresh:
                oldest = asyncio.get_running_loop().time() - IDLE
                while self._idle:
                    connection = self._idle.pop()
                    if connection.usable and connection.idle_since > oldest:
                        return connection
                    connection.finish(reusable=False)
            return await self._connect(deadline)
        except BaseException:
            self._leave()
            raise

    async def _wait_for_room(self, deadline: float) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                with contextlib.suppress(ValueError):
                    self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(
                    f"All {self._max} connections to the upstream {self.address.host} stayed busy."
                ) from None
            raise

    def _leave(self) -> None:
        """Give a place to the next in the queue, which then has it without asking."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1

    def _released(self, connection: Connection, reusable: bool) -> None:
        if reusable:
            now = connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
            while self._idle and self._idle[0].idle_since < now - IDLE:
                self._idle.popleft().finish(reusable=False)
        self._leave()

    async def _connect(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        address = self.address
        seconds = min(self._connect_timeout, max(0.0, deadline - loop.time()))
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._released), address.hostname, address.port, ssl=self._tls
                )
        except TimeoutError:
            raise DeadlineExceeded(
                f"The upstream {address.host} did not accept a connection within {seconds:.3g} s."
            ) from None
        except (OSError, ssl.CertificateError) as error:
            raise UpstreamFailed(f"The upstream {address.host} can't be reached: {_reason(error)}.") from None
        self._all.add(connection)
        connection.closed.add_done_callback(lambda _: self._forget(connection))
        return connection

    def _forget(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


def _lines(headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise ValueError("a header has a line end")
    return lines


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no common ground'})"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, ConnectionResetError):
        return "it closed the connection"
    return (error.strerror if isinstance(error, OSError) else None) or "the connection failed"
