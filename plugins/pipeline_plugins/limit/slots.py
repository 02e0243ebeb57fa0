"""Slots for calls that run: counted in this process, or as leases in a Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from pipeline_plugins.limit.rules import Demand
from pipeline_plugins.redis_link import RedisLink

TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(ARGV[2])
for i = 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i], '(' .. (now + lease), '+inf')) do
    redis.call('ZADD', KEYS[i], now + lease, id)
  end
  if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[2 + i]) then return i end
end
for i = 1, #KEYS do
  redis.call('ZADD', KEYS[i], now + lease, ARGV[1])
  redis.call('PEXPIRE', KEYS[i], lease * 2)
end
return 0
"""

RENEW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, #KEYS do
  redis.call('ZADD', KEYS[i], now + tonumber(ARGV[2]), ARGV[1])
  redis.call('PEXPIRE', KEYS[i], tonumber(ARGV[2]) * 2)
end
return 0
"""

FREE = """
for i = 1, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return 0
"""


class Slots:
    """Slots in this process."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def full(self, demands: Sequence[Demand]) -> Demand | None:
        """The first demand for which there is no slot."""
        held = self._held
        for demand in demands:
            if held.get(demand.name, 0) >= demand.limit:
                return demand
        return None

    def take(self, demands: Sequence[Demand]) -> Demand | None:
        """Take one slot for each demand, or none. Returns the first for which there is none."""
        full = self.full(demands)
        if full is not None:
            return full
        for demand in demands:
            self._held[demand.name] = self._held.get(demand.name, 0) + 1
        return None

    def free(self, demands: Sequence[Demand]) -> None:
        """Give them back."""
        for demand in demands:
            left = self._held[demand.name] - 1
            if left:
                self._held[demand.name] = left
            else:
                del self._held[demand.name]


class Leases:
    """Slots in a Redis, each a lease that ends unless it is renewed; methods raise `RedisDown`,
    all but `renew`, which tries again soon enough.

    Those of a process that was killed come back when their leases end. `seconds` is how
    long that takes. A clock of the Redis that steps backwards makes none longer.
    """

    def __init__(self, link: RedisLink, name: str, seconds: float) -> None:
        self._link = link
        self._take, self._renew, self._free = link.script(TAKE), link.script(RENEW), link.script(FREE)
        self._prefix = f"pipeline:limit:{{{name}}}:concurrency:"
        self._ms = int(seconds * 1000)

    async def take(self, id: str, demands: Sequence[Demand]) -> Demand | None:
        """Lease one slot for each demand, or none. Returns the first for which there is none."""
        limits = [demand.limit for demand in demands]
        full: int = await self._link.run(self._take, self._keys(demands), [id, self._ms, *limits])
        return demands[full - 1] if full else None

    async def renew(self, held: Mapping[str, Sequence[Demand]]) -> None:
        """Make leases last again."""

        async def one(id: str, demands: Sequence[Demand]) -> None:
            if id in held:  # not freed meanwhile
                await self._link.run(self._renew, self._keys(demands), [id, self._ms])

        await asyncio.gather(*(one(id, demands) for id, demands in held.items()), return_exceptions=True)

    async def free(self, id: str, demands: Sequence[Demand]) -> None:
        """Give them back."""
        await self._link.run(self._free, self._keys(demands), [id])

    def _keys(self, demands: Iterable[Demand]) -> list[str]:
        return [self._prefix + demand.name for demand in demands]
