"""`route=bandit`: an experiment in which most calls soon go to the variant that does best."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from random import random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipeline import Call, Edges, Model, Reply, hookimpl
from pipeline.hookspecs import Metric, Panel
from pipeline.kinds import Exposed, Routed
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.experiment.metric import METRICS, Seen
from pipeline_plugins.experiment.shown import Shown
from pipeline_plugins.route.exposure import Variants, expose, when_over
from pipeline_plugins.route.targets import Routing, Target, Targets, check_names

if TYPE_CHECKING:
    from pipeline.graph import Graph


class Bandit:
    """Gives each call a variant by the chance that it is the best (Thompson sampling).

    Calls are worth 0 to 1: 1 where nothing of `metric` was seen, 0 where the call failed, was one too
    many (429) or reached `worst`; other refusals say nothing. The probability with which a call got its
    variant is noted with it (`Exposed`), and never below `explore` divided by the number of variants:
    results can be weighted by it, and stay unbiased though the shares move. A call that comes back for a
    retry stays with its variant. Each process learns from the calls that it serves.

    As with `route=ab` a call takes part only where every variant could serve it.
    """

    class Config(Routing):
        """The experiment, and what makes a call a good one."""

        experiment: str = Field(
            "bandit",
            pattern=r"^[A-Za-z0-9_.-]{1,64}$",
            description="Its name, by which results are told apart.",
        )
        control: str | None = Field(
            None, description="The target that others are compared with; the first of the graph's without."
        )
        metric: Literal["failed", "invalid", "latency_s", "ttft_s", "cost_usd", "completion_tokens"] = Field(
            "failed", description="What is kept low; a call that failed is the worst in each of them."
        )
        worst: float | None = Field(
            None,
            gt=0,
            allow_inf_nan=False,
            description="Value of `metric` at which a call is worth nothing, in its own unit; what is less "
            "is worth more in proportion. Not for `failed` and `invalid`, which are yes or no.",
        )
        explore: float = Field(
            0.1, gt=0, le=1, description="Share of calls that get any variant, each as likely as the others."
        )
        memory: int = Field(
            10_000,
            ge=100,
            le=10**9,
            description="Calls of a variant that are remembered; what is longer ago fades, so that a variant "
            "which changes is noticed.",
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.targets = Targets(next, config, config.experiment)
        self.config = config
        if config.control is not None:
            check_names("control", {config.control: None}, next)
        share = METRICS[config.metric].share
        if share == (config.worst is not None):
            message = "a share has no worst value." if share else f"`{config.metric}` needs one."
            hint = "Leave it out." if share else "Say which value is worth nothing: `route.worst=10`."
            raise ConfigError([Problem("worst", message, hint)])
        try:
            from pipeline_plugins.experiment.thompson import Thompson
        except ImportError:
            raise ImportError("a bandit needs numpy: pip install 'llm-pipeline[route]'") from None
        self._worst = config.worst or 1.0
        self._variants = Variants(next, {}, config.control)
        self._thompson = Thompson(config.explore, config.memory)
        self._shown = Shown(config.experiment, config, next)

    async def close(self) -> None:
        """Let the ledger go, if it is being read."""
        await self._shown.close()

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def __call__(self, call: Call) -> Reply:
        """Route by chance. Raises `APIError` when no target can serve the call."""
        name = self.config.experiment
        choices = self.targets.choices(call)
        wanted = self._variants.of(call.operation)
        variants = [target for target in choices if target.name in wanted]
        if (again := self._again(call, variants)) is not None:
            return await self.targets.send(call, again)
        target, probability = self._pick(variants or choices)
        if not wanted or len(variants) != len(wanted):
            routed = Routed(target.name, f"not in {name}: not every variant can serve it now")
            return await self.targets.send(call, target, routed)
        exposed = expose(call, name, target.name)
        exposed.probabilities[name] = probability
        return await self.targets.send(call, target)

    @hookimpl
    def pipeline_call_ended(self, call: Call, reply: Reply | None, error: BaseException | None) -> None:
        """Learn from calls that took part."""
        when_over(self.config.experiment, call, reply, error, self._learn)

    @hookimpl
    def pipeline_opened(self, graph: Graph) -> None:
        """Find the ledger, from which a dashboard is told how the experiment stands."""
        self._shown.find(graph)

    @hookimpl
    def pipeline_panels(self) -> Iterable[Awaitable[Panel]]:
        """How the experiment stands, by the calls of all processes that the ledger has."""
        return self._shown.panels()

    @hookimpl
    def pipeline_metrics(self) -> Iterable[Metric]:
        """How likely each variant is to get the next call."""
        name = self.config.experiment
        probabilities = self._thompson.latest
        yield Metric(
            "pipeline_experiment_probability",
            "Chance of a variant to get the next call; of several processes the highest.",
            "gauge",
            {(name, variant): chance for variant, chance in probabilities.items()},
            ("experiment", "variant"),
            across="max",
        )

    def _again(self, call: Call, variants: Sequence[Target]) -> Target | None:
        """The variant of a call that comes back, for a retry: how it comes out is that one's doing."""
        exposed = call.record.decision(Exposed)
        given = exposed.variants.get(self.config.experiment) if exposed is not None else None
        return next((target for target in variants if target.name == given), None)

    def _pick(self, targets: Sequence[Target]) -> tuple[Target, float]:
        """One of these targets, and how likely it was."""
        if len(targets) == 1:
            return targets[0], 1.0
        chances = self._thompson.chances(tuple(target.name for target in targets))
        left = random()
        for target, chance in zip(targets, chances, strict=True):
            left -= chance
            if left < 0:
                return target, chance
        return targets[-1], chances[-1]

    def _learn(self, _: Call, exposed: Exposed, seen: Seen) -> None:
        worth = self.worth(seen)
        if worth is not None:
            self._thompson.learn(exposed.variants[self.config.experiment], worth)

    def worth(self, seen: Seen) -> float | None:
        """What a call was worth, 0 to 1; None where that is not known."""
        if seen.outcome == "failed" or seen.limited:
            return 0.0
        if seen.outcome != "completed":
            return (
                None  # the request's own fault, or a client that left: neither says what a variant is worth
            )
        value = METRICS[self.config.metric].of(seen)
        return None if value is None else 1 - min(max(value / self._worst, 0.0), 1.0)
