"""`resilience=standard`: timeouts, retries, breakers, ejection, hedges and limits for every target."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from pipeline import hookimpl
from pipeline.hookspecs import Metric
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline_plugins.resilience.metrics import metrics_of
from pipeline_plugins.resilience.outliers import Member, introduce
from pipeline_plugins.resilience.policy import Concurrency, OutlierSettings, Policy, merged
from pipeline_plugins.resilience.target import Target

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline.stage import Layer, StageCall


class Standard:
    """Wraps every model's stage, so that each way to it has the same protection and state."""

    class Config(Policy):
        """The policy for all targets, and what differs for some."""

        outliers: OutlierSettings = Field(
            OutlierSettings(), description="Ejection of targets that do worse than others."
        )
        targets: dict[str, Policy] = Field(
            default_factory=dict, max_length=1024, description="What differs, by the target's name."
        )

        @field_validator("concurrency")
        @classmethod
        def _agrees(cls, value: Concurrency) -> Concurrency:
            if wrong := value.contradiction():
                raise ValueError(wrong)
            return value

        @model_validator(mode="after")
        def _targets_agree(self) -> Standard.Config:
            # Only here, where what a target does not set is known: by itself it may look wrong.
            for name, override in self.targets.items():
                said = override.concurrency.model_fields_set
                policy = merged(self, override).concurrency
                if wrong := policy.contradiction(inherited="initial" not in said):
                    raise ValueError(f"`targets.{name}.concurrency`: {wrong}")
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        self.targets: dict[str, Target] = {}

    async def open(self) -> None:
        """Refuse overrides for targets that there are not. Raises `ConfigError`."""
        unknown = [name for name in self.config.targets if name not in self.targets]
        if unknown:
            raise ConfigError(
                [
                    Problem(
                        f"targets.{name}", "the graph has no such target.", did_you_mean(name, self.targets)
                    )
                    for name in unknown
                ]
            )

    @hookimpl(trylast=True)
    def pipeline_layer(self, stage: str, plugin: str) -> Layer | None:
        """Wrap models; outside of other layers, which see each attempt."""
        if not plugin.startswith("infer."):
            return None
        override = self.config.targets.get(stage)
        policy = merged(self.config, override) if override is not None else self.config

        def layer(inner: StageCall) -> StageCall:
            outliers = self.config.outliers
            standing = Member(stage, outliers) if outliers.enabled else None
            self.targets[stage] = target = Target(stage, policy, standing, inner)
            return target

        return layer

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Learn which targets can stand in for each other."""
        standings = []
        for name, target in self.targets.items():
            if target.standing is not None:
                models: Any = getattr(graph.stages[name], "models", ())
                operations = frozenset(operation for model in models for operation in model.operations)
                standings.append((target.standing, operations))
        introduce(standings)

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """States and counts of each target."""
        return metrics_of(self.targets)
