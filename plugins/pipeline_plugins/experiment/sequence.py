"""Differences between two variants that may be looked at after every call.

An interval of a fixed sample holds for one look. A confidence sequence holds at all times at once:
with probability `1 - alpha` the true difference is never outside, however often one looks and
whenever one stops. All functions take numbers or arrays of them, one for each of many experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt

import numpy as np
from numpy.typing import NDArray

Number = float | NDArray[np.float64]

LEAST_UNITS = 50
"""Units of each variant below which nothing is concluded: the sequences hold asymptotically."""

TUNED = 2000
"""Calls of both variants at which the interval is narrowest, beside what it could be."""

FAR = 1e12
"""Calls beyond which a difference counts as none."""


@dataclass(slots=True)
class Sums:
    """What is known of a metric in one variant, its calls gathered by unit.

    For units `i` with `n_i` calls whose values add up to `s_i`: `units` how many, `calls` the sum of
    `n_i`, `total` of `s_i`, `squares` of `s_i²`, `products` of `s_i n_i`, `sizes` of `n_i²`.
    """

    units: Number = 0.0
    calls: Number = 0.0
    total: Number = 0.0
    squares: Number = 0.0
    products: Number = 0.0
    sizes: Number = 0.0

    def add(self, total: Number, before_total: Number, before_calls: Number, calls: Number = 1.0) -> None:
        """Count `calls` of a unit, 0 or more, that add up to `total`, after those that it had before."""
        new: Number = np.float64(1) * ((before_calls == 0) & (calls > 0))
        self.units += new
        self.calls += calls
        self.total += total
        self.squares += total * (2 * before_total + total)
        self.products += before_total * calls + total * (before_calls + calls)
        self.sizes += calls * (2 * before_calls + calls)

    @property
    def mean(self) -> Number:
        """The mean over calls."""
        return self.total / self.calls

    @property
    def seen(self) -> Number:
        """How many calls there were."""
        return self.calls

    @property
    def independent(self) -> Number:
        """How many values there are that don't depend on each other."""
        return self.units

    @property
    def worth(self) -> Number:
        """How many calls of equal weight would say as much."""
        return self.calls

    def variance(self, *, share: bool) -> Number:
        """The variance of the mean, units being independent but not the calls of one.

        A ratio of sums by the delta method: squared residuals `s_i - mean n_i`, with `G / (G - 1)` for
        `G` units (Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics"). That of
        a `share` is no less than what independent calls with one more of each outcome would have
        (Agresti and Caffo 2000): none failed yet does not mean that none can.
        """
        mean, calls, worth = self.mean, self.calls, self.worth
        residuals = np.maximum(self.squares - 2 * mean * self.products + mean * mean * self.sizes, 0.0)
        found: Number = residuals * self.units / (np.maximum(self.units - 1, 1) * calls * calls)
        if share:
            shrunk = (mean * worth + 1) / (worth + 2)
            found = np.maximum(found, shrunk * (1 - shrunk) / (worth + 2))
        return found


class Weighted(Sums):
    """Calls that got the variant by chances of their own, each a unit that counts `1 / probability` times.

    So the mean is what it would be if all calls had got the variant, however the chances moved. The
    variance is known of shares alone, whose values are their own squares.
    """

    __slots__ = ()

    def weigh(self, total: Number, probability: Number, calls: Number = 1.0) -> None:
        """Count `calls`, 0 or more, that were this likely each and add up to `total`."""
        weight = 1 / probability
        self.units += calls
        self.calls += weight * calls
        self.total += weight * total
        self.squares += weight * weight * total
        self.products += weight * weight * total
        self.sizes += weight * weight * calls

    @property
    def seen(self) -> Number:
        """How many calls there were."""
        return self.units

    @property
    def worth(self) -> Number:
        """How many calls of equal weight would say as much (Kish)."""
        return self.calls * self.calls / np.maximum(self.sizes, 1e-12)

    @property
    def independent(self) -> Number:
        """Those that calls of equal weight would be: a few heavy ones are not many."""
        return self.worth


@dataclass(slots=True)
class Difference:
    """Variant less control: the estimate and its standard error, its sequence's half width, the p-value.

    `pace` is how fast the sequence's clock goes, in ticks a call.
    """

    estimate: Number
    error: Number
    radius: Number
    p: Number
    pace: Number = 1.0

    @property
    def low(self) -> Number:
        """The lower end."""
        return self.estimate - self.radius

    @property
    def high(self) -> Number:
        """The upper end."""
        return self.estimate + self.radius


