"""The endpoint on a socket made of lists: routing, the one who waits for room, last words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio.net.endpoint import LAST_WORDS, Endpoint
from quicflow_trio.net.pump import Pump
from quicflow_trio.net.udp import SocketStatistics
from quicflow_trio.quic.engine import Address
from quicflow_trio.quic.routing import Header

PEER, OTHER = ("peer", 1), ("other", 2)
ID, ID2 = b"12345678", b"abcdefgh"
Datagram = tuple[bytes, Address]


class FakeSocket:
    """A `DatagramSocket` with ``room`` for so many more datagrams."""

    def __init__(self, batches: Sequence[list[Datagram]] = ()) -> None:
        self.sent: list[Datagram] = []
        self.room = math.inf
        self.closed = False
        self.waiting = 0
        self._batches = list(batches)
        self._writable = trio.lowlevel.ParkingLot()

    @property
    def address(self) -> Address:
        return ("here", 9)

    async def receive(self) -> list[Datagram]:
        await trio.lowlevel.checkpoint()
        if not self._batches:
            raise trio.ClosedResourceError
        return self._batches.pop(0)

    def send_nowait(self, datagrams: Sequence[Datagram]) -> int:
        if self.closed:
            raise trio.ClosedResourceError
        taken = int(min(self.room, len(datagrams)))
        self.sent += datagrams[:taken]
        self.room -= taken
        return taken

    async def wait_writable(self) -> None:
        self.waiting += 1
        if self.waiting > 1:
            raise trio.BusyResourceError("one waiter per descriptor")
        try:
            await self._writable.park()
        finally:
            self.waiting -= 1

    def make_room(self, room: float) -> None:
        self.room = room
        self._writable.unpark_all()

    def statistics(self) -> SocketStatistics:
        return SocketStatistics(0, len(self.sent), 0, 0, {}, {}, None)

    def close(self) -> None:
        self.closed = True


class FakePump:
    def __init__(self) -> None:
        self.batches: list[list[Datagram]] = []

    def deliver(self, datagrams: Sequence[Datagram]) -> None:
        self.batches.append(list(datagrams))


def fake_pump() -> Any:
    return FakePump()


def short(connection_id: bytes, content: bytes = b"content") -> bytes:
    return b"\x40" + connection_id + content


def long(connection_id: bytes, version: int = 1, size: int = 1200, first: int = 0xC0) -> bytes:
    head = bytes((first,)) + version.to_bytes(4, "big") + bytes((len(connection_id),)) + connection_id + b"\x04from"
    return head.ljust(size, b"\0")


async def test_a_batch_reaches_each_pump_as_one_list() -> None:
    one, other = fake_pump(), fake_pump()
    batch: list[Datagram] = [(short(ID, b"%d" % number), PEER) for number in range(5)]
    batch[2:2] = [(short(ID2), OTHER), (long(ID), PEER)]
    endpoint = Endpoint(FakeSocket([batch]))
    endpoint.add_route(ID, one)
    endpoint.add_route(ID2, other)
    await endpoint.run()
    assert one.batches == [[datagram for datagram in batch if datagram[1] == PEER]]
    assert other.batches == [[(short(ID2), OTHER)]]
    assert endpoint.statistics().dropped == {}


async def test_what_belongs_to_nobody_is_dropped_and_counted() -> None:
    batch: list[Datagram] = [(b"", PEER), (b"\x40short", PEER), (b"\xc0", PEER), (short(ID), PEER), (long(ID), PEER)]
    endpoint = Endpoint(FakeSocket([batch]))
    await endpoint.run()
    assert endpoint.statistics().dropped == {"empty": 1, "malformed": 2, "unknown connection": 2}


async def test_routes_come_and_go() -> None:
    pump = fake_pump()
    endpoint = Endpoint(FakeSocket([[(short(ID), PEER), (short(ID2), PEER)]]))
    endpoint.add_route(ID, pump)
    endpoint.add_route(ID2, pump)
    assert endpoint.statistics().connection_ids == 2
    endpoint.remove_route(ID)
    await endpoint.run()
    assert pump.batches == [[(short(ID2), PEER)]]
    endpoint.remove_pump(pump)
    assert endpoint.statistics().connection_ids == 0
    endpoint.remove_pump(pump)


async def test_the_first_packet_of_a_connection() -> None:
    pump, asked = fake_pump(), []

    def accept(header: Header, address: Address, now: float) -> Pump | None:
        asked.append((header.destination, address))
        return cast(Pump, pump) if address == PEER else None

    batch: list[Datagram] = [(long(ID), PEER), (long(ID), PEER), (long(ID2), OTHER)]
    endpoint = Endpoint(FakeSocket([batch]), accept)
    await endpoint.run()
    assert asked == [(ID, PEER), (ID2, OTHER)], "asked once per connection"
    assert pump.batches == [[(long(ID), PEER), (long(ID), PEER)]]
    assert endpoint.statistics().dropped == {"refused": 1}
    assert endpoint.statistics().connection_ids == 1


async def test_other_versions_are_answered_as_far_as_there_is_room() -> None:
    socket = FakeSocket([[(long(ID, version=0x1A2A3A4A), PEER)] * 2, [(long(ID, first=0xE0), PEER)]])
    socket.room = 1
    endpoint = Endpoint(socket, lambda header, address, now: None)
    await endpoint.run()
    assert endpoint.statistics().negotiations == 1
    assert endpoint.statistics().dropped == {"send buffer full": 1, "unknown connection": 1}
    assert socket.sent[0][1] == PEER


# -- out ---------------------------------------------------------------------------------------------------------------
async def test_sending_is_no_checkpoint_while_there_is_room() -> None:
    socket = FakeSocket()
    endpoint = Endpoint(socket)
    with trio.testing.assert_no_checkpoints():
        await endpoint.transmit([(b"1", PEER), (b"2", PEER)])
    assert socket.sent == [(b"1", PEER), (b"2", PEER)]


async def test_several_pumps_wait_in_order_and_only_one_for_the_socket(autojump_clock: MockClock) -> None:
    socket = FakeSocket()
    socket.room = 1
    endpoint = Endpoint(socket)
    async with trio.open_nursery() as nursery:
        for name in (b"a", b"b", b"c"):
            nursery.start_soon(endpoint.transmit, [(name + b"1", PEER), (name + b"2", PEER)])
            await trio.testing.wait_all_tasks_blocked()
        assert socket.waiting == 1
        assert [data for data, _ in socket.sent] == [b"a1"]
        for _ in range(5):
            socket.make_room(1)
            await trio.testing.wait_all_tasks_blocked()
        socket.make_room(10)
    assert [data for data, _ in socket.sent] == [b"a1", b"a2", b"b1", b"b2", b"c1", b"c2"]


async def test_a_cancelled_waiter_lets_the_next_one_send(autojump_clock: MockClock) -> None:
    socket = FakeSocket()
    socket.room = 0
    endpoint = Endpoint(socket)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            nursery.start_soon(endpoint.transmit, [(b"later", PEER)])
            await endpoint.transmit([(b"given up", PEER)])
        await trio.testing.wait_all_tasks_blocked()
        socket.make_room(5)
    assert socket.sent == [(b"later", PEER)]


async def test_what_cannot_wait_is_dropped_and_counted() -> None:
    socket = FakeSocket()
    socket.room = 1
    endpoint = Endpoint(socket)
    endpoint.transmit_nowait([(b"1", PEER), (b"2", PEER), (b"3", PEER)])
    assert socket.sent == [(b"1", PEER)]
    assert endpoint.statistics().dropped == {"send buffer full": 2}


async def test_after_closing_nothing_is_sent() -> None:
    endpoint = Endpoint(FakeSocket())
    endpoint.close()
    with pytest.raises(trio.ClosedResourceError):
        await endpoint.transmit([(b"1", PEER)])
    assert endpoint.address == ("here", 9)


# -- last words ----------------------------------------------------------------------------------------------------------
async def test_a_last_word_is_repeated_to_those_who_go_on(mock_clock: MockClock) -> None:
    pump, word = fake_pump(), [(b"closed", PEER)]
    socket = FakeSocket([[(short(ID), OTHER)], [(short(ID2), OTHER)] * 3, [(short(ID), OTHER)] * 4])
    endpoint = Endpoint(socket, lambda header, address, now: None)
    endpoint.add_route(ID, pump)
    endpoint.add_route(ID2, pump)
    endpoint.remove_pump(pump, word, 10.0)
    assert (endpoint.statistics().connection_ids, endpoint.statistics().last_words) == (0, 1)
    await endpoint.run()
    moved = [(b"closed", OTHER)]
    assert socket.sent == moved * 4, "the 1st, 2nd, 4th and 8th packet of the connection, by whichever id, to where it came from"
    assert endpoint.statistics().dropped == {"closed connection": 8}


async def test_a_long_last_word_does_not_go_where_nobody_was_seen(mock_clock: MockClock) -> None:
    pump, word = fake_pump(), [(bytes(3 * len(short(ID)) + 1), PEER)]
    socket = FakeSocket([[(short(ID), OTHER)]])
    endpoint = Endpoint(socket, lambda header, address, now: None)
    endpoint.add_route(ID, pump)
    endpoint.remove_pump(pump, word, 10.0)
    await endpoint.run()
    assert socket.sent == word


async def test_a_last_word_ends_with_its_time(mock_clock: MockClock) -> None:
    pump = fake_pump()
    socket = FakeSocket([[(short(ID), PEER)]])
    endpoint = Endpoint(socket, lambda header, address, now: None)
    endpoint.add_route(ID, pump)
    endpoint.remove_pump(pump, [(b"closed", PEER)], 10.0)
    mock_clock.jump(10.0)
    await endpoint.run()
    assert socket.sent == []
    assert endpoint.statistics().dropped == {"unknown connection": 1}
    endpoint.add_route(ID2, pump)
    endpoint.remove_pump(pump, [(b"closed", PEER)], 10.0)
    assert endpoint.statistics().last_words == 1, "the older one made room"


async def test_last_words_are_bounded(mock_clock: MockClock) -> None:
    endpoint = Endpoint(FakeSocket(), lambda header, address, now: None)
    for number in range(LAST_WORDS + 10):
        pump = fake_pump()
        endpoint.add_route(number.to_bytes(8, "big"), pump)
        endpoint.remove_pump(pump, [(b"closed", PEER)], 10.0)
    assert endpoint.statistics().last_words == LAST_WORDS
    assert len(endpoint._closed) == LAST_WORDS


async def test_a_client_keeps_no_last_words() -> None:
    # Its socket ends with the connection.
    pump, endpoint = fake_pump(), Endpoint(FakeSocket())
    endpoint.add_route(ID, pump)
    endpoint.remove_pump(pump, [(b"closed", PEER)], 10.0)
    assert endpoint.statistics().last_words == 0


async def test_a_batch_for_many_wakes_a_few_at_a_time() -> None:
    # All at once, every other task (a heartbeat, somebody who asks for the figures) would wait until sixty-four connections have had
    # their turn, each of a quarter of a millisecond or more.
    ids = [bytes([number]) * 8 for number in range(64)]
    endpoint = Endpoint(FakeSocket([[(b"\x40" + one, PEER) for one in ids]]))
    pumps = [FakePump() for _ in ids]
    for one, pump in zip(ids, pumps, strict=True):
        endpoint.add_route(one, cast(Pump, pump))
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(sum(bool(pump.batches) for pump in pumps))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await endpoint.run()
        nursery.cancel_scope.cancel()
    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert max(steps) <= 32  # which of two tasks comes first in a pass is up to chance
    assert seen[-1] == 64 or sum(bool(pump.batches) for pump in pumps) == 64


async def test_with_thousands_of_connections_a_full_socket_is_read_faster() -> None:
    """Timers and senders of ten thousand have their turn in between: acks of a broadcast would come too late for all of them."""
    ids = [number.to_bytes(8, "big") for number in range(512)]
    batch: list[tuple[bytes, Address]] = [(b"\x40" + one, PEER) for one in ids]
    endpoint = Endpoint(FakeSocket([batch, batch]))
    pumps = [FakePump() for _ in ids]
    for one, pump in zip(ids, pumps, strict=True):
        endpoint.add_route(one, cast(Pump, pump))
    for number in range(40_000):
        endpoint.add_route(b"%08d" % number, cast(Pump, pumps[number % 512]))
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(sum(len(pump.batches) for pump in pumps))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await endpoint.run()
        nursery.cancel_scope.cancel()
    steps = [later - earlier for earlier, later in itertools.pairwise([*seen, sum(len(pump.batches) for pump in pumps)])]
    assert max(step for step, total in zip(steps, seen, strict=True) if total < 500) <= 32, "the first may be all there was"
    assert max(steps) >= 512
