"""`route=sticky`: calls of one session, user or key go to one target."""

from __future__ import annotations

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.targets import Targets
from pipeline_plugins.route.unit import ByUnit, check_used, check_weights, rendezvous, unit_of


class Sticky:
    """Keeps a session, user or key on one target, whose cache then knows its prompts.

    Nothing is stored: the target follows from the unit and the targets' names, in every
    process alike. While a target is not ready its units go to others, and then come back.
    """

    class Config(ByUnit):
        """What stays together, and each target's part."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, "sticky")
        check_weights(config.weights, next)
        self.config = config

    async def open(self) -> None:
        """See that the weights leave a target for each operation. Raises `ConfigError`."""
        check_used(self.config.weights, self.targets.edges)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by the call's unit. Raises `APIError` when no target can serve it."""
        choices = self.targets.choices(call)
        if len(choices) == 1:
            return await self.targets.send(call, choices[0])
        target = rendezvous(unit_of(call, self.config), choices, self.config.weights)
        return await self.targets.send(call, target)
