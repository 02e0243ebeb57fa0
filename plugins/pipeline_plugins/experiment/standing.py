"""How an experiment stands, for a dashboard: read from the ledger as it grows, a stretch at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.hookspecs import Panel
from pipeline_plugins.experiment.show import by_bandit, headings, rows, shares, stop
from pipeline_plugins.experiment.status import Design, Experiments, report
from pipeline_plugins.ledger.database import Refused, Unavailable, Unusable
from pipeline_plugins.ledger.store import Filter

if TYPE_CHECKING:
    from pipeline_plugins.ledger.extension import LedgerConfig

ALPHA = 0.05
"""That of `pipeline ab status`."""

STRETCH = 20_000
"""Rows that one statement adds up."""

TURN = 2.0
"""Seconds of reading for one panel; the next goes on from there."""

PATIENCE = 5.0
"""Seconds that a page waits for its panel."""

LEAST, MOST = 2.0, 60.0
"""Seconds for which a panel is shown again, at least and at most."""

REST, CATCHING_UP = 20, 5
"""It is shown again for so many times as long as it took to make; fewer while rows are still to be read."""

ORDER, MEANS = (0, 1, 7, 4, 5, 6, 8), (2, 3)
"""Columns of `show.rows` as a panel has them: what is concluded first, for narrow screens."""

LATE = 3.0
"""Seconds after its end at which a call's row is there, besides twice the ledger's flush."""


class Standing:
    """What `pipeline ab status` says of one experiment, of all calls that `kept` has of it.

    Each call is read once: those that are removed meanwhile still count.
    """

    def __init__(self, kept: LedgerConfig, name: str, design: Design) -> None:
        self._kept = kept
        self._name = name
        self._design = design
        self._found = Experiments()
        self._rows: tuple[int, int] | None = None
        self._made: asyncio.Task[Panel] | None = None
        self._next = 0.0

    async def panel(self) -> Panel:
        """How it stands now, or stood a moment ago."""
        if self._made is None or (self._made.done() and time.monotonic() >= self._next):
            self._made = asyncio.create_task(self._make())
        await asyncio.wait((self._made,), timeout=PATIENCE)
        return self._made.result() if self._made.done() else self._panel(note="The ledger is being read.")

    async def close(self) -> None:
        """Let the ledger go, once it has answered."""
        if self._made is not None:
            await asyncio.wait((self._made,))

    async def _make(self) -> Panel:
        started, rest = time.monotonic(), REST
        try:
            behind = await asyncio.to_thread(self._read)
            rest = CATCHING_UP if behind else REST
            return self._report(behind)
        except Exception as error:
            # What was read of a stretch that broke off can't be told from what was not.
            self._found, self._rows = Experiments(), None
            if not isinstance(error, (Unavailable, Unusable, Refused, OSError)):
                raise
            return self._panel(alert=f"The ledger can't be read now: {str(error)[:200]}.")
        finally:
            ended = time.monotonic()
            self._next = ended + min(max(LEAST, rest * (ended - started)), MOST)

    def _read(self) -> int:
        """Add up rows that are new; how many there are still to read. Blocks."""
        until = time.monotonic() + TURN
        with closing(self._kept.store()) as store:
            last = store.newest(time.time() - LATE - 2 * self._kept.flush)
            if self._rows is None:
                before = max(0, store.oldest() - 1)
                self._rows = before, before
            first, reached = self._rows
            while reached < last:
                end = min(last, reached + STRETCH)
                self._found.read(store, Filter(rows=(reached, end)))
                reached = end
                if time.monotonic() >= until:
                    break
            self._rows = first, reached
            behind = max(0, last - reached)
            if not behind:
                self._found.rate(store, Filter(rows=self._rows))
        return behind

    def _report(self, behind: int) -> Panel:
        found = self._found.get(self._name)
        note = f"{behind:,} newer rows of the ledger are still to be read." if behind else ""
        if found is None:
            return self._panel(note=note or "No call took part yet.")
        known = report(self._name, found, self._design, ALPHA)
        about = "" if known["units_exact"] else "about "
        arms = [
            f"{one['calls']:,} calls{_units(one['units'], about)} by {one['variant']}"
            f"{' (control)' if one['variant'] == known['control'] else ''}"
            for one in known["variants"]
        ]
        said = by_bandit(known) or shares(known["shares"])
        suspect = known["shares"]["suspect"]
        alerts = [stop(known), f"{_sentence(said)}." if suspect else ""]
        if known["control"] is None:
            alerts.append("The control has no calls: nothing can be compared.")
        parts = ["; ".join(arms), "" if suspect else said, note]
        return Panel(
            self._title,
            (*(_sentence(headings(known)[at]) for at in ORDER), "Mean of control", "Mean of variant"),
            tuple(tuple(row[at] for at in (*ORDER, *MEANS)) for row in rows(known)),
            note=" ".join(f"{_sentence(part).rstrip('.')}." for part in parts if part),
            alert=" ".join(alert for alert in alerts if alert),
        )

    def _panel(self, *, note: str = "", alert: str = "") -> Panel:
        return Panel(self._title, note=note, alert=alert)

    @property
    def _title(self) -> str:
        return f"Experiment {self._name}, all calls kept"


def _sentence(text: str) -> str:
    """As a sentence begins; a symbol, such as `p`, stays what it is."""
    return f"{text[:1].upper()}{text[1:]}" if len(text) > 1 else text


def _units(count: int | None, about: str) -> str:
    return "" if count is None else f" of {about}{count:,} units"
