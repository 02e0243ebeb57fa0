"""What a model's work costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.wire.usage import Usage

if TYPE_CHECKING:
    from pipeline.call import Record

MILLION = 1_000_000


@dataclass(slots=True, frozen=True)
class Price:
    """USD per million tokens, and per second that a model works on a call.

    `cached` is for the part of the prompt that was read from the model's own cache; None
    charges it like the rest of the prompt.
    """

    prompt: float = 0.0
    completion: float = 0.0
    cached: float | None = None
    second: float = 0.0

    def cost(self, usage: Usage, seconds: float = 0.0) -> float:
        """USD of a call that used these tokens and took these seconds."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        rate = self.prompt if self.cached is None else self.cached
        tokens = (
            (usage.prompt_tokens - cached) * self.prompt
            + cached * rate
            + usage.completion_tokens * self.completion
        )
        return tokens / MILLION + seconds * self.second


@dataclass(slots=True, frozen=True)
class Charge:
    """The cost of one attempt: which stage and model, how much, and whether it is estimated.

    `estimated` where the model did not say what it used: a stream that was cut off, an
    upstream without usage. `aside` where a stage asked on the client's way, as for a judge's verdict.
    """

    stage: str
    model: str
    usage: Usage
    usd: float
    estimated: bool = False
    aside: bool = False


def charge(record: Record, made: Charge) -> Record:
    """Note a charge in a call's record, and in those of the calls on whose way it was made.

    Returns the last of them, the client's.
    """
    while True:
        record.growing(Spent).charges.append(made)
        if record.helps is None:
            return record
        record = record.helps


@dataclass(slots=True)
class Spent:
    """What a call has cost, attempt by attempt: a decision in its record, added to in place.

    `saved` is USD that the call would have cost without a cache's hit or a router's choice,
    by what saved it.
    """

    charges: list[Charge] = field(default_factory=list)
    saved: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The model that was charged last for the call itself, None without one."""
        return next((charge.model for charge in reversed(self.charges) if not charge.aside), None)

    @property
    def usd(self) -> float:
        """The sum of the charges."""
        return sum(charge.usd for charge in self.charges)
