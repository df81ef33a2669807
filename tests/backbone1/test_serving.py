"""Our server for clients of the original, by hand and in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import Message, MessageType
from quicflow_trio.quic.engine import StreamData
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import BackboneAck, BackboneData, BackbonePing, BackbonePong
from tests.backbone1.raw1 import answer, data, finished, frames, open_raw1, put, wire
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import Raw, open_raw
from tests.messages.harness import Recorder


async def test_an_introduction_is_answered_and_makes_a_session(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network, "old-1"):
        session = machine.server.sessions["old-1"]
        assert session.connected
        assert session.protocol == "quic-backbone-v1"
        assert session.last_heartbeat is not None


async def test_pings_are_answered_on_their_streams(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        for _ in range(3):
            await trio.sleep(15)
            assert isinstance(await answer(raw, put(raw, BackbonePing("somebody else"))), BackbonePong)
        assert [*machine.server.sessions] == ["raw"]


async def test_a_message_without_an_ack_is_taken_and_its_stream_finished(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    async with open_machine(router=recorder.router) as machine, open_raw1(machine.network) as raw:
        assert await answer(raw, put(raw, data(b"one", type=2))) is None
        (message,) = recorder.received
        assert (message.type, message.payload, message.sender) == (MessageType.EVENT, b"one", "raw")


async def test_a_message_with_an_ack_is_answered_at_the_frame_boundary(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        stream_id = put(raw, data(b"one", ack=True, msg_id="m1"), fin=False)
        await raw.wait(lambda: finished(raw, stream_id))
        assert frames(raw, stream_id) == [BackboneAck("m1", 1, b"one")]
        raw.write(stream_id, b"", fin=True)
        await trio.sleep(1)
        assert not any(isinstance(event, StreamData) and event.stream_id & 1 for event in raw.events), "no second answer"


async def test_where_the_sender_has_finished_the_answer_comes_on_a_new_stream_as_well(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        stream_id = put(raw, data(b"one", ack=True, msg_id="not a uuid"))
        assert await answer(raw, stream_id) == BackboneAck("not a uuid", 1, b"one")
        assert await answer(raw, 1) == BackboneAck("not a uuid", 1, b"one")


async def test_the_server_sends_and_asks(autojump_clock: MockClock) -> None:
    asked: list[BackboneData] = []

    def on_event(raw: Raw, event: object) -> None:
        if isinstance(event, StreamData) and event.stream_id & 1 and event.fin:
            (frame,) = frames(raw, event.stream_id)
            assert isinstance(frame, BackboneData)
            asked.append(frame)
            reply = wire(BackboneAck(frame.msg_id, 1, frame.payload[::-1])) if frame.wait_ack else b""
            raw.write(event.stream_id, reply, fin=True)

    async with open_machine() as machine, open_raw1(machine.network) as raw:
        raw.on_event = on_event
        session = machine.server.sessions["raw"]
        message = Message.command(b"ab")
        assert (await session.request(message)).result == b"ba"
        assert (asked[0].sender_id, asked[0].receiver_id, asked[0].type) == ("server", "raw", 1)
        assert asked[0].msg_id.replace("-", "") == message.id.hex()
        sent = await session.send(Message.event(b"x"))
        await sent.delivered()
        assert [frame.payload for frame in asked] == [b"ab", b"x"]
        report = await machine.server.broadcast(Message.event(b"all"), ack_timeout=5)
        assert report.acked["raw"].result == b"lla"
        assert session.statistics().unreceipted == 0


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (wire(BackbonePing("")), "client ID is required"),
        (wire(data()), "first frame must be PING"),
        (b"\0\0\0\0", "first frame must be PING"),
        (b"\xff\xff\xff\xff", "first frame must be PING"),
    ],
)
async def test_refusals(autojump_clock: MockClock, first: bytes, reason: str) -> None:
    async with open_machine() as machine, open_raw(machine.network, alpn="quic-backbone-v1") as raw:
        put(raw, first)
        ended = await raw.ended()
        assert (ended.application, ended.code, ended.reason) == (True, 1, reason)


async def test_a_client_that_falls_silent_is_closed_as_the_original_does(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        ended = await raw.ended()
        assert (ended.code, ended.reason) == (0, "heartbeat timeout")
        assert machine.server.statistics().disconnects == {"server:heartbeat_timeout": 1}


async def test_old_and_new_clients_on_one_server(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_machine(network) as machine, open_raw1(network, "old"), client_of(network, "new") as client:
        await client.wait_connected()
        await until(lambda: len(machine.server.sessions) == 2)
        assert {name: session.protocol for name, session in machine.server.sessions.items()} == {
            "old": "quic-backbone-v1",
            "new": "quicflow/2",
        }
