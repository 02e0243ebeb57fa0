"""How many calls a target can take at a time, found by watching its latency."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt

import structlog

from pipeline_plugins.resilience.policy import Concurrency

SHRINK = 0.5
"""How far towards a lower limit one adjustment goes; a higher one is taken whole."""

DROP = 0.9
"""What is left of the limit after a window in which the target itself refused calls."""

LEARN = 0.1
"""Weight of a window in the baseline."""

LEAST = 1e-6
LOG_LEAST = log(LEAST)
"""Latencies below it, in seconds, are all the same."""

SURE = 2.0
"""Standard errors by which a window must differ from the baseline to tell anything."""

logger = structlog.get_logger("pipeline.resilience")


@dataclass(slots=True)
class Sums:
    """The logarithms of a window's latencies, added up."""

    logs: float = 0.0
    squares: float = 0.0
    calls: int = 0


@dataclass(slots=True)
class Baseline:
    """Mean and variance of the logarithm of latency where nothing queues."""

    mean: float
    variance: float


class Limit:
    """An adaptive concurrency limit by the gradient of latency.

    After Netflix's Gradient2Limit: each window,

        gradient = clamp(tolerance / slowdown, 0.5, 1)
        limit = limit * gradient + sqrt(limit)

    smoothed on its way down, and left alone while less than half of it is in use. Until the
    first slowdown it is doubled instead, as TCP's slow start does.

    The slowdown differs. Latencies of models vary tenfold from call to call, so the mean of
    a few says little: it is the window's geometric mean over the baseline's, less `SURE`
    standard errors. Gradient2's baseline is a long average of all that it sees, so that a
    lasting overload becomes the new normal and the limit grows without end. Here it learns
    only where no queue can be of our making: below half of the limit, at its minimum, or
    where latency has certainly fallen.

    Kinds of call (`form`: a stream's first token, a whole answer's seconds for each token)
    have baselines of their own.
    """

    __slots__ = (
        "_baselines",
        "_calls",
        "_dropped",
        "_peak",
        "_settings",
        "_starting",
        "_sums",
        "_target",
        "_until",
        "in_flight",
        "limit",
        "shed",
    )

    def __init__(self, target: str, settings: Concurrency) -> None:
        self.limit = float(min(max(settings.initial, settings.min), settings.max))
        self.in_flight = 0
        self.shed = 0
        self._target = target
        self._settings = settings
        self._baselines: dict[object, Baseline] = {}
        self._sums: dict[object, Sums] = {}
        self._calls = 0
        self._peak = 0
        self._dropped = False
        self._starting = True
        self._until = 0.0

    @property
    def has_room(self) -> bool:
        """Whether one more call may go through."""
        return self.in_flight < self.limit

    def enter(self) -> None:
        """Count a call in."""
        self.in_flight += 1
        if self.in_flight > self._peak:
            self._peak = self.in_flight

    def dropped(self) -> None:
        """The target refused a call for being busy, or let it wait too long."""
        self._dropped = True

    def sample(self, form: object, latency: float, now: float) -> None:
        """Learn how long an answer took; adjust the limit when a window is full."""
        sums = self._sums.get(form)
        if sums is None:
            sums = self._sums[form] = Sums()
        value = log(latency) if latency > LEAST else LOG_LEAST
        sums.logs += value
        sums.squares += value * value
        sums.calls += 1
        self._calls += 1
        if now >= self._until and self._calls >= self._settings.min_calls:
            self._adjust()
            self._sums = {}
            self._calls = 0
            self._peak = self.in_flight
            self._dropped = False
            self._until = now + self._settings.window

    def _adjust(self) -> None:
        settings = self._settings
        idle = self._peak < self.limit / 2
        slowdown = self._slowdown(unqueued=idle or self.limit <= settings.min)
        if self._dropped:
            self._starting = False
            wanted = self.limit * DROP
        elif idle:
            return
        else:
            gradient = min(1.0, max(0.5, settings.tolerance / slowdown))
            self._starting = self._starting and slowdown < (1 + settings.tolerance) / 2
            wanted = self.limit * 2 if self._starting else self.limit * gradient + sqrt(self.limit)
        if wanted < self.limit and not self._dropped:
            wanted = self.limit + (wanted - self.limit) * SHRINK
        before = self.limit
        self.limit = max(float(settings.min), min(float(settings.max), wanted))
        if self.limit == settings.min and before > settings.min:
            logger.warning("concurrency limit at its minimum", target=self._target, limit=settings.min)

    def _slowdown(self, *, unqueued: bool) -> float:
        """How many times longer than the baseline a window's calls certainly took; learns from them."""
        excess = noise = 0.0
        for form, sums in self._sums.items():
            mean = sums.logs / sums.calls
            variance = max(sums.squares / sums.calls - mean * mean, 1e-4)
            known = self._baselines.get(form)
            if known is None:
                self._baselines[form] = Baseline(mean, variance)
                continue
            difference = mean - known.mean
            excess += difference * sums.calls
            noise += known.variance * sums.calls
            if unqueued:
                known.variance += (variance + difference * difference - known.variance) * LEARN
            if unqueued or difference < -SURE * sqrt(known.variance / sums.calls):
                known.mean += difference * LEARN
        return exp((excess - SURE * sqrt(noise)) / self._calls)
