"""The experiments that a configuration has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_plugins.experiment.status import Design

if TYPE_CHECKING:
    from pipeline_plugins.route.ab import AB


def designs(overrides: tuple[str, ...], config: Path | None) -> dict[str, Design]:
    """By name, what the stages of `route=ab` say of their experiments."""
    from pipeline.config import compose
    from pipeline_plugins.route.ab import AB

    plan, _ = compose(overrides, config=config).plan()
    return {
        given.experiment: design_of(
            given, [key.removeprefix("next.") for key, _ in plan.topology.nodes[name].targets()]
        )
        for name, part in plan.parts.items()
        if isinstance(given := part.config, AB.Config)
    }


def design_of(given: AB.Config, targets: Iterable[str]) -> Design:
    """What a stage of `route=ab` with these targets says of its experiment."""
    guards: dict[str, float] = {guard.metric: guard.worse_by for guard in given.guards}
    return Design(tuple(targets), given.control, given.weights, guards)
