"""Histograms: the stated error, and adding up."""

from hypothesis import given
from hypothesis import strategies as st
from pipeline_plugins.histogram import ERROR, HIGHEST, LOWEST, Histogram

numbers = st.floats(LOWEST, HIGHEST)

SLACK = 1 + 1e-9
"""Bounds are met up to rounding."""


@given(st.lists(numbers, min_size=1), st.floats(0, 1))
def test_a_quantile_is_within_the_error(values: list[float], share: float) -> None:
    exact = sorted(values)[int(share * (len(values) - 1))]
    found = Histogram(values).quantile(share)
    assert found is not None
    assert exact * (1 - ERROR * SLACK) <= found <= exact * (1 + ERROR * SLACK)


@given(st.lists(st.lists(numbers), max_size=5))
def test_those_of_several_processes_add_up(parts: list[list[float]]) -> None:
    whole = Histogram(value for part in parts for value in part)
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram(part))
    read = Histogram.from_bytes(*(Histogram(part).to_bytes() for part in parts), None)
    assert whole.buckets == merged.buckets == read.buckets
    assert whole.count == merged.count == read.count == sum(map(len, parts))


@given(st.dictionaries(st.integers(-345, 921), st.integers(1, 2**64 - 1), max_size=4))
def test_counts_of_any_width_are_read_as_written(buckets: dict[int, int]) -> None:
    histogram = Histogram()
    histogram.buckets.update(buckets)
    assert Histogram.from_bytes(histogram.to_bytes()).buckets == buckets


def test_what_is_out_of_bounds_counts_as_the_bound() -> None:
    low, high = Histogram([0.0, -1.0]).quantile(0.5), Histogram([1e300]).quantile(1)
    assert low is not None
    assert high is not None
    assert abs(low / LOWEST - 1) < 2 * ERROR
    assert abs(high / HIGHEST - 1) < 2 * ERROR


def test_an_empty_one_has_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().quantiles((0.5, 0.9)) == [None, None]


@given(st.lists(st.floats(1e-3, 1e8), min_size=1), st.lists(st.floats(0, 1)))
def test_several_quantiles_are_those_asked_for_one_by_one(values: list[float], shares: list[float]) -> None:
    histogram, shares = Histogram(values), sorted(shares)
    assert histogram.quantiles(shares) == [histogram.quantile(share) for share in shares]
    assert Histogram.from_bytes(b"", None).count == 0
