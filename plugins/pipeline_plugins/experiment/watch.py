"""Watching guards as calls end."""

from __future__ import annotations

from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.guard import Broken, Guard
from pipeline_plugins.experiment.metric import METRICS, Seen
from pipeline_plugins.experiment.sequence import Difference, difference

BUCKETS = 4096
"""Groups of units that a process tells apart: units are independent, so groups of them are, too."""

EVERY = 10
"""Calls of a variant between two looks."""


def harm(metric: str, found: Difference) -> tuple[float, float]:
    """The ends of a difference's sequence, the way round that more is worse."""
    low, high = float(found.low), float(found.high)
    return (-high, -low) if METRICS[metric].more else (low, high)


class Guards:
    """Watches the calls of one process. Each guard that breaks is found once.

    With probability `1 - alpha` none is ever said to be broken by a variant that keeps all: `alpha`
    is shared among guards and `rivals`, the variants besides the control.
    """

    def __init__(self, guards: list[Guard], rivals: int, alpha: float) -> None:
        self._guards = guards
        self._alpha = alpha / max(1, len(guards) * rivals)
        self._arms: dict[tuple[str, str], Arm] = {}
        self._calls: dict[str, int] = {}
        self.broken: dict[tuple[str, str], Broken] = {}

    def observe(self, variant: str, control: str, unit: str, seen: Seen) -> list[Broken]:
        """Count a call; the guards that it shows to be broken. `unit` is its digest in hexadecimal."""
        bucket = int(unit, 16) % BUCKETS
        for guard in self._guards:
            if (value := METRICS[guard.metric].of(seen)) is not None:
                self._arms.setdefault((variant, guard.metric), Arm()).add(bucket, value)
        self._calls[variant] = self._calls.get(variant, 0) + 1
        if variant == control or self._calls[variant] % EVERY:
            return []
        return [found for guard in self._guards if (found := self._check(guard, variant, control))]

    def _check(self, guard: Guard, variant: str, control: str) -> Broken | None:
        pair = [self._arms.get((name, guard.metric)) for name in (control, variant)]
        if pair[0] is None or pair[1] is None or (variant, guard.metric) in self.broken:
            return None
        share = METRICS[guard.metric].share
        low, high = harm(guard.metric, difference(pair[0].sums, pair[1].sums, share=share, alpha=self._alpha))
        if low <= guard.worse_by:
            return None
        found = Broken(variant, guard.metric, low, high)
        self.broken[variant, guard.metric] = found
        return found
