"""A Redis that may be slow, gone or frozen: every command bounded, none waits for a dead one.

Every stage and store that can keep its state in Redis reaches it by a `RedisLink`. While
the link is down, commands fail at once with `RedisDown`; what that means (local limits, a
cache miss, a refusal) is the stage's own choice. One line is logged when it goes down and
one when it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError, ResponseError

PROBE = 0.5
"""Seconds between two looks at whether a Redis that was down is back."""

log = structlog.get_logger("pipeline.redis")


class RedisDown(Exception):
    """The Redis does not answer, or did not a moment ago."""


class RedisLink:
    """Connections of one part to one Redis.

    url      `redis://[user:password@]host:port/db`, `rediss://…` or `unix://…`
    timeout  seconds for one command, connecting included
    failures times that it went down, for metrics
    """

    def __init__(self, url: str, *, timeout: float = 0.2, connections: int = 16) -> None:
        self.timeout = timeout
        self.failures = 0
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=timeout,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
        self.client: Redis = Redis(connection_pool=self._pool)
        self._probing: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether commands are worth trying."""
        return self._probing is None

    async def command(self, *words: Any) -> Any:
        """Run one command. Raises `RedisDown`; what Redis itself refuses is a `ResponseError`."""
        if self._probing is not None:
            raise RedisDown
        try:
            async with asyncio.timeout(2 * self.timeout):
                return await self.client.execute_command(*words)  # type: ignore[no-untyped-call]
        except ResponseError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            self._went_down(error)
            raise RedisDown(str(error)) from None

    async def run(self, script: AsyncScript, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a script from `script`, atomically. Raises like `command`."""
        if self._probing is not None:
            raise RedisDown
        try:
            async with asyncio.timeout(2 * self.timeout):
                return await script(keys=keys, args=arguments)
        except ResponseError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            self._went_down(error)
            raise RedisDown(str(error)) from None

    def script(self, lua: str) -> AsyncScript:
        """A Lua script to `run`; sent whole once, then by its digest."""
        return self.client.register_script(lua)

    async def close(self) -> None:
        """Close every connection."""
        if self._probing is not None:
            self._probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._probing
        await self.client.aclose()
        await self._pool.aclose()

    def _went_down(self, error: Exception) -> None:
        if self._probing is None:
            self.failures += 1
            log.warning("redis is down", error=type(error).__name__)
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE)
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._pool.disconnect()
                async with asyncio.timeout(2 * self.timeout):
                    await self.client.ping()
                break
        self._probing = None
        log.warning("redis is back")
