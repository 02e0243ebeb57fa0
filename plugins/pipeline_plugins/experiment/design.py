"""The experiments that a configuration has."""

from __future__ import annotations

from pathlib import Path

from pipeline_plugins.experiment.status import Design


def designs(overrides: tuple[str, ...], config: Path | None) -> dict[str, Design]:
    """By name, what the stages of `route=ab` say of their experiments."""
    from pipeline.config import compose
    from pipeline_plugins.route.ab import AB

    plan, _ = compose(overrides, config=config).plan()
    return {
        given.experiment: Design(
            tuple(key.removeprefix("next.") for key, _ in plan.topology.nodes[name].targets()),
            given.control,
            given.weights,
            {guard.metric: guard.worse_by for guard in given.guards},
        )
        for name, part in plan.parts.items()
        if isinstance(given := part.config, AB.Config)
    }
