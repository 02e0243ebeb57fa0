"""One metric of one variant, as calls come in."""

from __future__ import annotations

from pipeline_plugins.experiment.sequence import Sums

EXACT = 4096
"""Units that are told apart; of more, groups are."""

GROUPS = 2048
"""Groups of units: units are independent, so groups of them are, too."""


class Arm:
    """Sums over calls, and over the calls of each unit, in memory that does not grow with units.

    Units are numbers, evenly spread, as digests are.
    """

    __slots__ = ("_grouped", "_units", "sums")

    def __init__(self) -> None:
        self.sums = Sums()
        self._units: dict[int, tuple[float, float]] = {}
        self._grouped = False

    def add(self, unit: int, total: float, calls: float = 1.0) -> None:
        """Count a unit's call, or several that add up to `total`."""
        if self._grouped:
            unit %= GROUPS
        had, before = self._units.get(unit, (0.0, 0.0))
        self.sums.add(total, had, before, calls)
        self._units[unit] = (had + total, before + calls)
        if len(self._units) > EXACT:
            self._group()

    def _group(self) -> None:
        units, self._units, self.sums, self._grouped = self._units, {}, Sums(), True
        for unit, (total, calls) in units.items():
            self.add(unit, total, calls)
