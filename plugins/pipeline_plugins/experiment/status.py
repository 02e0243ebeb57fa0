"""How experiments stand, from the calls of a ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import orjson

from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.metric import METRICS, Seen
from pipeline_plugins.experiment.sequence import calls_to_see, difference, mismatch
from pipeline_plugins.experiment.watch import harm

SUSPECT = 0.001
"""The p-value of the shares below which results are not to be trusted."""


@dataclass(slots=True, frozen=True)
class Design:
    """What the configuration says of an experiment.

    targets   in the graph's order; `control` is the first of them that has calls, unless one is named
    weights   each target's part of the units, 1 where none is given
    guards    by metric, how much worse a variant may be
    """

    targets: tuple[str, ...] = ()
    control: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    guards: Mapping[str, float] = field(default_factory=dict)


class Experiment:
    """The calls of one experiment, gathered by variant and metric."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.units: dict[str, set[str]] = {}
        self.arms: dict[tuple[str, str], Arm] = {}

    def add(self, variant: str, unit: str, seen: Seen) -> None:
        """Count a call."""
        self.calls[variant] = self.calls.get(variant, 0) + 1
        self.units.setdefault(variant, set()).add(unit)
        for name, metric in METRICS.items():
            if (value := metric.of(seen)) is not None:
                self.arms.setdefault((variant, name), Arm()).add(unit, value)


def gather(exposures: Iterable[tuple[Any, ...]]) -> dict[str, Experiment]:
    """By name, the experiments of `Store.exposures`. A call without a unit is its key's."""
    found: dict[str, Experiment] = {}
    for variants, units, key, *values in exposures:
        by = orjson.loads(units) if units else {}
        outcome, total_ms, first_ms, valid, usd, tokens, rating = values
        seen = Seen(outcome, total_ms, first_ms, valid, usd, tokens, rating)
        for name, variant in orjson.loads(variants).items():
            found.setdefault(name, Experiment()).add(variant, by.get(name, f"key:{key}"), seen)
    return found


def report(name: str, found: Experiment, design: Design, alpha: float) -> dict[str, Any]:
    """An experiment as JSON: variants, shares, and each metric beside the control's.

    Intervals hold at all times together for one metric, over all variants, with `1 - alpha`.
    """
    variants = sorted(found.calls, key=lambda one: _rank(one, design))
    wanted = design.control if design.control is not None else variants[0]
    control = wanted if wanted in found.calls else None
    rivals = [variant for variant in variants if variant != control]
    each = alpha / max(1, len(rivals))
    metrics = [
        _metric(metric, control, rivals, found, design, each)
        for metric in METRICS
        if any((variant, metric) in found.arms for variant in variants)
    ]
    broken = [
        f"{one['metric']} of {other['variant']}"
        for one in metrics
        for other in one["variants"]
        if other["decision"] == "guard broken: stop"
    ]
    return {
        "experiment": name,
        "control": control,
        "alpha": alpha,
        "variants": [
            {"variant": one, "calls": found.calls[one], "units": len(found.units[one])} for one in variants
        ],
        "shares": _shares(found, variants, design),
        "metrics": metrics,
        "guards_broken": broken,
    }


def _rank(variant: str, design: Design) -> tuple[int, str]:
    known = design.targets
    return (known.index(variant) if variant in known else len(known), variant)


def _shares(found: Experiment, variants: list[str], design: Design) -> dict[str, Any]:
    """Whether units came in the shares that the weights give them."""
    weights = [design.weights.get(variant, 1.0) for variant in variants]
    whole = sum(weights)
    if len(variants) < 2 or not all(weights):
        return {"p": None, "suspect": False}
    shares = [weight / whole for weight in weights]
    p = mismatch([len(found.units[variant]) for variant in variants], shares)
    return {"p": p, "suspect": p < SUSPECT}


def _metric(
    metric: str, control: str | None, rivals: list[str], found: Experiment, design: Design, alpha: float
) -> dict[str, Any]:
    base = found.arms.get((control, metric)) if control is not None else None
    return {
        "metric": metric,
        "guard": design.guards.get(metric),
        "control": {"n": int(base.sums.calls), "mean": float(base.sums.mean)} if base is not None else None,
        "variants": [
            _compared(metric, variant, base, own, design, alpha)
            for variant in rivals
            if (own := found.arms.get((variant, metric))) is not None
        ],
    }


def _compared(
    metric: str, variant: str, base: Arm | None, own: Arm, design: Design, alpha: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant, "n": int(own.sums.calls), "mean": float(own.sums.mean)}
    row |= {"difference": None, "low": None, "high": None, "p": None, "more_calls": None}
    row["decision"] = "undecided"
    if base is None:
        return row
    compared = difference(base.sums, own.sums, share=METRICS[metric].share, alpha=alpha)
    row["difference"] = float(compared.estimate)
    if not isfinite(low := float(compared.low)):
        return row
    more = calls_to_see(compared, float(base.sums.calls + own.sums.calls), alpha)
    row |= {"low": low, "high": float(compared.high), "p": float(compared.p), "more_calls": more}
    worst = harm(metric, compared)
    if metric in design.guards and worst[0] > design.guards[metric]:
        row["decision"] = "guard broken: stop"
    elif worst[0] > 0:
        row["decision"] = "worse"
    elif worst[1] < 0:
        row["decision"] = "better"
    return row
