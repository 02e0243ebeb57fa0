"""`route=round_robin`: targets in turn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.targets import Routing, Target, Targets


class RoundRobin:
    """Passes each call to the target whose last turn is longest ago, of those that may serve it.

    With the same targets for every call this is plain round robin; where calls differ in
    the targets that they may go to, everyone still gets a turn.
    """

    class Config(Routing):
        """Nothing to choose but names."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, "in turn")
        self._turns = count(1)
        self._last = dict.fromkeys(next, 0)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route to the next in turn. Raises `APIError` when no target can serve the call."""
        return await self.targets.send(call, self.pick(self.targets.choices(call)))

    def pick(self, choices: Sequence[Target]) -> Target:
        """The one that waited longest, whose turn this is."""
        last = self._last
        chosen = min(choices, key=lambda target: last[target.name])
        last[chosen.name] = next(self._turns)
        return chosen
