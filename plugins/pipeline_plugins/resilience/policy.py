"""What an operator may set: one policy for all targets, and what differs for some."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """A part of the policy."""

    model_config = ConfigDict(extra="forbid")


class Timeouts(Settings):
    """How long one attempt may take, always within the call's deadline."""

    first_token: Seconds | None = Field(120.0, description="Seconds until a stream's first chunk.")
    between_tokens: Seconds | None = Field(60.0, description="Seconds of silence within a stream.")
    total: Seconds | None = Field(None, description="Seconds for a whole answer; null is the deadline.")


class Retry(Settings):
    """Further attempts at the same target, before a byte has reached the client."""

    attempts: int = Field(3, ge=1, le=20, description="Attempts in all; 1 is no retry.")
    backoff: Seconds = Field(0.1, description="Upper bound of the first pause, doubled for each further one.")
    max_backoff: Seconds = Field(
        5.0, description="Upper bound of any pause; a longer `retry-after` is not waited for, but passed on."
    )
    budget: Share = Field(0.2, description="Retries as a share of calls, over time.")
    reserve: float = Field(10.0, ge=0, le=10_000, description="Retries that may come in one burst.")
    per_second: float = Field(1.0, ge=0, le=10_000, description="Retries for which no calls are needed.")


class BreakerSettings(Settings):
    """When to stop asking a target that fails, and how to find out that it is back."""

    enabled: bool = Field(True, description="Refuse calls to a target that keeps failing.")
    consecutive: int = Field(5, ge=1, le=10_000, description="Failures in a row that open it.")
    failure_rate: float = Field(0.5, gt=0, le=1, description="Share of failures that opens it,")
    min_calls: int = Field(20, ge=1, le=100_000, description="of at least so many calls")
    window: Seconds = Field(10.0, description="within so many seconds.")
    open_for: Seconds = Field(5.0, description="Seconds until it is half open.")
    probes: int = Field(1, ge=1, le=100, description="Calls let through half open; all must do well.")


class Hedge(Settings):
    """A second attempt for calls that are slower than most; the first to answer wins."""

    enabled: bool = Field(False, description="Hedge. It makes the target work twice for some calls.")
    percentile: float = Field(0.95, gt=0, lt=1, description="Of the time to first token: what is slow.")
    budget: Share = Field(0.05, description="Second attempts as a share of calls, over time.")
    reserve: float = Field(5.0, ge=1, le=10_000, description="Second attempts that may come in one burst.")
    min_calls: int = Field(20, ge=5, le=100, description="Calls to learn from first.")


class Concurrency(Settings):
    """How many calls a target gets at a time, found by watching its latency."""

    enabled: bool = Field(True, description="Refuse calls beyond the limit with 503.")
    min: int = Field(2, ge=1, le=100_000, description="The limit never falls below this.")
    max: int = Field(1000, ge=1, le=100_000, description="The limit never rises above this.")
    initial: int = Field(16, ge=1, le=100_000, description="The limit at the start.")
    tolerance: float = Field(1.5, ge=1, le=100, description="Slowdown taken for noise, not for a queue.")
    window: Seconds = Field(0.5, description="Seconds between two adjustments.")
    min_calls: int = Field(8, ge=1, le=10_000, description="Answers that an adjustment needs.")

    def contradiction(self, *, inherited: bool = False) -> str:
        """What of the bounds can't be kept, empty if all can; an inherited `initial` gives way."""
        if self.min > self.max:
            return f"`min` ({self.min}) is larger than `max` ({self.max})"
        told = "initial" in self.model_fields_set and not inherited
        if told and not self.min <= self.initial <= self.max:
            return f"`initial` ({self.initial}) is not within {self.min} (`min`) and {self.max} (`max`)"
        return ""


class OutlierSettings(Settings):
    """When routers should leave out a target that does worse than its peers."""

    enabled: bool = Field(True, description="Eject outliers: routers that know readiness avoid them.")
    consecutive: int = Field(3, ge=1, le=10_000, description="Failures in a row that eject it.")
    margin: float = Field(0.3, gt=0, le=1, description="Failure rate above its peers' mean that does.")
    min_calls: int = Field(20, ge=1, le=100_000, description="Calls in the window that a rate needs.")
    window: Seconds = Field(10.0, description="Seconds over which rates are taken.")
    eject_for: Seconds = Field(10.0, description="Seconds the first time, twice as many the next, …")
    max_eject_for: Seconds = Field(300.0, description="Seconds at most.")
    max_share: Share = Field(0.5, description="Share of peers that may be out at a time.")


class Policy(Settings):
    """How a target is treated."""

    timeouts: Timeouts = Field(Timeouts(), description="How long an attempt may take.")
    retry: Retry = Field(Retry(), description="Further attempts.")
    breaker: BreakerSettings = Field(BreakerSettings(), description="The circuit breaker.")
    hedge: Hedge = Field(Hedge(), description="Second attempts for slow calls.")
    concurrency: Concurrency = Field(Concurrency(), description="The adaptive limit.")


def merged(default: Policy, override: Policy) -> Policy:
    """The default policy with what an override sets explicitly."""
    changes = {}
    for name in override.model_fields_set:
        part: Settings = getattr(override, name)
        explicit = {field: getattr(part, field) for field in part.model_fields_set}
        changes[name] = getattr(default, name).model_copy(update=explicit)
    return Policy(**{name: changes.get(name, getattr(default, name)) for name in Policy.model_fields})
