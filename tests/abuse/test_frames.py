"""Frames that are slow, endless, cut off, unknown, or made to be expensive (rows 13, 14, 23 to 28 of the abuse list)."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import Limits, Message, MessageType, Request, Router, ServerConfig, SlowConsumer
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.wire import (
    AckFrame,
    DecodeError,
    FrameReader,
    FrameTooLarge,
    LaneOpen,
    MessageFrame,
    PingFrame,
    PongFrame,
    ReceiptFrame,
    decode,
    encode,
)
from tests.abuse.siege import MIB, besieged, closed_soon
from tests.connections.raw import Raw, hello, open_raw
from tests.connections.test_misbehaving import AFTER_HELLO, BEFORE_HELLO, UNKNOWN
from tests.wire.reference import field, varint

CPU_PER_FRAME = 0.05


def message(seq: int, payload: bytes = b"", *, ack: bool = False, type: int = MessageType.COMMAND) -> MessageFrame:
    return MessageFrame(seq, seq.to_bytes(16, "big"), type, payload, ack, 1)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


# -- row 12: streams opened and left --------------------------------------------------------------------------------------
async def test_12_streams_opened_and_left(autojump_clock: MockClock) -> None:
    """Bound: a stream that has begun to say whose lane it is has the heartbeat time-out for it, as any frame; sixteen at a time."""
    async with besieged(expect={"disconnects:server:heartbeat_timeout": 1}, every=1.0) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        for _ in range(16):
            raw.open(b"\0")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, raw)
            with trio.fail_after(45 + 15 + 1):
                assert (await raw.ended()).by_peer
            nursery.cancel_scope.cancel()


async def test_12_lanes_may_be_silent(autojump_clock: MockClock) -> None:
    """A lane lives as long as its session: one that says nothing for an hour is no attack."""
    async with besieged(every=60.0) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        lanes = [raw.open(LaneOpen(f"lane-{number}")) for number in range(16)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(beat, raw)
            await trio.sleep(3600)
            for lane in lanes:
                raw.write(lane, message(1, b"still here", ack=True))
                assert (await raw.frame(AckFrame, lane)).result == b"still here"
            nursery.cancel_scope.cancel()


# -- row 13: a frame at one byte per ten seconds ---------------------------------------------------------------------------
async def drip(raw: Raw, stream_id: int, data: bytes, *, every: float = 10.0) -> None:
    for byte in data:
        raw.write(stream_id, bytes((byte,)))
        await trio.sleep(every)


async def test_13_a_hello_at_one_byte_per_ten_seconds(autojump_clock: MockClock) -> None:
    """Bound: the hello has ten seconds from the end of the handshake, however it comes."""
    async with besieged(expect={"connections_refused:server:hello_timeout": 1}) as siege, open_raw(siege.network) as raw:
        raw.engine.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, raw, 0, encode(hello()))
            with trio.fail_after(11.1):
                ended = await raw.ended()
            nursery.cancel_scope.cancel()
        assert (ended.application, ended.code) == (True, CloseCode.HELLO_TIMEOUT)


async def beat(raw: Raw) -> None:
    number = 0
    while True:
        number += 1
        raw.write(0, PingFrame(number))
        await trio.sleep(15)


@pytest.mark.parametrize("where", ["control", "lane", "lane, while it beats"])
async def test_13_a_frame_at_one_byte_per_ten_seconds(autojump_clock: MockClock, where: str) -> None:
    """Bound: a frame that has begun brings its end, or 8 bytes a second, within the heartbeat time-out, or its connection is closed.

    It is seen to have begun, and to stand still, when something else comes: within the 15 s of the heartbeats.
    """
    closed = False
    async with besieged(every=1.0) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        stream_id = 0 if where == "control" else raw.open(LaneOpen())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip, raw, stream_id, framed(bytes(10_000)))
            if where == "lane, while it beats":
                nursery.start_soon(beat, raw)
            with trio.move_on_after(45 + 15 + 1):
                closed = (await raw.ended()).by_peer
            nursery.cancel_scope.cancel()
    assert closed


async def test_13_what_a_frame_that_never_ends_can_hold(autojump_clock: MockClock) -> None:
    """Bound, whatever the deadline: at most the frame limit for each lane, counted in ``held_bytes``, and given back at the end."""
    limits = Limits(payload=64 * 1024, lanes=4)
    async with besieged(server_config=ServerConfig(limits=limits)) as siege:
        async with open_raw(siege.network) as raw:
            await raw.greet()
            for number in range(4):
                raw.open(LaneOpen(f"lane-{number}"), (64 * 1024).to_bytes(4, "big") + bytes(60_000))
            await trio.sleep(5)
            assert 4 * 60_000 <= siege.server.statistics().held_bytes <= 4 * (64 * 1024 + 1024)
        await trio.sleep(3)
        assert siege.server.statistics().held_bytes == 0


# -- row 14: a reader that never grants credit --------------------------------------------------------------------------
async def test_14_a_reader_that_never_grants_credit(autojump_clock: MockClock) -> None:
    """Bound: what the reader's first credit takes, and one outbox; then `SlowConsumer`, and senders that wait do so alone."""
    windows = Windows(stream_in=10_000, stream_out=100_000, connection=1_000_000, streams=20)
    config = ServerConfig(limits=Limits(outbox_bytes=100_000))
    expect = {"disconnects:server:normal": 1, "broadcasts_sent": 100, "credit_stalls": 1}
    async with besieged(expect=expect, server_config=config) as siege, open_raw(siege.network, windows=windows) as raw:
        raw.grants = False
        await raw.greet()
        session = siege.server.sessions["raw"]
        with contextlib.suppress(trio.WouldBlock):
            for _ in range(10_000):
                session.send_nowait(Message.event(bytes(1000)))
        await trio.sleep(5)
        assert session.statistics().outbox_bytes <= 102_000
        for _ in range(100):
            report = await siege.server.broadcast(Message.event(bytes(1000)))
            assert set(report.failed) <= {"raw"}
        assert isinstance(report.failed["raw"], SlowConsumer)
        assert session.statistics().outbox_bytes <= 102_000
        assert siege.risen("messages_sent") <= 110, "a hundred to the client beside, and what the first credit took"
        await session.close()


