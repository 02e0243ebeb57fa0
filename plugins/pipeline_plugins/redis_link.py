"""A Redis that may be slow, gone or frozen: every command bounded, none waits for a dead one.

Every stage and store that can keep its state in Redis reaches it by a `RedisLink`. While
the link is down, commands fail at once with `RedisDown`; what that means (local limits, a
cache miss, a refusal) is the stage's own choice. One line is logged when it goes down and
one when it is back, and one when a Redis that answers begins to refuse what it is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from hashlib import sha1
from importlib.util import find_spec
from time import monotonic
from typing import Any

import structlog

from pipeline.hookspecs import Metric
from pipeline_plugins.redis_connection import Address, Connection, RedisDown, ResponseError

__all__ = ["RedisDown", "RedisLink", "ResponseError", "Script", "metrics"]

PROBE = 0.5
"""Seconds between two looks at whether a Redis that was down is back."""

UNFIT = ("LOADING", "MASTERDOWN", "READONLY", "BUSY", "CLUSTERDOWN", "TRYAGAIN")
"""Refusals that are the Redis's own state, and no fault of the command."""

QUIET = 60.0
"""Seconds without a refusal after which the next one is logged and counted again."""

log = structlog.get_logger("pipeline.redis")


@dataclass(slots=True, frozen=True)
class Script:
    """A Lua script, run by its digest once Redis knows it."""

    lua: str
    digest: str


class RedisLink:
    """One part's connection to one Redis; its commands are pipelined as they come.

    url      `redis://[user:password@]host:port/db`, `rediss://…` or `unix://…`
    timeout  seconds for one command; connecting may take twice as long
    user     which stage or part it serves, for log lines
    failures times that it went down or began to refuse, for metrics

    A command that keeps Redis busy or waiting for longer than `timeout` counts as a
    failure of the whole link: blocking commands don't belong here.
    """

    def __init__(self, url: str, *, timeout: float = 0.2, user: str = "") -> None:
        if find_spec("hiredis") is None:
            raise ValueError("a library is missing: pip install 'llm-pipeline[redis]'")
        self.timeout = timeout
        self._user = user
        self.failures = 0
        self._address = Address.read(url)
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._why = ""
        self._refused = -QUIET
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether commands are worth trying."""
        return self._probing is None

    async def open(self) -> None:
        """Connect now. A Redis that is away may come later, one that refuses us will not.

        Raises ValueError if it does not let us in.
        """
        try:
            self._connection = await self._connect()
        except ResponseError as error:
            if str(error).startswith(UNFIT):
                self._went_down(error)
                return
            raise ValueError(
                f"the Redis refuses us: {error}. See the user and password of its URL."
            ) from None
        except (RedisDown, OSError, TimeoutError) as error:
            self._went_down(error)

    async def command(self, *words: Any, late: Callable[[Any], None] | None = None) -> Any:
        """Run one command. Raises `RedisDown`, as `ResponseError` where Redis refuses the command itself.

        Words are bytes, str, int or float; answers are those of RESP3, text as bytes. `late`
        gets the answer if the caller is cancelled meanwhile, for what has to be undone.
        """
        connection = self._connection
        if connection is None:
            connection = await self._connected()
        try:
            return await connection.command(*words, late=late)
        except ResponseError as error:
            self._check(error)
            raise

    async def run(
        self,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        *,
        late: Callable[[Any], None] | None = None,
    ) -> Any:
        """Run a script from `script`, atomically. Raises like `command`."""
        try:
            return await self.command("EVALSHA", script.digest, len(keys), *keys, *arguments, late=late)
        except ResponseError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self.command("EVAL", script.lua, len(keys), *keys, *arguments, late=late)

    def script(self, lua: str) -> Script:
        """A Lua script to `run`; sent whole once, then by its digest."""
        return Script(lua, sha1(lua.encode(), usedforsecurity=False).hexdigest())

    async def close(self) -> None:
        """Close the connection; commands fail from now on."""
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        if self._connecting is not None:
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _connected(self) -> Connection:
        """The connection, made if there is none; one attempt serves all who wait for it."""
        if self._closed:
            raise RedisDown("closed")
        if self._probing is not None:
            raise RedisDown(self._why)
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._try())
        await asyncio.shield(self._connecting)
        if self._connection is None:
            raise RedisDown(self._why)
        return self._connection

    async def _try(self) -> None:
        try:
            self._connection = await self._connect()
        except (RedisDown, ResponseError, OSError, TimeoutError) as error:
            self._went_down(error)
        finally:
            self._connecting = None

    async def _connect(self) -> Connection:
        async with asyncio.timeout(2 * self.timeout):
            connection = await self._address.connect(self.timeout, self._lost)
        if connection.ended_by is not None:
            raise connection.ended_by
        return connection

    def _lost(self, connection: Connection) -> None:
        if connection is self._connection:
            self._connection = None
            self._went_down(connection.ended_by or RedisDown("closed"))

    def _check(self, error: ResponseError) -> None:
        """Note what a refusal says. Raises `RedisDown` for one that is not the command's fault."""
        message = str(error)
        if message.startswith(UNFIT):
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._went_down(error)
            raise RedisDown(message) from None
        if message.startswith("NOSCRIPT"):
            return
        # It is full, lacks a permission, or is no Redis for this: the next command may do all the same.
        now, last = monotonic(), self._refused
        self._refused = now
        if now - last >= QUIET:
            self.failures += 1
            self._say("redis refuses a command", error=message[:200])

    def _went_down(self, error: Exception) -> None:
        self._why = str(error) or type(error).__name__
        if self._probing is None and not self._closed:
            self.failures += 1
            self._say("redis is down", error=self._why[:200])
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while True:
            try:
                self._connection = await self._connect()
                break
            except (RedisDown, ResponseError, OSError, TimeoutError) as error:
                self._why = str(error) or type(error).__name__
            await asyncio.sleep(PROBE)
        self._probing = None
        self._say("redis is back")

    def _say(self, event: str, **fields: str) -> None:
        """Log a line that is about no single request, whichever found it out."""
        Context().run(log.warning, event, stage=self._user, **fields)


def metrics(links: Mapping[str, RedisLink]) -> Iterable[Metric]:
    """State and failures of links, by the name of the stage or extension that has each."""
    up: dict[tuple[str, ...], float] = {(name,): float(link.up) for name, link in links.items()}
    failures: dict[tuple[str, ...], float] = {(name,): link.failures for name, link in links.items()}
    yield Metric("pipeline_redis_up", "Whether the Redis of a stage answers.", "gauge", up, ("stage",), "min")
    yield Metric(
        "pipeline_redis_failures",
        "Times that the Redis of a stage went down, or began to refuse commands.",
        "counter",
        failures,
        ("stage",),
    )
