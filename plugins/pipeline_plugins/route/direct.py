"""`route=direct`: the target that serves the operation under the model's name."""

from __future__ import annotations

from pipeline import Call, Edges, Model, Reply
from pipeline_plugins.route.targets import Routing, Targets


class Direct:
    """Passes each call to the target that serves its operation under the model's name.

    Where several do, one that has a model of that name comes before one that takes any
    name, one made for the operation before one that does many, and then the graph's order
    decides. Targets that are not ready come last.
    """

    class Config(Routing):
        """Nothing to choose but names."""

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, specialised_first=True)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by operation and model name. Raises `APIError` when no target can serve it."""
        targets = self.targets
        return await targets.send(call, targets.choices(call)[0])
