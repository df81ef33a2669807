"""The pump with an engine, a driver and an endpoint that only write down what is asked of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio.deadlines import Deadlines
from quicflow_trio.net.pump import FEED, HANDSHAKE_INBOX, INBOX, Pump
from quicflow_trio.net.turnstile import Turnstile
from quicflow_trio.quic.engine import Address, EngineEvent, StreamData

PEER = ("peer", 1)
Datagrams = Sequence[tuple[bytes, Address]]


class Fake:
    """Engine, driver and endpoint in one: ``log`` has what the pump did, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.terminated = self.closing = False
        self.timer: float | None = None
        self.due = math.inf
        self.events: list[EngineEvent] = []
        self.to_send: list[tuple[bytes, Address]] = []
        self.sent: list[int] = []
        self.full: trio.Event | None = None
        self.on_flush: Any = None
        self.fed: list[bytes] = []
        self.timers = Deadlines()
        self.turnstile = Turnstile()

    # -- the engine
    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        self.fed.append(data)
        self.log.append("feed")

    def get_timer(self) -> float | None:
        return self.timer

    def handle_timer(self, now: float) -> None:
        self.log.append("timer")
        self.timer = None

    def next_events(self) -> list[EngineEvent]:
        events, self.events = self.events, []
        return events

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        self.log.append("build")
        datagrams, self.to_send = self.to_send, []
        return datagrams

    # -- the driver
    def handle_events(self, events: Sequence[EngineEvent], now: float) -> None:
        self.log.append("events")

    def received(self) -> None:
        self.log.append("received")

    def flush(self, now: float) -> None:
        self.log.append("flush")
        if self.on_flush is not None:
            self.on_flush()

    def deadline(self) -> float:
        return self.due

    def handle_deadline(self, now: float) -> None:
        self.log.append("deadline")
        self.due = math.inf

    def transmitted(self) -> None:
        self.log.append("transmitted")

    # -- the endpoint
    async def transmit(self, datagrams: Datagrams) -> None:
        if self.full is not None:
            await self.full.wait()
        self.log.append("transmit")
        self.sent.append(len(datagrams))

    def turns(self) -> list[list[str]]:
        """Return the log cut into turns."""
        turns: list[list[str]] = [[]]
        for entry in self.log:
            turns[-1].append(entry)
            if entry == "transmitted":
                turns.append([])
        return turns[:-1]


def make() -> tuple[Fake, Pump]:
    fake = Fake()
    return fake, Pump(cast(Any, fake), fake, fake, fake.timers)


def datagrams(count: int) -> Datagrams:
    return [(b"%d" % number, PEER) for number in range(count)]


async def settle(pump: Pump, nursery: trio.Nursery) -> None:
    nursery.start_soon(cast(Deadlines, pump._timers).run)
    nursery.start_soon(pump.run)
    await trio.testing.wait_all_tasks_blocked()


async def test_at_most_so_many_datagrams_are_fed_per_turn(autojump_clock: MockClock) -> None:
    # A sender of 64 packets at once would otherwise be answered once for all of them, and both sides run in lockstep.
    fake, pump = make()
    async with trio.open_nursery() as nursery:
        pump.deliver(datagrams(2 * FEED + 3))
        await settle(pump, nursery)
        assert [turn.count("feed") for turn in fake.turns()] == [FEED, FEED, 3]
        assert [turn.count("build") for turn in fake.turns()] == [1, 1, 1], "one transmit per turn"
        assert fake.fed == [data for data, _ in datagrams(2 * FEED + 3)], "in order"
        assert pump.turns == 3
        nursery.cancel_scope.cancel()


