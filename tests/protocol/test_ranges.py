"""Runs of numbers, against a plain set."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.protocol.ranges import add_number


@given(st.permutations(range(12)), st.integers(0, 12))
def test_numbers_in_any_order_become_as_few_runs_as_there_are_gaps(order: list[int], count: int) -> None:
    runs: list[list[int]] = []
    for number in order[:count]:
        add_number(runs, number)
    assert [number for first, last in runs for number in range(first, last + 1)] == sorted(order[:count])
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(runs))
