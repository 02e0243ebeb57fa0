"""`route=direct`: the target that serves the operation under the model's name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pipeline import DEFAULT_NAMES, Call, Edges, Reply
from pipeline.errors import ModelNotFound
from pipeline.kinds import Routed

CHOICES_KEPT = 1024
"""Names whose target is remembered; clients can send any number of them."""


class Direct:
    """Passes each call to the target that serves its operation under the model's name.

    Where several do, one that has a model of that name comes before one that takes any
    name, one made for the operation before one that does many, and then the graph's order
    decides.
    """

    class Config(BaseModel):
        """Nothing to choose."""

        model_config = ConfigDict(extra="forbid")

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = next
        self._chosen: dict[tuple[str, str, frozenset[str] | None], str | None] = {}

    async def __call__(self, call: Call) -> Reply:
        """Route by operation and model name. Raises `ModelNotFound` when no target fits."""
        name = self._choose(call)
        if name is None:
            raise unknown_model(call, self.targets)
        call.record.decide(Routed(name))
        call.record.headers["x-pipeline-route"] = name
        return await self.targets[name](call)

    def _choose(self, call: Call) -> str | None:
        asked = (call.operation, call.model, call.tenant.models)
        if asked in self._chosen:
            return self._chosen[asked]
        fitting = [
            (served.id is None and call.model not in DEFAULT_NAMES, len(served.operations), name)
            for name, edge in self.targets.items()
            for served in edge.models
            if served.offered(call)
        ]
        found = min(fitting, key=lambda fit: fit[:2])[2] if fitting else None
        if len(self._chosen) < CHOICES_KEPT:
            self._chosen[asked] = found
        return found


def unknown_model(call: Call, targets: Edges) -> ModelNotFound:
    """The error for a call that no target serves, naming the models that would do."""
    models = dict.fromkeys(model for edge in targets.values() for model in edge.models)
    fitting = [model.id for model in models if model.id and call.operation in model.operations]
    elsewhere = [model for model in models if model.id == call.model or call.model in model.aliases]
    if not fitting:
        message = f"No model of this deployment does `{call.operation}`."
    elif elsewhere:
        message = f"The model `{call.model}` does not do `{call.operation}`; these do: {', '.join(fitting)}."
    else:
        message = f"The model `{call.model}` does not exist. Available: {', '.join(fitting)}."
    return ModelNotFound(message, param="model")
