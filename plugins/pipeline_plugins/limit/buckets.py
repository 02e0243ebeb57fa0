"""The two ways to count what was taken in the last minute, in this process's memory.

Both look at all demands of a call first and take from all buckets or from none. Time is
the monotonic clock's. A bucket from which nothing is out is forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from pipeline_plugins.limit.rules import WINDOW, Demand

SLOTS = 60
"""Parts of a sliding window; what is taken in one part leaves the window together."""

SLOT = WINDOW / SLOTS

SWEEP = 1024
"""Buckets from which on idle ones are looked for."""

EPSILON = 1e-6
"""Rounding of sums that is no excess."""


@dataclass(slots=True)
class Level:
    """How a bucket stands after a call: what is left, and seconds until it is full again."""

    remaining: float
    reset: float


@dataclass(slots=True)
class Verdict:
    """Whether a call may pass.

    wait    seconds until it would, 0 if it may now
    levels  one for each demand, in their order
    part    of the window in which it was taken, for giving back
    refused the demand that makes it wait the longest
    """

    wait: float
    levels: list[Level]
    part: int = 0
    refused: int = -1


class Algorithm(Protocol):
    """Counts demands. `take` is atomic; `give` returns what a call did not use, or takes more."""

    def take(self, demands: Sequence[Demand]) -> Verdict:
        """Take all demands or none."""
        ...

    def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        """Give `amounts` back to the buckets of these demands; a negative one is taken on top."""
        ...


class TokenBuckets:
    """A bucket holds `limit`, is full at first, and fills up in a minute, evenly.

    In any span of `t` seconds it lets through at most `limit * (1 + t / 60)`. State is
    what is out of the bucket, and when that was.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._out: dict[str, tuple[float, float]] = {}
        self._sweep_at = SWEEP

    def __len__(self) -> int:
        return len(self._out)

    def take(self, demands: Sequence[Demand]) -> Verdict:
        """Take all demands or none."""
        now = self._clock()
        outs = [self._now_out(demand, now) for demand in demands]
        wait, refused = 0.0, -1
        for index, demand in enumerate(demands):
            over = outs[index] + demand.amount - demand.limit
            if over > EPSILON and over * WINDOW / demand.limit > wait:
                wait, refused = over * WINDOW / demand.limit, index
        levels = []
        for index, demand in enumerate(demands):
            out = outs[index]
            if refused < 0:
                out += demand.amount
                self._out[demand.name] = (out, now)
            levels.append(Level(max(0.0, demand.limit - out), out * WINDOW / demand.limit))
        if len(self._out) > self._sweep_at:
            self._sweep(now)
        return Verdict(wait, levels, refused=refused)

    def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        """Give back; a negative amount is taken on top, and may leave a debt."""
        now = self._clock()
        for demand, amount in zip(demands, amounts, strict=True):
            out = self._now_out(demand, now) - amount
            if out > EPSILON:
                self._out[demand.name] = (out, now)
            else:
                self._out.pop(demand.name, None)

    def _now_out(self, demand: Demand, now: float) -> float:
        found = self._out.get(demand.name)
        if found is None:
            return 0.0
        return max(0.0, found[0] - max(0.0, now - found[1]) * demand.limit / WINDOW)

    def _sweep(self, now: float) -> None:
        # Whatever its limit, a bucket without debt is full after one window.
        self._out = {name: found for name, found in self._out.items() if now - found[1] < WINDOW}
        self._sweep_at = max(SWEEP, 2 * len(self._out))


@dataclass(slots=True)
class _Taken:
    parts: deque[list[float]]
    """Pairs of a part's number and what was taken in it, oldest first."""
    total: float


class SlidingWindows:
    """Counts what was taken in the last minute, in parts of a second.

    A part leaves when all of it is older than a minute, so that no span of 60 s ever
    lets through more than `limit`.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._taken: dict[str, _Taken] = {}
        self._sweep_at = SWEEP

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, demands: Sequence[Demand]) -> Verdict:
        """Take all demands or none."""
        now = self._clock()
        part = int(now / SLOT)
        takens = [self._current(demand.name, part) for demand in demands]
        wait, refused = 0.0, -1
        for index, (demand, taken) in enumerate(zip(demands, takens, strict=True)):
            over = (taken.total if taken else 0.0) + demand.amount - demand.limit
            if over > EPSILON:
                needed = _until(taken.parts if taken else (), over, now)
                if needed > wait:
                    wait, refused = needed, index
        levels = []
        for demand, taken in zip(demands, takens, strict=True):
            if refused < 0 and demand.amount:
                if taken is None:
                    taken = self._taken[demand.name] = _Taken(deque(), 0.0)
                _add(taken, part, demand.amount)
            total = taken.total if taken else 0.0
            reset = (taken.parts[-1][0] + 1) * SLOT + WINDOW - now if taken and taken.parts else 0.0
            levels.append(Level(max(0.0, demand.limit - total), reset))
        if len(self._taken) > self._sweep_at:
            self._sweep(part)
        return Verdict(wait, levels, part, refused)

    def give(self, demands: Sequence[Demand], amounts: Sequence[float], part: int) -> None:
        """Give back to the part in which it was taken; what is used on top counts now."""
        now = int(self._clock() / SLOT)
        for demand, amount in zip(demands, amounts, strict=True):
            taken = self._current(demand.name, now)
            if amount < 0:
                if taken is None:
                    taken = self._taken[demand.name] = _Taken(deque(), 0.0)
                _add(taken, now, -amount)
            elif taken is not None:
                for found in taken.parts:
                    if found[0] == part:
                        given = min(amount, found[1])
                        found[1] -= given
                        taken.total -= given

    def _current(self, name: str, part: int) -> _Taken | None:
        taken = self._taken.get(name)
        if taken is None:
            return None
        while taken.parts and taken.parts[0][0] < part - SLOTS:
            taken.total -= taken.parts.popleft()[1]
        if not taken.parts:
            del self._taken[name]
            return None
        return taken

    def _sweep(self, part: int) -> None:
        for name in list(self._taken):
            self._current(name, part)
        self._sweep_at = max(SWEEP, 2 * len(self._taken))


def _add(taken: _Taken, part: int, amount: float) -> None:
    taken.total += amount
    if taken.parts and taken.parts[-1][0] == part:
        taken.parts[-1][1] += amount
    else:
        taken.parts.append([part, amount])


def _until(parts: Sequence[list[float]] | deque[list[float]], over: float, now: float) -> float:
    """Seconds until so much has left the window."""
    for part, amount in parts:
        over -= amount
        if over <= EPSILON:
            return (part + 1) * SLOT + WINDOW - now
    return WINDOW
