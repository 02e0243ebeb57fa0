"""`route=capable`: the cheapest target that is expected to be good enough."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline import DEFAULT_NAMES, Call, Edge, Edges, Model, Reply
from pipeline.kinds import Routed
from pipeline.problems import ConfigError, Problem, did_you_mean
from pipeline_plugins.route.targets import Routing, Target, Targets

if TYPE_CHECKING:
    from pipeline_plugins.route.capable_estimator import Estimator

INLINE_CHARACTERS = 4000
"""A longer prompt is read in a thread: it takes longer than the event loop should wait."""

QUALITY = 0.95
"""The share of the strongest target's quality that is kept where the operator sets no aim."""

JUDGED = frozenset({"chat", "completion"})
"""Operations whose answers have a quality to be estimated; others go to the first target for them."""


class Capable:
    """Sends each call to the target with the best estimated quality for its price.

    A call that names a model gets it. For `default` and `auto`, a learned estimator says
    how well each target would answer the prompt; of the targets that may serve the call,
    the one with the largest estimate less `rate * cost` is taken. The rate is set when the
    graph opens, on rows that the estimator was not fitted on, so that `quality` (or
    `cost_ceiling`) holds there at the least cost (or best quality).
    """

    class Config(Routing):
        """A trained estimator and one number to trade quality against cost."""

        model: Path = Field(
            description="Folder of a trained estimator: `pipeline route train DATA --out DIR`."
        )
        quality: float | None = Field(
            None,
            ge=0,
            le=1,
            description="Share of the strongest target's expected quality to keep; null is 0.95 "
            "unless `cost_ceiling` is set.",
        )
        cost_ceiling: float | None = Field(
            None,
            gt=0,
            description="Most that a call may cost on average, in the unit of `costs`; instead of `quality`.",
        )
        costs: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
            {},
            description="Cost of each target. Left out: the mean of its prices, in USD per million tokens.",
        )
        trained_as: dict[str, str] = Field(
            {}, description="The estimator's name for a target, where it differs from the edge's."
        )

        @model_validator(mode="after")
        def _one_aim(self) -> Self:
            if self.cost_ceiling is not None and self.quality is not None:
                raise ValueError("set `quality` or `cost_ceiling`, not both")
            return self

    def __init__(self, config: Config, next: Edges) -> None:
        self.config = config
        self.edges = next
        self.targets = Targets(next, config, specialised_first=True)
        self.rate = 0.0
        self._estimator: Estimator | None = None
        self._columns: dict[str, int] = {}
        self._costs: dict[str, float] = {}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def open(self) -> None:
        """Load the estimator and set the rate. Raises `ConfigError`."""
        await asyncio.get_running_loop().run_in_executor(None, self._prepare)

    def _prepare(self) -> None:
        try:
            import numpy as np

            from pipeline_plugins.route.capable_curve import HeldOut
            from pipeline_plugins.route.capable_store import load
        except ImportError as error:
            raise self._problem("", f"it needs {error.name}.", "pip install 'llm-pipeline[route]'") from None
        judged = [n for n, e in self.edges.items() if any(m.operations & JUDGED for m in e.models)]
        if len(judged) < 2:
            raise self._problem("", "it needs at least two targets that chat, to choose from.")
        estimator, held_out, _ = load(self.config.model, "model")
        self._columns = self._match(judged, estimator.targets)
        self._costs = {name: self._cost(name, self.edges[name]) for name in judged}
        columns = list(self._columns.values())
        seen = HeldOut(held_out.estimates[:, columns], held_out.right[:, columns])
        costs = np.array([self._costs[name] for name in self._columns])
        if self.config.cost_ceiling is None:
            quality = QUALITY if self.config.quality is None else self.config.quality
            self.rate = seen.rate_for_quality(quality, costs)
        else:
            try:
                self.rate = seen.rate_for_cost(self.config.cost_ceiling, costs)
            except ValueError as error:
                raise self._problem("cost_ceiling", f"{error}.", "Expected at least that.") from None
        self._estimator = estimator

    def _match(self, judged: list[str], trained: tuple[str, ...]) -> dict[str, int]:
        """The estimator's column of each target."""
        strange = set(self.config.trained_as) - set(self.edges)
        if strange:
            name = min(strange)
            raise self._problem(
                f"trained_as.{name}", "there is no such target.", did_you_mean(name, self.edges)
            )
        columns = {}
        for name in judged:
            asked = self.config.trained_as.get(name, name)
            if asked not in trained:
                raise self._problem(
                    f"trained_as.{name}",
                    f"the estimator knows no target `{asked}`.",
                    did_you_mean(asked, trained),
                )
            columns[name] = trained.index(asked)
        return columns

    def _cost(self, name: str, edge: Edge) -> float:
        if name in self.config.costs:
            return self.config.costs[name]
        prices = [model.price for model in edge.models if model.price is not None]
        if not prices:
            raise self._problem(
                f"costs.{name}", "the price of this target is not known.", "Set it, in a unit that all share."
            )
        # A sub-graph may end at any of its models: the dearest is what it can come to.
        return max((price.prompt + price.completion) / 2 for price in prices)

    def _problem(self, key: str, message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(key, message, hint)])

    async def __call__(self, call: Call) -> Reply:
        """Choose and pass on. Raises `APIError` when no target can serve the call."""
        choices = self.targets.choices(call)
        if call.operation not in JUDGED:
            return await self.targets.send(call, choices[0])
        chosen = self._settled(call, choices) or await self._decide(call, choices)
        target = next(target for target in choices if target.name == chosen.target)
        return await self.targets.send(call, target, chosen)

    def _settled(self, call: Call, choices: Sequence[Target]) -> Routed | None:
        """The choice where nothing is to be estimated."""
        if len(choices) == 1:
            return Routed(choices[0].name, "the only one that serves it")
        if call.model not in DEFAULT_NAMES:
            for target in choices:
                if any(m.id is not None and m.offered(call) for m in target.edge.models):
                    return Routed(target.name, "named")
        return None

    async def _decide(self, call: Call, choices: Sequence[Target]) -> Routed:
        offering = [target.name for target in choices]
        text = prompt_text(call)
        if not text:
            return Routed(min(offering, key=self._costs.__getitem__), "no text to judge by; the cheapest")
        if len(text) > INLINE_CHARACTERS:
            return await asyncio.get_running_loop().run_in_executor(None, self.choose, text, offering)
        return self.choose(text, offering)

    def choose(self, text: str, offering: Sequence[str]) -> Routed:
        """The best of these targets for a prompt, at the rate of exchange in force."""
        if self._estimator is None:
            raise RuntimeError("the router is not open")
        estimates = self._estimator.estimate(text)
        columns, costs = self._columns, self._costs
        # Where estimates tie, the cheaper one.
        best = max(offering, key=lambda n: (estimates[columns[n]] - self.rate * costs[n], -costs[n]))
        return Routed(best, f"expected quality {estimates[columns[best]]:.2f}")


def prompt_text(call: Call) -> str:
    """What is asked: the last user message's text, or a completion's prompt; empty if neither."""
    if call.operation == "completion":
        prompt = call.body.get("prompt")
        return prompt if isinstance(prompt, str) else ""
    messages = call.body.get("messages")
    if not isinstance(messages, list):
        return ""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(part for part in parts if isinstance(part, str))
