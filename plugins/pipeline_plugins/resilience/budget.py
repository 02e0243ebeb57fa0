"""A budget for work that is not asked for: retries and hedges as a share of the calls."""

from __future__ import annotations


class Budget:
    """A token bucket that calls fill and extra attempts empty.

    After Finagle's RetryBudget: every call adds `share` of a token, every extra attempt
    takes a whole one, so that extras stay a share of the load however much fails.
    `per_second` tokens come by themselves, for targets with few calls. The bucket holds
    `reserve` tokens and starts full.
    """

    __slots__ = ("_filled", "per_second", "reserve", "share", "tokens")

    def __init__(self, share: float, reserve: float, per_second: float = 0.0) -> None:
        self.share = share
        self.reserve = reserve
        self.per_second = per_second
        self.tokens = reserve
        self._filled = 0.0

    def deposit(self) -> None:
        """Count a call."""
        if self.tokens < self.reserve:
            self.tokens = min(self.reserve, self.tokens + self.share)

    def withdraw(self, now: float) -> bool:
        """Take a token if there is one. `now` is monotonic seconds."""
        if self.tokens < self.reserve and self._filled:
            self.tokens = min(self.reserve, self.tokens + (now - self._filled) * self.per_second)
        self._filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True
