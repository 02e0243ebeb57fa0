"""`route=ab`: an experiment, of which each target is a variant."""

from __future__ import annotations

from pydantic import Field

from pipeline import Call, Edges, Model, Reply
from pipeline.kinds import Exposed, Routed
from pipeline_plugins.route.targets import Targets
from pipeline_plugins.route.unit import (
    ByUnit,
    check_used,
    check_weights,
    rendezvous,
    serving_names,
    unit_of,
)

HEADER = "x-pipeline-experiment"


class AB:
    """Gives each session, user or key one variant for good, and notes that it was exposed to it.

    A call takes part only where every variant could serve it: one that names a model, or
    needs what not all can do, would make the groups unlike. So would an outage; while a
    variant is not ready, calls go to the others, and nobody is counted. Targets without a
    model for a call's operation are no variants of it.
    """

    class Config(ByUnit):
        """The experiment, its units, and each variant's part of them."""

        experiment: str = Field(
            "ab",
            pattern=r"^[A-Za-z0-9_.-]{1,64}$",
            description="Its name, by which results are told apart; assignments are unlike those of others.",
        )
        salt: str = Field(
            "", max_length=256, description="Another one assigns anew, for a second run of the experiment."
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, config.experiment)
        check_weights(config.weights, next)
        self.config = config
        self._salt = f"{config.experiment}:{config.salt}"
        self._variants: dict[str, frozenset[str]] = {}

    async def open(self) -> None:
        """See that the weights leave a variant for each operation. Raises `ConfigError`."""
        check_used(self.config.weights, self.targets.edges)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by assignment. Raises `APIError` when no target can serve the call."""
        config = self.config
        choices = self.targets.choices(call)
        wanted = self._variants_for(call.operation)
        variants = [target for target in choices if target.name in wanted]
        taking_part = bool(wanted) and len(variants) == len(wanted)
        target = rendezvous(unit_of(call, config), variants or choices, config.weights, self._salt)
        if not taking_part:
            routed = Routed(target.name, f"not in {config.experiment}: not every variant can serve it now")
            return await self.targets.send(call, target, routed)
        exposed = call.record.decision(Exposed)
        if exposed is None:
            call.record.decide(exposed := Exposed())
        exposed.variants[config.experiment] = target.name
        call.record.headers[HEADER] = ", ".join(
            f"{name}={variant}" for name, variant in exposed.variants.items()
        )
        return await self.targets.send(call, target)

    def _variants_for(self, operation: str) -> frozenset[str]:
        """The targets with a weight that have a model for the operation; none where only one target has."""
        variants = self._variants.get(operation)
        if variants is None:
            weights = self.config.weights
            serving = serving_names(self.targets.edges, operation)
            weighty = [name for name in serving if weights.get(name, 1.0) > 0]
            variants = frozenset(weighty if len(serving) > 1 else ())
            self._variants[operation] = variants
        return variants
