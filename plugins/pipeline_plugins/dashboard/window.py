"""What a page looks at: a stretch of time, cut into steps, and a list of its calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_plugins.ledger.rollup import LARGER, MINUTE

Range = Literal["15m", "1h", "24h", "7d", "30d"]

Listing = Literal["slowest", "failed", "recent"]

HOUR, DAY = 3600, 86_400

SPANS: dict[Range, tuple[int, int, int]] = {
    "15m": (15 * MINUTE, MINUTE, MINUTE),
    "1h": (HOUR, MINUTE, MINUTE),
    "24h": (DAY, 20 * MINUTE, 10 * MINUTE),
    "7d": (7 * DAY, 2 * HOUR, HOUR),
    "30d": (30 * DAY, DAY, DAY),
}
"""Seconds of a range, of each of its steps, and of the spans of the rollup that a step is made of."""

FRESH: dict[Range, float] = {"15m": 1, "1h": 2, "24h": 10, "7d": 30, "30d": 60}
"""Seconds for which figures of a range are good enough to be shown again."""


@dataclass(slots=True, frozen=True)
class Window:
    """From `since` to before `until`, seconds since 1970, in steps of `step` seconds.

    It is read in spans of `size` seconds.

    The last step is under way: `now` is somewhere within it.
    """

    since: int
    until: int
    step: int
    size: int
    now: float

    @classmethod
    def of(cls, range: Range, now: float) -> Window:
        """The range that ends with the step under way."""
        seconds, step, size = SPANS[range]
        until = (int(now) // step + 1) * step
        return cls(until - seconds, until, step, size, now)

    @property
    def steps(self) -> list[int]:
        """When each step begins."""
        return list(range(self.since, self.until, self.step))

    @property
    def seconds(self) -> float:
        """How much of it has passed."""
        return self.now - self.since

    def before(self) -> Window:
        """The same range one range earlier: as much time, less the part of the last step to come."""
        span = self.until - self.since
        passed = int(self.seconds) // self.size * self.size
        return Window(self.since - span, self.since - span + passed, self.step, self.size, self.since)


def pieces(since: int, until: int, largest: int, folded: int) -> list[tuple[int, int, int]]:
    """Spans of the rollup that add up to a stretch of whole minutes, as few as can be.

    Each piece is a size, of `largest` at most, and the start and end of a row of spans of that
    size. Only minutes are there from `folded` on.
    """
    for size in reversed((MINUTE, *LARGER)):
        low = -(-since // size) * size
        high = (until if size == MINUTE else min(until, folded)) // size * size
        if size <= largest and low < high:
            smaller = size - 1
            return [
                *pieces(since, low, smaller, folded),
                (size, low, high),
                *pieces(high, until, smaller, folded),
            ]
    return []
