"""`route=ab`: an experiment, of which each target is a variant."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import structlog
from pydantic import Field

from pipeline import Call, Edges, End, Model, Reply, hookimpl
from pipeline.hookspecs import Metric, Panel
from pipeline.kinds import Exposed, Routed, Validated
from pipeline.price import Spent
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.experiment.guard import Guard
from pipeline_plugins.experiment.metric import Seen
from pipeline_plugins.outcome import of_end, told
from pipeline_plugins.route.targets import Target, Targets, check_names
from pipeline_plugins.route.unit import (
    ByUnit,
    check_used,
    check_weights,
    digest,
    rendezvous,
    serving_names,
    unit_of,
)

if TYPE_CHECKING:
    from pipeline.graph import Graph
    from pipeline_plugins.experiment.standing import Standing
    from pipeline_plugins.experiment.watch import Guards
    from pipeline_plugins.ledger.extension import LedgerConfig

HEADER = "x-pipeline-experiment"

LEDGERS = "ledger."
"""Extensions of this kind have the calls by which variants are compared."""

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
        self._variants: dict[str, frozenset[str]] = {}
        self._guards: Guards | None = None
        self._kept: LedgerConfig | None = None
        self._standing: Standing | None = None
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
        if self._standing is not None:
            await self._standing.close()

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
        if self.stopped and variants:
            return await self._to_control(call, variants)
        unit = unit_of(call, config)
        target = rendezvous(unit, variants or choices, config.weights, self._salt)
        if not taking_part:
            routed = Routed(target.name, f"not in {config.experiment}: not every variant can serve it now")
            return await self.targets.send(call, target, routed)
        exposed = call.record.decision(Exposed)
        if exposed is None:
            call.record.decide(exposed := Exposed())
        exposed.variants[config.experiment] = target.name
        exposed.units[config.experiment] = digest(unit, self._salt)
        call.record.headers[HEADER] = ", ".join(
            f"{name}={variant}" for name, variant in exposed.variants.items()
        )
        return await self.targets.send(call, target)

    @hookimpl
    def pipeline_call_ended(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Watch the guards by how calls that took part came out."""
        if self._guards is None or self.stopped:
            return
        exposed = call.record.decision(Exposed)
        if exposed is None or self.config.experiment not in exposed.variants:
            return
        if reply is None:
            if error is not None:
                self._observe(call, told(error, call)[0], perf_counter())
            return
        status = reply.status
        reply.on_end(lambda end: self._observe(call, of_end(end, status, call)[0], end.ended, end))

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Find the ledger, from which a dashboard is told how the experiment stands."""
        if not any(part.plugin.startswith(LEDGERS) for part in graph.plan.extensions):
            return
        from pipeline_plugins.ledger.extension import LedgerConfig

        kept = (part.config for part in graph.plan.extensions if isinstance(part.config, LedgerConfig))
        self._kept = next(kept, None)

    @hookimpl
    def pipeline_panels(self) -> Iterable[Awaitable[Panel]]:
        """How the experiment stands, by the calls of all processes that the ledger has."""
        if self._kept is None:
            return ()
        if self._standing is None:
            try:
                from pipeline_plugins.experiment.design import design_of
                from pipeline_plugins.experiment.standing import Standing
            except ImportError:
                return ()  # without numpy nothing can be compared
            design = design_of(self.config, self.targets.names)
            self._standing = Standing(self._kept, self.config.experiment, design)
        return (self._panel(self._standing),)

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

    async def _panel(self, standing: Standing) -> Panel:
        panel = await standing.panel()
        if not self.stopped:
            return panel
        stopped = "This process has stopped the experiment: all calls go to the control."
        return replace(panel, alert=f"{stopped} {panel.alert}".strip())

    def _to_control(self, call: Call, variants: list[Target]) -> Awaitable[Reply]:
        """Send a call where all go after a stop: to the control, or what stands for it while it is away."""
        config = self.config
        control = self._control_for(call.operation)
        target = next((one for one in variants if one.name == control), variants[0])
        return self.targets.send(call, target, Routed(target.name, f"{config.experiment} was stopped"))

    def _observe(self, call: Call, outcome: str, ended: float, end: End | None = None) -> None:
        exposed = call.record.decision(Exposed)
        if self._guards is None or exposed is None:
            return
        name = self.config.experiment
        valid, spent = call.record.decision(Validated), call.record.decision(Spent)
        first = end.first_chunk if end is not None else None
        usage = end.usage if end is not None else None
        seen = Seen(
            outcome,
            (ended - call.received) * 1000,
            (first - call.received) * 1000 if first is not None else None,
            valid.passed if valid is not None else None,
            spent.usd if spent is not None else None,
            usage.completion_tokens if usage is not None else None,
        )
        control = self._control_for(call.operation)
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

    def _control_for(self, operation: str) -> str:
        """The variant that an operation's others are compared with."""
        variants, control = self._variants_for(operation), self.config.control
        if control in variants:
            return str(control)
        return next(name for name in self.targets.names if name in variants)

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
