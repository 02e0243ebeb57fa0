"""How experiments stand, from the calls of a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import orjson

from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.metric import METRICS
from pipeline_plugins.experiment.sequence import Sums, Weighted, calls_to_see, difference, mismatch
from pipeline_plugins.experiment.unit import Units, number_of
from pipeline_plugins.experiment.watch import harm
from pipeline_plugins.ledger.store import Filter, Store

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


@dataclass(slots=True, frozen=True)
class Assigned:
    """Who got which variant, and how likely that was where it changes from call to call."""

    variant: str
    unit: int
    probability: float | None = None


class Experiment:
    """The calls of one experiment, gathered by variant and metric.

    Those to which a bandit gave their variants (`chosen`) are weighted by their chances, and are no
    units; `left_out` counts calls of the same experiment that no bandit assigned.
    """

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.units = Units()
        self.arms: dict[tuple[str, str], Arm] = {}
        self.chosen: dict[tuple[str, str], Weighted] = {}
        self.weighted = False
        self.left_out = 0

    def count(self, of: Assigned, calls: int) -> None:
        """Count calls."""
        if of.probability is None and self.weighted:
            self.left_out += calls
            return
        if of.probability is not None and not self.weighted:
            self.left_out = sum(self.calls.values())
            self.calls, self.units, self.arms, self.weighted = {}, Units(), {}, True
        self.calls[of.variant] = self.calls.get(of.variant, 0) + calls
        self.units.add(of.variant, of.unit)

    def measure(self, of: Assigned, metric: str, calls: int, total: float) -> None:
        """Add what some of them add up to in a metric."""
        if not calls or (of.probability is not None) != self.weighted:
            return
        key = of.variant, metric
        if of.probability is None:
            self.arms.setdefault(key, Arm()).add(of.unit, total, calls)
        else:
            self.chosen.setdefault(key, Weighted()).weigh(total, of.probability, calls)

    def forget(self, metric: str) -> None:
        """Drop all that is known of a metric."""
        self.arms = {key: arm for key, arm in self.arms.items() if key[1] != metric}
        self.chosen = {key: sums for key, sums in self.chosen.items() if key[1] != metric}

    def sums(self, variant: str, metric: str) -> Sums | None:
        """What is known of a metric of a variant."""
        if self.weighted:
            return self.chosen.get((variant, metric))
        arm = self.arms.get((variant, metric))
        return None if arm is None else arm.sums


class Experiments(dict[str, Experiment]):
    """Those of a ledger by their names, as far as they were read. A call without a unit is its key's."""

    def read(self, store: Store, wanted: Filter) -> None:
        """Add calls: each is to be wanted once."""
        names = [metric.name for metric in METRICS.values() if not metric.rated]
        for name, of, calls, values in self._exposures(store, names, wanted):
            experiment = self.setdefault(name, Experiment())
            experiment.count(of, calls)
            for metric, counted, total in values:
                experiment.measure(of, metric, counted, total)

    def rate(self, store: Store, wanted: Filter) -> None:
        """Put the ratings that there are now in the place of those that were read before."""
        names = [metric.name for metric in METRICS.values() if metric.rated]
        for experiment in self.values():
            for metric in names:
                experiment.forget(metric)
        for name, of, _, values in self._exposures(store, names, wanted, rated=True):
            for metric, counted, total in values if name in self else ():
                self[name].measure(of, metric, counted, total)

    @staticmethod
    def _exposures(
        store: Store, names: list[str], wanted: Filter, *, rated: bool = False
    ) -> Iterator[tuple[str, Assigned, int, list[tuple[str, int, float]]]]:
        """Experiment, who got what, their calls, and for each metric how many have it, and its sum."""
        measures = [METRICS[name].sql for name in names]
        for variants, units, chances, key, calls, *sums in store.exposures(measures, wanted, rated=rated):
            by = orjson.loads(units) if units else {}
            likely = orjson.loads(chances) if chances else {}
            values = [
                (one, n, float(sum or 0)) for one, n, sum in zip(names, sums[::2], sums[1::2], strict=True)
            ]
            for name, variant in orjson.loads(variants).items():
                unit = number_of(by.get(name, f"key:{key}"))
                yield name, Assigned(variant, unit, likely.get(name)), calls, values


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
        if any(found.sums(variant, metric) is not None for variant in variants)
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
            {
                "variant": one,
                "calls": found.calls[one],
                "units": found.units.count(one) if not found.weighted else None,
            }
            for one in variants
        ],
        "units_exact": found.units.exact,
        "weighted": found.weighted,
        "left_out": found.left_out,
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
    if found.weighted or len(variants) < 2 or not all(weights):
        return {"p": None, "suspect": False}
    shares = [weight / whole for weight in weights]
    p = mismatch([len(found.units.kept[variant]) for variant in variants], shares)
    return {"p": p, "suspect": p < SUSPECT}


def _metric(
    metric: str, control: str | None, rivals: list[str], found: Experiment, design: Design, alpha: float
) -> dict[str, Any]:
    base = found.sums(control, metric) if control is not None else None
    return {
        "metric": metric,
        "guard": design.guards.get(metric),
        "control": {"n": int(base.seen), "mean": float(base.mean)} if base is not None else None,
        "variants": [
            _compared(metric, variant, base, own, design, alpha)
            for variant in rivals
            if (own := found.sums(variant, metric)) is not None
        ],
    }


def _compared(
    metric: str, variant: str, base: Sums | None, own: Sums, design: Design, alpha: float
) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant, "n": int(own.seen), "mean": float(own.mean)}
    row |= {"difference": None, "low": None, "high": None, "p": None, "more_calls": None}
    row["decision"] = "undecided"
    if base is None:
        return row
    share = METRICS[metric].share
    compared = difference(base, own, share=share, alpha=alpha)
    row["difference"] = float(compared.estimate)
    if not isfinite(low := float(compared.low)) or (isinstance(own, Weighted) and not share):
        return row
    more = calls_to_see(compared, float(base.seen + own.seen), alpha)
    row |= {"low": low, "high": float(compared.high), "p": float(compared.p), "more_calls": more}
    worst = harm(metric, compared)
    if metric in design.guards and worst[0] > design.guards[metric]:
        row["decision"] = "guard broken: stop"
    elif worst[0] > 0:
        row["decision"] = "worse"
    elif worst[1] < 0:
        row["decision"] = "better"
    return row
