"""`limit=budget`: spend per day and month, for each key, owner or model, or for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, End, Model, Reply, Usage, hookimpl
from pipeline.errors import RateLimited
from pipeline.hookspecs import Metric
from pipeline.kinds import Limited
from pipeline.price import Charge, Price, Spent
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.limit.meters import Due, Full, LocalMeter, Meter, RedisMeter
from pipeline_plugins.limit.scope import Scope, subject
from pipeline_plugins.limit.tokens import answers
from pipeline_plugins.price.accounts import NANO, Accounts, Reserved, decimal
from pipeline_plugins.tokens import BYTES, asked_tokens, estimate

if TYPE_CHECKING:
    from pipeline.graph import Graph


class BudgetExceeded(RateLimited):
    """A budget has no room for the call (429), which no retry in a moment changes."""

    type = "insufficient_quota"
    code = "insufficient_quota"


class Rule(BaseModel):
    """A budget: how much, and for whom."""

    model_config = ConfigDict(extra="forbid")

    scope: Scope = Field(
        "global", description="Each key, owner or model has this budget, or all have it together."
    )
    name: str = Field("*", max_length=256, description="Glob of the keys, owners or models that it is for.")
    usd_per_day: float | None = Field(None, ge=0, le=1e9, description="USD from midnight to midnight.")
    usd_per_month: float | None = Field(None, ge=0, le=1e9, description="USD in a calendar month.")


@dataclass(slots=True)
class Counted:
    """Which charges of a client's call were counted by budgets; those of calls on its way are its, too."""

    known: set[tuple[str, int]] = field(default_factory=set)

    def new(self, budget: str, charges: list[Charge]) -> list[Charge]:
        """Those of `charges` that are new to a budget."""
        new = [charge for charge in charges if (budget, id(charge)) not in self.known]
        self.known.update((budget, id(charge)) for charge in new)
        return new


