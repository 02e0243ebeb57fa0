"""`route=least_busy`: the target with the fewest calls under way."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.load import Load
from pipeline_plugins.route.targets import Routing, Target, Targets


class LeastBusy:
    """Passes each call to the target that has the fewest calls of this process under way.

    A stream is under way until its last byte. Among equals, the one whose last call is
    longest ago.
    """

    class Config(Routing):
        """Nothing to choose but names."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, "least busy")
        self.loads = {name: Load() for name in next}
        self._turns = count(1)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route to the least busy. Raises `APIError` when no target can serve the call."""
        target = self.pick(self.targets.choices(call))
        return await self.loads[target.name].carry(self.targets, target, call)

    def pick(self, choices: Sequence[Target]) -> Target:
        """The least busy of these targets."""
        best, load = choices[0], self.loads[choices[0].name]
        for target in choices[1:]:
            other = self.loads[target.name]
            if (other.in_flight, other.turn) < (load.in_flight, load.turn):
                best, load = target, other
        load.turn = next(self._turns)
        return best
