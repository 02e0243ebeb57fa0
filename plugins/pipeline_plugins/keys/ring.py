"""The keys in use, in memory: who asks is answered without waiting.

A key that is not known yet is looked up in the store once. The store numbers its changes,
and every `refresh` seconds the ring asks which keys were changed since, and forgets them:
a revocation by another process holds as soon as that. While the store is down, keys that
are known are good for `grace` seconds more; of others nothing can be said. Once it is back,
it is asked about every key anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from hmac import compare_digest
from math import inf
from typing import Any

import structlog

from pipeline.call import Tenant
from pipeline.errors import Forbidden, Overloaded, Unauthorized
from pipeline_plugins.keys.key import MAX_LENGTH, Key, digest_of, id_of, redacted
from pipeline_plugins.keys.store import Store, StoreDown

MAX_LOOKUPS = 256
"""Keys that are being looked up at the same time; more are shed."""

NEWEST = 2**62
"""A revision that no store reaches: what was changed after it is nothing."""

ADMIN = Tenant(key="admin", owner="admin", admin=True)
"""Who asks with the administrator's key of the configuration."""

log = structlog.get_logger("pipeline.keys")


@dataclass(slots=True, frozen=True)
class Known:
    """What is needed of a key to admit it. Times are seconds since 1970."""

    tenant: Tenant
    digest: bytes
    expires: float
    revoked: bool
    former: bytes
    former_until: float

    @classmethod
    def of(cls, key: Key) -> Known:
        """The part of a record that decides."""
        former = key.former
        return cls(
            tenant=key.tenant(),
            digest=bytes.fromhex(key.digest),
            expires=key.expires_at if key.expires_at is not None else inf,
            revoked=key.revoked_at is not None,
            former=bytes.fromhex(former.digest) if former is not None else b"",
            former_until=former.until if former is not None else 0,
        )


