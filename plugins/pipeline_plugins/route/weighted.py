"""`route=weighted`: each target gets its share of the calls, by chance."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from pydantic import Field

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.targets import Routing, Target, Targets
from pipeline_plugins.route.unit import Weight, check_used, check_weights


class Weighted:
    """Spreads calls by weight over the targets that may serve them.

    Chance needs no memory: shares hold over many processes as over one. A target of weight
    0 gets only what no other can serve.
    """

    class Config(Routing):
        """The shares."""

        weights: dict[str, Weight] = Field(
            default_factory=dict, description="Each target's part of the calls; 1 where none is given."
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, "by weight")
        check_weights(config.weights, next)
        self._weights = {name: config.weights.get(name, 1.0) for name in next}

    async def open(self) -> None:
        """See that the weights leave a target for each operation. Raises `ConfigError`."""
        check_used(self._weights, self.targets.edges)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by chance. Raises `APIError` when no target can serve the call."""
        return await self.targets.send(call, self.pick(self.targets.choices(call)))

    def pick(self, choices: Sequence[Target]) -> Target:
        """One of these targets, each as likely as its weight says."""
        if len(choices) == 1:
            return choices[0]
        weights = self._weights
        left = random() * sum([weights[target.name] for target in choices])
        for target in choices:
            left -= weights[target.name]
            if left < 0:
                return target
        return choices[0]
