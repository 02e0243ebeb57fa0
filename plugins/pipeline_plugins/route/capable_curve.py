"""Cost against quality of routed prompts, in the field's terms.

PGR, APGR and CPT are those of RouteLLM (Ong et al., arXiv 2406.18665, section 3): of the
gap between the weak and the strong target's mean quality, a router that sends a share `c`
of prompts to the strong one recovers PGR(c); APGR is its mean over `c`, and CPT(x) the
least share of strong calls that recovers x of the gap. Random choice has APGR 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

CANDIDATES = 1024
"""Exchange rates tried when one is chosen."""


@dataclass(slots=True, frozen=True)
class Curve:
    """What a ranking of prompts by the strong target's advantage gains.

    recovered   (n + 1,) PGR when the first 0, 1, …, n prompts go to the strong target
    weak        mean quality of the weak target alone; `strong` of the strong one
    """

    recovered: Array
    weak: float
    strong: float

    @classmethod
    def of(cls, advantage: Array, strong: Array, weak: Array) -> Curve:
        """The curve of an estimated advantage (n,), given what each target really did (n,).

        Raises `ValueError` when the strong target is not better.
        """
        order = np.argsort(-advantage, kind="stable")
        gained = np.concatenate([[0.0], np.cumsum((strong - weak)[order])])
        if gained[-1] <= 0:
            raise ValueError("the strong target is no better than the weak one on these rows")
        return cls(gained / gained[-1], float(weak.mean()), float(strong.mean()))

    @property
    def apgr(self) -> float:
        """The area under PGR over the share of strong calls."""
        return float(np.trapezoid(self.recovered, dx=1 / (len(self.recovered) - 1)))

    def cpt(self, share: float) -> float:
        """The least share of strong calls that recovers this share of the gap."""
        return int(np.argmax(self.recovered >= share)) / (len(self.recovered) - 1)

    def at(self, calls: float) -> tuple[float, float]:
        """PGR and mean quality when this share of prompts goes to the strong target."""
        recovered = float(self.recovered[round(calls * (len(self.recovered) - 1))])
        return recovered, self.weak + recovered * (self.strong - self.weak)


@dataclass(slots=True, frozen=True)
class HeldOut:
    """Rows that their estimates were not fitted on: `estimates` and what happened, both (n, k)."""

    estimates: Array
    right: Array

    def routed(self, rate: float, costs: Array) -> tuple[float, float]:
        """Mean quality and cost when every row goes where estimate less rate times cost is largest."""
        picked = np.argmax(self.estimates - rate * costs, axis=1)
        return float(self.right[np.arange(len(picked)), picked].mean()), float(costs[picked].mean())

    def rates(self, costs: Array) -> Array:
        """Exchange rates worth trying, from the largest (always the cheapest) to 0 (always the best).

        They are the rates at which some row changes from one target to another.
        """
        worth = [
            (self.estimates[:, dear] - self.estimates[:, cheap]) / (costs[dear] - costs[cheap])
            for dear in range(len(costs))
            for cheap in range(len(costs))
            if costs[dear] > costs[cheap]
        ]
        if not worth:
            return np.zeros(1)
        every = np.concatenate(worth)
        every = (
            np.quantile(every[every > 0], np.linspace(0, 1, CANDIDATES)) if np.any(every > 0) else every[:0]
        )
        top = every.max(initial=0.0) * 1.001 + 1e-9
        return np.concatenate([[top], np.unique(every)[::-1], [0.0]])

    def rate_for_quality(self, share: float, costs: Array) -> float:
        """The largest rate from which on this share of the strongest target's quality is kept.

        0 where no rate keeps it.
        """
        wanted = share * float(self.right.mean(axis=0).max())
        return self._first(costs, lambda quality, _: quality >= wanted)

    def rate_for_cost(self, ceiling: float, costs: Array) -> float:
        """The smallest rate at which the mean cost is at most `ceiling`.

        Raises `ValueError` when even the cheapest target costs more.
        """
        if ceiling < costs.min():
            raise ValueError(f"the cheapest target costs {costs.min():g}")
        within = 0.0
        for rate in self.rates(costs):
            if self.routed(rate, costs)[1] > ceiling:
                break
            within = float(rate)
        return within

    def _first(self, costs: Array, holds: Callable[[float, float], bool]) -> float:
        for rate in self.rates(costs):
            if holds(*self.routed(rate, costs)):
                return float(rate)
        return 0.0


def calibration_error(estimates: Array, right: Array, bins: int = 10) -> float:
    """Expected calibration error: the mean distance of estimate and outcome over equal-sized bins."""
    order = np.argsort(estimates, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(p) * abs(estimates[p].mean() - right[p].mean()) for p in parts) / len(order))
