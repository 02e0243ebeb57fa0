"""Many units in bounded memory: how many there are, and what is concluded from their groups."""

from random import Random

import pytest
from pipeline_plugins.experiment import arm, unit
from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.sequence import difference
from pipeline_plugins.experiment.unit import Units, number_of


def test_few_units_are_counted_exactly_however_often_they_come() -> None:
    units = Units()
    for n in range(1000):
        units.add("large", number_of(f"user {n % 70}"))
    assert (units.count("large"), units.exact) == (70, True)


def test_many_are_estimated_from_a_share_that_is_the_same_in_each_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unit, "MOST", 2000)
    units = Units()
    for n in range(60_000):
        units.add("small" if n % 4 == 0 else "large", number_of(f"user {n}"))
    assert not units.exact
    assert sum(map(len, units.kept.values())) <= 2000
    assert units.count("small") == pytest.approx(15_000, rel=0.15)
    assert units.count("large") == pytest.approx(45_000, rel=0.1)


def test_groups_of_units_tell_what_units_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same means, and an interval as wide, of users who return and differ."""
    random = Random(3)
    effects = [random.gauss(0, 1) for _ in range(6000)]
    calls = [(n, effects[n] + random.gauss(0, 1)) for n in random.choices(range(6000), k=30_000)]

    def compared() -> tuple[float, float, float]:
        arms = (Arm(), Arm())
        for n, value in calls:
            arms[n % 2].add(number_of(f"user {n}"), value + 0.2 * (n % 2))
        found = difference(arms[0].sums, arms[1].sums, share=False, alpha=0.05)
        return float(arms[0].sums.mean), float(found.estimate), float(found.radius)

    exact = compared()
    monkeypatch.setattr(arm, "EXACT", 600)
    monkeypatch.setattr(arm, "GROUPS", 500)
    mean, estimate, radius = compared()
    assert (mean, estimate) == pytest.approx(exact[:2])
    assert radius == pytest.approx(exact[2], rel=0.15)
