"""`pipeline cost`: sums by group, and a projection that owns up to what it does not know."""

import asyncio
import json
import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pipeline_plugins.price.genai import GenAI, accounts
from pipeline_plugins.price.journal import Account, Batch
from pipeline_plugins.price.periods import Calendar, days_in
from pipeline_plugins.price.projection import project

from pipeline.cli.app import run

GIVEN = ["infer=echo", "infer@embed=none"]


def filled(folder: Path, rows: dict[Account, list[int]], store: list[str]) -> list[str]:
    """Accounts with these rows; returns the overrides that name them."""
    values = dict(one.removeprefix("price.").split("=", 1) for one in store)
    config = GenAI.Config(**{"path": str(folder / "spend.sqlite"), "url": "", **values})

    async def go() -> None:
        kept = accounts(config)
        await kept.open(write=False)
        assert await kept.store.apply(Batch("f.jsonl", 0, 9, rows))
        await kept.close()

    asyncio.run(go())
    return [*GIVEN, f"vars.state={folder}", *store]


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["cost", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def account(day: str, **given: str) -> Account:
    return Account(**{"day": day, "key": "k", "owner": "o", "model": "m", "tags": "{}", **given})


USD = 1_000_000_000


def test_spend_is_summed_by_what_is_asked(
    tmp_path: Path, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {
        account("2026-01-01", owner="a"): [1, 10, 5, 2, USD, 0, 0, 0],
        account("2026-01-02", owner="a", model="n"): [1, 10, 0, 2, USD, 0, 0, 0],
        account("2026-01-02", owner="b", tags='{"team":"red","app":"x"}'): [2, 1, 0, 1, 4 * USD, 0, 0, USD],
        account("2025-12-31", owner="c"): [9, 9, 9, 9, 9 * USD, 0, 0, 0],
    }
    given = filled(tmp_path, rows, store)
    found = report(capsys, *given, "--by", "owner", "--since", "2026-01-01")
    assert [(row["owner"], row["usd"]) for row in found["rows"]] == [("b", 4), ("a", 2)]
    assert found["total"]["usd"] == 6
    assert found["total"]["cached_tokens"] == 5
    assert found["total"]["saved_route_usd"] == 1
    found = report(capsys, *given, "--by", "day", "--by", "model", "--since", "2026-01-01")
    assert [(row["day"], row["model"]) for row in found["rows"]] == [
        ("2026-01-01", "m"),
        ("2026-01-02", "m"),
        ("2026-01-02", "n"),
    ]
    found = report(capsys, *given, "--by", "tag", "--since", "2026-01-02", "--until", "2026-01-02")
    assert {row["tag"]: row["usd"] for row in found["rows"]} == {"team=red": 4, "app=x": 4, "": 1}


def test_what_caching_saved_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {account("2026-01-01"): [4, 0, 0, 0, 3 * USD, 0, USD, 0]}
    given = filled(tmp_path, rows, ["price.store=sqlite"])
    assert run(["cost", *given, "--since", "2026-01-01"]) == 0
    out = capsys.readouterr().out
    assert "the cache saved 1.00 USD, 25% of what it would have been" in out
    assert "\x1b" not in out


def test_no_accounts_yet_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, *GIVEN, f"vars.state={tmp_path / 'new'}")
    assert found["rows"] == []
    assert "too little data" in found["projection"]["why"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "yesterday"], "2026-11-01"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "--since 2026-01-02 is after --until"),
        (["--since", "9999-01-01"], "is after --until"),
        (["extensions.price=null"], "price=genai"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cost", *GIVEN, f"vars.state={tmp_path}", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_checking_a_configuration_writes_no_accounts(tmp_path: Path) -> None:
    for verb in ("check", "config"):
        assert run([verb, *GIVEN, f"vars.state={tmp_path}"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_week_of_days_is_needed_to_project() -> None:
    days = {f"2026-11-{n:02}": 1.0 for n in range(1, 7)}
    assert project(days, "2026-11-07") is None
    assert project(days | {"2026-11-07": 1.0}, "2026-11-08") is not None
    assert project({}, "2026-11-08") is None


def test_even_spend_is_projected_exactly() -> None:
    days = {f"2026-11-{n:02}": 2.0 for n in range(1, 21)}
    found = project(days, "2026-11-21")
    assert found is not None
    assert (found.low, found.usd, found.high) == (60, 60, 60)


def test_weekends_are_drawn_apart() -> None:
    first = date(2026, 10, 20)
    days = {
        (first + timedelta(days=n)).isoformat(): 0.0 if (first + timedelta(days=n)).weekday() >= 5 else 1.0
        for n in range(22)
    }
    found = project(days, "2026-11-11")
    assert found is not None
    assert (found.low, found.usd, found.high) == (21, 21, 21)


def test_the_interval_holds_about_as_many_months_as_it_says() -> None:
    chance = random.Random(1)
    held = 0
    months = 60
    for n in range(months):
        spend = {
            (date(2026, 10, 1) + timedelta(days=d)).isoformat(): chance.lognormvariate(0, 0.7)
            for d in range(61)
        }
        known = {day: usd for day, usd in spend.items() if day < "2026-11-16"}
        found = project(known, "2026-11-16", seed=n)
        assert found is not None
        held += found.low <= sum(usd for day, usd in spend.items() if day >= "2026-11-01") <= found.high
    assert 0.65 <= held / months <= 0.95


def test_days_end_where_the_time_zone_says() -> None:
    calendar = Calendar("Europe/Berlin")
    assert calendar.ends("2026-03-28").isoformat() == "2026-03-29T00:00:00+01:00"
    assert calendar.ends("2026-03-29").isoformat() == "2026-03-30T00:00:00+02:00"
    assert calendar.ends("2026-12").isoformat() == "2027-01-01T00:00:00+01:00"
    assert [days_in(month) for month in ("2026-02", "2028-02", "2026-12")] == [28, 29, 31]
