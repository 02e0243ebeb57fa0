"""What both rate limits do: ask the buckets, refuse or pass on, and settle up at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from pipeline import Call, Edge, End, Reply, hookimpl
from pipeline.errors import APIError, DeadlineExceeded, InvalidRequest, Overloaded, RateLimited
from pipeline.graph import Graph
from pipeline.hookspecs import Metric
from pipeline.kinds import Cached, Limited
from pipeline_plugins.limit import tokens as counting
from pipeline_plugins.limit.buckets import Algorithm, Verdict
from pipeline_plugins.limit.rules import Demand, Rule, Rules, Tokens, Unit, per_minute
from pipeline_plugins.limit.scope import Reached
from pipeline_plugins.state import REDIS

CARRIED: dict[Unit, str] = {"requests": "requests_per_minute", "tokens": "tokens_per_minute"}
"""What a key itself may carry."""

HEADERS = {
    unit: tuple(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset")) for unit in CARRIED
}
"""Names of the headers that tell of a unit's limit."""

log = structlog.get_logger("pipeline.limit")


class StoreConfig(BaseModel):
    """Where a limit keeps its counts."""

    model_config = ConfigDict(extra="forbid")

    store: Literal["memory", "redis"] = Field(
        "memory", description="`memory`: each process counts for itself; `redis`: all count together."
    )
    redis: SecretStr = Field(SecretStr(REDIS), description="URL of the Redis of `store: redis`.")
    redis_timeout: float = Field(0.2, gt=0, le=10, description="Seconds that Redis has for an answer.")
    on_failure: Literal["local", "refuse"] = Field(
        "local",
        description="Without Redis: `local` counts in each process until it is back, `refuse` refuses.",
    )


class RateConfig(StoreConfig, Rule):
    """One rule right here, or several under `rules`."""

    rules: list[Rule] = Field(default_factory=list, max_length=100, description="More rules; all must hold.")
    keys: bool = Field(True, description="Limits that a key carries replace or add to those per key.")
    answer_tokens: int = Field(
        256, ge=1, le=10**6, description="Tokens to expect of an answer whose request sets no maximum."
    )

    @model_validator(mode="after")
    def _says_something(self) -> RateConfig:
        for rule in self.rules:
            if rule.requests_per_minute is None and rule.tokens_per_minute is None:
                raise ValueError("each of `rules` needs requests_per_minute or tokens_per_minute")
        return self


@dataclass(slots=True)
class Taken:
    """What a call was given, until it is settled."""

    demands: list[Demand]
    part: int
    tokens: Tokens | None
    shared: bool


class RateLimit:
    """Limits requests and tokens per minute.

    A call's tokens are reserved before it runs; what it did not use comes back when it
    ends, however it ends.
    """

    Config = RateConfig
    algorithm: str
    local: Algorithm

    def __init__(self, config: RateConfig, next: Edge, name: str) -> None:
        self.config = config
        self.next = next
        self.name = name
        self.reached = Reached(next)
        self.rules = Rules(per_minute([config, *config.rules]), self.reached, CARRIED if config.keys else {})
        self.enforces = frozenset(CARRIED.values()) if config.keys else frozenset()
        self.admitted = 0
        self.refused = 0
        self._ends: frozenset[str] = frozenset()
        self._returns: set[asyncio.Task[None]] = set()
        self._link: Any = None
        self._shared: Any = None
        if config.store == "redis":
            from pipeline_plugins.limit.redis_buckets import RedisBuckets
            from pipeline_plugins.redis_link import RedisLink

            url = config.redis.get_secret_value()
            self._link = RedisLink(url, timeout=config.redis_timeout, user=name)
            self._shared = RedisBuckets(self._link, self.algorithm, name)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn which stages are models."""
        self._ends = frozenset(name for name, stage in graph.stages.items() if hasattr(stage, "models"))

    async def open(self) -> None:
        """Connect to Redis, if it is to count. Raises ValueError where it refuses us."""
        if self._link is not None:
            await self._link.open()

    async def close(self) -> None:
        """Send what is still to be given back, and disconnect."""
        if self._returns:
            await asyncio.wait(self._returns)
        if self._link is not None:
            await self._link.close()

    async def __call__(self, call: Call) -> Reply:
        """Pass on what the rules allow. Raises `RateLimited`, `InvalidRequest` or `Overloaded`."""
        model = self.reached.model(call)
        tokens = None
        if self.rules.count_tokens(call):
            tokens = counting.of_call(call, model, self.config.answer_tokens)
        demands = self.rules.demands(call, model, tokens)
        if not demands:
            return await self.next(call)
        for demand in demands:
            if demand.amount > demand.limit:
                self.refused += 1
                verdict, _ = await self._take([replace(one, amount=0.0) for one in demands])
                call.record.headers.update(_headers(demands, verdict))
                raise _never(call, demand)
        verdict, shared = await self._take(demands)
        headers = _headers(demands, verdict)
        call.record.headers.update(headers)
        if verdict.refused >= 0:
            self.refused += 1
            demand = demands[verdict.refused]
            call.record.decide(Limited(False, _rule(demand)))
            raise _refusal(demand, verdict)
        self.admitted += 1
        call.record.decide(Limited(True))
        return await self._pass(call, Taken(demands, verdict.part, tokens, shared))

    async def _take(self, demands: Sequence[Demand]) -> tuple[Verdict, bool]:
        if self._shared is None:
            return self.local.take(demands), False
        from pipeline_plugins.redis_link import RedisDown

        try:
            return await self._shared.take(demands, lambda verdict: self._too_late(demands, verdict)), True
        except RedisDown:
            if self.config.on_failure == "local":
                return self.local.take(demands), False
        self.refused += 1
        raise Overloaded(
            "The store of the rate limits does not answer.",
            code="limits_unavailable",
            headers=((b"retry-after", b"1"),),
        )

    def _too_late(self, demands: Sequence[Demand], verdict: Verdict) -> None:
        """Give back what was taken for a call that was cancelled meanwhile."""
        if verdict.refused < 0:
            amounts = [demand.amount for demand in demands]
            self._later(self._shared.give(demands, amounts, verdict.part))

    async def _pass(self, call: Call, taken: Taken) -> Reply:
        try:
            reply = await self.next(call)
        except BaseException as error:
            # What another limit refused has not run: it leaves no trace here either.
            whole = isinstance(error, APIError) and error.status in (429, 503)
            left = isinstance(error, (asyncio.CancelledError, DeadlineExceeded)) and self._asked(call)
            self._give(taken, taken.tokens.prompt if left and taken.tokens is not None else 0, whole=whole)
            raise
        if (tokens := taken.tokens) is not None:
            reply.on_end(lambda end: self._give(taken, _used(call, tokens, reply, end)))
        return reply

    def _asked(self, call: Call) -> bool:
        """Whether a model has the call: it may well have read the prompt."""
        return any(step.stage in self._ends for step in call.record.steps)

    def _give(self, taken: Taken, used: int, *, whole: bool = False) -> None:
        """Settle up: tokens not used go back; with `whole`, the request itself as well."""
        demands, amounts = [], []
        for demand in taken.demands:
            amount = demand.amount - used if demand.unit == "tokens" else float(whole)
            if amount:
                demands.append(demand)
                amounts.append(amount)
        if not demands:
            return
        if not taken.shared:
            self.local.give(demands, amounts, taken.part)
            return
        self._later(self._shared.give(demands, amounts, taken.part))

    def _later(self, giving: Coroutine[Any, Any, None]) -> None:
        async def give() -> None:
            try:
                await giving
            except Exception as error:
                # What was reserved then counts as used until its minute is over.
                log.debug("not given back", error=type(error).__name__)

        task = asyncio.get_running_loop().create_task(give())
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """Calls admitted and refused, and the Redis's state."""
        yield from counts(self.name, self.admitted, self.refused)
        if self._link is not None:
            from pipeline_plugins.redis_link import metrics

            yield from metrics({self.name: self._link})


