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

    def add(self, unit: Hashable, value: float) -> None:
        """Count a unit's call."""
        total, calls = self._units.get(unit, (0.0, 0.0))
        self.sums.add(value, total, calls)
        self._units[unit] = (total + value, calls + 1)
