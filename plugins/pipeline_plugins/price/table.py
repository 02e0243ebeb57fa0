"""A model's price by its name: what the configuration says, else the list of `genai-prices`.

The list is the package's own data, as of its release: nothing is fetched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import translate
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from pipeline.price import Price

if TYPE_CHECKING:
    from pipeline import Usage

MAKERS = ("openai", "google", "anthropic", "mistral", "cohere")
"""Whose prices hold for a name that the list does not place by itself, if it is exactly theirs."""

KNOWN = 4096
"""Names remembered with their price; those of wildcard upstreams come from clients."""

FRESH = 600.0
"""Seconds that a price is remembered: some depend on the date or on the time of day."""

log = structlog.get_logger("pipeline.price")


class Rate(BaseModel):
    """A price as the configuration says it."""

    model_config = ConfigDict(extra="forbid")

    prompt: float = Field(0.0, ge=0, le=1e6, description="USD per million tokens of the prompt.")
    completion: float = Field(0.0, ge=0, le=1e6, description="USD per million tokens of the answer.")
    cached: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="USD per million prompt tokens read from the model's cache; null: as the prompt.",
    )
    second: float = Field(
        0.0, ge=0, le=1e3, description="USD per second of work on a call: a CPU's or GPU's, for local models."
    )

    def price(self) -> Price:
        """As stages see it."""
        return Price(self.prompt, self.completion, self.cached, self.second)


@dataclass(slots=True, frozen=True)
class Tiered(Price):
    """A price that changes for all of a call's tokens where its prompt is longer than a bound.

    `tiers` are (bound in prompt tokens, price above it), the longest first.
    """

    tiers: tuple[tuple[int, Price], ...] = ()

    def cost(self, usage: Usage, seconds: float = 0.0) -> float:
        """USD at the tier that the prompt falls into."""
        for bound, price in self.tiers:
            if usage.prompt_tokens > bound:
                return price.cost(usage, seconds)
        return Price.cost(self, usage, seconds)


class PriceTable:
    """Looks prices up and remembers them.

    rates     by model name or glob, the first that fits wins
    provider  whose list to look in first, an id or name that `genai-prices` knows
    """

    def __init__(self, rates: Mapping[str, Rate], provider: str | None = None) -> None:
        self._exact = {name: rate.price() for name, rate in rates.items()}
        self._globs = [
            (re.compile(translate(name)), rate.price())
            for name, rate in rates.items()
            if any(sign in name for sign in "*?[")
        ]
        self._provider = provider
        self._known: dict[str, Price | None] = {}
        self._until = 0.0
        self._loading: threading.Thread | None = None
        self._has_list = find_spec("genai_prices") is not None

    def load(self) -> None:
        """Begin to import the list, which takes a sixth of a second, in a thread of its own."""
        if not self._has_list:
            log.warning("no list of prices, those configured hold", hint="pip install 'llm-pipeline[price]'")
            return
        self._loading = threading.Thread(target=_snapshot, daemon=True)
        self._loading.start()

    def find(self, model: str) -> Price | None:
        """The price of a model, None where nothing tells it."""
        if monotonic() > self._until or len(self._known) > KNOWN:
            self._known.clear()
            self._until = monotonic() + FRESH
        try:
            return self._known[model]
        except KeyError:
            self._known[model] = price = self._find(model)
            return price

    def _find(self, model: str) -> Price | None:
        if (price := self._exact.get(model)) is not None:
            return price
        for pattern, price in self._globs:
            if pattern.fullmatch(model):
                return price
        if self._loading is not None:
            self._loading.join()
            self._loading = None
        if not self._has_list:
            return None
        found = self._listed(model)
        return None if found is None else _price(found.get_prices(datetime.now(UTC)))

    def _listed(self, model: str) -> Any:
        """The list's entry: at the provider configured or named by a prefix, else by the name alone."""
        places: list[tuple[str | None, str, bool]] = []
        if self._provider is not None:
            places.append((self._provider, model, False))
        maker, sign, rest = model.partition("/")
        if sign:
            places.append((maker, rest, False))
        places.append((None, model, False))
        places += [(maker, model, True) for maker in MAKERS]
        for provider, name, exactly in places:
            try:
                _, found = _snapshot().find_provider_model(name, None, provider, None)
            except LookupError:
                continue
            if not exactly or found.id == name:
                return found
        return None


def _snapshot() -> Any:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _price(listed: Any) -> Price:
    """The list's prices for text; tiers where any of them has some.

    Left out: writing to a provider's cache, audio, images, and charges per request or search.
    """
    parts = (listed.input_mtok, listed.output_mtok, listed.cache_read_mtok)
    bounds = sorted({tier.start for part in parts for tier in getattr(part, "tiers", ())}, reverse=True)
    flat = [_at(part, 0) for part in parts]
    if not bounds:
        return Price(flat[0] or 0.0, flat[1] or 0.0, flat[2])
    tiers = []
    for bound in bounds:
        prompt, completion, cached = (_at(part, bound + 1) for part in parts)
        tiers.append((bound, Price(prompt or 0.0, completion or 0.0, cached)))
    return Tiered(flat[0] or 0.0, flat[1] or 0.0, flat[2], tiers=tuple(tiers))


def _at(part: Any, tokens: int) -> float | None:
    """One of the list's prices for a prompt of this many tokens."""
    if part is None:
        return None
    value = getattr(part, "base", part)
    for tier in getattr(part, "tiers", ()):
        if tokens > tier.start:
            value = tier.price
    return float(value)
