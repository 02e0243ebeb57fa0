"""The experiments that a configuration has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_plugins.experiment.status import Design

if TYPE_CHECKING:
    from pipeline_plugins.route.ab import AB
    from pipeline_plugins.route.bandit import Bandit


def designs(overrides: tuple[str, ...], config: Path | None) -> dict[str, Design]:
    """By name, what the stages of `route=ab` and `route=bandit` say of their experiments."""
    from pipeline.config import compose
    from pipeline_plugins.route.ab import AB
    from pipeline_plugins.route.bandit import Bandit

    plan, _ = compose(overrides, config=config).plan()
    return {
        given.experiment: design_of(
            given, [key.removeprefix("next.") for key, _ in plan.topology.nodes[name].targets()]
        )
        for name, part in plan.parts.items()
        if isinstance(given := part.config, AB.Config | Bandit.Config)
    }


def design_of(given: AB.Config | Bandit.Config, targets: Iterable[str]) -> Design:
    """What a stage with these targets says of its experiment; a bandit has no weights and no guards."""
    guards: dict[str, float] = {guard.metric: guard.worse_by for guard in getattr(given, "guards", ())}
    return Design(tuple(targets), given.control, getattr(given, "weights", {}), guards)
