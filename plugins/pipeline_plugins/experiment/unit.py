"""Whose calls belong together: units by number, and how many there are."""

from __future__ import annotations

from hashlib import blake2b

MOST = 50_000
"""Units that are kept in mind: of more, a half, a quarter, … that their numbers choose."""


def number_of(unit: str) -> int:
    """A unit's number: 64 bits that are as random as can be."""
    return int.from_bytes(blake2b(unit.encode(), digest_size=8).digest())


class Units:
    """Distinct units of each variant, in memory that does not grow with them.

    With more than `MOST` those are kept whose number ends in so many zeros (adaptive sampling: M.
    Wegman, in P. Flajolet, "On adaptive sampling", Computing 43, 1990). Which are kept depends on
    no variant, so that shares of those kept are those of all.
    """

    def __init__(self) -> None:
        self.kept: dict[str, set[int]] = {}
        self._zeros = 0

    @property
    def exact(self) -> bool:
        """Whether all were counted."""
        return self._zeros == 0

    def add(self, variant: str, unit: int) -> None:
        """Note a unit's variant."""
        kept = self.kept.setdefault(variant, set())
        if unit & ((1 << self._zeros) - 1):
            return
        kept.add(unit)
        while sum(map(len, self.kept.values())) > MOST:
            self._zeros += 1
            mask = (1 << self._zeros) - 1
            for name, units in self.kept.items():
                self.kept[name] = {one for one in units if not one & mask}

    def count(self, variant: str) -> int:
        """How many a variant has; where not exact, within about a percent."""
        return len(self.kept[variant]) << self._zeros
