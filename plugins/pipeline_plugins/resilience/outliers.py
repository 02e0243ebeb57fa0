"""Ejecting a target that does worse than its peers, for a while."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from pipeline_plugins.resilience.policy import OutlierSettings
from pipeline_plugins.resilience.tally import Tally

FORGIVEN = 5
"""Times the length of an ejection without another after which the next is a first one again."""

log = structlog.get_logger("pipeline.resilience")


class Member:
    """A target's standing among its peers: other targets that can do the same.

    An ejected one is not ready, so that routers pass it over; a call that comes all the
    same is let through, for it may have nowhere else to go. After Envoy's outlier
    detection. No timer runs. Times are monotonic seconds.
    """

    __slots__ = (
        "_forgiven",
        "_repeats",
        "_settings",
        "_tally",
        "ejected_times",
        "ejected_until",
        "peers",
        "target",
    )

    def __init__(self, target: str, settings: OutlierSettings) -> None:
        self.target = target
        self.peers: tuple[Member, ...] = ()
        self.ejected_until: float | None = None
        self.ejected_times = 0
        self._repeats = 0
        self._forgiven = 0.0
        self._settings = settings
        self._tally = Tally(settings.window)

    def ejected(self, now: float) -> bool:
        """Whether it is out; one whose time is over is back."""
        if self.ejected_until is None:
            return False
        if now < self.ejected_until:
            return True
        self.ejected_until = None
        self._tally.reset()
        log.info("readmitted", target=self.target)
        return False

    def count(self, now: float, well: bool) -> None:
        """Count a call; a failure may be one too many."""
        if well:
            self._tally.success(now)
            return
        self._tally.failure(now)
        if not self.ejected(now) and (reason := self._reason(now)) and self._may_go(now):
            self._eject(now, reason)

    def _reason(self, now: float) -> str:
        settings = self._settings
        if self._tally.consecutive >= settings.consecutive:
            return "failures in a row"
        own = self._tally.rate(now, settings.min_calls)
        others = [peer._tally.rate(now, settings.min_calls) for peer in self.peers]
        known = [rate for rate in others if rate is not None]
        if own is not None and known and own - sum(known) / len(known) >= settings.margin:
            return "failure rate"
        return ""

    def _may_go(self, now: float) -> bool:
        out = 1 + sum(peer.ejected(now) for peer in self.peers)
        return out <= self._settings.max_share * (1 + len(self.peers))

    def _eject(self, now: float, reason: str) -> None:
        settings = self._settings
        if now >= self._forgiven:
            self._repeats = 0
        seconds = min(settings.max_eject_for, settings.eject_for * 2.0 ** min(self._repeats, 30))
        self.ejected_until = now + seconds
        self._forgiven = self.ejected_until + FORGIVEN * seconds
        self._repeats += 1
        self.ejected_times += 1
        log.warning("ejected", target=self.target, reason=reason, seconds=seconds)


def introduce(members: Iterable[tuple[Member, frozenset[str]]]) -> None:
    """Make peers of all whose targets share an operation, such as `chat`."""
    group = list(members)
    for member, operations in group:
        member.peers = tuple(peer for peer, theirs in group if peer is not member and operations & theirs)
