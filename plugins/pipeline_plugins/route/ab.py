"""`route=ab`: an experiment, of which each target is a variant."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from pydantic import Field

from pipeline import Call, Edges, Model, Reply, hookimpl
from pipeline.hookspecs import Metric, Panel
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.experiment.guard import Guard
from pipeline_plugins.experiment.metric import Seen
from pipeline_plugins.experiment.shown import Shown
from pipeline_plugins.route.exposure import Variants, expose, when_over
from pipeline_plugins.route.targets import Target, Targets, check_names
from pipeline_plugins.route.unit import ByUnit, check_used, check_weights, digest, rendezvous, unit_of

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.experiment.watch import Guards

log = structlog.get_logger("pipeline.route")


class AB:
    """Gives each session, user or key one variant for good, and notes that it was exposed to it.

    A call takes part only where every variant could serve it: one that names a model, or
    needs what not all can do, would make the groups unlike. So would an outage; while a
    variant is not ready, calls go to the others, and nobody is counted. Targets without a
    model for a call's operation are no variants of it.

    Guards are watched in each process by the calls that it serves. With `stop`, a guard that is
    broken ends the experiment in this process: all calls go to the control, and none is counted.
    """

    class Config(ByUnit):
        """The experiment, its units, each variant's part of them, and what no variant may be."""

        experiment: str = Field(
            "ab",
            pattern=r"^[A-Za-z0-9_.-]{1,64}$",
            description="Its name, by which results are told apart; assignments are unlike those of others.",
        )
        salt: str = Field(
            "", max_length=256, description="Another one assigns anew, for a second run of the experiment."
        )
        control: str | None = Field(
            None, description="The target that others are compared with; the first of the graph's without."
        )
        guards: list[Guard] = Field(
            default_factory=list,
            max_length=8,
            description="How much worse than the control others may be: `{metric: failed, worse_by: 0.05}`.",
        )
        stop: bool = Field(False, description="Send all calls to the control once a guard is broken.")
        alpha: float = Field(
            0.05,
            gt=0,
            le=0.5,
            description="How often a guard may be found broken that is not, over all looks at all guards.",
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, config.experiment)
        check_weights(config.weights, next)
        check_guards(config, next)
        self.config = config
        self.stopped = False
        self._salt = f"{config.experiment}:{config.salt}"
        self._variants = Variants(next, config.weights, config.control)
        self._guards: Guards | None = None
        self._shown = Shown(config.experiment, config, self.targets.names)
        if config.guards:
            try:
                from pipeline_plugins.experiment.watch import Guards
            except ImportError:
                raise ImportError("guards need numpy: pip install 'llm-pipeline[route]'") from None
            self._guards = Guards(config.guards, len(next) - 1, config.alpha)

    async def open(self) -> None:
        """See that the weights leave a variant for each operation. Raises `ConfigError`."""
        check_used(self.config.weights, self.targets.edges)

    async def close(self) -> None:
        """Let the ledger go, if it is being read."""
        await self._shown.close()

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by assignment. Raises `APIError` when no target can serve the call."""
        config = self.config
        choices = self.targets.choices(call)
        wanted = self._variants.of(call.operation)
        variants = [target for target in choices if target.name in wanted]
        taking_part = bool(wanted) and len(variants) == len(wanted)
        if self.stopped and variants:
            return await self._to_control(call, variants)
        unit = unit_of(call, config)
        target = rendezvous(unit, variants or choices, config.weights, self._salt)
        if not taking_part:
            routed = Routed(target.name, f"not in {config.experiment}: not every variant can serve it now")
            return await self.targets.send(call, target, routed)
        exposed = expose(call, config.experiment, target.name)
        exposed.units[config.experiment] = digest(unit, self._salt)
        return await self.targets.send(call, target)

    @hookimpl
    def pipeline_call_ended(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Watch the guards by how calls that took part came out."""
        if self._guards is not None and not self.stopped:
            when_over(self.config.experiment, call, reply, error, self._observe)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Find the ledger, from which a dashboard is told how the experiment stands."""
        self._shown.find(graph)

    @hookimpl
    def pipeline_panels(self) -> Iterable[Awaitable[Panel]]:
        """How the experiment stands, by the calls of all processes that the ledger has."""
        return map(self._told, self._shown.panels())

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """Which guards are broken, and whether the experiment was stopped."""
        if self._guards is None:
            return
        name = self.config.experiment
        yield Metric(
            "pipeline_experiment_guard_broken",
            "1 where a variant of an experiment is worse than the control by more than its guard allows.",
            "gauge",
            {(name, one.variant, one.metric): 1.0 for one in self._guards.broken.values()},
            ("experiment", "variant", "metric"),
            across="max",
        )
        yield Metric(
            "pipeline_experiment_stopped",
            "Processes in which an experiment was stopped by a guard.",
            "gauge",
            {(name,): float(self.stopped)},
            ("experiment",),
        )

    async def _told(self, shown: Awaitable[Panel]) -> Panel:
        panel = await shown
        if not self.stopped:
            return panel
        stopped = "This process has stopped the experiment: all calls go to the control."
        return replace(panel, alert=f"{stopped} {panel.alert}".strip())

    def _to_control(self, call: Call, variants: list[Target]) -> Awaitable[Reply]:
        """Send a call where all go after a stop: to the control, or what stands for it while it is away."""
        config = self.config
        control = self._variants.control(call.operation)
        target = next((one for one in variants if one.name == control), variants[0])
        return self.targets.send(call, target, Routed(target.name, f"{config.experiment} was stopped"))

    def _observe(self, call: Call, exposed: Exposed, seen: Seen) -> None:
        if self._guards is None:
            return
        name, control = self.config.experiment, self._variants.control(call.operation)
        for broken in self._guards.observe(exposed.variants[name], control, exposed.units[name], seen):
            self.stopped = self.stopped or self.config.stop
            log.warning(
                "an experiment's guard is broken",
                experiment=name,
                variant=broken.variant,
                control=control,
                metric=broken.metric,
                worse_by=f"{broken.low:.4g} to {broken.high:.4g}",
                stopped=self.stopped,
            )


def check_guards(config: AB.Config, targets: Edges) -> None:
    """Refuse a control that there is not, a guard given twice, and a stop by no guard.

    Raises `ConfigError`.
    """
    if config.control is not None:
        check_names("control", {config.control: None}, targets)
    metrics = [guard.metric for guard in config.guards]
    if twice := {metric for metric in metrics if metrics.count(metric) > 1}:
        raise ConfigError([Problem("guards", f"`{min(twice)}` is guarded twice.", "Leave one of them out.")])
    if config.stop and not config.guards:
        hint = "Say by what: `guards=[{metric: failed, worse_by: 0.05}]`."
        raise ConfigError([Problem("stop", "no guard can stop the experiment.", hint)])
