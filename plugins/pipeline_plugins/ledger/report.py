"""What ratings come to: average, distribution, and the share of positive ones with its interval."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from math import sqrt
from typing import Any, Literal

By = Literal["model", "variant", "tag", "label"]

Rated = tuple[str, str, str, str, str | None]
"""Rating, model, tags and variants (JSON objects), and label of one call."""

POSITIVE = frozenset({"4", "5", "up"})

ORDER = ("1", "2", "3", "4", "5", "up", "down")

Z = 1.959964
"""The normal distribution's quantile for 95 %."""


def wilson(positive: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927, JASA 22:209); `count` is 1 or more."""
    share = positive / count
    spread = Z * sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    middle, scale = share + Z * Z / (2 * count), 1 + Z * Z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def report(rated: Iterable[Rated], by: tuple[By, ...]) -> dict[str, Any]:
    """All of them, and by each group that is asked for. A call with several tags counts for each."""
    total: Counter[str] = Counter()
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for rating, model, tags, variants, label in rated:
        total[rating] += 1
        values = {"model": [model], "tag": _pairs(tags), "variant": _pairs(variants), "label": [label or ""]}
        for names in _names(by, values):
            groups.setdefault(names, Counter())[rating] += 1
    rows = [dict(zip(by, names, strict=True)) | summary(groups[names]) for names in sorted(groups)]
    return {"by": list(by), "rows": rows if by else [], "total": summary(total)}


def summary(ratings: Counter[str]) -> dict[str, Any]:
    """What some ratings come to. `average` is of 1 to 5 alone; positive are 4, 5 and `up`."""
    count = ratings.total()
    stars = {rating: n for rating, n in ratings.items() if rating.isdigit()}
    positive = sum(ratings[rating] for rating in POSITIVE)
    low, high = wilson(positive, count) if count else (None, None)
    return {
        "ratings": count,
        "average": sum(int(r) * n for r, n in stars.items()) / sum(stars.values()) if stars else None,
        "distribution": {rating: ratings[rating] for rating in ORDER if ratings[rating]},
        "positive": positive / count if count else None,
        "low": low,
        "high": high,
    }


def _names(by: tuple[By, ...], values: dict[str, list[str]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for group in by:
        found = [(*names, value) for names in found for value in values[group]]
    return found


def _pairs(text: str) -> list[str]:
    return [f"{name}={value}" for name, value in json.loads(text).items()] or [""]
