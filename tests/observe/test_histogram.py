"""The latency histogram: what is counted comes back, quantiles are as fine as they say, the ladder is exact."""

from __future__ import annotations

import random
from bisect import bisect_right
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.observe.histogram import BOUNDS, LADDER, STEPS, Histogram, HistogramSnapshot

DURATIONS = st.floats(min_value=0.0, max_value=200.0, allow_nan=False)
SHARES = st.floats(min_value=0.0, max_value=1.0, allow_nan=False)


def counted(durations: list[float]) -> HistogramSnapshot:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    return histogram.snapshot()


def test_the_bounds_rise_and_hold_the_ladder_exactly() -> None:
    assert [*BOUNDS] == sorted(set(BOUNDS))
    assert BOUNDS[::STEPS] == LADDER


def test_buckets_are_narrow_enough() -> None:
    # Latencies are to be told apart to 0.1 ms where they matter: below a few milliseconds.
    for low, high in pairwise(BOUNDS):
        assert high / low < 1.053
        if high <= 2e-3:
            assert high - low < 1e-4


def test_nothing_counted_is_all_zero() -> None:
    empty = Histogram().snapshot()
    assert (empty.count, empty.total, empty.mean, empty.quantile(0.99)) == (0, 0.0, 0.0, 0.0)
    assert empty.ladder() == [(bound, 0) for bound in LADDER]


@given(st.lists(DURATIONS, max_size=100))
def test_the_ladder_counts_what_is_at_most_that_long(durations: list[float]) -> None:
    ordered = sorted(durations)
    snapshot = counted(durations)
    assert snapshot.count == len(durations)
    assert snapshot.total == pytest.approx(sum(durations))
    assert snapshot.ladder() == [(bound, bisect_right(ordered, bound)) for bound in LADDER]


@pytest.mark.parametrize("bound", LADDER)
def test_a_duration_on_a_bound_belongs_below_it(bound: float) -> None:
    # Prometheus' buckets are "less or equal".
    assert dict(counted([bound]).ladder())[bound] == 1


@given(st.lists(DURATIONS, min_size=1, max_size=200), SHARES)
def test_a_quantile_is_within_a_bucket_of_the_true_one(durations: list[float], share: float) -> None:
    ordered = sorted(durations)
    snapshot = counted(durations)
    found = snapshot.quantile(share)
    # The true one lies between the neighbours in rank; either may be meant.
    rank = share * len(ordered)
    below = ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]
    above = ordered[min(len(ordered) - 1, int(rank))]
    assert min(below, BOUNDS[-1]) / 1.053 - BOUNDS[0] <= found <= max(min(above, BOUNDS[-1]) * 1.053, BOUNDS[0])


@given(st.lists(DURATIONS, min_size=1, max_size=50), SHARES, SHARES)
def test_quantiles_rise_with_the_share(durations: list[float], one: float, other: float) -> None:
    snapshot = counted(durations)
    assert snapshot.quantile(min(one, other)) <= snapshot.quantile(max(one, other)) <= BOUNDS[-1]


def test_quantiles_of_a_known_shape() -> None:
    rng = random.Random(7)
    snapshot = counted([rng.uniform(0.001, 0.101) for _ in range(100_000)])
    for share in (0.5, 0.95, 0.99):
        assert snapshot.quantile(share) == pytest.approx(0.001 + 0.1 * share, rel=0.02)
    assert snapshot.mean == pytest.approx(0.051, rel=0.01)


def test_what_is_over_a_minute_counts_as_a_minute() -> None:
    snapshot = counted([3600.0] * 3)
    assert (snapshot.quantile(0.0), snapshot.quantile(0.5), snapshot.quantile(1.0)) == (60.0, 60.0, 60.0)
    assert snapshot.mean == 3600.0
    assert snapshot.ladder()[-1] == (60.0, 0)


def test_what_is_below_the_first_bound_is_shown_within_it() -> None:
    snapshot = counted([0.0, 10e-6, 50e-6])
    assert 0.0 <= snapshot.quantile(0.5) <= 50e-6
    assert snapshot.ladder()[0] == (50e-6, 3)


@given(st.lists(DURATIONS, max_size=50), st.lists(DURATIONS, max_size=50))
def test_since_is_what_came_in_between(earlier: list[float], later: list[float]) -> None:
    histogram = Histogram()
    for duration in earlier:
        histogram.observe(duration)
    before = histogram.snapshot()
    for duration in later:
        histogram.observe(duration)
    between = histogram.snapshot().since(before)
    assert between.counts == counted(later).counts
    assert between.total == pytest.approx(sum(later), abs=1e-6)


def test_a_snapshot_does_not_move() -> None:
    histogram = Histogram()
    snapshot = histogram.snapshot()
    histogram.observe(1.0)
    assert (snapshot.count, histogram.snapshot().count) == (0, 1)
