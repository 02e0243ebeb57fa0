"""Entries in Redis, shared by processes and machines.

An entry is a hash of two fields: `entry`, the packed bytes, and `labels`, for the script that
reads it along with its labels' stamps in one round trip. Stamps are keys of their own which
outlive every entry that could need them; nothing is ever searched for. Where Redis itself
evicts by `allkeys-*` it may evict a stamp, and entries invalidated by it may come back until
they expire; `volatile-ttl` takes entries first.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

from pipeline_plugins.cache.store import MAX_TTL, Entry, Key, Stats, StoreDown, pack, unpack
from pipeline_plugins.redis_link import RedisDown, RedisLink

PREFIX = "{pipeline-cache}:"
"""The braces keep all keys on one node of a cluster."""

BATCH = 64
"""Entries in one command: a reply stays small enough for the link's time limit."""

GET = """
local found = {}
for i, key in ipairs(KEYS) do
  local value = redis.call('HMGET', key, 'entry', 'labels')
  if value[1] and value[2] then
    local stamps = {}
    for label in string.gmatch(value[2], '[^\\n]+') do
      stamps[#stamps + 1] = redis.call('GET', ARGV[1] .. label) or ''
    end
    found[i] = {value[1], value[2], stamps}
  else
    found[i] = false
  end
end
return found
"""

PUT = """
for i, key in ipairs(KEYS) do
  redis.call('DEL', key)
  redis.call('HSET', key, 'entry', ARGV[3 * i - 2], 'labels', ARGV[3 * i - 1])
  redis.call('PEXPIRE', key, ARGV[3 * i])
end
"""


class RedisStore:
    """A store behind a `RedisLink`. `stats` counts what this process did; Redis knows the rest."""

    def __init__(self, url: str, *, timeout: float = 0.2) -> None:
        self.stats = Stats()
        self._link = RedisLink(url, timeout=timeout, user="cache")
        self._get = self._link.script(GET)
        self._put = self._link.script(PUT)

    async def open(self) -> None:
        """Nothing to prepare: a Redis that is down now may be up later."""

    async def close(self) -> None:
        """Close the connections."""
        await self._link.close()

    async def get(self, key: Key) -> Entry | None:
        """The entry of a key: whole, this key's, fresh and not invalidated."""
        return (await self._read([key]))[0]

    async def get_many(self, keys: Sequence[Key]) -> list[Entry | None]:
        """`get` for each of the keys."""
        found: list[Entry | None] = []
        for start in range(0, len(keys), BATCH):
            found += await self._read(keys[start : start + BATCH])
        return found

    async def _read(self, keys: Sequence[Key]) -> list[Entry | None]:
        values = await self._run(self._get, [_name(key) for key in keys], [f"{PREFIX}stamp:"])
        if not isinstance(values, list) or len(values) != len(keys):
            self.stats.errors += 1
            return [None] * len(keys)
        return [await self._check(key, value) for key, value in zip(keys, values, strict=True)]

    async def _check(self, key: Key, value: Any) -> Entry | None:
        if not value:
            return None
        entry = unpack(key, value[0])
        if entry is None or _joined(entry).encode() != value[1]:
            self.stats.errors += 1
            await self.delete(key)
            return None
        stamps = tuple(stamp.decode("ascii", "replace") for stamp in value[2])
        return entry if stamps == entry.stamps and entry.fresh() else None

    async def put(self, key: Key, entry: Entry) -> None:
        """Keep an entry until it expires."""
        await self.put_many({key: entry})

    async def put_many(self, entries: Mapping[Key, Entry]) -> None:
        """`put` for each of the entries."""
        items = [item for item in entries.items() if item[1].expires > time.time()]
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            arguments: list[bytes | str | int] = []
            for key, entry in batch:
                left = max(1, int((entry.expires - time.time()) * 1000))
                arguments += [pack(key, entry), _joined(entry), left]
            await self._run(self._put, [_name(key) for key, _ in batch], arguments)
            self.stats.stores += len(batch)

    async def delete(self, key: Key) -> None:
        """Forget one entry."""
        await self._command("UNLINK", _name(key))

    async def stamps(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The labels' stamps now."""
        if not labels:
            return ()
        values = await self._command("MGET", *(f"{PREFIX}stamp:{_line(label)}" for label in labels))
        return tuple("" if value is None else value.decode("ascii", "replace") for value in values)

    async def invalidate(self, label: str) -> None:
        """Make every entry with this label a miss, for all who share this Redis."""
        # A day more than any entry lives: the stamp must not be forgotten first.
        name = f"{PREFIX}stamp:{_line(label)}"
        await self._command("SET", name, token_hex(8), "EX", MAX_TTL + 86_400)

    async def _run(self, script: Any, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        try:
            return await self._link.run(script, keys, arguments)
        except RedisDown:
            raise self._down() from None

    async def _command(self, *words: Any) -> Any:
        try:
            return await self._link.command(*words)
        except RedisDown:
            raise self._down() from None

    def _down(self) -> StoreDown:
        self.stats.errors += 1
        return StoreDown()


def _name(key: Key) -> str:
    return f"{PREFIX}{key.digest.hex()}"


def _joined(entry: Entry) -> str:
    return "\n".join(map(_line, entry.labels))


def _line(label: str) -> str:
    return label.replace("%", "%25").replace("\n", "%0A")
