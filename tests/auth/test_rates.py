"""Token buckets: what passes in a second, what passes at once, and that who waits as long as he is told is let through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio import ConfigurationError, RateLimit
from quicflow_trio.rates import METERS, Meter, Meters


def taken(meter: Meter, size: int, times: list[float]) -> list[float]:
    return [time for time in times if not meter.take(size, time)]


def test_a_burst_and_then_the_rate() -> None:
    meter = Meter(RateLimit(messages=10, burst=2))
    assert len(taken(meter, 0, [5.0] * 100)) == 20
    assert meter.take(0, 5.0) == pytest.approx(0.1)
    assert len(taken(meter, 0, [5.0 + step / 100 for step in range(1, 1001)])) == 100


def test_what_is_refused_costs_nothing() -> None:
    meter = Meter(RateLimit(messages=1))
    assert meter.take(0, 0) == 0
    for _ in range(1000):
        assert meter.take(0, 0.5) == pytest.approx(0.5)
    assert meter.take(0, 1.0) == 0


def test_bytes_are_limited_apart_from_messages() -> None:
    meter = Meter(RateLimit(bytes=1000, burst=1))
    assert len(taken(meter, 100, [0.0] * 50)) == 10
    assert len(taken(meter, 0, [0.0] * 50)) == 50
    assert meter.take(200, 0.0) == pytest.approx(0.2)


def test_a_message_over_the_burst_passes_alone_and_is_paid_for() -> None:
    meter = Meter(RateLimit(bytes=1000, burst=1))
    assert meter.take(5000, 0.0) == 0
    assert meter.take(1, 1.0) == pytest.approx(3.001)
    assert meter.take(5000, 4.5) == pytest.approx(0.5)
    assert meter.take(5000, 5.0) == 0


def test_silence_earns_one_burst_and_no_more() -> None:
    meter = Meter(RateLimit(messages=10))
    assert meter.take(0, 0) == 0
    assert len(taken(meter, 0, [1e6] * 100)) == 10


def test_no_limit_is_none() -> None:
    meter = Meter(RateLimit())
    assert len(taken(meter, 10**9, [0.0] * 1000)) == 1000


@given(
    rate=st.floats(0.1, 1e5),
    size_rate=st.floats(1, 1e8),
    burst=st.floats(0.01, 100),
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(0, 100_000)), max_size=40),
)
def test_who_waits_as_told_is_let_through_and_nobody_passes_the_rate(
    rate: float, size_rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    meter = Meter(RateLimit(messages=rate, bytes=size_rate, burst=burst))
    now, passed = 1000.0, 0
    for pause, size in steps:
        now += pause
        wait = meter.take(size, now)
        if wait:
            now += wait
            assert meter.take(size, now) == 0
        passed += 1
    # One message over the burst may have passed in debt.
    assert passed <= (now - 1000.0 + burst) * rate * (1 + 1e-6) + 1


@pytest.mark.parametrize(
    "values", [{"messages": 0}, {"bytes": -1}, {"messages": math.nan}, {"burst": 0}, {"burst": math.inf}, {"bytes": True}]
)
def test_limits_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"RateLimit.{next(iter(values))}"):
        RateLimit(**values)


def test_meters_are_kept_by_id_and_bounded() -> None:
    meters, limit = Meters(), RateLimit(messages=1)
    first = meters.of("client", limit)
    assert meters.of("client", RateLimit(messages=1)) is first
    assert meters.of("client", RateLimit(messages=2)) is not first
    for number in range(METERS + 50):
        meters.of(f"client-{number}", limit)
    assert len(meters) == METERS
