"""`route=cheapest`: the target whose answer is expected to cost the least."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline import Call, Edge, Edges, End, Model, Price, Reply, Spent, Usage
from pipeline.problems import ConfigError, Problem
from pipeline_plugins.route.targets import Routing, Target, Targets, check_names
from pipeline_plugins.tokens import answer_tokens, estimate

SAVED = "route"
"""The key of `Spent.saved`."""

log = structlog.get_logger("pipeline.route")


class Rate(BaseModel):
    """What a target costs."""

    model_config = ConfigDict(extra="forbid")

    prompt: float = Field(0.0, ge=0, le=1e6, description="USD per million tokens of the prompt.")
    completion: float = Field(0.0, ge=0, le=1e6, description="USD per million tokens of the answer.")


class Cheapest:
    """Passes each call to the target that is expected to charge the least for it.

    Expected are the prompt's tokens, estimated by its length, and an answer as long as the
    call allows, at most `answer_tokens`, at the price of each target's model: of several
    models behind a target, the dearest. Time that a model charges for is not foreseen, and
    targets without a price come last. When the reply tells its tokens, what the dearest
    target would have charged more for them goes into `Spent.saved`.
    """

    class Config(Routing):
        """Prices that are known better here, and how long answers are."""

        prices: dict[str, Rate] = Field(
            default_factory=dict, description="Prices of targets, in place of their models' own."
        )
        answer_tokens: int = Field(
            200, ge=0, le=10_000_000, description="Tokens that an answer is taken to have, at most."
        )

    def __init__(self, config: Config, next: Edges) -> None:
        self.config = config
        self.targets = Targets(next, config, "cheapest")
        check_names("prices", config.prices, next)
        self.prices: dict[str, Price] = {}

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of its targets, and aliases for them."""
        return self.targets.models

    async def open(self) -> None:
        """Learn the prices. Raises `ConfigError` where there is none to compare."""
        for name, edge in self.targets.edges.items():
            price = self._price(name, edge)
            if price is not None:
                self.prices[name] = price
        unknown = [name for name in self.targets.edges if name not in self.prices]
        if not self.prices:
            name = unknown[0]
            raise ConfigError(
                [
                    Problem(
                        "prices",
                        "no target's price is known.",
                        f"Expected some, say `prices: {{{name}: {{prompt: 0.1, completion: 0.4}}}}`.",
                    )
                ]
            )
        if unknown:
            log.warning("targets without a price come last", targets=unknown)

    def _price(self, name: str, edge: Edge) -> Price | None:
        if (rate := self.config.prices.get(name)) is not None:
            return Price(rate.prompt, rate.completion)
        prices = [model.price for model in edge.models if model.price is not None]
        if not prices:
            return None
        return max(prices, key=lambda price: price.prompt + price.completion)

    async def __call__(self, call: Call) -> Reply:
        """Route to the cheapest. Raises `APIError` when no target can serve the call."""
        choices = self.targets.choices(call)
        if len(choices) == 1:
            return await self.targets.send(call, choices[0])
        usage = Usage(estimate(call), answer_tokens(call, self.config.answer_tokens))
        chosen, dearest = self.pick(choices, usage)
        if chosen is dearest or chosen.name not in self.prices:
            return await self.targets.send(call, chosen)
        sent = perf_counter()
        reply = await self.targets.send(call, chosen)
        if reply.status < 400:
            reply.on_end(lambda end: self._save(call, chosen, dearest, sent, end))
        return reply

    def pick(self, choices: Sequence[Target], usage: Usage) -> tuple[Target, Target]:
        """The cheapest of these targets for such a use, and the dearest that has a price."""
        best = dearest = choices[0]
        least, most = float("inf"), -1.0
        for target in choices:
            price = self.prices.get(target.name)
            if price is None:
                continue
            usd = price.cost(usage)
            if usd < least:
                best, least = target, usd
            if usd > most:
                dearest, most = target, usd
        return best, dearest

    def _save(self, call: Call, chosen: Target, dearest: Target, sent: float, end: End) -> None:
        if end.usage is None:
            return
        seconds = end.ended - sent
        paid = self.prices[chosen.name].cost(end.usage, seconds)
        saved = self.prices[dearest.name].cost(end.usage, seconds) - paid
        spent = call.record.whole.growing(Spent)
        spent.saved[SAVED] = spent.saved.get(SAVED, 0.0) + max(0.0, saved)