async def test_the_order_within_a_turn(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.events = [StreamData(0, b"", False)]
    fake.to_send = [(b"x", PEER)]
    fake.timer = fake.due = 0.0
    async with trio.open_nursery() as nursery:
        pump.deliver(datagrams(1))
        await settle(pump, nursery)
        # Packets before timers: an ACK that waits in the socket must not find its packets declared lost.
        assert fake.turns()[0] == [
            "feed",
            "received",
            "timer",
            "deadline",
            "events",
            "flush",
            "build",
            "transmit",
            "transmitted",
        ]
        nursery.cancel_scope.cancel()


async def test_nothing_to_send_is_not_sent(autojump_clock: MockClock) -> None:
    fake, pump = make()
    async with trio.open_nursery() as nursery:
        pump.kick()
        await settle(pump, nursery)
        assert fake.turns() == [["flush", "build", "transmitted"]]
        nursery.cancel_scope.cancel()


async def test_any_number_of_kicks_make_one_turn(autojump_clock: MockClock) -> None:
    _fake, pump = make()
    async with trio.open_nursery() as nursery:
        await settle(pump, nursery)
        for _ in range(1000):
            pump.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert pump.turns == 1
        pump.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert pump.turns == 2
        nursery.cancel_scope.cancel()


async def test_what_tasks_woken_by_an_event_write_is_flushed(autojump_clock: MockClock) -> None:
    fake, pump = make()
    order: list[str] = []
    woken = trio.Event()

    async def writer() -> None:
        await woken.wait()
        order.append("write")
        pump.kick()

    def handle_events(events: Sequence[EngineEvent], now: float) -> None:
        woken.set()

    fake.handle_events = handle_events  # type: ignore[method-assign]
    fake.on_flush = lambda: order.append("flush")
    fake.events = [StreamData(0, b"", False)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await trio.testing.wait_all_tasks_blocked()
        pump.deliver(datagrams(1))
        await settle(pump, nursery)
        assert "write" in order
        assert order[-1] == "flush", "whatever is written is flushed"
        assert pump.turns <= 2
        nursery.cancel_scope.cancel()


async def test_a_kick_during_the_flush_makes_another_turn(autojump_clock: MockClock) -> None:
    fake, pump = make()

    def once() -> None:
        fake.on_flush = None
        pump.kick()

    fake.on_flush = once
    async with trio.open_nursery() as nursery:
        pump.kick()
        await settle(pump, nursery)
        assert pump.turns == 2
        nursery.cancel_scope.cancel()


async def test_a_full_inbox_drops_and_counts(autojump_clock: MockClock) -> None:
    """By the datagram and not by the batch, which can be long; a stranger can have any number of inboxes, so theirs are small."""
    fake, pump = make()
    pump.deliver(datagrams(HANDSHAKE_INBOX - 4))
    assert pump.dropped == 0
    pump.deliver(datagrams(6))
    assert pump.dropped == 2
    pump.deliver(datagrams(5))
    assert pump.dropped == 7
    pump.handshake_completed()
    for _ in range(INBOX):
        pump.deliver(datagrams(1))
    assert pump.dropped == 7 + HANDSHAKE_INBOX
    pump.kick()  # there is always room for it
    async with trio.open_nursery() as nursery:
        await settle(pump, nursery)
        assert len(fake.fed) == INBOX
        pump.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert fake.turns()[-1] == ["flush", "build", "transmitted"], "kicks work again"
        pump.deliver(datagrams(INBOX))
        await trio.testing.wait_all_tasks_blocked()
        assert len(fake.fed) == 2 * INBOX, "and so does the inbox"
        nursery.cancel_scope.cancel()


async def test_kicks_do_not_add_up_while_the_socket_is_full(autojump_clock: MockClock) -> None:
    # One batch is taken out in a turn, and somebody writes in each: all those kicks stood behind the datagrams.
    fake, pump = make()
    room = trio.Semaphore(0)

    async def transmit(_: Datagrams) -> None:
        await room.acquire()

    def datagrams_to_send(now: float) -> Datagrams:
        return datagrams(1)

    fake.transmit = transmit  # type: ignore[method-assign, assignment]
    fake.datagrams_to_send = datagrams_to_send  # type: ignore[method-assign, assignment]
    pump.handshake_completed()
    async with trio.open_nursery() as nursery:
        pump.kick()
        await settle(pump, nursery)
        for turn in range(20):
            for _ in range(INBOX):
                pump.deliver(datagrams(1))
            pump.kick()
            room.release()
            await trio.testing.wait_all_tasks_blocked()
            assert fake.log.count("flush") == turn + 2, "what was written takes part in the next turn"
        nursery.cancel_scope.cancel()


async def test_it_sleeps_to_the_earlier_of_timer_and_deadline(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.timer, fake.due = 3.0, 5.0
    async with trio.open_nursery() as nursery:
        await settle(pump, nursery)
        await trio.sleep(2.9)
        assert fake.log == []
        await trio.sleep(0.2)
        assert "timer" in fake.log
        assert "deadline" not in fake.log
        await trio.sleep(2)
        assert "deadline" in fake.log
        nursery.cancel_scope.cancel()


async def test_a_timer_that_does_not_move_cannot_stop_the_clock(autojump_clock: MockClock) -> None:
    # In virtual time a timer that fires at exactly now and stays there would spin for ever.
    fake, pump = make()
    fake.timer = 0.0

    def handle_timer(now: float) -> None:
        fake.log.append("timer")

    fake.handle_timer = handle_timer  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump.run)
        with trio.fail_after(1):
            await trio.sleep(0.000_1)
        assert fake.log.count("timer") < 150
        nursery.cancel_scope.cancel()


async def test_a_defect_of_one_engine_ends_no_timer_but_its_own(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.due = 2.0
    other, other_pump = make()
    other.timers = fake.timers
    other_pump._timers, other.timer = fake.timers, 3.0

    def get_timer() -> float | None:
        if trio.current_time() >= 2.0:
            raise IndexError("defect")
        return None

    fake.get_timer = get_timer  # type: ignore[method-assign]
    caught: list[BaseException] = []

    async def run() -> None:
        try:
            await pump.run()
        except IndexError as error:
            caught.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await settle(other_pump, nursery)
        await trio.sleep(2.5)
        assert [str(error) for error in caught] == ["defect"], "where its own connection can deal with it"
        await trio.sleep(1)
        assert other.log.count("timer") == 1
        nursery.cancel_scope.cancel()


async def test_it_ends_when_the_engine_closes(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.to_send = [(b"bye", PEER)]
    fake.closing = True
    pump.kick()
    with trio.fail_after(1):
        await pump.run()
    assert fake.sent == [1], "the close was sent"


async def test_it_does_not_start_on_a_terminated_engine(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.terminated = True
    with trio.fail_after(1):
        await pump.run()
    assert fake.log == []


@pytest.mark.parametrize("moment", ["waiting", "full"])
async def test_cancellation_sends_nothing_more(autojump_clock: MockClock, moment: str) -> None:
    fake, pump = make()
    fake.to_send = [(b"x", PEER)]
    fake.full = trio.Event()
    async with trio.open_nursery() as nursery:
        if moment == "full":
            pump.kick()
        await settle(pump, nursery)
        nursery.cancel_scope.cancel()
    assert fake.sent == []


async def test_datagrams_wait_while_the_socket_is_full(autojump_clock: MockClock) -> None:
    fake, pump = make()
    fake.to_send = [(b"x", PEER)]
    fake.full = trio.Event()
    async with trio.open_nursery() as nursery:
        pump.kick()
        await settle(pump, nursery)
        for _ in range(3):
            pump.deliver(datagrams(2))
        await trio.testing.wait_all_tasks_blocked()
        assert fake.fed == []
        fake.full.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(fake.fed) == 6
        nursery.cancel_scope.cancel()
