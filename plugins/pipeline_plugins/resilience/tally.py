"""Counting how the calls of a target went lately."""

from __future__ import annotations


class Tally:
    """Failures in a row, and successes and failures of the last `window` seconds.

    The window is kept in two halves, of which the older is dropped as a whole: it covers
    between half of its length and all of it.
    """

    __slots__ = ("_before", "_failed", "_half", "_turn", "_well", "consecutive")

    def __init__(self, window: float) -> None:
        self.consecutive = 0
        self._half = window / 2
        self._turn = 0.0
        self._well = self._failed = 0
        self._before = (0, 0)

    def success(self, now: float) -> None:
        """Count a call that went well. `now` is monotonic seconds."""
        if now >= self._turn:
            self._rotate(now)
        self._well += 1
        self.consecutive = 0

    def failure(self, now: float) -> None:
        """Count one that failed."""
        if now >= self._turn:
            self._rotate(now)
        self._failed += 1
        self.consecutive += 1

    def rate(self, now: float, least: int) -> float | None:
        """The share of failures, None with fewer than `least` calls."""
        if now >= self._turn:
            self._rotate(now)
        well, failed = self._well + self._before[0], self._failed + self._before[1]
        return failed / (well + failed) if well + failed >= least else None

    def reset(self) -> None:
        """Forget all of it: what was counted is no longer true of the target."""
        self.consecutive = self._well = self._failed = 0
        self._before = (0, 0)

    def _rotate(self, now: float) -> None:
        stale = now >= self._turn + self._half
        self._before = (0, 0) if stale else (self._well, self._failed)
        self._well = self._failed = 0
        self._turn = now + self._half if stale else self._turn + self._half
