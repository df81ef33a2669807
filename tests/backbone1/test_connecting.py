"""Our client against servers of the original, by hand and in virtual time."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    Client,
    ClientConfig,
    ClientState,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    HandlerFailed,
    LaneLimitReached,
    Message,
    Router,
    open_client,
)
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import BackboneAck, BackboneData, BackbonePing, BackbonePong
from tests.backbone1.raw1 import STAMP, V1, answer, data, echo, finished, frames, open_raw_server1, put, wire
from tests.connections.machine import CLIENT_TLS, open_machine, until
from tests.connections.raw import Raw, open_raw_server
from tests.messages.harness import Recorder


def old_client(
    network: MemoryNetwork,
    *,
    protocol: str = V1,
    router: Router | None = None,
    config: ClientConfig | None = None,
    client_id: str = "worker",
) -> AbstractAsyncContextManager[Client]:
    return open_client(
        "server",
        client_id=client_id,
        tls=CLIENT_TLS,
        network=network.host(client_id),
        protocol=protocol,  # type: ignore[arg-type]
        router=router,
        config=config,
    )


@pytest.mark.parametrize("protocol", [V1, "auto"])
async def test_it_introduces_itself_sends_asks_and_pings(autojump_clock: MockClock, protocol: str) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server1(network) as server, old_client(network, protocol=protocol) as client:
        await client.wait_connected()
        raw = server.peers[0]
        assert frames(raw, 0) == [BackbonePing("worker")]
        assert finished(raw, 0)
        message = Message.command(b"ab")
        assert (await client.request(message)).result == b"ab"
        sent = await client.send(Message.event(b"x"))
        await sent.delivered()
        found = [frame for stream in raw.streams for frame in frames(raw, stream) if isinstance(frame, BackboneData)]
        assert [(frame.sender_id, frame.receiver_id, frame.payload) for frame in found] == [
            ("worker", "server", b"ab"),
            ("worker", "server", b"x"),
        ]
        before = len(raw.streams)
        await trio.sleep(60)
        assert len(raw.streams) == before + 4, "a ping every 15 s, each on a stream of its own"
        assert client.state.value is ClientState.CONNECTED
        assert client.statistics().rtt == pytest.approx(0.02, abs=0.005)


def response(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.write(stream_id, wire(BackboneData(message.msg_id, "server", "worker", 4, b"r:" + message.payload)), fin=True)


def as_json(raw: Raw, stream_id: int, message: BackboneData) -> None:
    text = json.dumps({"msg_id": message.msg_id, "status": 1, "result": base64.b64encode(b"\0" + message.payload).decode()})
    raw.write(stream_id, wire(BackboneData(message.msg_id, "server", "worker", 4, text.encode())), fin=True)


def late_fin(raw: Raw, stream_id: int, message: BackboneData) -> None:
    """Answer without finishing: the frame is all that counts."""
    raw.write(stream_id, wire(BackboneAck(message.msg_id, 1, b"early")))


def on_a_new_stream(raw: Raw, stream_id: int, message: BackboneData) -> None:
    put(raw, BackboneAck(message.msg_id, 1, b"new"))


@pytest.mark.parametrize(
    ("server", "result"), [(echo, b"q"), (response, b"r:q"), (as_json, b"\0q"), (late_fin, b"early"), (on_a_new_stream, b"new")]
)
async def test_an_answer_is_an_ack_or_data_here_or_on_a_new_stream(
    autojump_clock: MockClock, server: object, result: bytes
) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(close_grace=0)
    async with open_raw_server1(network, server) as _, old_client(network, config=config) as client:  # type: ignore[arg-type]
        assert (await client.request(Message.query(b"q"), ack_timeout=5)).result == result


def nothing(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.write(stream_id, b"", fin=True)


def rubbish(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.write(stream_id, b"\0\0\0\x02\xff\xff", fin=True)


def refusal(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.write(stream_id, wire(BackboneAck(message.msg_id, 2, b"", "no such thing")), fin=True)


def timeout(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.write(stream_id, wire(BackboneAck(message.msg_id, 3, b"", "too slow")), fin=True)


def torn(raw: Raw, stream_id: int, message: BackboneData) -> None:
    raw.engine.reset(stream_id, 7)
    raw.kick()


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (nothing, "finished the stream without an answer"),
        (rubbish, "cannot be read"),
        (refusal, "no such thing"),
        (timeout, "too slow"),
        (torn, "finished the stream without an answer"),
    ],
)
async def test_no_answer_is_a_failure_and_the_connection_stays(autojump_clock: MockClock, server: object, reason: str) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server1(network, server) as _, old_client(network) as client:  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(HandlerFailed, match=reason) as caught:
                await client.request(Message.query(b"q"), ack_timeout=5)
            assert caught.value.timed_out == (server is timeout)
        assert client.statistics().connects == 1


async def test_messages_of_the_server_are_handled_and_answered(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = Recorder()
    async with open_raw_server1(network) as server, old_client(network, router=recorder.router) as client:
        await client.wait_connected()
        raw = server.peers[0]
        stream_id = put(raw, data(b"ab", ack=True), fin=False)
        assert await answer(raw, stream_id) == BackboneAck("m1", 1, b"ba")
        assert await answer(raw, put(raw, data(b"ev", type=2))) is None
        assert recorder.payloads() == [b"ab", b"ev"]
        assert recorder.received[0].sender == "server"


async def test_results_can_be_json(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(v1_results="json")
    async with open_raw_server1(network) as server, old_client(network, router=Recorder().router, config=config) as client:
        await client.wait_connected()
        raw = server.peers[0]
        found = await answer(raw, put(raw, data(b"ab", ack=True)))
        assert isinstance(found, BackboneAck)
        assert json.loads(found.result) == {"msg_id": "m1", "status": 1, "result": base64.b64encode(b"ba").decode()}


async def test_data_that_overtakes_the_first_pong_is_handled(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = Recorder()

    def eager(raw: Raw, event: object) -> None:
        if frames(raw, 0) and not raw.streams.get(1):
            raw.streams.setdefault(1, b" ")
            put(raw, data(b"early", type=2))
            raw.write(0, wire(BackbonePong(STAMP)), fin=True)

    async with open_raw_server(network, eager, alpn=V1), old_client(network, router=recorder.router) as client:
        await client.wait_connected()
        await until(recorder.payloads)
        assert recorder.payloads() == [b"early"]


async def test_streams_of_another_application_are_finished_unread(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = Recorder()
    async with open_raw_server1(network) as server, old_client(network, router=recorder.router) as client:
        await client.wait_connected()
        raw = server.peers[0]
        stream_id = put(raw, bytes.fromhex("515353480101") + bytes(100), fin=False)
        assert await answer(raw, stream_id) is None
        raw.write(stream_id, bytes(1_500_000), fin=True)
        await until(lambda: not raw.engine.unacked())
        assert await answer(raw, put(raw, data(b"ab", ack=True))) == BackboneAck("m1", 1, b"ba")
        assert client.metrics().decoding_errors == 0


async def test_a_lost_connection_fails_what_was_under_way_and_is_made_anew(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server1(network, lambda *_: None) as server, old_client(network) as client:
        await client.wait_connected()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                with pytest.raises(ConnectionLost, match="server shutdown"):
                    await client.request(Message.query(b"q"))

            await trio.sleep(1)
            server.peers[0].engine.close(0, "server shutdown")
        server._by_address.clear()
        await client.wait_connected()
        assert client.statistics().connects == 2
        assert client.metrics().disconnects == {"server:shutdown": 1}


async def test_what_may_be_redelivered_goes_out_again_in_the_next_session(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    seen: list[bytes] = []

    def first_breaks(raw: Raw, stream_id: int, message: BackboneData) -> None:
        seen.append(message.payload)
        if len(seen) == 1:
            raw.engine.close(0, "server shutdown")
        else:
            echo(raw, stream_id, message)

    async with open_raw_server1(network, first_breaks) as server, old_client(network) as client:
        await client.wait_connected()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _() -> None:
                ack = await client.request(Message.command(b"again", delivery=Delivery.REDELIVER))
                assert ack.result == b"again"

            await until(lambda: seen)
            server._by_address.clear()
        assert seen == [b"again", b"again"]


async def test_an_answer_that_comes_too_late_is_dropped(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    waiting: list[tuple[Raw, BackboneData]] = []

    def silent(raw: Raw, stream_id: int, message: BackboneData) -> None:
        waiting.append((raw, message))

    async with open_raw_server1(network, silent), old_client(network) as client:
        with pytest.raises(AckTimeout):
            await client.request(Message.query(b"slow"), ack_timeout=1)
        raw, message = waiting.pop()
        put(raw, BackboneAck(message.msg_id, 1, b"late"))
        raw.transmit()
        await trio.sleep(1)
        assert client.statistics().unreceipted == 0
        with trio.move_on_after(1):
            await client.request(Message.query(b"given up"))
        assert client.statistics().requests_waiting == 0


async def test_a_server_that_never_answers_uses_up_no_streams(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    answering = False

    def silent(raw: Raw, stream_id: int, message: BackboneData) -> None:
        if answering:
            echo(raw, stream_id, message)

    async with open_raw_server1(network, silent), old_client(network) as client:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(500):

                    @nursery.start_soon
                    async def _() -> None:
                        with pytest.raises(AckTimeout):
                            await client.request(Message.query(b"hello?"), ack_timeout=2)

        answering = True
        assert (await client.request(Message.query(b"at last"), ack_timeout=2)).result == b"at last"
        assert client.statistics().connects == 1


async def test_what_it_cannot_do_is_an_error(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server1(network), old_client(network) as client:
        early = client.lane("early").send_nowait(Message.event(b"x"))
        with pytest.raises(LaneLimitReached, match="one lane"):
            await early.delivered()
        with pytest.raises(LaneLimitReached):
            client.lane("other")
        assert (await client.request(Message.query(b"q"))).result == b"q"


async def test_an_unknown_protocol_is_refused_at_once(autojump_clock: MockClock) -> None:
    with pytest.raises(ConfigurationError, match="protocol = 'v3'"):
        async with old_client(MemoryNetwork(), protocol="v3"):
            pass


@pytest.mark.parametrize("protocol", ["auto", V1, "quicflow/2"])
async def test_ours_with_ours(autojump_clock: MockClock, protocol: str) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = Recorder()
    async with (
        open_machine(network, router=recorder.router) as machine,
        old_client(network, protocol=protocol, router=recorder.router) as client,
    ):
        assert (await client.request(Message.query(b"ab"))).result == b"ba"
        session = machine.server.sessions["worker"]
        assert session.protocol == (V1 if protocol == V1 else "quicflow/2")
        assert (await session.request(Message.query(b"cd"))).result == b"dc"
        await (await session.send(Message.event(b"e"))).delivered()
    async with trio.open_nursery():
        await until(lambda: not machine.server.sessions)