def counts(name: str, admitted: int, refused: int) -> Iterable[Metric]:
    """The metrics that every limit has."""
    about = "Calls that a limit admitted and refused."
    samples: dict[tuple[str, ...], float] = {(name, "admitted"): admitted, (name, "refused"): refused}
    yield Metric("pipeline_limit_calls", about, "counter", samples, ("stage", "result"))


def _used(call: Call, tokens: Tokens, reply: Reply, end: End) -> int:
    """Tokens that an ended call used, as far as anybody knows; none where a cache answered."""
    cached = call.record.decision(Cached)
    if cached is not None and cached.result in ("hit", "semantic"):
        return 0
    if end.usage is not None:
        return end.usage.total_tokens
    if end.chunks or reply.streaming:
        return tokens.prompt + end.chunks
    if reply.status >= 400:
        return 0
    return tokens.total if tokens.asked else tokens.prompt


def _rule(demand: Demand) -> str:
    return f"{demand.limit:g} {demand.unit} per minute for this {demand.scope}"


def _refusal(demand: Demand, verdict: Verdict) -> RateLimited:
    left = int(verdict.levels[verdict.refused].remaining)
    where = "in all" if demand.scope == "global" else f"for this {demand.scope}"
    return RateLimited(
        f"The limit is {demand.limit:.0f} {demand.unit} per minute {where}: {left} left, "
        f"{demand.amount:.0f} asked for. Try again in {duration(verdict.wait)}.",
        headers=retry_after(verdict.wait),
    )


def _never(call: Call, demand: Demand) -> InvalidRequest:
    call.record.decide(Limited(False, _rule(demand)))
    where = "in all" if demand.scope == "global" else f"for this {demand.scope}"
    return InvalidRequest(
        f"This request may need {demand.amount:.0f} {demand.unit}, and the limit is {demand.limit:.0f} per "
        f"minute {where}: it can never pass. Ask for a shorter answer, or send a shorter prompt.",
        code="exceeds_rate_limit",
    )


def retry_after(seconds: float) -> tuple[tuple[bytes, bytes], ...]:
    """The headers that say when to come back, in whole seconds and in milliseconds."""
    return (
        (b"retry-after", str(max(1, ceil(seconds))).encode()),
        (b"retry-after-ms", str(max(1, ceil(seconds * 1000))).encode()),
    )


def duration(seconds: float) -> str:
    """OpenAI's form: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    minutes, rest = divmod(ceil(seconds * 1000) / 1000, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _headers(demands: Sequence[Demand], verdict: Verdict) -> dict[str, str]:
    """`x-ratelimit-*`, of the rule of each unit that has the least left."""
    headers: dict[str, str] = {}
    least: dict[str, float] = {}
    for demand, level in zip(demands, verdict.levels, strict=True):
        if level.remaining >= least.get(demand.unit, inf):
            continue
        least[demand.unit] = level.remaining
        limit, remaining, reset = HEADERS[demand.unit]
        headers[limit] = str(round(demand.limit))
        headers[remaining] = str(int(level.remaining))
        headers[reset] = duration(level.reset)
    return headers
