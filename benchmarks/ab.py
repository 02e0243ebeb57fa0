"""Simulated experiments, looked at after every call: how often they find what is not there, and what is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pipeline_plugins.experiment.sequence import Sums, Weighted, difference
from pipeline_plugins.experiment.thompson import EVERY, best_by_draws

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


@dataclass(slots=True)
class Steered:
    """What a bandit did in simulated experiments of two variants.

    failed   share of all calls that failed; with even shares it would be the mean of both rates
    wrong    share of experiments whose weighted sequence excluded the true difference at some time
    found    share of those whose sequence excluded 0 at some time
    bias     of the first variant's failure rate at the end: of the plain mean, and of the weighted one
    """

    failed: float
    wrong: float
    found: float
    bias: tuple[float, float]


def steer(rates: Sequence[float], *, tests: int, calls: int, explore: float, seed: int) -> Steered:
    """Run `tests` experiments, looked at after each call, by Thompson sampling of which calls fail."""
    random = np.random.default_rng(seed)
    rows, width = np.arange(tests), len(rates)
    counts = np.zeros((tests, width, 2))
    chances = np.full((tests, width), 1 / width)
    arms = [Weighted(*(np.zeros(tests) for _ in range(6))) for _ in rates]
    wrong, seen = np.zeros(tests, bool), np.zeros(tests, bool)
    failed = 0
    for call in range(calls):
        if call % EVERY == 0:
            chances = (1 - explore) * best_by_draws(random, counts, 100) + explore / width
        chosen = (random.random((tests, 1)) >= chances.cumsum(axis=1)[:, :-1]).sum(axis=1)
        fails = random.random(tests) < np.array(rates)[chosen]
        failed += int(fails.sum())
        counts[rows, chosen, fails.astype(int)] += 1
        for at, arm in enumerate(arms):
            mine = (chosen == at).astype(np.float64)
            arm.weigh(fails * mine, chances[:, at], mine)
        found = difference(*arms[:2], share=True, alpha=ALPHA)
        wrong |= np.abs(found.estimate - (rates[1] - rates[0])) > found.radius
        seen |= np.abs(found.estimate) > found.radius
    plain = counts[:, 0, 1] / np.maximum(counts[:, 0].sum(axis=1), 1)
    bias = float(plain.mean() - rates[0]), float((arms[0].total / arms[0].calls).mean() - rates[0])
    return Steered(failed / tests / calls, float(wrong.mean()), float(seen.mean()), bias)
