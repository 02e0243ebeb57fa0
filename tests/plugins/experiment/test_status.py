"""How an experiment stands, from rows in either database."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import orjson
import pytest
from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.metric import METRICS, Seen
from pipeline_plugins.experiment.show import headings, show
from pipeline_plugins.experiment.status import Design, Experiments, report
from pipeline_plugins.ledger.store import Batch, Entry, Filter, Store

from pipeline.kinds import Exposed
from tests.plugins.ledger.test_rollup import entry

UNITS = 300

SEEN = ("outcome", "total_ms", "first_ms", "valid", "usd", "completion_tokens")


def took_part(number: int, variant: str, *, fails: bool, seconds: float = 1.0, unit: int = 0) -> Entry:
    exposed = Exposed({"size": variant}, {"size": f"{unit or number:016x}"})
    outcome = "failed" if fails else "completed"
    return entry(
        number, 60.0, received=10.0, ended=10.0 + seconds, decisions={Exposed: exposed}, outcome=outcome
    )


def stand(connect: Callable[[], Store], rows: list[Entry], design: Design | None = None, **given: Any) -> Any:
    with contextlib.closing(connect()) as store:
        store.add(Batch(rows))
        for id, rating in given.get("ratings", {}).items():
            store.rate(id, rating, None, None)
        found = Experiments()
        found.read(store, Filter())
        found.rate(store, Filter())
    return report("size", found["size"], design or Design(), 0.05)


def both(worse: int, slower: float = 1.0) -> list[Entry]:
    """As many units of two variants, the second of which fails `worse` of a hundred calls."""
    rows = []
    for n in range(UNITS):
        rows.append(took_part(2 * n + 1, "large", fails=False, seconds=1 + n % 10 / 10))
        rows.append(took_part(2 * n + 2, "small", fails=n % 100 < worse, seconds=slower + n % 10 / 10))
    return rows


def decisions(found: Any) -> dict[str, str]:
    return {one["metric"]: row["decision"] for one in found["metrics"] for row in one["variants"]}


def test_each_metric_is_compared_with_the_control(connect: Callable[[], Store]) -> None:
    found = stand(connect, both(20, slower=0.5), ratings={"req_1": "5", "req_2": "down"})
    assert found["control"] == "large"
    assert [(one["calls"], one["units"]) for one in found["variants"]] == [(UNITS, UNITS)] * 2
    assert decisions(found) == {
        "failed": "worse",
        "latency_s": "better",
        "completion_tokens": "undecided",
        "positive": "undecided",
    }
    (failed,) = (one["variants"][0] for one in found["metrics"] if one["metric"] == "failed")
    assert failed["difference"] == pytest.approx(0.2)
    assert 0 < failed["low"] < 0.2 < failed["high"]
    assert failed["p"] < 0.05
    assert failed["more_calls"] == 0
    assert not found["shares"]["suspect"]


def test_the_configuration_names_the_control_and_the_guards(connect: Callable[[], Store]) -> None:
    design = Design(("small", "large"), guards={"failed": 0.05})
    found = stand(connect, both(30), design)
    assert found["control"] == "small"
    assert decisions(found)["failed"] == "better"
    assert found["guards_broken"] == []
    again = stand(connect, [], Design(("large", "small"), guards={"failed": 0.05}))
    assert decisions(again)["failed"] == "guard broken: stop"
    assert again["guards_broken"] == ["failed of small"]


def test_the_database_adds_up_what_each_metric_is_of_a_call(connect: Callable[[], Store]) -> None:
    rows = []
    for n in range(60):
        made = took_part(n, ("large", "small")[n % 2], fails=n % 5 == 0, seconds=1 + n % 7, unit=n % 8 + 1)
        made.row["valid"] = (None, 0, 1)[n % 3]
        made.row["first_ms"], made.row["usd"] = (None, 12.5)[n % 2], (None, 0.25)[n % 4 // 2]
        rows.append(made)
    ratings = {f"req_{n}": ("up", "1", "5", "down")[n % 4] for n in range(0, 60, 7)}
    with contextlib.closing(connect()) as store:
        store.add(Batch(rows))
        for id, rating in ratings.items():
            store.rate(id, rating, None, None)
        found = Experiments()
        for low, high in ((0, 17), (17, 60)):
            found.read(store, Filter(rows=(low, high)))
            found.rate(store, Filter(rows=(0, high)))
    expected: dict[tuple[str, str], Arm] = {}
    for made in rows:
        row = made.row
        seen = Seen(*(row[name] for name in SEEN), ratings.get(row["id"]))
        variant, unit = orjson.loads(row["variants"])["size"], orjson.loads(row["units"])["size"]
        for metric in METRICS.values():
            if (value := metric.of(seen)) is not None:
                expected.setdefault((variant, metric.name), Arm()).add(int(unit, 16), value)
    sums = {key: asdict(arm.sums) for key, arm in found["size"].arms.items()}
    assert sums.keys() == expected.keys()
    for key, arm in expected.items():
        assert sums[key] == pytest.approx(asdict(arm.sums)), key


def test_calls_of_few_units_decide_nothing(connect: Callable[[], Store]) -> None:
    rows = [took_part(n, ("large", "small")[n % 2], fails=n % 2 == 1, unit=n % 40 + 1) for n in range(1, 400)]
    found = stand(connect, rows)
    assert set(decisions(found).values()) == {"undecided"}


def test_units_in_other_shares_than_their_weights_are_told(connect: Callable[[], Store]) -> None:
    assert stand(connect, both(0), Design(weights={"small": 0.5, "large": 0.5}))["shares"]["p"] == 1
    assert stand(connect, [], Design(weights={"small": 9}))["shares"]["suspect"]


def by_bandit(number: int, variant: str, probability: float, *, fails: bool) -> Entry:
    exposed = Exposed({"size": variant}, {}, {"size": probability})
    outcome = "failed" if fails else "completed"
    return entry(number, 60.0, received=10.0, ended=11.0, decisions={Exposed: exposed}, outcome=outcome)


def test_calls_of_a_bandit_are_weighted_by_their_chances(
    connect: Callable[[], Store], capsys: pytest.CaptureFixture[str]
) -> None:
    # Each tenth call fails at first. When all of them do, `small` gets few.
    rows = [by_bandit(n, "small", 0.5, fails=n % 10 == 0) for n in range(1, 101)]
    rows += [by_bandit(n, "small", 0.1, fails=True) for n in range(101, 121)]
    rows += [by_bandit(n, "large", 0.5, fails=n % 10 == 0) for n in range(201, 301)]
    rows += [by_bandit(n, "large", 0.9, fails=True) for n in range(301, 481)]
    rows.append(took_part(1001, "small", fails=True))
    found = stand(connect, rows, Design(("large", "small"), weights={"small": 9}))
    (failed,) = (one for one in found["metrics"] if one["metric"] == "failed")
    assert failed["control"]["n"] == 280
    assert failed["control"]["mean"] == pytest.approx(0.55)
    assert failed["variants"][0]["mean"] == pytest.approx(0.55)
    assert failed["variants"][0]["decision"] == "undecided"
    assert {one["metric"] for one in found["metrics"] if one["control"]["n"]} >= {"failed", "latency_s"}
    assert found["shares"] == {"p": None, "suspect": False}
    show([found], wide=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "means are weighted" in shown
    assert "1 calls of the same name that no bandit assigned are left out" in shown


def test_of_a_bandit_only_shares_have_an_interval(connect: Callable[[], Store]) -> None:
    rows = [by_bandit(n, ("small", "large")[n % 2], 0.5, fails=n % 4 == 0) for n in range(1, 801)]
    found = stand(connect, rows)
    assert decisions(found)["failed"] == "worse"
    bounds = {one["metric"]: one["variants"][0]["low"] for one in found["metrics"]}
    assert bounds["failed"] > 0
    assert bounds["latency_s"] is None


def test_a_person_is_shown_the_difference_and_the_decision(
    connect: Callable[[], Store], capsys: pytest.CaptureFixture[str]
) -> None:
    show([stand(connect, both(30), Design(("large",), guards={"failed": 0.05}))], wide=False)
    shown = capsys.readouterr().out
    assert "+30.00%" in shown
    assert "guard broken: stop" in shown
    assert "300 units, 300 calls  control" in shown


def test_the_level_of_an_interval_is_told_as_it_is() -> None:
    told = [headings({"alpha": alpha})[5] for alpha in (0.05, 0.0125, 0.001)]
    assert told == ["95%, at any time", "98.75%, at any time", "99.9%, at any time"]
