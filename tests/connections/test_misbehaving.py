"""Clients that break the protocol: closed with a code and a reason, counted, and nobody beside them notices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    ClientState,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    SlowConsumer,
)
from quicflow_trio.flow2 import Flow2
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.quic.engine import ConnectionEnded, StreamData
from quicflow_trio.testing import MemoryNetwork, World, open_world
from quicflow_trio.wire import (
    AckFrame,
    CancelFrame,
    Goodbye,
    LaneOpen,
    MessageFrame,
    PingFrame,
    PongFrame,
    ReceiptFrame,
    Welcome,
    encode,
)
from tests.connections.machine import until
from tests.connections.raw import Raw, hello, open_raw, welcome

Attack = Callable[[Raw], None]
UNKNOWN = b"\0\0\0\x03\xf8\x07\x01"
TRUNCATED = b"\0\0\0\x02\x0a\x7f"


def message(seq: int, payload: bytes = b"x", *, ack: bool = False, type: int = MessageType.COMMAND) -> MessageFrame:
    return MessageFrame(seq, seq.to_bytes(16, "big"), type, payload, ack, 1)


@asynccontextmanager
async def beside(world: World) -> AsyncIterator[None]:
    """Check that the well-behaved client in the same world is served all the time, and that nothing stays behind."""
    client = world.clients["client-0"]
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            while True:
                with trio.fail_after(1):
                    await client.request(Message.command(b"still there?"))
                await trio.sleep(0.1)

        nursery.start_soon(ask)
        ids = world.server.statistics().endpoint.connection_ids
        yield
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert client.state.value is ClientState.CONNECTED
    assert client.statistics().connects == 1
    figures = world.server.statistics()
    assert (figures.connected, figures.half_open, figures.held_bytes, figures.requests_waiting) == (1, 0, 0, 0)
    assert figures.endpoint.connection_ids == ids


async def closed_by(
    attack: Attack | Callable[[Raw], Awaitable[None]], *, greet: bool = True, **world_options: Any
) -> ConnectionEnded:
    """Run one attack and return how the server ended it."""
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), **world_options) as world, beside(world):
        async with open_raw(world.network) as raw:
            if greet:
                await raw.greet()
            started = trio.current_time()
            result = attack(raw)
            if result is not None:
                await result
            with trio.fail_after(2):
                ended = await raw.ended()
            assert trio.current_time() - started < 2
        await trio.sleep(0.1)
        assert ended.by_peer
        name = f"server:{CloseCode(ended.code).name.lower()}" if ended.application else "server:transport"
        figures = world.server.statistics()
        assert (figures.disconnects if greet else figures.refused) == {name: 1}
    return ended


# -- before the hello --------------------------------------------------------------------------------------------------
BEFORE_HELLO: dict[str, tuple[Attack, str]] = {
    "ping": (lambda raw: raw.write(raw.engine.open_stream(), PingFrame(1)), "must be a hello, not PingFrame"),
    "welcome": (lambda raw: raw.write(raw.engine.open_stream(), welcome()), "must be a hello, not Welcome"),
    "goodbye": (lambda raw: raw.write(raw.engine.open_stream(), Goodbye()), "must be a hello, not Goodbye"),
    "lane name": (lambda raw: raw.write(raw.engine.open_stream(), LaneOpen()), "must be a hello, not LaneOpen"),
    "message": (lambda raw: raw.write(raw.engine.open_stream(), message(1)), "must be a hello, not MessageFrame"),
    "lane": (
        lambda raw: (raw.engine.open_stream(), raw.write(raw.engine.open_stream(), LaneOpen(), message(1)))[1],  # type: ignore[func-returns-value]
        "the first frame must be a hello",
    ),
    "end": (lambda raw: raw.write(raw.engine.open_stream(), hello(), fin=True), "control stream was closed"),
    "empty frame": (lambda raw: raw.write(raw.engine.open_stream(), b"\0\0\0\0"), "frame of 0 bytes"),
    "truncated": (lambda raw: raw.write(raw.engine.open_stream(), TRUNCATED), ""),
}


@pytest.mark.parametrize("what", BEFORE_HELLO)
async def test_before_the_hello(autojump_clock: MockClock, what: str) -> None:
    attack, reason = BEFORE_HELLO[what]
    ended = await closed_by(attack, greet=False)
    assert (ended.application, ended.code) == (True, CloseCode.PROTOCOL_ERROR)
    assert reason in ended.reason


# -- on the control stream, on the forward half of lanes -----------------------------------------------------------------
def control(*content: Any) -> Attack:
    return lambda raw: raw.write(0, *content)


def lane(*content: Any) -> Attack:
    return lambda raw: raw.write(raw.engine.open_stream(), *content)


def lanes(*each: tuple[Any, ...]) -> Attack:
    def attack(raw: Raw) -> None:
        for content in each:
            raw.write(raw.engine.open_stream(), *content)

    return attack


def finish(stream_id: int) -> Attack:
    def attack(raw: Raw) -> None:
        if stream_id:
            raw.write(raw.engine.open_stream(), LaneOpen())
        raw.write(stream_id, b"", fin=True)

    return attack


def reset(stream_id: int, *, stop: bool = False) -> Attack:
    def attack(raw: Raw) -> None:
        if stream_id:
            raw.write(raw.engine.open_stream(), LaneOpen())
        (raw.engine.stop if stop else raw.engine.reset)(stream_id, 7)
        raw.kick()

    return attack


def prefix_of(length: int) -> bytes:
    return length.to_bytes(4, "big") + b"start"


AFTER_HELLO: dict[str, tuple[Attack, CloseCode, str]] = {
    "second hello": (control(hello()), CloseCode.PROTOCOL_ERROR, "Hello from the client is not allowed"),
    "welcome": (control(welcome()), CloseCode.PROTOCOL_ERROR, "Welcome from the client is not allowed"),
    "pong": (control(PongFrame(1)), CloseCode.PROTOCOL_ERROR, "PongFrame from the client is not allowed"),
    "message on control": (control(message(1)), CloseCode.PROTOCOL_ERROR, "MessageFrame from the client"),
    "ack on control": (control(AckFrame(1, 1, 1)), CloseCode.PROTOCOL_ERROR, "AckFrame from the client"),
    "control finished": (finish(0), CloseCode.PROTOCOL_ERROR, "control stream was closed"),
    "control reset": (reset(0), CloseCode.PROTOCOL_ERROR, "stream 0 was reset"),
    "control stopped": (reset(0, stop=True), CloseCode.PROTOCOL_ERROR, "stream 0 is read no more"),
    "lane finished": (finish(4), CloseCode.PROTOCOL_ERROR, "a lane was closed"),
    "lane reset": (reset(4), CloseCode.PROTOCOL_ERROR, "stream 4 was reset"),
    "lane stopped": (reset(4, stop=True), CloseCode.PROTOCOL_ERROR, "stream 4 is read no more"),
    "nameless lane": (lane(message(1)), CloseCode.PROTOCOL_ERROR, "must name it"),
    "named twice": (lane(LaneOpen("a"), LaneOpen("b")), CloseCode.PROTOCOL_ERROR, "named twice"),
    "two of one name": (lanes((LaneOpen("a"),), (LaneOpen("a"), message(1))), CloseCode.PROTOCOL_ERROR, "opened twice"),
    "bad name": (lane(LaneOpen("a\nb")), CloseCode.PROTOCOL_ERROR, "lane name has control"),
    "long name": (lane(LaneOpen("x" * 129)), CloseCode.PROTOCOL_ERROR, "lane name is longer"),
    "gap": (lane(LaneOpen(), message(2)), CloseCode.PROTOCOL_ERROR, "message 2 follows 0"),
    "repeated": (lane(LaneOpen(), message(1), message(1)), CloseCode.PROTOCOL_ERROR, "message 1 follows 1"),
    "cancels the unsent": (lane(LaneOpen(), CancelFrame(2)), CloseCode.PROTOCOL_ERROR, "which was not sent"),
    "ack on the forward half": (lane(LaneOpen(), AckFrame(1, 1, 1)), CloseCode.PROTOCOL_ERROR, "AckFrame is not allowed"),
    "receipt there": (lane(LaneOpen(), ReceiptFrame(0, 0)), CloseCode.PROTOCOL_ERROR, "ReceiptFrame is not allowed"),
    "ping there": (lane(LaneOpen(), PingFrame(1)), CloseCode.PROTOCOL_ERROR, "PingFrame is not allowed"),
    "short id": (lane(LaneOpen(), b"\0\0\0\x09\x3a\x07\x08\x01\x12\x01x\x18\x01"), CloseCode.PROTOCOL_ERROR, ""),
    "control: length 0": (control(prefix_of(0)), CloseCode.PROTOCOL_ERROR, "frame of 0 bytes"),
    "control: too long": (control(prefix_of(65_537)), CloseCode.FRAME_TOO_LARGE, "65,537 bytes is over the limit of 65,536"),
    "control: 2^31": (control(prefix_of(2**31)), CloseCode.FRAME_TOO_LARGE, "2,147,483,648 bytes"),
    "control: 2^32-1": (control(prefix_of(2**32 - 1)), CloseCode.FRAME_TOO_LARGE, "4,294,967,295 bytes"),
    "control: truncated": (control(TRUNCATED), CloseCode.PROTOCOL_ERROR, ""),
    "lane: length 0": (lane(prefix_of(0)), CloseCode.PROTOCOL_ERROR, "frame of 0 bytes"),
    "lane: 2^31": (lane(LaneOpen(), prefix_of(2**31)), CloseCode.FRAME_TOO_LARGE, "2,147,483,648 bytes"),
    "lane: 2^32-1": (lane(prefix_of(2**32 - 1)), CloseCode.FRAME_TOO_LARGE, "4,294,967,295 bytes"),
    "lane: truncated": (lane(LaneOpen(), TRUNCATED), CloseCode.PROTOCOL_ERROR, ""),
    "17 lanes": (
        lanes(*((LaneOpen(f"lane-{number}"),) for number in range(17))),
        CloseCode.PROTOCOL_ERROR,
        "more than 16 lanes",
    ),
}


@pytest.mark.parametrize("what", AFTER_HELLO)
async def test_after_the_hello(autojump_clock: MockClock, what: str) -> None:
    attack, code, reason = AFTER_HELLO[what]
    if what == "17 lanes":
        # QUIC's own stream limit would hold the 17th lane back in silence.
        def raised(raw: Raw) -> None:
            raw.engine._core._remote_max_streams_bidi = 100
            attack(raw)

        ended = await closed_by(raised)
        assert ended.by_peer
        assert (ended.code, ended.application) in [(code, True), (4, False)], ended  # or STREAM_LIMIT_ERROR
        return
    ended = await closed_by(attack)
    assert (ended.application, ended.code) == (True, code)
    assert reason in ended.reason


async def test_more_lanes_than_the_servers_limit(autojump_clock: MockClock) -> None:
    # The stream limit is one for control and one for each lane; a control stream that carries none leaves one too many.
    attack = lanes(*((LaneOpen(f"lane-{number}"),) for number in range(3)))

    def raised(raw: Raw) -> None:
        raw.engine._core._remote_max_streams_bidi = 100
        attack(raw)

    ended = await closed_by(raised, server_config=ServerConfig(limits=Limits(lanes=2)))
    assert ended.code in (CloseCode.PROTOCOL_ERROR, 4)


# -- on the return half of the server's lanes ----------------------------------------------------------------------------
RETURN_HALF: dict[str, tuple[Attack, CloseCode, str]] = {
    "receipt for the unsent": (
        lambda raw: raw.write(1, ReceiptFrame(99, 99)),
        CloseCode.PROTOCOL_ERROR,
        "receipt for message 99",
    ),
    "first ack missing": (lambda raw: raw.write(1, AckFrame(2, 1, 1)), CloseCode.PROTOCOL_ERROR, "ack number 2 follows 0"),
    "ack repeated": (
        lambda raw: raw.write(1, AckFrame(1, 1, 1), AckFrame(1, 1, 1)),
        CloseCode.PROTOCOL_ERROR,
        "ack number 1 follows 1",
    ),
    "message": (lambda raw: raw.write(1, message(1)), CloseCode.PROTOCOL_ERROR, "MessageFrame is not allowed on the return half"),
    "ping": (lambda raw: raw.write(1, PingFrame(1)), CloseCode.PROTOCOL_ERROR, "PingFrame is not allowed on the return half"),
    "length 0": (lambda raw: raw.write(1, prefix_of(0)), CloseCode.PROTOCOL_ERROR, "frame of 0 bytes"),
    "2^32-1": (lambda raw: raw.write(1, prefix_of(2**32 - 1)), CloseCode.FRAME_TOO_LARGE, "4,294,967,295 bytes"),
    "truncated": (lambda raw: raw.write(1, TRUNCATED), CloseCode.PROTOCOL_ERROR, ""),
    "finished": (lambda raw: raw.write(1, b"", fin=True), CloseCode.PROTOCOL_ERROR, "return half of a lane was closed"),
    "reset": (lambda raw: (raw.engine.reset(1, 7), raw.kick())[1], CloseCode.PROTOCOL_ERROR, "stream 1 was reset"),  # type: ignore[func-returns-value]
    "stopped": (lambda raw: (raw.engine.stop(1, 7), raw.kick())[1], CloseCode.PROTOCOL_ERROR, "stream 1 is read no more"),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("what", RETURN_HALF)
async def test_on_the_return_half(autojump_clock: MockClock, what: str) -> None:
    attack, code, reason = RETURN_HALF[what]
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world, beside(world):
        async with open_raw(world.network) as raw:
            await raw.greet()
            sent = await world.server.sessions["raw"].send(Message.event(b"hi"))
            await raw.frame(MessageFrame, stream_id=1)
            attack(raw)
            with trio.fail_after(2):
                ended = await raw.ended()
            assert (ended.application, ended.code) == (True, code)
            assert reason in ended.reason
            with pytest.raises(trio.BrokenResourceError):
                await sent.delivered()
        await trio.sleep(0.1)
        assert world.server.statistics().disconnects == {f"server:{code.name.lower()}": 1}


async def test_acks_nobody_waits_for_are_ignored(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world, beside(world), open_raw(world.network) as raw:
        await raw.greet()
        session = world.server.sessions["raw"]
        await session.send(Message.event(b"hi"))
        await raw.frame(MessageFrame, stream_id=1)
        raw.write(1, AckFrame(1, 1, 1), AckFrame(2, 77, 1), ReceiptFrame(1, 1), ReceiptFrame(0, 0))
        await trio.sleep(1)
        assert session.connected
        assert session._lane.acks_ignored == 2
        await session.close()


# -- what is to be skipped -----------------------------------------------------------------------------------------------
async def test_unknown_frames_are_skipped_everywhere(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world, beside(world), open_raw(world.network) as raw:
        raw.open(UNKNOWN, hello(), UNKNOWN)
        await until(lambda: "raw" in world.server.sessions)
        session = world.server.sessions["raw"]
        raw.write(0, UNKNOWN, PingFrame(3), UNKNOWN)
        assert (await raw.frame(PongFrame)).number == 3
        stream_id = raw.open(UNKNOWN, LaneOpen(), UNKNOWN, message(1, b"echo", ack=True), UNKNOWN)
        assert (await raw.frame(AckFrame, stream_id)).result == b"echo"
        sent = await session.send(Message.event(b""))
        await raw.frame(MessageFrame, 1)
        raw.write(1, UNKNOWN, ReceiptFrame(1, 1), UNKNOWN)
        await sent.delivered()
        # An unknown kind of message fails, and only it.
        raw.write(stream_id, message(2, type=99, ack=True), message(3, b"more", ack=True))
        assert "no handler for message type 99" in (await raw.frame(AckFrame, stream_id, 2)).error
        assert (await raw.frame(AckFrame, stream_id, 3)).result == b"more"
        await session.close()


async def test_frames_split_at_every_byte(autojump_clock: MockClock) -> None:
    async with open_world(clients=1) as world, beside(world), open_raw(world.network) as raw:
        raw.engine.open_stream()
        for byte in encode(hello()):
            raw.write(0, bytes((byte,)))
            await trio.sleep(0.001)
        stream_id = raw.engine.open_stream()
        for byte in encode(LaneOpen()) + encode(message(1, b"slow", ack=True)):
            raw.write(stream_id, bytes((byte,)))
            await trio.sleep(0.001)
        assert (await raw.frame(AckFrame, stream_id)).result == b"slow"
        await world.server.sessions["raw"].close()


# -- too much of what is allowed -------------------------------------------------------------------------------------------
async def test_a_thousand_pings_a_second(autojump_clock: MockClock) -> None:
    answered = 0

    async def flood(raw: Raw) -> None:
        nonlocal answered
        for number in range(1, 5000):
            raw.write(0, PingFrame(number))
            await trio.sleep(0.001)
            if raw.engine.closing:
                answered = len([frame for frame in raw.frames() if isinstance(frame, PongFrame)])
                return

    ended = await closed_by(flood)
    assert (ended.code, ended.reason) == (CloseCode.PROTOCOL_ERROR, "too many pings")
    assert 200 <= answered < 500


async def test_pongs_that_are_not_read_are_not_held(autojump_clock: MockClock) -> None:
    # No credit on the control stream's return half: what cannot be sent must not be piled up.
    windows = Windows(stream_in=1_000, stream_out=1_000, connection=10_000, streams=20)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world, beside(world):
        async with open_raw(world.network, windows=windows) as raw:
            raw.grants = False
            await raw.greet()
            engine = world.server.sessions["raw"]._connection.engine
            most = 0
            for number in range(100 * 200):
                raw.write(0, PingFrame(number))
                if number % 100 == 0:
                    await trio.sleep(0.6)
                    most = max(most, engine.unsent(0))
                    if raw.engine.closing:
                        break
            assert 0 < most <= 70_000
            ended = await raw.ended()
            assert (ended.code, ended.reason) == (CloseCode.SLOW_CONSUMER, "the control stream is not read")
        await trio.sleep(0.1)
        assert world.server.statistics().disconnects == {"server:slow_consumer": 1}


async def test_what_the_engine_should_never_report(autojump_clock: MockClock) -> None:
    # QUIC's own limits come first, so only a defect of the engine gets here; it must not open a lane all the same.
    limits = Limits(lanes=2)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=ServerConfig(limits=limits)) as world:
        connection = world.server.sessions["client-0"]._connection
        opening = encode(LaneOpen("a")), encode(LaneOpen("b")), encode(LaneOpen("c"))
        connection.handle_events(
            [StreamData(40 + 4 * number, data, False) for number, data in enumerate(opening)], trio.current_time()
        )
        assert connection.engine.ended is not None
        assert connection.engine.ended.reason == "more than 2 lanes"
        # Closed: neither what comes nor what is due changes the reason.
        connection.handle_events([StreamData(0, b"", True)], trio.current_time())
        connection.handle_deadline(trio.current_time())
        assert connection.engine.ended.reason == "more than 2 lanes"
        await world.clients["client-0"].state.wait_value(ClientState.IDLE)
        await world.clients["client-0"].wait_connected()
        connection = world.server.sessions["client-0"]._connection
        connection.handle_events([StreamData(41, b"x", False)], trio.current_time())
        assert connection.engine.ended is not None
        assert connection.engine.ended.reason == "stream 41 is not a lane"
        await world.clients["client-0"].state.wait_value(ClientState.IDLE)


async def test_a_client_that_does_not_read_its_acks(autojump_clock: MockClock) -> None:
    router, started = Router(), 0

    @router.on(MessageType.QUERY)
    async def big(request: Request) -> bytes:
        nonlocal started
        started += 1
        return bytes(1000)

    @router.on(MessageType.COMMAND)
    async def echo(request: Request) -> bytes:
        return request.message.payload

    windows = Windows(stream_in=100_000, stream_out=20_000, connection=1_000_000, streams=20)
    config = ServerConfig(limits=Limits(outbox_bytes=50_000))
    async with (
        open_world(clients=1, router=router, network=MemoryNetwork(delay=0.01), server_config=config) as world,
        beside(world),
        open_raw(world.network, windows=windows) as raw,
    ):
        raw.grants = False
        # Of the revision before acks were kept until they are confirmed: this peer confirms none.
        raw.open(replace(hello(), revision=1))
        await raw.frame(Welcome)
        stream_id = raw.open(LaneOpen())
        for seq in range(1, 2001):
            raw.write(stream_id, message(seq, ack=True, type=MessageType.QUERY))
        await trio.sleep(20)
        session = world.server.sessions["raw"]
        dialect = session._connection._dialect
        assert isinstance(dialect, Flow2)
        assert dialect._lanes is not None
        lanes = dialect._lanes
        receiver = lanes._receivers[stream_id]
        # 20 KB are with the client, 50 KB wait in QUIC, 50 KB in the lane; one round of workers may come on top.
        assert started < 200
        assert session._connection.engine.unsent(stream_id) < 110_000
        assert receiver.ack_bytes < 120_000
        before = started
        await trio.sleep(20)
        assert started == before, "no further handler starts"
        assert session.connected
        # It reads again, and everything goes on where it stood.
        raw.grants = True
        raw.engine.grant(stream_id, 10_000_000)
        raw.kick()
        with trio.fail_after(20):
            await until(lambda: started == 2000)
        await session.close()


async def test_a_client_that_grants_no_credit(autojump_clock: MockClock) -> None:
    windows = Windows(stream_in=10_000, stream_out=100_000, connection=1_000_000, streams=20)
    config = ServerConfig(limits=Limits(outbox_bytes=100_000))
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=config) as world, beside(world):  # noqa: SIM117 - the two together pass the line length
        async with open_raw(world.network, windows=windows) as raw:
            raw.grants = False
            await raw.greet()
            session = world.server.sessions["raw"]
            with trio.move_on_after(20) as waiting:
                while True:
                    await session.send(Message.event(bytes(1000)))
            assert waiting.cancelled_caught, "the sender waits"
            figures = session.statistics()
            assert figures.messages_sent <= 10
            assert 100_000 <= figures.outbox_bytes <= 102_000
            with pytest.raises(trio.WouldBlock):
                session.send_nowait(Message.event(b""))
            report = await world.server.broadcast(Message.event(b"to all"))
            assert report.sent == 1
            assert isinstance(report.failed["raw"], SlowConsumer)
            await session.close()


async def test_more_than_the_credit_allows(autojump_clock: MockClock) -> None:
    stuck = Router()

    @stuck.on(MessageType.QUERY, serial=True)
    async def never(request: Request) -> None:
        await trio.sleep(3)

    @stuck.on(MessageType.COMMAND)
    async def echo(request: Request) -> bytes:
        return request.message.payload

    def overrun(raw: Raw) -> None:
        stream_id = raw.open(LaneOpen())
        raw.engine._core._streams[stream_id].max_stream_data_remote = 10**9
        raw.engine._core._remote_max_data = 10**9
        for seq in range(1, 700):
            raw.write(stream_id, message(seq, bytes(1000), type=MessageType.QUERY))

    async with open_world(clients=1, router=stuck, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            await raw.greet()
            overrun(raw)
            with trio.fail_after(2):
                ended = await raw.ended()
            assert (ended.application, ended.code) == (False, 3), "FLOW_CONTROL_ERROR"
        await trio.sleep(0.1)
        assert world.server.statistics().disconnects == {"server:transport": 1}
        assert world.server.statistics().held_bytes <= 512 * 1024 + 2000
        assert (await world.clients["client-0"].request(Message.command(b"x"))).result == b"x"


async def test_what_a_dead_session_held_is_given_back(autojump_clock: MockClock) -> None:
    # Else every session that ends with messages before a stuck handler would shrink all windows of the process for ever.
    stuck = Router()

    @stuck.on(MessageType.COMMAND, serial=True)
    async def never(request: Request) -> None:
        await trio.sleep_forever()

    config = ServerConfig(session_ttl=5.0, handler_timeout=1000.0)
    async with open_world(clients=0, router=stuck, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        async with open_raw(world.network) as raw:
            await raw.greet()
            raw.open(LaneOpen(), *(message(seq, bytes(1000)) for seq in range(1, 100)), b"\0\0\x0f\xffhalf a frame")
            await trio.sleep(1)
            assert world.server.statistics().held_bytes > 100_000
        await trio.sleep(4)
        assert world.server.statistics().held_bytes > 100_000, "its handlers may still run"
        await trio.sleep(2)
        assert world.server.statistics().held_bytes == 0


async def test_a_peers_text_never_becomes_a_counters_name(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        for number in range(20):
            async with open_raw(world.network, f"raw-{number}") as raw:
                await raw.greet(f"raw-{number}")
                raw.engine.close(1000 + number, f"reason {number}\nforged")
                raw.kick()
                await trio.sleep(0.1)
        async with open_raw(world.network, "before") as raw:
            raw.engine.close(77, "early")
            raw.kick()
            await trio.sleep(0.1)
        assert world.server.statistics().disconnects == {"client:other": 20}
        assert world.server.statistics().refused == {"client:other": 1}
        assert all(change.detail.isprintable() for change in world.server.session("raw-3").history)
