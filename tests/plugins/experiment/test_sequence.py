"""Confidence sequences: what holds for any data, and what holds in simulated experiments."""

from math import isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.experiment.arm import Arm
from pipeline_plugins.experiment.sequence import (
    Difference,
    Sums,
    Weighted,
    calls_to_see,
    difference,
    evidence,
    mismatch,
    precision,
    width,
)

from benchmarks.ab import failing, lasting, simulate, steer

ALPHAS = st.floats(0.001, 0.3)
CALLS = st.floats(10, 1e7)


def arm(values: list[tuple[int, float]]) -> Sums:
    made = Arm()
    for unit, value in values:
        made.add(unit, value)
    return made.sums


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-100, 100)), min_size=1, max_size=60))
def test_sums_are_those_of_the_calls_gathered_by_unit(given: list[tuple[int, int]]) -> None:
    found = arm([(unit, float(value)) for unit, value in given])
    units = {unit for unit, _ in given}
    totals = {unit: sum(value for u, value in given if u == unit) for unit in units}
    sizes = {unit: sum(u == unit for u, _ in given) for unit in units}
    assert (found.units, found.calls, found.total) == (len(units), len(given), sum(totals.values()))
    assert found.squares == sum(total**2 for total in totals.values())
    assert found.products == sum(totals[unit] * sizes[unit] for unit in units)
    assert found.sizes == sum(size**2 for size in sizes.values())


def test_of_units_with_one_call_each_the_variance_is_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    found = arm(list(enumerate(values.tolist())))
    assert isclose(float(found.variance(share=False)), values.var(ddof=1) / 400, rel_tol=1e-9)


def test_calls_that_repeat_within_a_unit_add_no_certainty() -> None:
    values = np.random.default_rng(1).normal(3, 2, 100).tolist()
    once = arm(list(enumerate(values)))
    often = arm([(unit, value) for unit, value in enumerate(values) for _ in range(10)])
    assert isclose(float(often.variance(share=False)), float(once.variance(share=False)), rel_tol=1e-9)


def test_a_share_of_which_none_was_seen_is_not_certain() -> None:
    assert arm([(n, 0.0) for n in range(100)]).variance(share=True) > 0


@given(CALLS, ALPHAS)
def test_a_sequence_is_wider_than_an_interval_for_one_look(calls: float, alpha: float) -> None:
    from statistics import NormalDist

    assert width(precision(calls, alpha, 2000), alpha) > NormalDist().inv_cdf(1 - alpha / 2)


@given(CALLS, ALPHAS, st.floats(0.01, 30))
def test_the_p_value_and_the_sequence_agree(calls: float, alpha: float, z: float) -> None:
    at = precision(calls, alpha, 2000)
    edge = float(width(at, alpha))
    if not isclose(z, edge, rel_tol=1e-9):
        assert (z > edge) == (1 / float(evidence(z, at)) < alpha)


def test_nothing_is_concluded_of_few_units_however_many_calls() -> None:
    few = [arm([(n % 20, value) for n in range(5000)]) for value in (0.0, 1.0)]
    found = difference(*few, share=True, alpha=0.05)
    assert (found.radius, found.p) == (np.inf, 1.0)


def test_what_is_missing_to_be_sure_is_what_makes_it_sure() -> None:
    control, variant = (arm([(n, float(n % 20 < k)) for n in range(400)]) for k in (2, 3))
    now = difference(control, variant, share=True, alpha=0.01)
    more = calls_to_see(now, 800.0, 0.01)
    assert more is not None
    assert more > 0
    error = float(now.error) * (800 / (800 + more)) ** 0.5
    radius = error * float(width(precision(800 + more, 0.01, 2000), 0.01))
    assert radius == pytest.approx(abs(float(now.estimate)), rel=0.01)
    assert calls_to_see(Difference(0.0, 1.0, np.inf, 1.0), 100.0, 0.05) is None


@pytest.mark.parametrize("share", [0.1, 0.02])
def test_no_difference_is_seen_where_there_is_none_though_each_call_is_a_look(share: float) -> None:
    found = simulate(failing(share), tests=2000, calls=1500, units=None, share=True, seed=1)
    assert found.always <= 0.05
    assert found.peeked > 0.1


def test_users_who_return_and_differ_are_no_evidence_either() -> None:
    found = simulate(lasting(spread=0.8), tests=2000, calls=1500, units=200, share=False, seed=2)
    assert found.always <= 0.05
    assert found.peeked > 0.1


def test_a_true_difference_is_seen() -> None:
    found = simulate(failing(0.1, 0.1), tests=200, calls=1500, units=None, share=True, seed=3)
    assert found.always > 0.9


def test_shares_are_suspect_only_where_they_are_not_as_wanted() -> None:
    assert mismatch([500, 510], [0.5, 0.5]) == 1
    assert mismatch([500, 700], [0.5, 0.5]) < 0.001
    assert mismatch([900, 100], [0.9, 0.1]) == 1
    assert mismatch([0, 0], [0.5, 0.5]) == 1


def test_shares_may_be_looked_at_after_every_unit() -> None:
    random = np.random.default_rng(4)
    suspected = 0
    for _ in range(200):
        first = np.cumsum(random.random(400) < 0.5).tolist()
        suspected += any(mismatch([n, at + 1 - n], [0.5, 0.5]) < 0.05 for at, n in enumerate(first))
    assert suspected <= 10


@given(st.lists(st.integers(0, 1), min_size=60, max_size=120), st.floats(0.05, 1))
def test_calls_that_were_equally_likely_weigh_as_if_they_had_no_weight(
    values: list[int], probability: float
) -> None:
    plain, weighted = arm(list(enumerate(map(float, values)))), Weighted()
    for value in values:
        weighted.weigh(float(value), probability)
    assert isclose(float(weighted.mean), float(plain.mean), abs_tol=1e-12)
    variances = [float(one.variance(share=True)) for one in (plain, weighted)]
    assert isclose(*variances, rel_tol=1e-6)


def test_weights_make_up_for_shares_that_moved() -> None:
    # Half of the calls fail early, none later, when the variant seldom gets one.
    sums = Weighted()
    for probability, calls, failed in ((0.5, 50, 25), (0.1, 10, 0)):
        for n in range(calls):
            sums.weigh(float(n < failed), probability)
    assert float(sums.mean) == pytest.approx(0.25)


def test_a_bandit_has_fewer_failures_and_its_weighted_results_may_be_looked_at_at_any_time() -> None:
    alike = steer((0.2, 0.2), tests=500, calls=800, explore=0.1, seed=5)
    assert alike.wrong <= 0.05
    unlike = steer((0.2, 0.5), tests=300, calls=2000, explore=0.1, seed=6)
    assert unlike.wrong <= 0.05
    assert unlike.found > 0.8
    assert unlike.failed < 0.25
    assert abs(unlike.bias[1]) < 0.005


def test_a_few_calls_of_much_weight_are_not_many() -> None:
    even, uneven = Weighted(), Weighted()
    for n in range(80):
        even.weigh(float(n % 2), 0.5)
        uneven.weigh(float(n % 2), 0.05 if n < 4 else 1.0)
    assert np.isfinite(difference(even, even, share=True, alpha=0.05).radius)
    assert difference(even, uneven, share=True, alpha=0.05).radius == np.inf
