"""The same two ways to count, in a Redis that several processes share.

One script looks at all buckets of a call, then takes from all of them or from none. Time
is the Redis's own; should it step backwards, what is out stays out and no longer. Every
key expires with the window. All keys of a stage carry one hash tag, so that a cluster has
them in one place, as a script needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline_plugins.limit.buckets import SLOTS, Level, Verdict
from pipeline_plugins.limit.rules import WINDOW, Demand
from pipeline_plugins.redis_link import RedisLink

BUCKETS = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local window = tonumber(ARGV[1]) * 1000000
local give = ARGV[2] == 'give'
local outs, wait, refused = {}, 0, -1
for i = 1, #KEYS do
  local limit, amount = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  local found = redis.call('HMGET', KEYS[i], 'out', 'at')
  local out = tonumber(found[1] or 0)
  if out > 0 then
    local at = tonumber(found[2])
    if at > now then
      at = now
      redis.call('HSET', KEYS[i], 'at', string.format('%.0f', now))
    end
    out = math.max(0, out - (now - at) * limit / window)
  end
  outs[i] = out
  local over = out + amount - limit
  if not give and over > 0.000001 and over * window / limit > wait then
    wait = over * window / limit
    refused = i - 1
  end
end
local answer = {tostring(refused), string.format('%.6f', wait / 1000000), '0'}
for i = 1, #KEYS do
  local limit, amount = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  if give then amount = -amount end
  local out = outs[i]
  if refused < 0 then
    out = out + amount
    if out > 0.000001 then
      redis.call('HSET', KEYS[i], 'out', string.format('%.9f', out), 'at', string.format('%.0f', now))
      redis.call('PEXPIRE', KEYS[i], math.ceil(out * window / limit / 1000) + 1000)
    else
      redis.call('DEL', KEYS[i])
    end
  end
  answer[#answer + 1] = string.format('%.6f', math.max(0, limit - out))
  answer[#answer + 1] = string.format('%.6f', out * window / limit / 1000000)
end
return answer
"""

WINDOWS = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local window = tonumber(ARGV[1]) * 1000000
local give = ARGV[2] == 'give'
local given_part = tonumber(ARGV[3])
local slot = window / SLOTS
local part = math.floor(now / slot)
local wait, refused = 0, -1
local takens = {}
for i = 1, #KEYS do
  local limit, amount = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  local flat = redis.call('HGETALL', KEYS[i])
  local total, last, by, parts = 0, nil, {}, {}
  for j = 1, #flat, 2 do
    local p, n = tonumber(flat[j]), tonumber(flat[j + 1])
    if p > part then
      redis.call('HDEL', KEYS[i], flat[j])
      redis.call('HINCRBYFLOAT', KEYS[i], string.format('%.0f', part), flat[j + 1])
      p = part
    end
    if p < part - SLOTS then
      redis.call('HDEL', KEYS[i], flat[j])
    else
      total = total + n
      if by[p] == nil then
        by[p] = 0
        parts[#parts + 1] = p
      end
      by[p] = by[p] + n
    end
  end
  table.sort(parts)
  takens[i] = {total = total, by = by, last = parts[#parts]}
  local over = total + amount - limit
  if not give and over > 0.000001 then
    local needed = window
    for _, p in ipairs(parts) do
      over = over - by[p]
      if over <= 0.000001 then
        needed = (p + 1) * slot + window - now
        break
      end
    end
    if needed > wait then
      wait = needed
      refused = i - 1
    end
  end
end
local answer = {tostring(refused), string.format('%.6f', wait / 1000000), string.format('%.0f', part)}
for i = 1, #KEYS do
  local limit, amount = tonumber(ARGV[2 + 2 * i]), tonumber(ARGV[3 + 2 * i])
  local taken = takens[i]
  if refused < 0 then
    local at = part
    if give and amount >= 0 then
      at = given_part
      amount = -math.min(amount, taken.by[at] or 0)
    elseif give then
      amount = -amount
    end
    if amount ~= 0 then
      redis.call('HINCRBYFLOAT', KEYS[i], string.format('%.0f', at), string.format('%.9f', amount))
      if not give or amount > 0 then
        taken.last = part
        redis.call('PEXPIRE', KEYS[i], math.ceil((window + slot) / 1000) + 1000)
      end
      taken.total = taken.total + amount
    end
  end
  answer[#answer + 1] = string.format('%.6f', math.max(0, limit - taken.total))
  local reset = 0
  if taken.last then reset = math.max(0, (taken.last + 1) * slot + window - now) end
  answer[#answer + 1] = string.format('%.6f', reset / 1000000)
end
return answer
"""

LUA = {"token_bucket": BUCKETS, "sliding_window": WINDOWS.replace("SLOTS", str(SLOTS))}


class RedisBuckets:
    """Buckets of one algorithm in one Redis; both methods raise `RedisDown`."""

    def __init__(self, link: RedisLink, algorithm: str, name: str) -> None:
        self._link = link
        self._script = link.script(LUA[algorithm])
        self._prefix = f"pipeline:limit:{{{name}}}:{algorithm}:"

    async def take(
        self, demands: Sequence[Demand], late: Callable[[Verdict], None] = lambda verdict: None
    ) -> Verdict:
        """Take all demands or none. `late` gets the verdict if the caller is cancelled meanwhile."""
        amounts = [demand.amount for demand in demands]
        answer = await self._run("take", demands, amounts, 0, lambda found: late(_verdict(found)))
        return _verdict(answer)

    async def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        """Give back what was not used; a negative amount is taken on top."""
        await self._run("give", demands, amounts, part)

    async def _run(
        self,
        verb: str,
        demands: Sequence[Demand],
        amounts: Sequence[float],
        part: int,
        late: Callable[[Sequence[bytes]], None] | None = None,
    ) -> Sequence[bytes]:
        arguments: list[str | float] = [WINDOW, verb, part]
        for demand, amount in zip(demands, amounts, strict=True):
            arguments += (demand.limit, amount)
        keys = [self._prefix + demand.name for demand in demands]
        answer: Sequence[bytes] = await self._link.run(self._script, keys, arguments, late=late)
        return answer


def _verdict(answer: Sequence[bytes]) -> Verdict:
    numbers = [float(word) for word in answer]
    levels = [Level(numbers[i], numbers[i + 1]) for i in range(3, len(numbers), 2)]
    return Verdict(numbers[1], levels, int(numbers[2]), int(numbers[0]))