# -- row 23: length prefixes --------------------------------------------------------------------------------------------
PREFIXES = [what for what in AFTER_HELLO if any(part in what for part in ("length 0", "too long", "2^31", "2^32-1"))]


@pytest.mark.parametrize("what", PREFIXES)
async def test_23_a_length_prefix_that_is_none(autojump_clock: MockClock, what: str) -> None:
    """Bound: refused at the fourth byte of the prefix; nothing is set aside for what it announces."""
    attack, code, reason = AFTER_HELLO[what]
    expect = {f"disconnects:server:{code.name.lower()}": 1, "decoding_errors": 1}
    async with besieged(expect=expect, memory=8 * MIB) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        attack(raw)
        ended = await closed_soon(raw)
        assert (ended.code, reason in ended.reason) == (code, True)


async def test_23_a_prefix_within_a_very_large_limit_allocates_nothing(autojump_clock: MockClock) -> None:
    """Bound: what has come, not what was announced, even where a gigabyte is allowed."""
    config = ServerConfig(limits=Limits(payload=1024 * MIB))
    async with besieged(server_config=config, memory=8 * MIB) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        for number in range(15):
            raw.open(LaneOpen(f"lane-{number}"), (1000 * MIB).to_bytes(4, "big") + b"start")
        await trio.sleep(2)
        assert siege.server.statistics().held_bytes < 1000


