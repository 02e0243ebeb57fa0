"""One connection to a Redis, shared by all who use it: commands go out as they come.

Redis answers in the order in which it was asked, so answers are matched to callers by a
queue. A caller that is cancelled leaves its place in the queue: its answer is dropped when
it comes, and never given to the next.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qsl, unquote, urlsplit

BUFFER = 32 * 2**20
"""Bytes that may wait to be sent; what comes then is refused."""

WAITING = 50_000
"""Commands that may wait for their answers; what comes then is refused."""

GRACE = 0.01
"""Seconds in which an answer that is here already is read before its connection is given up:
an event loop that was held up is no sign of a dead Redis."""

_NOTHING = object()


class RedisDown(Exception):
    """The Redis does not do what it is asked: it does not answer, did not a moment ago, or refuses.

    Where the command was `sent`, a Redis that was frozen may do it when it goes on.
    """

    def __init__(self, *words: object, sent: bool = False) -> None:
        super().__init__(*words)
        self.sent = sent


class ResponseError(RedisDown):
    """Redis refused a command: its message, the code being the first word."""


@dataclass(slots=True, frozen=True)
class Address:
    """Where a Redis is and how to get in; read from an URL.

    `redis://[[user]:password@]host[:port][/db]`, `rediss://…` for TLS, or
    `unix://[[user]:password@]/path[?db=N]`. With TLS, `?ssl_ca_certs=FILE` names the authority,
    `ssl_certfile` and `ssl_keyfile` the client's own certificate. `username` and `password`
    may be options as well.
    """

    host: str
    port: int
    path: str | None
    user: str | None
    password: str | None
    database: int
    tls: ssl.SSLContext | None

    @classmethod
    def read(cls, url: str) -> Address:
        """Parse an URL. Raises ValueError that says what is wrong, without the password."""
        form = "expected redis://host:port/db, rediss://… or unix:///path"
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError(f"not the URL of a Redis: {form}")
        try:
            port = parts.port or 6379
        except ValueError:
            raise ValueError(f"the port of the Redis URL is not a number: {form}") from None
        query = dict(parse_qsl(parts.query))
        unix = parts.scheme == "unix"
        database = query.pop("db", "0") if unix else parts.path.strip("/") or query.pop("db", "0")
        if not database.isascii() or not database.isdigit():
            raise ValueError(f"the database of the Redis URL is not a number: {form}")
        user, password = query.pop("username", None), query.pop("password", None)
        tls = _tls(query) if parts.scheme == "rediss" else None
        if query:
            raise ValueError(f"the Redis URL has an unknown option `{min(query)}`")
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=port,
            path=unquote(parts.path) if unix else None,
            user=unquote(parts.username) if parts.username else user,
            password=unquote(parts.password) if parts.password else password,
            database=int(database),
            tls=tls,
        )

    async def connect(self, bound: float, lost: Callable[[Connection], None]) -> Connection:
        """A connection that is ready for commands.

        Raises OSError, TimeoutError or `RedisDown` where none is to be had, and
        `ResponseError` where Redis does not let us in. `bound` is for each command, in seconds;
        `lost` is told of the connection's end.
        """
        loop = asyncio.get_running_loop()

        def new() -> Connection:
            return Connection(bound, lost)

        if self.path is not None:
            _, connection = await loop.create_unix_connection(new, self.path)
        else:
            _, connection = await loop.create_connection(new, self.host, self.port, ssl=self.tls)
        try:
            await self._enter(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _enter(self, connection: Connection) -> None:
        user, password = self.user or "default", self.password
        try:
            login = () if password is None else ("AUTH", user, password)
            await connection.command("HELLO", 3, *login)
        except ResponseError as error:
            if not str(error).startswith(("NOPROTO", "ERR unknown command")):
                raise
            # A Redis before 6, or a proxy that speaks RESP2 alone.
            if password is not None:
                await connection.command("AUTH", *(() if self.user is None else (user,)), password)
        if self.database:
            await connection.command("SELECT", self.database)
        await connection.command("PING")


def _tls(query: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=query.pop("ssl_ca_certs", None))
    certificate, key = query.pop("ssl_certfile", None), query.pop("ssl_keyfile", None)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


class Connection(asyncio.Protocol):
    """A connection and the callers that wait for its answers, first come first."""

    def __init__(self, timeout: float, lost: Callable[[Connection], None]) -> None:
        self.timeout = timeout
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        import hiredis

        self._pack = hiredis.pack_command
        self._push = hiredis.PushNotification
        self._reader = hiredis.Reader(
            protocolError=ConnectionError, replyError=ResponseError, notEnoughData=_NOTHING
        )
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[list[Any]] = deque()
        """Pairs of a future and the loop's time at which its answer is overdue."""
        self._timer: asyncio.TimerHandle | None = None
        self.ended_by: Exception | None = None

    @property
    def waiting(self) -> int:
        """Commands that are not answered yet."""
        return len(self._waiting)

    async def command(self, *words: Any, late: Callable[[Any], None] | None = None) -> Any:
        """Send one command and wait for its answer, `timeout` seconds at most.

        `late` gets an answer that comes when the caller has been cancelled, for what has to
        be undone. Raises `RedisDown` if the connection ends before, `ResponseError` for a refusal.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise RedisDown("the connection is closed")
        if len(self._waiting) >= WAITING or transport.get_write_buffer_size() > BUFFER:
            raise RedisDown("too much waits for the Redis")
        future = self._loop.create_future()
        place = [future, self._loop.time() + self.timeout]
        self._waiting.append(place)
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout, self._look)
        transport.write(self._pack(words))
        try:
            answer = await future
        except asyncio.CancelledError:
            if late is not None:
                place[0] = dropped = self._loop.create_future()
                dropped.add_done_callback(lambda found: _tell(late, found))
            raise
        if type(answer) is ResponseError:
            raise answer
        return answer

    def close(self) -> None:
        """End the connection; who still waits gets `RedisDown`."""
        self._end(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand answers to those who wait for them."""
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _NOTHING:
                if isinstance(answer, self._push):
                    continue
                future, _ = waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except (ConnectionError, IndexError) as error:
            # What is read from here on could belong to anybody.
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell those who wait, and the owner."""
        self._end(exc or ConnectionResetError("closed by the Redis"))

    def _look(self) -> None:
        """End the connection if the oldest command is overdue; look again when the next is due."""
        self._timer = None
        if not self._waiting:
            return
        late = self._loop.time() - self._waiting[0][1]
        if late < 0:
            self._timer = self._loop.call_later(-late, self._look)
        else:
            self._timer = self._loop.call_later(GRACE, self._give_up, self._waiting[0][0])

    def _give_up(self, oldest: asyncio.Future[Any]) -> None:
        if self._waiting and self._waiting[0][0] is oldest:
            self._end(TimeoutError(f"no answer within {self.timeout:g} s"))
        else:
            self._look()

    def _end(self, error: Exception | None) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self.ended_by = error
        transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(RedisDown(str(error or "closed"), sent=True))
        if error is not None:
            self._lost(self)


def _tell(late: Callable[[Any], None], found: asyncio.Future[Any]) -> None:
    if not found.cancelled() and found.exception() is None and type(found.result()) is not ResponseError:
        late(found.result())
