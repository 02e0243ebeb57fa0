"""The circuit breaker of a target: closed, open, half open."""

from __future__ import annotations

from typing import Literal

import structlog

from pipeline_plugins.resilience.policy import BreakerSettings
from pipeline_plugins.resilience.tally import Tally

State = Literal["closed", "half_open", "open"]

log = structlog.get_logger("pipeline.resilience")


class Breaker:
    """Lets no calls through to a target that fails, apart from a probe now and then.

    It opens on failures in a row or on their share in a window. `open_for` seconds later it
    is half open: `probes` calls are let through. Their answers close it, the failure of one
    opens it again. No timer runs: the state is looked at when it matters. Times are
    monotonic seconds.
    """

    __slots__ = (
        "_answered",
        "_opened",
        "_probing",
        "_round",
        "_settings",
        "_tally",
        "_target",
        "opened_times",
        "state",
    )

    def __init__(self, target: str, settings: BreakerSettings) -> None:
        self.state: State = "closed"
        self.opened_times = 0
        self._target = target
        self._settings = settings
        self._tally = Tally(settings.window)
        self._opened = 0.0
        self._round = 0  # 0 is nobody's: a call that is no probe has it
        self._probing = 0
        self._answered = 0

    def admits(self, now: float) -> bool:
        """Whether a call may go through now."""
        if self.state == "closed":
            return True
        if self.state == "open":
            return now >= self._opened + self._settings.open_for
        return self._probing + self._answered < self._settings.probes

    def reopens_in(self, now: float) -> float:
        """Seconds until a probe may go through; 0 if one may, or while one is under way."""
        return max(0.0, self._opened + self._settings.open_for - now) if self.state == "open" else 0.0

    def enter(self) -> int:
        """Count a call that was admitted in; return in which round it is a probe, 0 if it is none."""
        if self.state == "closed":
            return 0
        if self.state == "open":
            self._answered = self._probing = 0
            self._round += 1
            self._become("half_open")
        self._probing += 1
        return self._round

    def answered(self, probe: int) -> None:
        """A probe's answer has begun, which is enough to close the breaker; it is a call like others now."""
        if self.state == "half_open" and probe == self._round:
            self._probing -= 1
            self._answered += 1
            if self._answered >= self._settings.probes:
                self._tally.reset()
                self._become("closed")

    def leave(self, now: float, probe: int, well: bool | None) -> None:
        """A call is over: well, failed, or None for neither."""
        probing = probe == self._round and self.state == "half_open"
        if probing and well:
            self.answered(probe)
        elif probing:
            self._probing -= 1
        if well:
            self._tally.success(now)
        elif well is False:
            self._tally.failure(now)
            if self.state == "closed":
                self._judge(now)
            elif probing:
                self._open(now)

    def _judge(self, now: float) -> None:
        settings = self._settings
        rate = self._tally.rate(now, settings.min_calls)
        in_a_row = self._tally.consecutive >= settings.consecutive
        if in_a_row or (rate is not None and rate >= settings.failure_rate):
            self._open(now)

    def _open(self, now: float) -> None:
        self._opened = now
        self.opened_times += 1
        self._become("open")

    def _become(self, state: State) -> None:
        self.state = state
        level = log.warning if state == "open" else log.info
        level("breaker", target=self._target, state=state)
