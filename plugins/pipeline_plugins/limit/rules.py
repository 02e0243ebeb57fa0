"""Rules of rate limits: as the configuration and keys have them, and as they meet a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Model
from pipeline_plugins.limit.scope import Reached, Scope, subject

Unit = Literal["requests", "tokens", "concurrent"]

WINDOW = 60.0
"""Seconds that a limit per minute speaks of."""


class Rule(BaseModel):
    """So much per minute for each subject of a scope."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(None, ge=1, le=10**9, description="Requests in a minute.")
    tokens_per_minute: int | None = Field(
        None, ge=1, le=10**12, description="Tokens in a minute, prompt and answer together."
    )
    scope: Scope = Field(
        "key", description="Counted together: each `key`, `owner` or `model` apart, or `global`."
    )
    models: list[str] = Field(
        default_factory=list, max_length=1000, description="Models that it is for; empty: all."
    )


@dataclass(slots=True)
class Demand:
    """What a call asks of one bucket.

    name    the bucket's, unique among all rules
    limit   what it holds in a window
    amount  what this call takes of it
    unit    `requests`, `tokens` or `concurrent`
    scope   for messages
    """

    name: str
    limit: float
    amount: float
    unit: Unit
    scope: Scope


@dataclass(slots=True, frozen=True)
class Limit:
    """One number of one rule."""

    unit: Unit
    value: int
    scope: Scope
    models: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What the names of its buckets begin with."""
        return f"{self.unit[0]}:{self.scope}:{','.join(self.models)}:{self.value}:"


def per_minute(rules: Sequence[Rule]) -> list[Limit]:
    """The numbers of rules."""
    limits: list[Limit] = []
    for rule in rules:
        models = tuple(sorted(rule.models))
        if rule.requests_per_minute is not None:
            limits.append(Limit("requests", rule.requests_per_minute, rule.scope, models))
        if rule.tokens_per_minute is not None:
            limits.append(Limit("tokens", rule.tokens_per_minute, rule.scope, models))
    return limits


@dataclass(slots=True)
class Tokens:
    """What a call may cost: its prompt, and an answer of which only `asked` is sure to be wanted."""

    prompt: int
    answer: int
    asked: bool

    @property
    def total(self) -> int:
        """Prompt and answer."""
        return self.prompt + self.answer


class Rules:
    """All rules of one stage, as they meet a call.

    `carried` names what a key itself may carry for each unit. It replaces the limits of scope
    `key` that are for all models, or is added where there is none.
    """

    def __init__(self, limits: Sequence[Limit], reached: Reached, carried: Mapping[Unit, str]) -> None:
        self._limits = [(limit, limit.prefix) for limit in dict.fromkeys(limits)]
        self._reached = reached
        self._carried = carried
        self._named = frozenset(name for limit in limits for name in limit.models)
        own = {limit.unit for limit in limits if limit.scope == "key" and not limit.models}
        self._added = {unit: field for unit, field in carried.items() if unit not in own}
        self._tokens = any(limit.unit == "tokens" for limit in limits)

    def count_tokens(self, call: Call) -> bool:
        """Whether some rule that is about tokens may concern a call."""
        return self._tokens or self._carried.get("tokens", "") in call.tenant.policy.get("limit", ())

    def demands(self, call: Call, model: Model | None, tokens: Tokens | None) -> list[Demand]:
        """What a call asks of each rule that concerns it."""
        policy = call.tenant.policy.get("limit") if self._carried else None
        name = self._reached.name(model, call, self._named)
        demands = []
        for limit, prefix in self._limits:
            value: float = limit.value
            if limit.models:
                if name not in limit.models and not _among(model, limit.models):
                    continue
            elif policy and limit.scope == "key":
                value = _number(policy, self._carried[limit.unit], value)
            demands.append(_demand(prefix, limit.scope, limit.unit, value, call, name, tokens))
        if policy:
            for unit, field in self._added.items():
                added = _number(policy, field, None)
                if added is not None:
                    demands.append(_demand(f"{unit[0]}:key::own:", "key", unit, added, call, name, tokens))
        return demands


def _demand(
    prefix: str, scope: Scope, unit: Unit, limit: float, call: Call, model: str, tokens: Tokens | None
) -> Demand:
    amount = 1.0
    if unit == "tokens" and tokens is not None:
        amount = float(tokens.total)
        if not tokens.asked and tokens.prompt <= limit:
            # The length of the answer is a guess of ours: it must not refuse the call for ever.
            amount = min(amount, limit)
    return Demand(prefix + subject(scope, call, model), limit, amount, unit, scope)


def _number(policy: Mapping[str, Any], field: str, default: Any) -> Any:
    value = policy.get(field)
    return default if value is None else value


def _among(model: Model | None, names: Sequence[str]) -> bool:
    return model is not None and any(alias in names for alias in model.aliases)