class Budget:
    """Refuses what could exceed a budget.

    The most that a call can cost is reserved before it: its prompt by the model's own count, or
    one token a byte, and all tokens that it may answer, at the dearest of the models that may
    answer it. What it did cost replaces the reservation when its reply has ended. So calls at
    the same time can't exceed a budget together. Two things can exceed it, by the one call: a
    picture or sound of more than 4000 tokens, and attempts (a retry, a hedge) beyond `attempts`.

    Sums are the accounts' own: with `price.store=sqlite` one process keeps them in its memory and
    a second one refuses to start; with `price.store=redis` any number of processes share them.
    """

    class Config(BaseModel):
        """Budgets, and what is assumed of calls."""

        model_config = ConfigDict(extra="forbid")

        scope: Scope = Field(
            "global", description="Whose the budget is: each `key`'s, `owner`'s or `model`'s, or all's."
        )
        usd_per_day: float | None = Field(None, ge=0, le=1e9, description="USD from midnight to midnight.")
        usd_per_month: float | None = Field(None, ge=0, le=1e9, description="USD in a calendar month.")
        rules: list[Rule] = Field(
            default_factory=list, max_length=1024, description="Further budgets; all hold."
        )
        keys: bool = Field(True, description="Hold keys to their own `usd_per_day` and `usd_per_month`, too.")
        max_tokens: int = Field(
            4096,
            ge=1,
            le=10_000_000,
            description="Most tokens of an answer, set where a call to a priced model sets none.",
        )
        seconds: float = Field(
            60.0,
            ge=0,
            le=86_400,
            description="Longest work on a call that is reserved at a price per second.",
        )
        attempts: int = Field(
            1, ge=1, le=100, description="Attempts at a model that are reserved for each call."
        )
        redis_timeout: float = Field(
            0.5, gt=0, le=60, description="Seconds that the Redis may take to answer."
        )
        redis_down: Literal["refuse", "local"] = Field(
            "refuse",
            description="Without the Redis: `refuse` calls (503), or go by what it knows itself (`local`).",
        )

    def __init__(self, config: Config, next: Edge, name: str) -> None:
        self.config = config
        self.name = name
        self.next = next
        own = Rule(scope=config.scope, usd_per_day=config.usd_per_day, usd_per_month=config.usd_per_month)
        self.rules = [
            rule
            for rule in (own, *config.rules)
            if rule.usd_per_day is not None or rule.usd_per_month is not None
        ]
        self.enforces = frozenset({"usd_per_day", "usd_per_month"}) if config.keys else frozenset()
        self.refused = 0
        self._numbers = itertools.count()
        self._accounts: Accounts | None = None
        self._meter: Meter | None = None
        self._price: Callable[..., Price | None] | None = None

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Find the accounts. Raises `ConfigError` without any, or for a second process on SQLite."""
        found = [getattr(part, "accounts", None) for part in graph.plugins.get_plugins()]
        accounts = next((one for one in found if isinstance(one, Accounts)), None)
        if accounts is None:
            raise ConfigError(
                [Problem(self.name, "`limit=budget` needs accounts of what was spent.", "Set `price=genai`.")]
            )
        self._accounts = accounts
        self._price = graph.plugins.hook.pipeline_price
        if accounts.store.settles_reservations:
            self._meter = RedisMeter(
                accounts, timeout=self.config.redis_timeout, local=self.config.redis_down == "local"
            )
        elif accounts.alone():
            self._meter = LocalMeter.of(accounts, self.name)
        else:
            why = "budgets are kept by these accounts already, and SQLite's are one process's."
            hint = (
                "Set `server.workers=1`, or `price.store=redis` to share them. Where accounts are to be kept "
                "otherwise than before (`price.timezone`, say), start the server anew."
            )
            raise ConfigError([Problem(self.name, why, hint)])

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """Calls refused, and how the Redis does that has the sums."""
        yield Metric(
            "pipeline_budget_refused_total",
            "Calls that a budget had no room for.",
            "counter",
            {(self.name,): self.refused},
            ("stage",),
        )
        if self._meter is not None and self._meter.link is not None:
            from pipeline_plugins.redis_link import metrics

            yield from metrics({self.name: self._meter.link})

    async def close(self) -> None:
        """Settle what is still to be settled."""
        if self._meter is not None:
            await self._meter.close()

    async def __call__(self, call: Call) -> Reply:
        """Pass the call on if every budget has room for it. Raises `BudgetExceeded`."""
        accounts, meter = self._accounts, self._meter
        if accounts is None or meter is None:
            raise RuntimeError("the graph is not open")
        models = [model for model in self.next.models if model.offered(call)]
        due = list(self._due(call, models, accounts.calendar.today))
        call, most = self._most(call, models)
        reservation = f"{call.id}.{next(self._numbers)}" if due and most else ""
        if reservation:
            full = await meter.reserve(reservation, due, most, call)
            if full is not None:
                self.refused += 1
                call.record.decide(Limited(False, f"budget of {full.due.what}"))
                raise self._refusal(full, most, accounts)
            call.record.decide(Limited(True, "budget"))
            call.record.whole.growing(Reserved).ids.append(reservation)
        spent, counted = call.record.growing(Spent), call.record.whole.growing(Counted)
        before = len(spent.charges)
        tenant = call.tenant

        def settle(end: End | None = None) -> None:
            charges = counted.new(self.name, spent.charges[before:])
            meter.settle(reservation, due, most, tenant, charges)

        try:
            reply = await self.next(call)
        except BaseException:
            settle()
            raise
        reply.on_end(settle)
        return reply

    def _due(self, call: Call, models: list[Model], today: str) -> Iterator[Due]:
        """The budgets that a call falls under."""
        tenant = call.tenant
        month = today[:7]
        for rule in self.rules:
            for name in _names(rule.scope, call, models):
                if rule.scope != "global" and not fnmatchcase(name, rule.name):
                    continue
                scope = "global" if rule.scope == "global" else f"{rule.scope}:{name}"
                if rule.usd_per_day is not None:
                    yield Due(today, scope, round(rule.usd_per_day * NANO))
                if rule.usd_per_month is not None:
                    yield Due(month, scope, round(rule.usd_per_month * NANO))
        policy: Mapping[str, Any] | None = tenant.policy.get("limit") if self.config.keys else None
        if policy:
            for field, period in (("usd_per_day", today), ("usd_per_month", month)):
                if (usd := policy.get(field)) is not None:
                    yield Due(period, f"key:{tenant.key}", round(float(usd) * NANO))

    def _most(self, call: Call, models: list[Model]) -> tuple[Call, int]:
        """The call with a bound on its answer, and the nano-USD that it costs at most."""
        prices = [(model, price) for model in models if (price := self._price_of(model, call)) is not None]
        if not prices:
            return call, 0
        answer = 0
        if call.operation != "embedding":
            bound = asked_tokens(call)
            if bound is None:
                bound = self.config.max_tokens
                if any(price.completion for _, price in prices):
                    field = "max_completion_tokens" if call.operation == "chat" else "max_tokens"
                    call = call.derive(**{field: bound})
            answer = bound * answers(call)
        estimated = -1
        dearest = 0.0
        seconds = min(self.config.seconds, max(0.0, call.remaining))
        for model, price in prices:
            if model.count is not None:
                prompt = model.count(call)
            else:
                if estimated < 0:
                    # No tokenizer of bytes makes more than one token of one.
                    estimated = BYTES * estimate(call)
                prompt = estimated
            dearest = max(dearest, price.cost(Usage(prompt, answer), seconds))
        return call, math.ceil(dearest * NANO) * self.config.attempts

    def _price_of(self, model: Model, call: Call) -> Price | None:
        if model.id is not None or self._price is None:
            return model.price
        return self._price(model=call.model)

    def _refusal(self, full: Full, most: int, accounts: Accounts) -> BudgetExceeded:
        due = full.due
        ends = accounts.calendar.ends(due.period)
        if most > due.limit:
            message = (
                f"The budget of {due.what} is {decimal(due.limit)} USD a {due.length}, and this call may "
                f"cost {decimal(most)}: it can never pass. Ask for a shorter answer or send a shorter prompt."
            )
            return BudgetExceeded(message, headers=((b"x-should-retry", b"false"),))
        # Only what calls in progress hold may be free again in a moment.
        soon = full.spent + most <= due.limit
        seconds = 1 if soon else max(1, math.ceil(accounts.calendar.seconds_left(due.period)))
        held = f", {decimal(full.held)} are reserved by calls in progress" if full.held else ""
        message = (
            f"The budget of {due.what} is {decimal(due.limit)} USD a {due.length}: {decimal(full.spent)} are "
            f"spent{held}, and this call may cost {decimal(most)}. It begins anew at {ends.isoformat()}."
        )
        headers = [(b"retry-after", str(seconds).encode())]
        if not soon:
            headers.append((b"x-should-retry", b"false"))
        return BudgetExceeded(message, headers=tuple(headers))


def _names(scope: Scope, call: Call, models: list[Model]) -> list[str]:
    """Whom a rule's budget is for: with several models that may answer, each of theirs must have room."""
    if scope == "model":
        return list(dict.fromkeys(model.id or call.model for model in models))
    return [subject(scope, call, "")]
