"""Sums of what was spent and what is reserved, for budgets: one process's, or a Redis's."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline import Call, Tenant
from pipeline.errors import Overloaded
from pipeline.price import Charge
from pipeline_plugins.price.accounts import NANO, Accounts

if TYPE_CHECKING:
    from pipeline_plugins.price.redis_store import RedisStore
    from pipeline_plugins.redis_link import RedisLink

LAPSE = 300.0
"""Seconds past its call's deadline after which a reservation that nobody settled lapses."""

RETRIES = 10_000
"""Settlements that wait for a Redis that is down; those beyond lapse with their reservations."""


@dataclass(slots=True, frozen=True)
class Due:
    """A budget that a call falls under: nano-USD in a day (`YYYY-MM-DD`) or month (`YYYY-MM`)."""

    period: str
    scope: str
    limit: int

    @property
    def what(self) -> str:
        """Whose it is, for people."""
        kind, _, name = self.scope.partition(":")
        return f"{kind} `{name}`" if name else "this gateway"

    @property
    def length(self) -> str:
        """`day` or `month`."""
        return "day" if len(self.period) == 10 else "month"


@dataclass(slots=True, frozen=True)
class Full:
    """A budget without room: nano-USD spent and held by calls in progress."""

    due: Due
    spent: int
    held: int


class Meter(Protocol):
    """Reserves and settles; `link` is to the Redis that it asks, if any."""

    @property
    def link(self) -> RedisLink | None:
        """The connection."""

    async def reserve(self, id: str, due: list[Due], most: int, call: Call) -> Full | None:
        """Reserve nano-USD in all budgets, or in none if one has no room."""

    def settle(self, id: str, due: list[Due], most: int, tenant: Tenant, charges: list[Charge]) -> None:
        """Put what was spent in place of a reservation; `id` is empty if there was none."""

    async def close(self) -> None:
        """Finish what is under way."""


class LocalMeter:
    """Sums in memory, begun with the accounts' or from nothing.

    Nothing is awaited once it has begun, so nothing comes between.
    """

    @classmethod
    def of(cls, accounts: Accounts, stage: str) -> LocalMeter:
        """That of a stage: at a reload calls under way are still to be settled in the former one's sums."""
        meter: LocalMeter = accounts.meters.setdefault(stage, cls(accounts, stage=stage))
        meter._users += 1
        return meter

    def __init__(self, accounts: Accounts, *, stage: str = "", read: bool = True) -> None:
        self.link = None
        self._stage = stage
        self._users = 0
        self._accounts = accounts
        self._spent: dict[tuple[str, str], int] = {}
        self._held: dict[tuple[str, str], int] = {}
        self._day = "" if read else accounts.calendar.today
        self._before = self._day
        self._read: asyncio.Task[None] | None = None

    async def reserve(self, id: str, due: list[Due], most: int, call: Call) -> Full | None:
        """Reserve, see `Meter`."""
        if not self._day:
            await self._begin()
        return self.take(due, most)

    def take(self, due: list[Due], most: int) -> Full | None:
        """Reserve without a wait."""
        for one in due:
            at = (one.period, one.scope)
            spent, held = self._spent.get(at, 0), self._held.get(at, 0)
            if spent + held + most > one.limit:
                return Full(one, spent, held)
        self.hold(due, most)
        return None

    def hold(self, due: list[Due], most: int) -> None:
        """Note a reservation."""
        for at in {(one.period, one.scope) for one in due}:
            self._held[at] = self._held.get(at, 0) + most

    def settle(self, id: str, due: list[Due], most: int, tenant: Tenant, charges: list[Charge]) -> None:
        """Settle, see `Meter`."""
        if id:
            for at in {(one.period, one.scope) for one in due}:
                left = self._held.get(at, 0) - most
                if left:
                    self._held[at] = left
                else:
                    self._held.pop(at, None)
        if not self._day:
            return  # nothing was reserved yet, and the accounts are still to be read
        today = self._accounts.calendar.today
        if today != self._day:
            self._forget(today)
        for charge in charges:
            nano = round(charge.usd * NANO)
            for scope in ("global", f"key:{tenant.key}", f"owner:{tenant.owner}", f"model:{charge.model}"):
                for period in (today, today[:7]):
                    self._spent[period, scope] = self._spent.get((period, scope), 0) + nano

    async def close(self) -> None:
        """Nothing is under way. Sums that nobody keeps up any more are forgotten."""
        self._users -= 1
        if self._users == 0:
            self._accounts.meters.pop(self._stage, None)

    def _forget(self, today: str) -> None:
        """Drop the sums of past days and months, but for the last: a clock may be set back."""
        self._before, self._day = self._day, today
        kept = {period for day in (self._before, today) for period in (day, day[:7])}
        self._spent = {at: nano for at, nano in self._spent.items() if at[0] in kept}

    async def _begin(self) -> None:
        """Read the accounts of this month, once for all who wait."""
        if self._read is None:
            self._read = asyncio.create_task(self._sum_up())
        try:
            await asyncio.shield(self._read)
        except Exception:
            self._read = None
            raise

    async def _sum_up(self) -> None:
        await self._accounts.fold()
        today = self._accounts.calendar.today
        month = today[:7]
        for account, counts in (await self._accounts.totals(f"{month}-01", f"{month}-31")).items():
            nano = counts[4]
            scopes = ("global", f"key:{account.key}", f"owner:{account.owner}", f"model:{account.model}")
            for scope in scopes:
                for period in {month, today} if account.day == today else {month}:
                    self._spent[period, scope] = self._spent.get((period, scope), 0) + nano
        self._day = self._before = today


