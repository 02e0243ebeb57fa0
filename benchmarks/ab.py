"""Simulated experiments, looked at after every call: how often they find what is not there, and what is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pipeline_plugins.experiment.sequence import Sums, difference

Numbers = NDArray[np.float64]
Draw = Callable[[np.random.Generator, Numbers, NDArray[np.bool_]], Numbers]

ALPHA = 0.05
FIXED = 1.959964
"""Standard errors of a test that is valid for one look."""


@dataclass(slots=True)
class Found:
    """Of simulated tests, the share that stopped with a difference, and after how many calls in the median.

    `always` by the confidence sequence; `peeked` by a fixed test that is looked at after each call, from
    the same units on; `once` by that test at the end alone.
    """

    always: float
    stopped: float | None
    peeked: float
    once: float


def simulate(draw: Draw, *, tests: int, calls: int, units: int | None, share: bool, seed: int) -> Found:
    """Run `tests` experiments of two variants side by side, of `calls` calls each.

    With `units` calls come from so many returning users, chosen at random; without, each is a new one's.
    `draw` gives each test's next value from the users' own effects (standard normal) and whether they
    have the variant.
    """
    random = np.random.default_rng(seed)
    pool = units if units is not None else 1
    effects = random.standard_normal((tests, pool))
    treated = random.random((tests, pool)) < 0.5
    totals, sizes = np.zeros((tests, pool)), np.zeros((tests, pool))
    arms = [Sums(*(np.zeros(tests) for _ in range(6))) for _ in range(2)]
    rows = np.arange(tests)
    stopped, peeked = np.full(tests, np.inf), np.zeros(tests, bool)
    once = peeked
    for call in range(1, calls + 1):
        if units is None:
            effects, treated = random.standard_normal((tests, 1)), random.random((tests, 1)) < 0.5
            totals[:], sizes[:] = 0, 0
        who = random.integers(pool, size=tests)
        variant = treated[rows, who]
        value = draw(random, effects[rows, who], variant)
        for arm, mine in zip(arms, (~variant, variant), strict=True):
            arm.add(value * mine, totals[rows, who], sizes[rows, who], mine.astype(np.float64))
        totals[rows, who] += value
        sizes[rows, who] += 1
        found = difference(*arms, share=share, alpha=ALPHA)
        sure = np.abs(found.estimate) > found.radius
        stopped = np.where(sure, np.minimum(stopped, call), stopped)
        once = np.isfinite(found.radius) & (np.abs(found.estimate) > FIXED * found.error)
        peeked |= once
    ended = stopped[np.isfinite(stopped)]
    return Found(
        len(ended) / tests,
        float(np.median(ended)) if len(ended) else None,
        float(peeked.mean()),
        float(once.mean()),
    )


def failing(rate: float, lift: float = 0.0, spread: float = 0.0) -> Draw:
    """A share: calls fail at this rate, `lift` more with the variant; users differ by `spread` of it."""

    def draw(random: np.random.Generator, effects: Numbers, variant: NDArray[np.bool_]) -> Numbers:
        own = np.clip(rate * (1 + spread * effects) + lift * variant, 0.0, 1.0)
        return (random.random(len(own)) < own).astype(np.float64)

    return draw


def lasting(lift: float = 0.0, sigma: float = 0.5, spread: float = 0.0) -> Draw:
    """A mean: seconds, log-normal about 1 s, `lift` (relative) more with the variant."""

    def draw(random: np.random.Generator, effects: Numbers, variant: NDArray[np.bool_]) -> Numbers:
        logs = sigma * random.standard_normal(len(effects)) + spread * effects
        seconds: Numbers = np.exp(logs) * (1 + lift * variant)
        return seconds

    return draw