class Ring:
    """Keys by id: the known ones, and ids that are known not to be.

    admin    the administrator's key, or None
    refresh  seconds between two looks at what was changed
    grace    seconds for which known keys are good while the store is down
    size     keys to remember; as many ids that are none

    `enforced` are the limits of keys that some stage of the graph holds them to, None until the
    graph is open. A key with another one is refused: its limit is there for a reason.
    """

    def __init__(self, store: Store, *, admin: str | None, refresh: float, grace: float, size: int) -> None:
        self.store = store
        self.enforced: frozenset[str] | None = None
        self._admin = digest_of(admin) if admin is not None else None
        self._refresh = refresh
        self._grace = grace
        self._size = size
        self._known: dict[str, Known] = {}
        self._unknown: dict[str, None] = {}
        self._lookups: dict[str, asyncio.Task[Known | None]] = {}
        self._following: asyncio.Task[None] | None = None
        self._revision = NEWEST
        self._changes = 0
        self._heard = -inf
        self._down = False

    async def open(self) -> None:
        """Open the store, and begin to follow it."""
        await self.store.open()
        await self._look()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop, and close the store."""
        tasks = [*self._lookups.values(), *([self._following] if self._following is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.store.close()

    def admit(self, held: str) -> Tenant | Awaitable[Tenant]:
        """Who holds this key: at once, or once it has been looked up. Raises `Unauthorized`."""
        if len(held) > MAX_LENGTH:
            raise _wrong(held)
        digest = digest_of(held)
        if self._admin is not None and compare_digest(digest, self._admin):
            return ADMIN
        id = id_of(held)
        if id is None:
            raise _wrong(held)
        known = self._known.get(id)
        if known is not None:
            return self._check(known, digest, held)
        if id in self._unknown and not self._down:
            raise _wrong(held)
        return self._admit_later(id, digest, held)

    def forget(self, id: str) -> None:
        """Look a key up anew when it is next used: it was changed."""
        self._changes += 1
        self._known.pop(id, None)
        self._unknown.pop(id, None)

    def _check(self, known: Known, digest: bytes, held: str) -> Tenant:
        now = time.time()
        if not compare_digest(digest, known.digest):
            former = compare_digest(digest, known.former)
            if not (former and now < known.former_until):
                raise _wrong(held)
        if known.revoked:
            raise _wrong(held, "has been revoked")
        if now >= known.expires:
            raise _wrong(held, "has expired")
        if self._down and time.monotonic() - self._heard > self._grace:
            raise _unavailable()
        limits = known.tenant.policy.get("limit")
        if limits:
            if self.enforced is None:
                raise _loading()
            if not self.enforced.issuperset(limits):
                raise _not_enforced(known.tenant, self.enforced)
        return known.tenant

    async def _admit_later(self, id: str, digest: bytes, held: str) -> Tenant:
        lookup = self._lookups.get(id)
        if lookup is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                raise _unavailable()
            lookup = self._lookups[id] = asyncio.create_task(self._look_up(id))
            lookup.add_done_callback(lambda done: self._looked_up(id, done))
        # Several requests may wait for one look-up; none of them may cancel it for the others.
        known = await asyncio.shield(lookup)
        if known is None:
            raise _wrong(held)
        return self._check(known, digest, held)

    async def _look_up(self, id: str) -> Known | None:
        while True:
            before = self._changes
            try:
                key = await self.store.find(id)
            except StoreDown as error:
                self._went_down(error)
                raise _unavailable() from None
            if before == self._changes:
                break
        known = Known.of(key) if key is not None else None
        if known is not None:
            _remember(self._known, id, known, self._size)
        else:
            _remember(self._unknown, id, None, self._size)
        return known

    def _looked_up(self, id: str, done: asyncio.Task[Known | None]) -> None:
        self._lookups.pop(id, None)
        if not done.cancelled():
            done.exception()  # everyone who waited may have left

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._refresh)
            await self._look()

    async def _look(self) -> None:
        """Forget what was changed since the last look."""
        started = time.monotonic()
        try:
            newest, ids = await self.store.changes(self._revision)
        except StoreDown as error:
            self._went_down(error)
            return
        except Exception as error:
            log.exception("the keys can't be followed")
            self._went_down(error)
            return
        if self._down or newest < self._revision:
            # It may have lost what it had, or be another in the place of the first.
            self._changes += 1
            self._known.clear()
            self._unknown.clear()
        for id in ids:
            self.forget(id)
        self._revision = newest
        self._heard = started
        if self._down:
            self._down = False
            log.warning("the keys are back")

    def _went_down(self, error: Exception) -> None:
        if not self._down:
            self._down = True
            log.warning("the keys can't be reached", error=str(error), grace=self._grace)


def _remember(table: dict[str, Any], id: str, value: Any, size: int) -> None:
    """Keep a value; the one that was kept first makes room for it."""
    table[id] = value
    if len(table) > size:
        with contextlib.suppress(KeyError):
            del table[next(iter(table))]


def _wrong(held: str, why: str = "") -> Unauthorized:
    shown = redacted(held)
    message = f"The API key {shown} {why}." if why else f"Incorrect API key provided: {shown}."
    return Unauthorized(message, headers=((b"www-authenticate", b"Bearer"),))


def _unavailable() -> Overloaded:
    message = "The API key can't be checked now: the store of keys does not answer."
    return Overloaded(message, code="keys_unavailable", headers=((b"retry-after", b"1"),))


def _loading() -> Overloaded:
    """While models load, nobody knows yet what the stages enforce; a refusal would be for good."""
    return Overloaded("The models are still loading.", code="not_ready", headers=((b"retry-after", b"1"),))


def _not_enforced(tenant: Tenant, enforced: frozenset[str]) -> Forbidden:
    missing = ", ".join(f"`{limit}`" for limit in tenant.policy["limit"] if limit not in enforced)
    log.error("a key has a limit that no stage enforces", key=tenant.key, limits=missing)
    return Forbidden(
        f"The key {tenant.key} has a limit that this deployment does not enforce: {missing}. Its operator "
        "can add the stage that does: `limit=token_bucket` for requests and tokens, "
        "`limit@concurrency=concurrency`, or `limit@budget=budget` for USD.",
        code="limit_not_enforced",
    )
