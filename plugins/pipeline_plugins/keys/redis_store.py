"""Keys in a Redis that several machines may share."""

from __future__ import annotations

import json
from typing import Any

from pipeline_plugins.keys.key import Key
from pipeline_plugins.keys.store import Conflict, StoreDown
from pipeline_plugins.redis_link import RedisDown, RedisLink

SAVE = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local revision = stored and cjson.decode(stored).revision or 0
if revision ~= tonumber(ARGV[2]) then return -1 end
local next = redis.call('INCR', KEYS[3])
redis.call('HSET', KEYS[1], ARGV[1], '{"revision":' .. string.format('%d', next) .. ',' .. ARGV[3])
redis.call('ZADD', KEYS[2], next, ARGV[1])
return next
"""
"""Records, revisions by id, the last revision; the id, the revision it must have, the record's rest."""


class RedisStore:
    """A hash of records, a sorted set of their revisions, and a counter, below one prefix.

    They share a hash slot, so that a cluster will do. A change is on Redis's disk as soon
    as its `appendfsync` says.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._records, self._revisions, self._last = (
            f"{{{prefix}}}:{part}" for part in ("records", "revisions", "last")
        )
        self._link: RedisLink | None = None
        self._save: Any = None

    async def open(self) -> None:
        """Make the link; a Redis that is down is tried again later."""
        self._link = RedisLink(self._url, user="keys")
        self._save = self._link.script(SAVE)

    async def close(self) -> None:
        """Close the link."""
        if self._link is not None:
            await self._link.close()
            self._link = None

    async def find(self, id: str) -> Key | None:
        """One key."""
        record = await self._command("HGET", self._records, id)
        return None if record is None else _key(id, record)

    async def all(self) -> list[Key]:
        """Every key, the oldest first."""
        flat = await self._command("HGETALL", self._records)
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        keys = [_key(_text(id), record) for id, record in pairs]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def save(self, key: Key) -> Key:
        """Write a key if it is still as it was read."""
        record = key.model_dump_json(exclude={"id", "revision"}).removeprefix("{")
        names = (self._records, self._revisions, self._last)
        try:
            revision = int(await self._open().run(self._save, names, (key.id, key.revision, record)))
        except RedisDown as error:
            raise self._down(error) from None
        if revision < 0:
            raise Conflict(key.id)
        return key.model_copy(update={"revision": revision})

    async def changes(self, since: int) -> tuple[int, list[str]]:
        """The newest revision, and what changed after `since`."""
        newest = int(await self._command("GET", self._last) or 0)
        if newest == since:
            return newest, []
        ids = await self._command("ZRANGEBYSCORE", self._revisions, f"({since}", newest)
        return newest, [_text(id) for id in ids]

    async def _command(self, *words: Any) -> Any:
        try:
            return await self._open().command(*words)
        except RedisDown as error:
            raise self._down(error) from None

    def _open(self) -> RedisLink:
        if self._link is None:
            raise RedisDown("closed")
        return self._link

    def _down(self, error: Exception) -> StoreDown:
        where = self._url.partition("?")[0].rpartition("@")[2].removeprefix("redis://")
        why = str(error).rstrip(".") or "it does not answer"
        return StoreDown(f"The keys in the Redis at {where} can't be used: {why}.")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _key(id: str, record: Any) -> Key:
    try:
        return Key.model_validate({**json.loads(record), "id": id})
    except ValueError:
        raise StoreDown(f"The record of the key `{id}` can't be read.") from None
