"""Messages per second over the last ten seconds, by a clock that the test moves."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.observe.metrics import WINDOW, ThroughputMeter

START = 1234.5


def test_before_anything_it_is_zero() -> None:
    assert ThroughputMeter(START).rate(START, 0) == 0.0
    assert ThroughputMeter(START).rate(START + 5, 0) == 0.0


def test_a_young_meter_divides_by_its_age() -> None:
    assert ThroughputMeter(START).rate(START + 4, 100) == pytest.approx(25.0)


@pytest.mark.parametrize("per_second", [1, 7, 5000])
def test_a_steady_stream_has_its_rate(per_second: int) -> None:
    meter = ThroughputMeter(START)
    for tick in range(1, 2001):
        meter.mark(START + tick / 20, per_second * tick // 20)
    assert meter.rate(START + 100, per_second * 100) == pytest.approx(per_second, rel=0.02, abs=0.2)


def test_a_burst_is_gone_after_the_window() -> None:
    meter = ThroughputMeter(0.0)
    meter.mark(100.5, 1000)
    assert meter.rate(100.5, 1000) == pytest.approx(1000 / (WINDOW + 0.5))
    assert meter.rate(110.9, 1000) == pytest.approx(1000 / (WINDOW + 0.9))
    assert meter.rate(111.0, 1000) == 0.0


def test_silence_of_any_length_is_zero() -> None:
    meter = ThroughputMeter(START)
    for second in range(30):
        meter.mark(START + second, 100 * second)
    assert meter.rate(START + 1e6, 2900) == 0.0


def test_asking_does_not_change_the_answer() -> None:
    asked, quiet = ThroughputMeter(START), ThroughputMeter(START)
    for tick in range(1, 400):
        now, total = START + tick * 0.13, tick * tick
        asked.mark(now, total)
        asked.rate(now, total)
        quiet.mark(now, total)
    assert asked.rate(START + 52, 160_000) == quiet.rate(START + 52, 160_000)


def test_it_keeps_a_bounded_past() -> None:
    meter = ThroughputMeter(0.0)
    for second in range(10_000):
        meter.mark(float(second), second)
    ends: deque[tuple[int, int]] = meter._ends
    assert len(ends) <= WINDOW + 2


@given(st.lists(st.tuples(st.floats(0.0, 4.0), st.integers(0, 50)), min_size=1, max_size=60))
def test_it_counts_what_was_marked_since_the_tenth_full_second(steps: list[tuple[float, int]]) -> None:
    meter = ThroughputMeter(START)
    marks: list[tuple[float, int]] = []
    now, total = START, 0
    for pause, number in steps:
        now += pause
        total += number
        meter.mark(now, total)
        marks.append((now, number))
    first = int(now) - WINDOW
    expected = sum(number for at, number in marks if at >= first)
    elapsed = now - max(first, START)
    assert meter.rate(now, total) == pytest.approx(expected / max(elapsed, 1.0))
