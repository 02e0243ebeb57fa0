"""One metric of one variant, as calls come in."""

from __future__ import annotations

from collections.abc import Hashable

from pipeline_plugins.experiment.sequence import Sums


class Arm:
    """Sums over calls, and over the calls of each unit."""

    __slots__ = ("_units", "sums")

    def __init__(self) -> None:
        self.sums = Sums()
        self._units: dict[Hashable, tuple[float, float]] = {}

    def add(self, unit: Hashable, total: float, calls: float = 1.0) -> None:
        """Count a unit's call, or several that add up to `total`."""
        had, before = self._units.get(unit, (0.0, 0.0))
        self.sums.add(total, had, before, calls)
        self._units[unit] = (had + total, before + calls)
