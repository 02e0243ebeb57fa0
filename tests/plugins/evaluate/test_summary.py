"""Intervals and tests: that they cover what they say they cover."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_plugins.evaluate.compare import holm, permutation_test
from pipeline_plugins.evaluate.summary import interval, resampled_means, summarise

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(NUMBERS)
def test_an_interval_lies_within_the_values_and_its_ends_are_in_order(values: list[float]) -> None:
    column = np.array(values)
    low, high = interval(column, resampled_means(column[:, None], 200, 0)[:, 0], 0.95)
    margin = 1e-6 + 1e-9 * max(map(abs, values))
    assert min(values) - margin <= low <= high <= max(values) + margin


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for draw in range(300):
        values = random.exponential(1.0, 80)
        low, high = interval(values, resampled_means(values[:, None], 600, draw)[:, 0], 0.95)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    rows = [{"f1": n % 7 / 7} for n in range(50)]
    found = [summarise(rows, ["f1"], resamples=200, confidence=0.9, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_examples_without_a_value_are_left_out() -> None:
    rows = [{"f1": 1.0, "x": None}, {"f1": None, "x": None}, {"f1": 0.0, "x": None}]
    found = summarise(rows, ["f1", "x"], resamples=200, confidence=0.95, seed=0)
    assert set(found) == {"f1"}
    assert (found["f1"]["n"], found["f1"]["mean"]) == (2, 0.5)


def test_without_a_difference_few_permutation_tests_are_below_the_level() -> None:
    differences = np.random.default_rng(2).normal(0, 1, (60, 400))
    p = permutation_test(differences, 999, 0)
    assert 0.02 <= (p < 0.05).mean() <= 0.08


def test_a_difference_in_every_example_is_found_and_none_is_certain_of_nothing() -> None:
    p = permutation_test(np.column_stack([np.full(40, 0.1), np.zeros(40)]), 999, 0)
    assert p[0] == pytest.approx(0.001)
    assert p[1] == 1


@settings(deadline=None)
@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=30))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values: list[float]) -> None:
    p = np.array(values)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert adjusted.min() == min(1, p.min() * len(p))
