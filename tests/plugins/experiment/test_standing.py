"""How an experiment stands on a dashboard: read as the ledger grows, and told when it can't be."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from pipeline_plugins.experiment import standing
from pipeline_plugins.experiment.standing import Standing
from pipeline_plugins.experiment.status import Design, Experiments
from pipeline_plugins.ledger.database import Unavailable
from pipeline_plugins.ledger.store import Batch, Filter, Store

from pipeline import Panel
from tests.plugins.experiment.test_status import UNITS, both


class Kept:
    """A ledger's configuration, and whether its database answers."""

    flush = 0.05

    def __init__(self, connect: Callable[[], Store]) -> None:
        self.connect = connect
        self.away = False

    def store(self) -> Store:
        if self.away:
            raise Unavailable("nobody answers")
        return self.connect()

    def add(self, *, first: int = 0, last: int = 2 * UNITS, worse: int = 30) -> None:
        store = self.connect()
        store.add(Batch(both(worse)[first:last]))
        store.close()


@pytest.fixture
def kept(connect: Callable[[], Store], monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setattr(standing, "PATIENCE", 60.0)
    monkeypatch.setattr(standing, "LEAST", 0.0)
    monkeypatch.setattr(standing, "REST", 0)
    monkeypatch.setattr(standing, "CATCHING_UP", 0)
    return Kept(connect)


def asked(kept: Kept, *between: Callable[[], Any], design: Design | None = None) -> list[Panel]:
    """The panel before and after each of some events."""
    about = Standing(kept, "size", design or Design(("large",)))  # type: ignore[arg-type]

    async def go() -> list[Panel]:
        found = [await about.panel()]
        for event in between:
            await asyncio.to_thread(event)
            found.append(await about.panel())
        await about.close()
        return found

    return asyncio.run(go())


def test_it_says_what_ab_status_says_and_goes_on_with_what_is_new(kept: Kept) -> None:
    kept.add(last=UNITS)
    half, whole = asked(kept, lambda: kept.add(first=UNITS))
    row = dict(zip(whole.columns, whole.rows[0], strict=True))
    assert (row["Metric"], row["Variant"], row["Mean of variant"]) == ("failed", "small", "30.00%")
    assert (row["Difference"], row["Decision"]) == ("+30.00%", "worse")
    assert (
        f"{UNITS} calls of {UNITS} units by large (control); {UNITS} calls of {UNITS} units by small"
        in whole.note
    )
    assert f"{UNITS // 2} units" in half.note
    assert whole.alert == ""


def test_a_broken_guard_is_an_alert(kept: Kept) -> None:
    kept.add()
    (panel,) = asked(kept, design=Design(("large", "small"), guards={"failed": 0.05}))
    assert panel.alert == "Stop: failed of small broke its guard."


def test_units_in_other_shares_are_an_alert(kept: Kept) -> None:
    kept.add()
    (panel,) = asked(kept, design=Design(weights={"small": 9}))
    assert panel.alert.startswith("Sample ratio mismatch")


def test_a_long_ledger_is_read_a_stretch_at_a_time(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.add()
    monkeypatch.setattr(standing, "STRETCH", UNITS)
    monkeypatch.setattr(standing, "TURN", 0.0)
    first, second = asked(kept, lambda: None)
    assert f"{UNITS} newer rows of the ledger are still to be read" in first.note
    assert "still" not in second.note


def test_a_ledger_that_is_away_is_told_and_no_call_counts_twice_after(kept: Kept) -> None:
    kept.add()

    def toggle() -> None:
        kept.away = not kept.away

    before, away, after = asked(kept, toggle, toggle)
    assert away.alert == "The ledger can't be read now: nobody answers."
    assert after == before


def test_a_fault_is_not_hidden_and_no_call_counts_twice_after(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.add()
    rate = Experiments.rate

    def fail(*given: Any) -> None:
        monkeypatch.setattr(Experiments, "rate", rate)
        raise ZeroDivisionError

    monkeypatch.setattr(Experiments, "rate", fail)
    about = Standing(kept, "size", Design(("large",)))  # type: ignore[arg-type]

    async def go() -> Panel:
        with pytest.raises(ZeroDivisionError):
            await about.panel()
        return await about.panel()

    assert f"{UNITS} calls of {UNITS} units by large (control)" in asyncio.run(go()).note


def test_calls_that_come_after_the_newest_were_removed_are_counted(kept: Kept) -> None:
    kept.add()

    def anew() -> None:
        store = kept.connect()
        store.remove(Filter())
        store.close()
        kept.add(last=UNITS)

    _, after = asked(kept, anew)
    assert f"{UNITS * 3 // 2} calls of {UNITS} units by large" in after.note


def test_nothing_is_concluded_from_no_calls(kept: Kept) -> None:
    (panel,) = asked(kept)
    assert (panel.rows, panel.note) == ((), "No call took part yet.")


def test_rows_that_others_may_still_be_writing_are_left_for_later(kept: Kept) -> None:
    kept.add()
    with_late = kept.connect()
    with_late.database.execute("UPDATE calls SET time = ?", (time.time(),))
    with_late.close()
    (panel,) = asked(kept)
    assert panel.note == "No call took part yet."