def difference(
    control: Sums,
    variant: Sums,
    *,
    share: bool,
    alpha: float,
    tuned: float = TUNED,
    least: float = LEAST_UNITS,
) -> Difference:
    """How a variant's mean differs from the control's; all of the line before there are `least` units.

    `p` is an always-valid p-value: rejecting where it is below `alpha`, at any time, is wrong with
    probability `alpha` at most.
    """
    enough = (np.minimum(control.independent, variant.independent) >= least) & (
        np.minimum(control.seen, variant.seen) > 1
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = variant.mean - control.mean
        error = np.sqrt(control.variance(share=share) + variant.variance(share=share))
        calls = control.seen + variant.seen
        # Weights make variance come unevenly, so its sum is the clock: 1 a call for even odds in even shares.
        pace = error * error * calls if isinstance(variant, Weighted) else 1.0
        at = precision(calls * pace, alpha, tuned)
        radius = error * width(at, alpha)
        p = np.minimum(1.0, 1 / evidence(np.abs(estimate) / error, at))
    known = np.isfinite(p)
    return Difference(
        estimate, error, np.where(enough, radius, np.inf), np.where(enough & known, p, 1.0), pace
    )


def precision(calls: Number, alpha: float, tuned: float) -> Number:
    """`t ρ²` after `t` calls, `ρ` such that the sequence is narrowest about `tuned` calls.

    `ρ² = (-2 ln α + ln(-2 ln α + 1)) / tuned`: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024,
    "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52(6).
    """
    wide = -2 * log(alpha)
    return calls * (wide + log(wide + 1)) / tuned


def width(at: Number, alpha: float) -> Number:
    """Standard errors to each side of the estimate, at a `precision`.

    The Gaussian-mixture boundary of Robbins 1970 as the asymptotic confidence sequence of
    Waudby-Smith et al. 2024: `σ √(2 (tρ² + 1) / (t²ρ²) · ln(√(tρ² + 1) / α))`, of which `σ / √t` is the
    standard error. 2.8 to 3.5 in practice, where one look would take 1.96.
    """
    found: Number = np.sqrt(2 * (at + 1) / at * np.log(np.sqrt(at + 1) / alpha))
    return found


def evidence(z: Number, at: Number) -> Number:
    """The mixture likelihood ratio against no difference, of `z` standard errors at a `precision`.

    `(1 + x)^(-1/2) exp(z² x / (2 (1 + x)))`: the mSPRT of Johari, Koomen, Pekelis and Walsh 2017,
    "Peeking at A/B Tests", whose inverse is the p-value. The sequence is all that it does not reject.
    """
    found: Number = np.exp(np.minimum(z * z * at / (2 * (1 + at)), 700.0)) / np.sqrt(1 + at)
    return found


def calls_to_see(found: Difference, calls: float, alpha: float, tuned: float = TUNED) -> float | None:
    """How many more calls until a difference as large as now is outside the sequence's middle.

    0 where it is already; None where nothing is known, or no number would do.
    """
    distance, error, pace = abs(float(found.estimate)), float(found.error), float(found.pace)
    if not np.isfinite(distance) or not np.isfinite(error) or distance == 0:
        return None

    def seen(total: float) -> bool:
        at = precision(total * pace, alpha, tuned)
        return error * sqrt(calls / total) * float(width(at, alpha)) < distance

    if seen(calls):
        return 0.0
    low = high = calls
    while not seen(high):
        low, high = high, high * 2
        if high > FAR:
            return None
    while high - low > max(1.0, 0.001 * high):
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high - calls


def mismatch(units: Sequence[float], shares: Sequence[float], strength: float = 100.0) -> float:
    """An always-valid p-value that units came to variants in these shares: sample ratio mismatch.

    `units` counts each variant's, `shares` is what each should have, adding up to 1. The sequential
    multinomial test of Lindon and Malek 2022, "Anytime-Valid Inference for Multinomial Count Data":
    the Bayes factor of a Dirichlet with mean `shares` and total `strength` against `shares` itself.
    """
    n = sum(units)
    factor = lgamma(strength) - lgamma(strength + n)
    for count, share in zip(units, shares, strict=True):
        factor += lgamma(strength * share + count) - lgamma(strength * share) - count * log(share)
    return exp(min(0.0, -factor))
