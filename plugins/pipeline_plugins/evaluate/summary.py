"""Means over examples, with intervals from resampling them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import erf, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

AT_ONCE = 4_000_000
"""Numbers of the resamples that are in memory at a time."""


def values_of(rows: Sequence[Mapping[str, float | None]], name: str) -> Numbers:
    """A metric's values, NaN where an example has none."""
    return np.array([np.nan if (v := row.get(name)) is None else v for row in rows], dtype=np.float64)


def resampled_means(columns: Numbers, resamples: int, seed: int) -> Numbers:
    """Means of bootstrap resamples of the rows: `(resamples, columns)`, NaN left out.

    All columns of a resample have the same rows, so that differences between them are paired.
    """
    rows, count = columns.shape
    known = ~np.isnan(columns)
    filled = np.where(known, columns, 0.0)
    complete = bool(known.all())
    random = np.random.default_rng(seed)
    means = np.empty((resamples, count))
    step = max(1, AT_ONCE // rows)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = random.integers(rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        weights = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        weight = rows if complete else weights @ known.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + size] = (weights @ filled) / weight
    return means


def interval(values: Numbers, means: Numbers, confidence: float) -> tuple[float, float]:
    """The BCa interval of a mean (Efron 1987), from resampled means of the same values.

    The acceleration of a mean is its values' skewness over `6 √n`. Where all resamples are the
    same, so are the ends.
    """
    values = values[~np.isnan(values)]
    means = means[~np.isnan(means)]
    if not len(values) or not len(means):
        return float("nan"), float("nan")
    mean = float(values.mean())
    spread = values - mean
    square = float((spread**2).sum())
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / len(means)
    if square == 0 or not 0 < below < 1:
        return float(means.min()), float(means.max())
    normal = NormalDist()
    bias = normal.inv_cdf(below)
    acceleration = float((spread**3).sum()) / (6 * square**1.5)
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        level = _cdf(bias + shifted / (1 - acceleration * shifted))
        ends.append(float(np.quantile(means, level)))
    return ends[0], ends[1]


def _cdf(value: float) -> float:
    return (1 + erf(value / sqrt(2))) / 2


def summarise(
    rows: Sequence[Mapping[str, float | None]],
    names: Sequence[str],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """For each metric that some example has: `n`, `mean`, the interval `low` to `high`, `p50` and `p95`."""
    columns = np.column_stack([values_of(rows, name) for name in names])
    used = [at for at in range(len(names)) if not np.isnan(columns[:, at]).all()]
    columns = columns[:, used]
    means = resampled_means(columns, resamples, seed)
    found: dict[str, dict[str, Any]] = {}
    for at, which in enumerate(used):
        values = columns[~np.isnan(columns[:, at]), at]
        low, high = interval(values, means[:, at], confidence)
        p50, p95 = np.quantile(values, (0.5, 0.95)).tolist()
        found[names[which]] = {
            "n": len(values),
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "p50": p50,
            "p95": p95,
        }
    return found
