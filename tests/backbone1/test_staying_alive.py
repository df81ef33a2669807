"""Every rule that keeps a connection of quic-backbone-v1 alive, each side by itself, in virtual time."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, ConnectionLost, Limits, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.backbone1 import Backbone1
from quicflow_trio.connection import Connection
from quicflow_trio.exchanges import Exchanges
from quicflow_trio.protocol.credit import connection_window
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.quic.engine import EngineEvent, StreamData, StreamReset
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import BackboneAck, BackboneData
from tests.backbone1.raw1 import WINDOWS, answer, data, finished, frames, open_raw1, open_raw_server1, put, wire
from tests.backbone1.test_connecting import old_client
from tests.connections.machine import open_machine, until
from tests.connections.raw import Raw
from tests.messages.harness import Gate, Recorder

PAST_THE_LIMIT = 3000
"""Messages, three times as many as there may be streams open at once."""


def exchanges(connection: Connection | None) -> Exchanges:
    assert connection is not None
    dialect = connection._dialect
    assert isinstance(dialect, Backbone1)
    assert dialect._exchanges is not None
    return dialect._exchanges


async def test_past_the_stream_limit_both_ways(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.005)
    there, here = Recorder(), Recorder()
    async with open_machine(network, router=there.router) as machine, old_client(network, router=here.router) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        for number in range(PAST_THE_LIMIT):
            await client.send(Message.event(b"%d" % number))
            await session.send(Message.event(b"%d" % number))
        with trio.fail_after(600):
            assert (await client.request(Message.query(b"ab"))).result == b"ba"
            assert (await session.request(Message.query(b"ab"))).result == b"ba"
        wanted = {b"%d" % number for number in range(PAST_THE_LIMIT)} | {b"ab"}
        await until(lambda: len(there.received) == len(here.received) == PAST_THE_LIMIT + 1)
        assert {*there.payloads()} == {*here.payloads()} == wanted
        await trio.sleep(1)
        # Nothing of all these streams is left on either side.
        for connection in (session._connection, client._supervisor.connection):
            assert connection is not None
            ours = exchanges(connection)
            left = [ours._in, ours._out, ours._owed, ours._asked, ours._taken, ours._under_way, ours._gathered]
            assert not any(left), left
            assert len(connection.engine._core._streams) <= 1  # type: ignore[attr-defined]
        assert client.statistics().connects == 1


async def test_the_last_byte_carries_the_fin(autojump_clock: MockClock) -> None:
    """A FIN by itself, behind the data, is never consumed over there."""
    network = MemoryNetwork(delay=0.005)
    late: list[int] = []

    def on_event(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData) and event.fin and not event.data and event.stream_id & 1 == 0:
            late.append(event.stream_id)

    async with open_raw_server1(network, on_event=on_event), old_client(network) as client:
        for size in (0, 1, 1100, 1200, 5000, 300_000):
            assert len((await client.request(Message.query(bytes(size)))).result) == size
            await client.send(Message.event(bytes(size)))
    assert late == []


async def test_the_last_byte_of_an_answer_carries_the_fin(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        for size in (1, 1100, 1200, 5000, 300_000):
            stream_id = put(raw, data(bytes(size), ack=True))
            assert await answer(raw, stream_id) == BackboneAck("m1", 1, bytes(size))
            last = [event for event in raw.got(StreamData) if event.stream_id == stream_id][-1]
            assert (last.fin, len(last.data) > 0) == (True, True)


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff" + bytes(50),
        b"\0\xa0\0\x01",
        b"\0\0\0\x05hello",
        b"\0\0\0\x02\x08\x09",
        wire(data(b"cut off"))[:-3],
        b"\0\0",
        b"",
        bytes.fromhex("515353480101"),
    ],
)
async def test_a_bad_frame_ends_its_stream_and_no_more(autojump_clock: MockClock, bad: bytes) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        assert await answer(raw, put(raw, bad)) is None
        assert await answer(raw, put(raw, data(b"fine", ack=True))) == BackboneAck("m1", 1, b"fine")
        assert machine.server.metrics().decoding_errors == 1
        assert not exchanges(machine.server.sessions["raw"]._connection)._in


async def test_frames_that_come_byte_by_byte(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        whole = wire(data(b"slowly", ack=True))
        stream_id = put(raw, whole[:1], fin=False)
        for at in range(1, len(whole)):
            await trio.sleep(0.05)
            assert not finished(raw, stream_id)
            raw.write(stream_id, whole[at : at + 1])
        assert await answer(raw, stream_id) == BackboneAck("m1", 1, b"slowly")


async def test_a_payload_over_our_limit_is_refused_and_not_kept(autojump_clock: MockClock) -> None:
    config = ServerConfig(limits=Limits(payload=10_000))
    async with open_machine(config=config) as machine, open_raw1(machine.network) as raw:
        found = await answer(raw, put(raw, data(bytes(3_000_000), ack=True)))
        assert found == BackboneAck("m1", 2, b"", "payload of 3,000,000 bytes, the limit is 10,000")
        found = await answer(raw, put(raw, data(bytes(10_500), ack=True)))
        assert found == BackboneAck("m1", 2, b"", "payload of 10,500 bytes, the limit is 10,000")
        thrown_away = put(raw, data(bytes(3_000_000)))
        assert await answer(raw, put(raw, data(bytes(10_000), ack=True))) == BackboneAck("m1", 1, bytes(10_000))
        await until(lambda: raw.got(StreamReset), seconds=10)
        # Not finished, which would say that it was read.
        assert [reset.stream_id for reset in raw.got(StreamReset)] == [thrown_away]
        assert exchanges(machine.server.sessions["raw"]._connection)._gathered == 0
        assert machine.server.metrics().held_bytes == 0


async def test_a_peer_that_never_finishes_its_half_stops_only_itself(autojump_clock: MockClock) -> None:
    """Our messages stop at its stream limit, the outbox fills, and all of it fails with the connection."""
    network = MemoryNetwork(delay=0.005)
    config = ServerConfig(limits=Limits(outbox_bytes=20_000))
    windows = Windows(stream_in=100_000, stream_out=100_000, connection=1_000_000, streams=100)
    async with open_machine(network, config=config) as machine, open_raw1(network, windows=windows) as raw:
        session = machine.server.sessions["raw"]
        taken = 0
        with contextlib.suppress(trio.WouldBlock):
            while taken < 1000:
                session.send_nowait(Message.event(bytes(100)))
                taken += 1
                if taken % 10 == 0:
                    await trio.sleep(0.1)
        assert 100 < taken < 300
        # It is served all the same.
        assert await answer(raw, put(raw, data(b"mine", ack=True))) == BackboneAck("m1", 1, b"mine")
        assert session.statistics().unreceipted == 100
        last = session.statistics().outbox_messages
        assert last > 50


async def test_a_peer_that_keeps_its_half_of_every_stream_open_is_held_by_the_limit(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        for _ in range(50):
            stream_id = put(raw, data(b"x", ack=True), fin=False)
            await raw.wait(partial(finished, raw, stream_id))
        ours = exchanges(machine.server.sessions["raw"]._connection)
        assert len(ours._in) == 50
        for stream_id in [*ours._in]:
            raw.write(stream_id, b"", fin=True)
        await until(lambda: not ours._in)


async def test_slow_handlers_hold_a_sender_back(autojump_clock: MockClock) -> None:
    limits = Limits(lanes=1, lane_window=16_384, payload=65_536)
    gate = Gate()
    config = ServerConfig(limits=limits, handler_timeout=3600)
    async with open_machine(router=gate.router, config=config) as machine, open_raw1(machine.network) as raw:
        size, number = 14_000, 110
        for at in range(number):
            put(raw, data(b"%05d" % at + bytes(size), msg_id=str(at)))
            await trio.sleep(0.02)
        session = machine.server.sessions["raw"]
        held = session.statistics().held_bytes
        bound = connection_window(limits)
        assert number * size > 3 * bound
        assert 0.5 * bound < held <= 1.2 * bound
        gate.opened.set()
        await until(lambda: len(gate.passed) == number)
        await trio.sleep(1)
        assert session.statistics().held_bytes == 0
        assert sorted(payload[:5] for payload in gate.passed) == [b"%05d" % at for at in range(number)]


async def test_many_messages_a_packet_of_each_in_turn_all_arrive(autojump_clock: MockClock) -> None:
    limits = Limits(lanes=1, lane_window=16_384, payload=65_536)
    recorder = Recorder()
    config = ServerConfig(limits=limits)
    async with open_machine(router=recorder.router, config=config) as machine, open_raw1(machine.network) as raw:
        for at in range(150):
            put(raw, data(b"%05d" % at + bytes(10_000), msg_id=str(at)))
        assert 3 * connection_window(limits) < 150 * 10_000
        await until(lambda: len(recorder.received) == 150, seconds=40)
        assert machine.server.metrics().decoding_errors == 0


async def test_what_is_never_completed_is_bounded_and_told(autojump_clock: MockClock) -> None:
    limits = Limits(lanes=1, lane_window=16_384, payload=65_536, total_bytes=1024 * 1024)
    async with open_machine(config=ServerConfig(limits=limits)) as machine, open_raw1(machine.network) as raw:
        for _ in range(60):
            put(raw, wire(data(bytes(60_000)))[:16_000], fin=False)
        await trio.sleep(3)
        ours = exchanges(machine.server.sessions["raw"]._connection)
        assert 0.9 * connection_window(limits) < ours._gathered <= connection_window(limits)
        assert sum(stream.intake.held for stream in ours._in.values() if stream.intake) == ours._gathered
        assert len(raw.got(StreamReset)) == 60 - sum(1 for stream in ours._in.values() if stream.intake)
        assert await answer(raw, put(raw, data(b"fine", ack=True))) == BackboneAck("m1", 1, b"fine")


async def test_a_message_that_the_server_throws_away_was_not_delivered(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.005)

    def torn(raw: Raw, stream_id: int, message: BackboneData) -> None:
        raw.engine.reset(stream_id, 1)
        raw.kick()

    async with open_raw_server1(network, torn), old_client(network) as client:
        sent = await client.send(Message.event(b"x"))
        with pytest.raises(ConnectionLost, match="thrown the message away"):
            await sent.delivered()
        assert client.metrics().messages_lost == 1


async def test_fire_and_forget_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.001)
    router = Router()
    seen = 0

    @router.on(MessageType.EVENT)
    async def count(_: Request) -> None:
        nonlocal seen
        seen += 1

    async with open_machine(network, router=router) as machine, old_client(network) as client:
        await client.wait_connected()
        most = 0
        for number in range(5000):
            await client.send(Message.event(b"x"))
            if number % 500 == 0:
                connection = machine.server.sessions["worker"]._connection
                most = max(most, len(exchanges(connection)._in), len(exchanges(client._supervisor.connection)._out))
        await until(lambda: seen == 5000)
        assert most <= 1000


async def test_a_drain_waits_for_what_is_under_way(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.005)
    gate = Gate()
    async with open_machine(network, router=gate.router) as machine, open_raw1(network) as raw:
        stream_id = put(raw, data(b"slow", ack=True))
        await until(lambda: gate.started)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                await machine.server.drain(grace=60)

            await trio.sleep(5)
            assert not raw.engine.closing
            gate.opened.set()
            assert await answer(raw, stream_id) == BackboneAck("m1", 1, b"done")
            ended = await raw.ended()
            assert (ended.code, ended.reason) == (0, "server shutdown")
            assert trio.current_time() < 20


async def test_a_client_that_leaves_waits_for_its_answers(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    heard: list[BackboneData] = []

    def slow(raw: Raw, stream_id: int, message: BackboneData) -> None:
        heard.append(message)
        raw.write(stream_id, b"", fin=True)

    async with open_raw_server1(network, slow) as server:
        async with old_client(network, config=ClientConfig(close_grace=30)) as client:
            for _ in range(200):
                await client.send(Message.event(b"last"))
        ended = await server.peers[0].ended()
        assert (ended.code, ended.reason) == (0, "client disconnect")
    assert len(heard) == 200


async def test_streams_that_are_torn_on_both_sides_end(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network, windows=WINDOWS) as raw:
        stream_id = put(raw, wire(data(b"half"))[:10], fin=False)
        await trio.sleep(1)
        raw.engine.reset(stream_id, 1)
        raw.engine.stop(stream_id, 2)
        raw.kick()
        second = put(raw, data(b"unread", ack=True))
        raw.engine.stop(second, 2)
        raw.kick()
        await trio.sleep(1)
        assert await answer(raw, put(raw, data(b"fine", ack=True))) == BackboneAck("m1", 1, b"fine")
        assert not exchanges(machine.server.sessions["raw"]._connection)._in
        assert not frames(raw, stream_id)
