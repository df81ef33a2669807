"""Backoff: the waits between two attempts."""

from __future__ import annotations

import pytest

from quicflow_trio import ClientConfig
from quicflow_trio.reconnect import Backoff


def delays(backoff: Backoff, count: int = 9) -> list[float]:
    return [backoff.next_delay() for _ in range(count)]


def test_waits_double_up_to_the_maximum() -> None:
    assert delays(Backoff(1, 60, 0)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_connection_that_stood_starts_it_over() -> None:
    backoff = Backoff(1, 60, 0)
    delays(backoff)
    backoff.reset()
    assert delays(backoff, 3) == [1, 2, 4]


def test_jitter_only_shortens_and_by_no_more_than_its_share() -> None:
    # A wait longer than the maximum would break the promise to be back within it.
    for wait, full in zip(delays(Backoff(1, 60, 0.2, seed=3), 200), delays(Backoff(1, 60, 0), 200), strict=True):
        assert full * 0.8 <= wait <= full


def test_one_seed_gives_one_series_and_two_seeds_two() -> None:
    assert delays(Backoff(1, 60, 0.2, seed=7)) == delays(Backoff(1, 60, 0.2, seed=7))
    assert delays(Backoff(1, 60, 0.2, seed=7)) != delays(Backoff(1, 60, 0.2, seed=8))


def test_the_time_that_an_attempt_took_counts_against_the_longest_wait() -> None:
    # Attempts of 10 s and full waits on top would leave a client away for 70 s after the network has come back.
    backoff = Backoff(1, 60, 0)
    assert [backoff.next_delay(10.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 50, 50]
    assert backoff.next_delay(1000.0) == 1
    assert backoff.next_delay() == 60


def test_jitter_still_spreads_a_wait_that_was_cut() -> None:
    assert len({Backoff(1, 1, 0.2, seed=number).next_delay(0.5) for number in range(20)}) == 20


def test_without_a_seed_two_clients_do_not_wait_alike() -> None:
    assert delays(Backoff(1, 60, 0.2)) != delays(Backoff(1, 60, 0.2))


@pytest.mark.parametrize("initial", [0.001, 60.0])
def test_the_first_wait_is_the_initial_one(initial: float) -> None:
    assert Backoff(initial, 60, 0).next_delay() == initial


def test_ten_thousand_clients_come_back_over_the_whole_second() -> None:
    # As they are unless told otherwise. With 80 % to 100 % of a second, as it was, all of them came within a fifth of one.
    config = ClientConfig()
    waits = sorted(
        Backoff(config.backoff_initial, config.backoff_max, config.jitter, seed=number).next_delay() for number in range(10_000)
    )
    tenths = [sum(low / 10 <= wait < (low + 1) / 10 for wait in waits) for low in range(10)]
    assert sum(tenths) == 10_000
    assert max(tenths) < 1200
