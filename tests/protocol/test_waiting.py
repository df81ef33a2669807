"""The capped table of waiters and the heap of deadlines, without a clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quicflow_trio.config import Limits
from quicflow_trio.errors import WaitingTableFull
from quicflow_trio.protocol.waiting import DeadlineHeap, WaitingShare, WaitingTable


class Entry:
    """Something with a deadline."""

    def __init__(self, name: int = 0) -> None:
        self.name = name
        self.live = True
        self.fired: list[float] = []

    def expire(self, now: float) -> None:
        assert self.live
        self.live = False
        self.fired.append(now)


# -- the table ---------------------------------------------------------------------------------------------------------
def test_the_one_after_the_last_is_refused_and_nothing_is_counted() -> None:
    limits = Limits(waiting_per_session=50_000)
    table = WaitingTable(limits.waiting, limits.waiting_per_session)
    share = WaitingShare(table)
    for _ in range(50_000):
        share.enter()
    with pytest.raises(WaitingTableFull, match=r"50,000 requests wait for an ack already, the limit is 50,000"):
        share.enter()
    assert (table.active, share.active, table.created, table.refused) == (50_000, 50_000, 50_000, 1)
    share.leave()
    share.enter()
    for _ in range(50_000):
        share.leave()
    assert (table.active, share.active) == (0, 0)


def test_one_session_cannot_take_the_place_of_all_others() -> None:
    table = WaitingTable(5, 3)
    greedy, other = WaitingShare(table), WaitingShare(table)
    for _ in range(3):
        greedy.enter()
    with pytest.raises(WaitingTableFull, match=r"of this session .* its share is 3"):
        greedy.enter()
    other.enter()
    other.enter()
    with pytest.raises(WaitingTableFull, match="the limit is 5"):
        other.enter()
    assert (table.active, greedy.active, other.active, table.refused) == (5, 3, 2, 2)


# -- the heap ----------------------------------------------------------------------------------------------------------
def test_deadlines_fire_in_order_and_not_early() -> None:
    heap = DeadlineHeap()
    assert heap.next_deadline() == math.inf
    late, early = Entry(), Entry()
    heap.add(2.0, late)
    heap.add(1.0, early)
    heap.add(math.inf, Entry())
    assert (len(heap), heap.next_deadline()) == (2, 1.0)
    heap.expire(0.999)
    assert not early.fired
    heap.expire(1.0)
    assert (early.fired, late.fired, heap.next_deadline()) == ([1.0], [], 2.0)
    heap.expire(5.0)
    assert (late.fired, len(heap)) == ([5.0], 0)


def test_an_entry_may_set_its_next_deadline_while_it_fires() -> None:
    heap = DeadlineHeap()

    class Again(Entry):
        def expire(self, now: float) -> None:
            self.fired.append(now)
            if now < 3:
                heap.add(now + 1, self)

    entry = Again()
    heap.add(1.0, entry)
    for now in (1.0, 2.0, 3.0, 4.0):
        heap.expire(now)
    assert entry.fired == [1.0, 2.0, 3.0]


def test_entries_that_ended_early_do_not_pile_up() -> None:
    """Requests are answered within milliseconds, their deadlines are 30 s away: 20,000 a second would leave 600,000 entries."""
    heap = DeadlineHeap()
    for index in range(10_000):
        entry = Entry()
        heap.add(30.0 + index, entry)
        entry.live = False
        heap.ended_early()
        assert len(heap) <= 130
    assert heap.next_deadline() == math.inf


class Model(RuleBasedStateMachine):
    """Adding, ending early and time passing, against a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = DeadlineHeap()
        self.now = 0.0
        self.live: dict[Entry, float] = {}
        self.fired = 0

    @rule(after=st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf]), count=st.integers(1, 40))
    def add(self, after: float, count: int) -> None:
        for _ in range(count):
            entry = Entry()
            self.heap.add(self.now + after, entry)
            if after != math.inf:
                self.live[entry] = self.now + after

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(1, 40))
    def end_early(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.live))):
            entry = next(iter(self.live))
            del self.live[entry]
            entry.live = False
            self.heap.ended_early()

    @rule(step=st.sampled_from([0.0, 0.5, 2.0]))
    def wait(self, step: float) -> None:
        self.now += step
        self.heap.expire(self.now)
        due = [entry for entry, deadline in self.live.items() if deadline <= self.now]
        for entry in due:
            assert entry.fired == [self.now]
            del self.live[entry]

    @invariant()
    def agrees(self) -> None:
        assert not any(entry.fired for entry in self.live)
        assert self.heap.next_deadline() == min(self.live.values(), default=math.inf)
        assert len(self.live) <= len(self.heap) <= max(2 * len(self.live), len(self.live) + 66)


TestModel: Any = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=30)
