"""Accounts in a Redis, shared by any number of machines.

`{spend}:day:DAY`       hash: the account as JSON, `/`, column -> whole number
`{spend}:days`          set of the days that have one
`{spend}:journal`       hash: journal file -> bytes of it that are in the accounts
`{spend}:PERIOD:SCOPE`  hash with `spent` and `held`, nano-USD, of each scope that a budget may have
`{spend}:reserved`      hash: reservation -> JSON of [amount, keys that hold it]
`{spend}:expiring`      sorted set of reservations by the time at which they lapse
"""

from __future__ import annotations

import orjson
import structlog

from pipeline_plugins.price.journal import COLUMNS, Account, Batch, Totals, add
from pipeline_plugins.redis_link import RedisDown, RedisLink

PREFIX = "{spend}:"

TIMEOUT = 2.0
"""Seconds for a batch: it is off the way of calls."""

DAYS, MONTHS = 86_400 * 3, 86_400 * 63
"""Seconds that a budget's sums of a day and of a month are kept: past their end in any time zone."""

USD = COLUMNS.index("usd")

APPLY = """
local applied = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if applied ~= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
local given = cjson.decode(ARGV[4])
for _, row in ipairs(given.rows) do
  redis.call('SADD', KEYS[2], row[1])
  redis.call('HINCRBY', KEYS[3] .. row[1], row[2], row[3])
end
for _, row in ipairs(given.sums) do
  redis.call('HINCRBY', row[1], 'spent', row[2])
  redis.call('EXPIRE', row[1], row[3])
end
for _, id in ipairs(given.reservations) do
  local held = redis.call('HGET', KEYS[4], id)
  if held then
    local reservation = cjson.decode(held)
    for _, key in ipairs(reservation[2]) do redis.call('HINCRBY', key, 'held', '-' .. reservation[1]) end
    redis.call('HDEL', KEYS[4], id)
    redis.call('ZREM', KEYS[5], id)
  end
end
return 1
"""

log = structlog.get_logger("pipeline.price")


class RedisStore:
    """Adds batches, each exactly once, and settles the reservations of their calls with them."""

    settles_reservations = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._link: RedisLink | None = None

    async def open(self) -> None:
        """Get ready to connect."""
        self._link = RedisLink(self.url, timeout=TIMEOUT, user="price")
        self._apply = self._link.script(APPLY)

    @property
    def link(self) -> RedisLink:
        """The connection."""
        if self._link is None:
            raise RuntimeError("the accounts are not open")
        return self._link

    async def applied(self, file: str) -> int:
        """How many bytes of a journal file are in the accounts. Raises `RedisDown`."""
        return int(await self.link.command("HGET", f"{PREFIX}journal", file) or 0)

    async def apply(self, batch: Batch) -> bool:
        """Add a batch, unless its file has been read from there on already. Raises `RedisDown`."""
        rows: list[list[str]] = []
        sums: dict[tuple[str, str], int] = {}
        for account, counts in batch.totals.items():
            name = orjson.dumps([account.key, account.owner, account.model, account.tags]).decode()
            rows += [
                [account.day, f"{name}/{column}", str(count)]
                for column, count in zip(COLUMNS, counts, strict=True)
                if count
            ]
            for period in (account.day, account.day[:7]):
                for scope in scopes(account):
                    at = (period, scope)
                    sums[at] = sums.get(at, 0) + counts[USD]
        given = {
            "rows": rows,
            "sums": [
                [budget_key(period, scope), str(nano), str(DAYS if len(period) == 10 else MONTHS)]
                for (period, scope), nano in sums.items()
                if nano
            ],
            "reservations": batch.reservations,
        }
        keys = [f"{PREFIX}{name}" for name in ("journal", "days", "day:", "reserved", "expiring")]
        arguments = [batch.file, str(batch.start), str(batch.end), orjson.dumps(given)]
        return bool(await self.link.run(self._apply, keys, arguments))

    async def totals(self, since: str, until: str) -> Totals:
        """The accounts of the days from `since` to `until`, both included. Raises `RedisDown`."""
        totals: Totals = {}
        days = sorted(day.decode() for day in await self.link.command("SMEMBERS", f"{PREFIX}days"))
        for day in days:
            if not since <= day <= until:
                continue
            found = await self.link.command("HGETALL", f"{PREFIX}day:{day}")
            pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
            for name, count in pairs:
                account, _, column = name.decode().rpartition("/")
                key, owner, model, tags = orjson.loads(account)
                counts = [0] * len(COLUMNS)
                counts[COLUMNS.index(column)] = int(count)
                add(totals, Account(day, key, owner, model, tags), counts)
        return totals

    async def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            await self._link.close()
            self._link = None


def scopes(account: Account) -> tuple[str, ...]:
    """The scopes of budgets that an account counts for."""
    return ("global", f"key:{account.key}", f"owner:{account.owner}", f"model:{account.model}")


def budget_key(period: str, scope: str) -> str:
    """The hash that has a budget's sums."""
    return f"{PREFIX}{period}:{scope}"


__all__ = ["PREFIX", "RedisDown", "RedisStore", "budget_key", "scopes"]
