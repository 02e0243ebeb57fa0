"""Where keys are kept, and what is done to them there.

Changes are optimistic: a key is written back only if nobody wrote it since it was read.
Keys are never removed: a revoked one says whose the entries of a ledger are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from pipeline_plugins.keys.key import Former, Key, KeyChange, KeySpec, digest_of, mint

ATTEMPTS = 20
"""Times that a change is tried against others that change the same key."""


class StoreDown(OSError):
    """The store can't be reached; says which and why, without secrets."""


class Conflict(Exception):
    """The key was changed by someone else since it was read."""


class NoSuchKey(LookupError):
    """There is no key of this id."""


class Store(Protocol):
    """Keys by id, with a number that rises with every change. Everything may raise `StoreDown`."""

    async def open(self) -> None:
        """Get ready; a store that is down may be back later."""

    async def close(self) -> None:
        """Let go of everything."""

    async def find(self, id: str) -> Key | None:
        """One key."""

    async def all(self) -> list[Key]:
        """Every key, the oldest first."""

    async def save(self, key: Key) -> Key:
        """Write a key and give it the next revision. Raises `Conflict` if its own is not the stored one."""

    async def changes(self, since: int) -> tuple[int, list[str]]:
        """The newest revision, and the ids of all keys changed after `since`."""


async def create(store: Store, spec: KeySpec) -> tuple[Key, str]:
    """Issue a key. Returns what is stored, and the key itself, which nothing can show again."""
    id, held = mint()
    digest = digest_of(held).hex()
    values = {name: getattr(spec, name) for name in KeySpec.model_fields}
    return await store.save(Key(**values, id=id, digest=digest, created_at=int(time.time()))), held


async def change(store: Store, id: str, changes: KeyChange) -> Key:
    """Change what is said of a key; it stays the same secret. Raises `NoSuchKey`."""
    update = {name: getattr(changes, name) for name in changes.model_fields_set}
    return await _rewrite(store, id, lambda key: key.model_copy(update=update))


async def revoke(store: Store, id: str) -> Key:
    """End a key for good. Raises `NoSuchKey`."""
    now = int(time.time())
    ended = {"revoked_at": now, "former": None}
    return await _rewrite(store, id, lambda key: key if key.revoked_at else key.model_copy(update=ended))


async def rotate(store: Store, id: str, grace: int = 0) -> tuple[Key, str]:
    """Give a key a new secret; the old one is good for `grace` seconds more.

    Raises `NoSuchKey`, and `ValueError` for a key that is revoked.
    """
    now = int(time.time())
    _, held = mint(id)
    digest = digest_of(held).hex()

    def rotated(key: Key) -> Key:
        if key.revoked_at is not None:
            raise ValueError(f"The key `{id}` is revoked; create another.")
        former = Former(digest=key.digest, until=now + grace) if grace else None
        return key.model_copy(update={"digest": digest, "former": former, "rotated_at": now})

    return await _rewrite(store, id, rotated), held


async def _rewrite(store: Store, id: str, changed: Callable[[Key], Key]) -> Key:
    for _ in range(ATTEMPTS):
        key = await store.find(id)
        if key is None:
            raise NoSuchKey(id)
        after = changed(key)
        if after is key:
            return key
        try:
            return await store.save(after)
        except Conflict:
            continue
    raise StoreDown(f"The key `{id}` is being changed by others all the time; try again.")
