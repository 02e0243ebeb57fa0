"""`route=ab`: an experiment, of which each target is a variant."""

from __future__ import annotations

from pydantic import Field

from pipeline import Call, Edges, Model, Reply
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.route.targets import Targets, check_names
from pipeline_plugins.route.unit import ByUnit, rendezvous, unit_of

HEADER = "x-pipeline-experiment"


class AB:
    """Gives each session, user or key one variant for good, and notes that it was exposed to it.

    A call takes part only where every variant could serve it: one that names a model, or
    needs what not all can do, would make the groups unlike. So would an outage; while a
    variant is not ready, calls go to the others, and nobody is counted.
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
        check_names("weights", config.weights, next)
        self.config = config
        self._salt = f"{config.experiment}:{config.salt}"
        self._variants = frozenset(name for name in next if config.weights.get(name, 1.0) > 0)
        if not self._variants:
            raise ConfigError([Problem("weights", "they are all 0: no variant would be used.")])

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by assignment. Raises `APIError` when no target can serve the call."""
        config = self.config
        choices = self.targets.choices(call)
        variants = [target for target in choices if target.name in self._variants]
        taking_part = len(variants) == len(self._variants)
        target = rendezvous(unit_of(call, config), variants or choices, config.weights, self._salt)
        if not taking_part:
            routed = Routed(target.name, f"not in {config.experiment}: only some variants can serve it now")
            return await self.targets.send(call, target, routed)
        exposed = call.record.decision(Exposed)
        if exposed is None:
            call.record.decide(exposed := Exposed())
        exposed.variants[config.experiment] = target.name
        call.record.headers[HEADER] = ", ".join(
            f"{name}={variant}" for name, variant in exposed.variants.items()
        )
        return await self.targets.send(call, target)