def test_23_the_reader_holds_the_prefix_alone() -> None:
    for size in (2**31, 2**32 - 1, 1025):
        reader = FrameReader(1024)
        with pytest.raises(FrameTooLarge):
            reader.feed(size.to_bytes(4, "big") + bytes(500))
        assert reader.buffered == 4


# -- row 24: a prefix that promises more than FIN delivers -------------------------------------------------------------
@pytest.mark.parametrize("where", ["hello", "control", "lane"])
async def test_24_a_frame_that_ends_before_its_end(autojump_clock: MockClock, where: str) -> None:
    """Bound: closed with the FIN, counted as what could not be decoded."""
    counter = "connections_refused" if where == "hello" else "disconnects"
    expect = {f"{counter}:server:protocol_error": 1, "decoding_errors": 1}
    async with besieged(expect=expect) as siege, open_raw(siege.network) as raw:
        promise = (1000).to_bytes(4, "big") + b"less"
        if where == "hello":
            raw.write(raw.engine.open_stream(), promise, fin=True)
        else:
            await raw.greet()
            stream_id = 0 if where == "control" else raw.open(LaneOpen())
            raw.write(stream_id, promise, fin=True)
        assert (await closed_soon(raw)).code == CloseCode.PROTOCOL_ERROR


# -- row 25: what a later revision might say ---------------------------------------------------------------------------
LATER_FIELD = field(15, b"of a later revision") + field(999, 7) + varint(2000 << 3 | 5) + bytes(4)


def with_later_fields(frame: MessageFrame | PingFrame) -> bytes:
    """Add unknown fields of each wire type to a frame, at both of its levels."""
    body = encode(frame)[4:]
    tag, inner = body[:1], body[2:]
    assert body[1] == len(inner) < 100
    inner += LATER_FIELD
    return framed(tag + varint(len(inner)) + inner + LATER_FIELD)


async def test_25_frames_fields_and_values_of_a_later_revision(autojump_clock: MockClock) -> None:
    """Bound: skipped; what is known of them counts. A message type without a handler fails alone."""
    async with besieged(expect={"decoding_errors": 0, "handlers_failed": 1}) as siege, open_raw(siege.network) as raw:
        raw.open(UNKNOWN, hello(), UNKNOWN * 100)
        await raw.wait(lambda: siege.server.sessions.get("raw"))
        session = siege.server.sessions["raw"]
        raw.write(0, with_later_fields(PingFrame(7)))
        assert (await raw.frame(PongFrame)).number == 7
        stream_id = raw.open(UNKNOWN, LaneOpen(), with_later_fields(message(1, b"known", ack=True)), UNKNOWN)
        assert (await raw.frame(AckFrame, stream_id)).result == b"known"
        raw.write(stream_id, message(2, type=77, ack=True))
        assert "no handler for message type 77" in (await raw.frame(AckFrame, stream_id, 2)).error

        async def ask() -> None:
            with pytest.raises(Exception, match="a status that is not known"):
                await session.request(Message.command(b""))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await raw.frame(MessageFrame, 1)
            raw.write(1, UNKNOWN, AckFrame(1, 1, 4711, b"", "a status that is not known"), ReceiptFrame(1, 1))
        assert session.connected
        await session.close()


# -- row 26: protobuf bombs --------------------------------------------------------------------------------------------
GROUP, END_GROUP = varint(20 << 3 | 3), varint(20 << 3 | 4)


def nested(depth: int) -> bytes:
    """Messages in messages; built from the inside out, in pieces, as joining at each level would take for ever."""
    heads: list[bytes] = []
    size = 0
    for _ in range(depth):
        heads.append(varint(8 << 3 | 2) + varint(size))
        size += len(heads[-1])
    return b"".join(reversed(heads))


