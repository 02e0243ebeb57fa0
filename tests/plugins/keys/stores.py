"""Both stores of keys, for tests that are run against each."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline_plugins.keys.key import Key, KeySpec
from pipeline_plugins.keys.redis_store import RedisStore
from pipeline_plugins.keys.ring import Ring
from pipeline_plugins.keys.sqlite_store import SQLiteStore
from pipeline_plugins.keys.store import Store, StoreDown

from pipeline.call import Tenant
from pipeline.errors import APIError

T = TypeVar("T")


@dataclass
class Shop:
    """Makes stores that share their keys, as processes do; `overrides` let a command use them."""

    make: Callable[[], Store]
    overrides: list[str]

    def run(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Work on an open store, closed after."""

        async def go() -> T:
            store = self.make()
            await store.open()
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(go())


def sqlite_shop(folder: Path) -> Shop:
    path = folder / "state" / "keys.sqlite"
    return Shop(lambda: SQLiteStore(path), ["keys=sqlite", f"keys.path={path}"])


def redis_shop(url: str) -> Shop:
    prefix = f"test:{uuid.uuid4().hex}"
    return Shop(lambda: RedisStore(url, prefix), ["keys=redis", f"vars.redis={url}", f"keys.prefix={prefix}"])


def spec(**changes: Any) -> KeySpec:
    return KeySpec.model_validate({"name": "ci", "owner": "alice", **changes})


def ring(store: Store, **changes: Any) -> Ring:
    return Ring(store, **{"admin": None, "refresh": 0.05, "grace": 300.0, "size": 100, **changes})


async def admitted(ring: Ring, held: str) -> Tenant:
    """Who the ring says it is, waited for where it must look."""
    found = ring.admit(held)
    return found if isinstance(found, Tenant) else await found


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until something is true; fail when it does not become so."""
    async with asyncio.timeout(20):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


async def outcome(ring: Ring, held: str) -> str:
    """`admitted`, or the error's code."""
    try:
        await admitted(ring, held)
    except APIError as error:
        return str(error.error_code)
    return "admitted"


@dataclass
class Flaky:
    """A store that is down when told to be, counts look-ups, and waits before each answer if asked."""

    store: Store
    down: bool = False
    finds: int = 0
    gate: asyncio.Event | None = None
    failures: list[str] = field(default_factory=list)

    async def open(self) -> None:
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def find(self, id: str) -> Key | None:
        self.finds += 1
        self._check()
        found = await self.store.find(id)
        if self.gate is not None:
            await self.gate.wait()
        return found

    async def all(self) -> list[Key]:
        return await self.store.all()

    async def save(self, key: Key) -> Key:
        return await self.store.save(key)

    async def changes(self, since: int) -> tuple[int, list[str]]:
        self._check()
        return await self.store.changes(since)

    def _check(self) -> None:
        if self.down:
            raise StoreDown("unplugged")
