"""Days and months in the time zone in which budgets begin anew."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo


class Calendar:
    """Says which day it is, in a time zone.

    The day is worked out once and remembered until it ends.
    """

    def __init__(self, zone: str) -> None:
        # UTC needs no zone database, which slim images lack.
        self.zone: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
        self._today = ""
        self._from = self._until = 0.0

    @property
    def today(self) -> str:
        """The day as `YYYY-MM-DD`; its first seven characters are the month."""
        now = time.time()
        if not self._from <= now < self._until:
            day = datetime.fromtimestamp(now, self.zone).date()
            self._from, self._until = self._begin(day), self._begin(day + timedelta(days=1))
            self._today = day.isoformat()
        return self._today

    def ends(self, period: str) -> datetime:
        """When a day (`YYYY-MM-DD`) or month (`YYYY-MM`) ends."""
        if len(period) == 7:
            first = date.fromisoformat(f"{period}-01")
            day = (first + timedelta(days=32)).replace(day=1)
        else:
            day = date.fromisoformat(period) + timedelta(days=1)
        return datetime(day.year, day.month, day.day, tzinfo=self.zone)

    def seconds_left(self, period: str) -> float:
        """Seconds until a period ends."""
        return max(0.0, self.ends(period).timestamp() - time.time())

    def _begin(self, day: date) -> float:
        return datetime(day.year, day.month, day.day, tzinfo=self.zone).timestamp()


def days_in(month: str) -> int:
    """How many days a month (`YYYY-MM`) has."""
    first = date.fromisoformat(f"{month}-01")
    return ((first + timedelta(days=32)).replace(day=1) - first).days