RESERVE = """
local function release(id)
  local found = redis.call('HGET', KEYS[1], id)
  if found then
    local reservation = cjson.decode(found)
    for _, key in ipairs(reservation[2]) do redis.call('HINCRBY', key, 'held', '-' .. reservation[1]) end
    redis.call('HDEL', KEYS[1], id)
  end
  redis.call('ZREM', KEYS[2], id)
end
local now = tonumber(redis.call('TIME')[1])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 100)) do release(id) end
local most = tonumber(ARGV[2])
for i = 3, #KEYS do
  local sums = redis.call('HMGET', KEYS[i], 'spent', 'held')
  if tonumber(sums[1] or '0') + tonumber(sums[2] or '0') + most > tonumber(ARGV[i + 2]) then
    return {i - 2, sums[1] or '0', sums[2] or '0'}
  end
end
local held = {}
local seen = {}
for i = 3, #KEYS do
  if not seen[KEYS[i]] then
    seen[KEYS[i]] = true
    held[#held + 1] = KEYS[i]
    redis.call('HINCRBY', KEYS[i], 'held', ARGV[2])
    redis.call('EXPIRE', KEYS[i], 5443200)
  end
end
redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({ARGV[2], held}))
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
return {0}
"""
"""KEYS: reservations, their expiry, each budget's hash. ARGV: id, nano-USD, seconds, empty, each limit."""

SETTLE = """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if not found then return 0 end
local reservation = cjson.decode(found)
for _, key in ipairs(reservation[2]) do
  redis.call('HINCRBY', key, 'held', '-' .. reservation[1])
  if ARGV[2] ~= '0' then redis.call('HINCRBY', key, 'held', ARGV[2]) end
end
if ARGV[2] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], cjson.encode({ARGV[2], reservation[2]}))
end
return 1
"""
"""Lowers a reservation to what was spent, which the accounts put in its place; 0 removes it."""


class RedisMeter:
    """Sums in the Redis that has the accounts.

    A call's reservation stays until the accounts have its line, in one transaction with it, so
    that a process killed in between leaves no gap.
    """

    def __init__(self, accounts: Accounts, *, timeout: float, local: bool) -> None:
        from pipeline_plugins.price.redis_store import PREFIX
        from pipeline_plugins.redis_link import RedisLink

        store: RedisStore = accounts.store  # type: ignore[assignment]
        self.link = RedisLink(store.url, timeout=timeout, user="budget")
        self._reserve = self.link.script(RESERVE)
        self._settle = self.link.script(SETTLE)
        self._keys = [f"{PREFIX}reserved", f"{PREFIX}expiring"]
        self._local = LocalMeter(accounts, read=False) if local else None
        self._settling: set[asyncio.Task[Any]] = set()

    async def reserve(self, id: str, due: list[Due], most: int, call: Call) -> Full | None:
        """Reserve, see `Meter`. Raises `Overloaded` while Redis is down, unless that is made up for."""
        from pipeline_plugins.price.redis_store import budget_key
        from pipeline_plugins.redis_link import RedisDown

        keys = [*self._keys, *(budget_key(one.period, one.scope) for one in due)]
        lapse = max(0.0, call.remaining) + LAPSE
        try:
            found = await self.link.run(
                self._reserve, keys, [id, most, int(lapse), "", *(one.limit for one in due)]
            )
        except RedisDown as error:
            full = self._local.take(due, most) if self._local is not None else None
            if error.sent and (full is not None or self._local is None):
                self._settle_later(id, 0)
            if self._local is not None:
                return full
            raise Overloaded(
                "Budgets can't be checked at the moment.", headers=((b"retry-after", b"1"),)
            ) from None
        except asyncio.CancelledError:
            self._settle_later(id, 0)
            raise
        if found[0]:
            return Full(due[found[0] - 1], int(found[1]), int(found[2]))
        if self._local is not None:
            self._local.hold(due, most)
        return None

    def settle(self, id: str, due: list[Due], most: int, tenant: Tenant, charges: list[Charge]) -> None:
        """Settle, see `Meter`."""
        if self._local is not None:
            self._local.settle(id, due, most, tenant, charges)
        if id:
            self._settle_later(id, sum(round(charge.usd * NANO) for charge in charges))

    def _settle_later(self, id: str, nano: int) -> None:
        if len(self._settling) > RETRIES:
            return
        task = asyncio.get_running_loop().create_task(self._lower(id, nano))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def close(self) -> None:
        """Wait for settlements under way, not for long."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=2.0)
        for task in self._settling:
            task.cancel()
        await self.link.close()

    async def _lower(self, id: str, nano: int) -> None:
        from pipeline_plugins.redis_link import RedisDown

        until = time.monotonic() + LAPSE
        while time.monotonic() < until:
            try:
                await self.link.run(self._settle, self._keys, [id, nano])
            except RedisDown:
                await asyncio.sleep(1.0)
            else:
                return
