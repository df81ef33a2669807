"""One task sleeps until the earliest deadline of many, in virtual time to the instant."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from quicflow_trio.deadlines import Deadlines


class Entry:
    """Notes when it expires."""

    def __init__(self) -> None:
        self.live = True
        self.fired: float | None = None

    def expire(self, now: float) -> None:
        assert self.live
        self.live = False
        self.fired = now


async def test_each_fires_at_its_time_whatever_the_order(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    start = trio.current_time()
    before, late, early, never = Entry(), Entry(), Entry(), Entry()
    deadlines.add(start + 3, before)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await wait_all_tasks_blocked()
        deadlines.add(start + 10, late)
        deadlines.add(start + 1, early)
        deadlines.add(math.inf, never)
        assert len(deadlines) == 3
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert [entry.fired for entry in (early, before, late, never)] == [start + 1, start + 3, start + 10, None]
    assert len(deadlines) == 0


async def test_one_in_the_past_fires_at_once(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await trio.sleep(5)
        entry = Entry()
        deadlines.add(trio.current_time() - 1, entry)
        await wait_all_tasks_blocked()
        assert entry.fired == trio.current_time()
        nursery.cancel_scope.cancel()


async def test_an_entry_may_add_another_as_it_fires(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    times: list[float] = []

    class Again(Entry):
        def expire(self, now: float) -> None:
            times.append(now)
            deadlines.add(now + 2, self)

    async with trio.open_nursery() as nursery:
        start = trio.current_time()
        deadlines.add(start + 2, Again())
        nursery.start_soon(deadlines.run)
        await trio.sleep(7)
        nursery.cancel_scope.cancel()
    assert [at - start for at in times] == pytest.approx([2, 4, 6])


async def test_those_that_ended_early_wake_nobody(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        for _ in range(1000):
            entry = Entry()
            deadlines.add(trio.current_time() + 30, entry)
            entry.live = False
            deadlines.ended_early()
        assert len(deadlines) <= 130
        await trio.sleep(100)
        assert len(deadlines) == 0
        nursery.cancel_scope.cancel()


async def test_sleeping_until_one_of_them(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    start = trio.current_time()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await deadlines.sleep_until(start + seconds)
        woken.append(trio.current_time() - start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        async with trio.open_nursery() as sleepers:
            for seconds in (3, 1, 2):
                sleepers.start_soon(sleeper, seconds)
        assert woken == [1, 2, 3]
        with assert_checkpoints():
            await deadlines.sleep_until(start)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_sleep_leaves_nothing(autojump_clock: MockClock) -> None:
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        with trio.move_on_after(1) as scope:
            await deadlines.sleep_until(trio.current_time() + 100)
        assert scope.cancelled_caught
        await trio.sleep(200)
        assert len(deadlines) == 0
        nursery.cancel_scope.cancel()
