"""What can be counted: a family of series under one name, and what was read of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan
from typing import Literal

from pipeline.hookspecs import Across

Type = Literal["counter", "gauge", "histogram"]


@dataclass(slots=True, frozen=True)
class Family:
    """Series of one name, told apart by the values of their labels.

    bounds  upper bounds of a histogram's buckets, ascending, without infinity
    across  how gauges of several processes make one; counters and histograms are added
    """

    name: str
    about: str
    type: Type
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    across: Across = "sum"

    @property
    def cells(self) -> int:
        """Numbers that a series takes: a histogram has its sum, then a count for each bucket."""
        return len(self.bounds) + 2 if self.type == "histogram" else 1


@dataclass(slots=True)
class Sampled:
    """What a family's series were, by the values of their labels: `Family.cells` numbers each."""

    family: Family
    samples: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def add(self, labels: tuple[str, ...], numbers: list[float]) -> None:
        """Put what another process has of a series to what is known of it. NaN is nothing."""
        if isnan(numbers[0]):
            return
        known = self.samples.get(labels)
        if known is None:
            self.samples[labels] = numbers
        elif self.family.type != "gauge" or self.family.across == "sum":
            self.samples[labels] = [a + b for a, b in zip(known, numbers, strict=True)]
        else:
            self.samples[labels] = [together(self.family.across, known[0], numbers[0])]


def together(across: Across, one: float, other: float) -> float:
    """Two gauges as one."""
    return one + other if across == "sum" else max(one, other) if across == "max" else min(one, other)


Snapshot = dict[str, Sampled]
"""Families by name."""


def merge(into: Snapshot, found: Iterable[Sampled], *, gauges: bool = True) -> None:
    """Add what one process counted; without its `gauges` if it has ended.

    A family of a known name and another shape is left out: two versions of a plugin, for
    as long as a reload takes.
    """
    for sampled in found:
        family = sampled.family
        if family.type == "gauge" and not gauges:
            continue
        known = into.get(family.name)
        if known is None:
            known = into[family.name] = Sampled(family)
        elif (known.family.labels, known.family.bounds) != (family.labels, family.bounds):
            continue
        for labels, numbers in sampled.samples.items():
            known.add(labels, numbers)
