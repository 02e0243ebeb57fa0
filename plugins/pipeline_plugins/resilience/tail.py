"""What counts as slow: a running percentile of the latest times to first token."""

from __future__ import annotations

from collections import deque

KEPT = 128
"""Latest calls that count."""

RENEW = 16
"""Calls after which the percentile is computed anew; sorting at each would cost more than it tells."""


class Tail:
    """A percentile over the latest calls of one kind, None while there are too few."""

    __slots__ = ("_least", "_percentile", "_since", "_times", "seconds")

    def __init__(self, percentile: float, least: int) -> None:
        self.seconds: float | None = None
        self._percentile = percentile
        self._least = least
        self._times: deque[float] = deque(maxlen=KEPT)
        self._since = 0

    def add(self, seconds: float) -> None:
        """Learn how long a call took to begin its answer."""
        self._times.append(seconds)
        self._since += 1
        if len(self._times) >= self._least and (self.seconds is None or self._since >= RENEW):
            ordered = sorted(self._times)
            self.seconds = ordered[min(len(ordered) - 1, int(len(ordered) * self._percentile))]
            self._since = 0
