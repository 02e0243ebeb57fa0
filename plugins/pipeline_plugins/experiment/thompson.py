"""Thompson sampling: each variant as often as it may be the best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
"""Draws by which the chances are estimated. Calls are assigned by the estimate, so it is exact for them."""

EVERY = 10
"""Calls between two estimates."""


class Thompson:
    """Beta distributions of what calls of each variant are worth, 0 to 1, and the chance of each to be best.

    What is between 0 and 1 is counted in parts, where Agrawal and Goyal (COLT 2012) toss a coin of that
    chance. `explore` is the share that all variants have alike; `memory` how many calls of one count.
    """

    def __init__(self, explore: float, memory: int, seed: int | None = None) -> None:
        self._explore = explore
        self._memory = memory
        self._random = np.random.default_rng(seed)
        self._counts: dict[str, tuple[float, float]] = {}
        self._chances: dict[tuple[str, ...], list[float]] = {}
        self._learnt = 0
        self.latest: dict[str, float] = {}

    def learn(self, variant: str, worth: float) -> None:
        """Count a call of a variant."""
        good, bad = self._counts.get(variant, (0.0, 0.0))
        good, bad = good + worth, bad + 1 - worth
        fade = min(1.0, self._memory / (good + bad))
        self._counts[variant] = good * fade, bad * fade
        self._learnt += 1
        if self._learnt % EVERY == 0:
            self._chances.clear()

    def chances(self, variants: tuple[str, ...]) -> list[float]:
        """How likely each of these is to get the next call; they add up to 1."""
        found = self._chances.get(variants)
        if found is None:
            counts = [self._counts.get(name, (0.0, 0.0)) for name in variants]
            best = best_by_draws(self._random, np.array(counts), DRAWS)
            found = ((1 - self._explore) * best + self._explore / len(variants)).tolist()
            self._chances[variants] = found
            self.latest |= zip(variants, found, strict=True)
        return found


def best_by_draws(
    random: np.random.Generator, counts: NDArray[np.float64], draws: int
) -> NDArray[np.float64]:
    """The share of draws in which each variant is the best, given `(…, variants, [good, bad])` counts."""
    good, bad = counts[..., 0] + 1, counts[..., 1] + 1
    drawn = random.beta(good, bad, size=(draws, *good.shape)).argmax(axis=-1)
    found: NDArray[np.float64] = np.stack([(drawn == at).mean(axis=0) for at in range(good.shape[-1])], -1)
    return found
