"""`route=latency`: the faster of two targets taken at random."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from pydantic import Field

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.pace import Pace
from pipeline_plugins.route.targets import Routing, Target, Targets
from pipeline_plugins.tokens import answer_tokens


class Latency:
    """Takes two of the targets by chance, and sends the call to the one expected to be done first.

    What a target is expected to take follows from decaying estimates of its time to the first
    token and per token, times the calls that it has under way. Two by chance, and not the
    best of all, so that not everybody runs to the same one at the same time (the power of
    two choices: Mitzenmacher 2001). A share of the calls explores: estimates that fade with
    time alone would send every other call to the slow target where calls are rare.
    """

    class Config(Routing):
        """How fast it forgets, and how much it explores."""

        decay: float = Field(
            10.0, gt=0, le=86_400, description="Seconds in which an earlier peak loses 63 % of its weight."
        )
        explore: float = Field(
            0.02,
            ge=0,
            le=1,
            description="Share of calls that go to any target, to see whether it got faster.",
        )
        answer_tokens: int = Field(
            200, ge=0, le=10_000_000, description="Tokens that an answer is taken to have, at most."
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.config = config
        self.targets = Targets(next, config, "fastest of two")
        self.paces = {name: Pace(config.decay) for name in next}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route to the faster of two. Raises `APIError` when no target can serve the call."""
        choices = self.targets.choices(call)
        target = choices[0] if len(choices) == 1 else self.pick(choices, call)
        return await self.paces[target.name].carry(self.targets, target, call)

    def pick(self, choices: Sequence[Target], call: Call) -> Target:
        """The faster of two of these targets, or now and then any."""
        count = len(choices)
        first = int(random() * count)
        if random() < self.config.explore:
            return choices[first]
        second = int(random() * (count - 1))
        if second >= first:
            second += 1
        one, two = choices[first], choices[second]
        tokens = answer_tokens(call, self.config.answer_tokens)
        pace, other = self.paces[one.name], self.paces[two.name]
        seconds, others = pace.expected(tokens), other.expected(tokens)
        if others < seconds or (others == seconds and other.in_flight < pace.in_flight):
            return two
        return one