BOMBS: dict[str, Callable[[int], bytes]] = {
    "groups, closed": lambda size: GROUP * (size // 4) + END_GROUP * (size // 4),
    "groups, open": lambda size: GROUP * (size // 2),
    "messages in messages": lambda size: nested(size // 5),
    "unknown fields": lambda size: field(12, 0) * (size // 2),
    "ranges of a receipt": lambda size: field(11, field(1, 1) + field(3, b"") * (size // 2)),
    "lanes of a hello": lambda size: field(1, field(5, b"") * (size // 2)),
    "one field again and again": lambda size: field(8, field(1, 1) * (size // 2)),
    "one frame again and again": lambda size: field(7, b"") * (size // 2),
    "long numbers": lambda size: (varint(20 << 3) + b"\xff" * 9 + b"\x01") * (size // 12),
    "one long number": lambda size: b"\xff" * size,
    "one long unknown field": lambda size: field(21, bytes(size)),
    "text that is not UTF-8 at its end": lambda size: field(7, field(1, b"a" * size + b"\xff")),
}


@contextlib.contextmanager
def not_traced() -> Iterator[None]:
    """Run the block without the tracer that measures coverage: it would be most of what is measured here."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@pytest.mark.parametrize("what", BOMBS)
def test_26_a_bomb_costs_less_than_fifty_milliseconds(what: str) -> None:
    """Bound: 50 ms of CPU for a frame of the largest size."""
    body = BOMBS[what](MIB)
    spent = []
    for _ in range(3):
        with not_traced():
            started = time.thread_time()
            with contextlib.suppress(DecodeError):  # Refusing is the usual answer; that it is cheap is what counts here.
                decode(body)
            spent.append(time.thread_time() - started)
    assert min(spent) < CPU_PER_FRAME


@pytest.mark.parametrize("what", [name for name in BOMBS if name != "one long unknown field"])
async def test_26_a_bomb_on_a_lane(autojump_clock: MockClock, what: str) -> None:
    """Bound: the connection that sent it is closed, or the frame skipped; nobody else notices."""
    async with besieged() as siege, open_raw(siege.network) as raw:
        await raw.greet()
        raw.open(LaneOpen(), framed(BOMBS[what](40_000)))
        with trio.move_on_after(1.0):
            await raw.ended()
        refused = siege.risen("decoding_errors")
        assert raw.engine.closing == bool(refused)
        if raw.engine.closing:
            assert siege.risen("disconnects:server:protocol_error") == 1
        else:
            assert what in ("one frame again and again", "long numbers"), "skipped: well-formed, and nothing in it is known"


# -- row 28: hellos out of place ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", BEFORE_HELLO)
async def test_28_the_first_frame_is_no_hello(autojump_clock: MockClock, what: str) -> None:
    """Bound: refused before a session is made."""
    attack, reason = BEFORE_HELLO[what]
    async with besieged(expect={"connections_refused:server:protocol_error": 1, "total_connections": 0}) as siege:  # noqa: SIM117
        async with open_raw(siege.network) as raw:
            attack(raw)
            ended = await closed_soon(raw)
            assert reason in ended.reason
            assert "raw" not in {session.client_id for session in siege.server.known_sessions()}


async def test_28_a_second_hello_with_another_id(autojump_clock: MockClock) -> None:
    """Bound: refused; it neither renames the session nor touches the one whose id it names."""
    async with besieged(expect={"disconnects:server:protocol_error": 1}) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        raw.write(0, hello("client-0"))
        ended = await closed_soon(raw)
        assert "Hello from the client is not allowed" in ended.reason
        assert siege.server.sessions["client-0"].connected


async def test_28_two_hellos_in_one_packet(autojump_clock: MockClock) -> None:
    started: list[bytes] = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def note(request: Request) -> None:
        started.append(request.message.payload)

    expect = {"disconnects:server:protocol_error": 1, "total_connections": 1}
    async with besieged(expect=expect, router=router) as siege, open_raw(siege.network) as raw:
        raw.open(hello("one"), hello("two"))
        await closed_soon(raw)
        assert "two" not in {session.client_id for session in siege.server.known_sessions()}
        assert started == []
