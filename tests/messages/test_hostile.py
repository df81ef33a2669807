"""A peer that speaks the protocol wrongly, or uses its rights to the limit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ConnectionLost, Limits, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.testing import MemoryNetwork, World, echo_router, open_world
from quicflow_trio.wire import (
    AckFrame,
    AckStatus,
    Frame,
    LaneOpen,
    MessageFrame,
    encode_ack,
    encode_cancel,
    encode_message,
    encode_receipt,
)
from tests.connections.raw import WINDOWS, Raw, open_raw
from tests.messages.harness import Gate, until

KIB = 1 << 10


def message(seq: int, payload: bytes = b"", *, wants_ack: bool = False) -> bytes:
    return encode_message(seq, seq.to_bytes(16, "big"), int(MessageType.COMMAND), payload, wants_ack, 0)


def messages(count: int, payload: bytes = b"") -> Iterator[bytes]:
    return (message(seq, payload) for seq in range(1, count + 1))


async def assert_unharmed(world: World) -> None:
    """A well-behaved client of the same server notices nothing."""
    assert (await world.clients["client-0"].request(Message.query(b"well?"), ack_timeout=5)).result == b"well?"
    assert world.clients["client-0"].statistics().connects == 1
    assert world.server.statistics().held_bytes == 0


NONSENSE: dict[str, tuple[Frame | bytes, ...]] = {
    "gap": (LaneOpen(""), message(1), message(3)),
    "no name": (message(1),),
    "two names": (LaneOpen(""), LaneOpen("")),
    "bad name": (LaneOpen("a\nb"),),
    "cancels what was not sent": (LaneOpen(""), message(1), encode_cancel(3)),
    "ack on the wrong half": (LaneOpen(""), encode_ack(1, 1, AckStatus.SUCCESS, b"")),
    "not protobuf": (LaneOpen(""), b"\x00\x00\x00\x02\xff\xff"),
    "empty frame": (LaneOpen(""), bytes(4)),
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_on_a_lane_ends_its_connection_and_no_other(
    autojump_clock: MockClock, content: tuple[Frame | bytes, ...]
) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world, open_raw(network) as raw:
        await raw.greet()
        raw.open(*content)
        ended = await raw.ended()
        assert (ended.application, ended.by_peer, ended.code) == (True, True, CloseCode.PROTOCOL_ERROR)
        assert ended.reason
        # The session has nothing left to do: it must not be kept for its time to live because of a miscount.
        await until(lambda: "raw" not in world.server.sessions, seconds=1)
        await trio.sleep(1)
        await assert_unharmed(world)


async def test_nonsense_that_is_decoded_late_ends_the_connection_too(autojump_clock: MockClock) -> None:
    """Behind more messages than are decoded ahead, it shows only as the handlers get there."""
    gate = Gate()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(limits=Limits(dispatch_queue=2), handler_timeout=math.inf)
    async with open_world(network=network, router=gate.router, server_config=config) as world, open_raw(network) as raw:
        await raw.greet()
        raw.open(LaneOpen(""), *messages(20), b"\x00\x00\x00\x02\x42\xff")  # starts as a message does
        await trio.sleep(5)
        assert not raw.engine.closing
        gate.opened.set()
        ended = await raw.ended()
        assert ended.code == CloseCode.PROTOCOL_ERROR
        await trio.sleep(1)
        assert len(gate.passed) == 20, "what came before it is handled"
        await assert_unharmed(world)


async def test_a_payload_over_the_limit_is_cut_off(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(limits=Limits(payload=1000))
    async with open_world(network=network, server_config=config) as world, open_raw(network) as raw:
        await raw.greet()
        raw.open(LaneOpen(""), message(1, bytes(3000))[:100])
        ended = await raw.ended()
        assert ended.code == CloseCode.FRAME_TOO_LARGE, "at its announcement"
        await assert_unharmed(world)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ((encode_receipt(2, 0, ()),), "the last one sent was 1"),
        ((encode_ack(2, 1, AckStatus.SUCCESS, b""),), "ack number 2 follows 0"),
        ((message(1),), "not allowed on the return half"),
    ],
)
async def test_nonsense_on_a_return_half_ends_the_connection(
    autojump_clock: MockClock, answers: tuple[bytes, ...], reason: str
) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world, open_raw(network) as raw:
        await raw.greet()

        async def ask() -> None:
            with pytest.raises(ConnectionLost):
                await world.server.sessions["raw"].request(Message.command())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await raw.frame(MessageFrame, 1)
            raw.write(1, *answers)
            ended = await raw.ended()
        assert ended.code == CloseCode.PROTOCOL_ERROR
        assert reason in ended.reason
        assert world.server.statistics().requests_waiting == 0
        await assert_unharmed(world)


async def test_acks_that_nobody_waits_for_are_ignored_and_counted(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world, open_raw(network) as raw:
        await raw.greet()
        session = world.server.sessions["raw"]
        results: list[bytes] = []

        async def ask() -> None:
            results.append((await session.request(Message.command())).result)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await raw.frame(MessageFrame, 1)
            raw.write(1, encode_ack(1, 77, AckStatus.SUCCESS, b"made up"), encode_ack(2, 1, AckStatus.SUCCESS, b"true"))
            raw.write(1, encode_ack(3, 1, AckStatus.FAILURE, b"", "again"), encode_receipt(1, 1, ()))
        await trio.sleep(1)
        assert results == [b"true"]
        assert session._lane.acks_ignored == 2
        assert session.connected


async def test_an_ack_without_a_receipt_is_an_answer(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world, open_raw(network) as raw:
        await raw.greet()
        session = world.server.sessions["raw"]

        def answer(raw: Raw, event: object) -> None:
            if raw.streams.get(1) and len(raw.frames(1)) == 2 and not raw.engine.unsent(1):
                raw.on_event = None
                raw.write(1, encode_ack(1, 1, 9, b"", "a status of a later revision"))

        raw.on_event = answer
        with pytest.raises(Exception, match="a status of a later revision"):
            await session.request(Message.command())
        assert session.statistics().unreceipted == 1


async def test_a_peer_that_reads_no_acks_stops_its_own_handlers_at_a_bounded_number_of_bytes(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    limits = Limits(outbox_bytes=64 * KIB, payload=32 * KIB)
    started = 0
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        nonlocal started
        started += 1
        return bytes(16 * KIB)

    query = echo_router().route(int(MessageType.QUERY))
    assert query is not None
    router.add(MessageType.QUERY, query.handler)
    windows = Windows(stream_in=WINDOWS.stream_in, stream_out=10_000, connection=WINDOWS.connection, streams=64)
    async with (
        open_world(network=network, router=router, server_config=ServerConfig(limits=limits)) as world,
        open_raw(network, windows=windows) as raw,
    ):
        await raw.greet()
        raw.grants = False
        count = 200
        lane = raw.open(LaneOpen(""), *(message(seq, wants_ack=True) for seq in range(1, count + 1)))
        await trio.sleep(5)
        session = world.server.sessions["raw"]
        # One limit's worth in QUIC, one in the lane, each overshot by an ack or two.
        bound = 4 * limits.outbox_bytes
        assert started * 16 * KIB < bound
        assert session.statistics().unacked_bytes < bound
        # Heartbeats and the others go on.
        assert (await world.clients["client-0"].request(Message.query(b"q"))).result == b"q"
        # Once it reads, everything is handled and acked.
        raw.grants = True
        raw.engine.grant(lane, 100_000_000)
        raw.kick()
        await raw.frame(AckFrame, lane, count)
        acks = [frame for frame in raw.frames(lane) if isinstance(frame, AckFrame)]
        assert [ack.ack_seq for ack in acks] == list(range(1, count + 1))
        assert sorted(ack.seq for ack in acks) == list(range(1, count + 1))
        await trio.sleep(1)
        await assert_unharmed(world)


async def test_its_handlers_are_finished_when_a_peer_that_read_no_acks_is_gone(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    limits = Limits(outbox_bytes=4 * KIB, payload=32 * KIB)
    done = 0
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        nonlocal done
        done += 1
        return bytes(16 * KIB)

    query = echo_router().route(int(MessageType.QUERY))
    assert query is not None
    router.add(MessageType.QUERY, query.handler)
    windows = Windows(stream_in=WINDOWS.stream_in, stream_out=10_000, connection=WINDOWS.connection, streams=64)
    async with open_world(network=network, router=router, server_config=ServerConfig(limits=limits)) as world:
        async with open_raw(network, windows=windows) as raw:
            await raw.greet()
            raw.grants = False
            raw.open(LaneOpen(""), *(message(seq, wants_ack=True) for seq in range(1, 101)))
            await trio.sleep(5)
            assert done < 10
        # Received and kept: a lost connection cancels no handler, and holds none up.
        await until(lambda: done == 100, seconds=5)
        await until(lambda: world.server.statistics().away == 0, seconds=5)
        await assert_unharmed(world)


async def test_a_sender_that_ignores_its_credit_is_cut_off(autojump_clock: MockClock) -> None:
    """QUIC itself holds it to what was granted: the stopped lane never has more than its window and a frame."""
    gate = Gate()
    network = MemoryNetwork(delay=0.01)
    limits = Limits(lane_window=16 * KIB, payload=8 * KIB)
    config = ServerConfig(handler_timeout=math.inf, limits=limits)
    async with open_world(network=network, router=gate.router, server_config=config) as world, open_raw(network) as raw:
        await raw.greet()
        raw.open(LaneOpen(""), *messages(1000, bytes(4 * KIB)))
        await trio.sleep(10)
        session = world.server.sessions["raw"]
        assert session.statistics().held_bytes <= 16 * KIB + 9 * KIB
        gate.opened.set()
        await until(lambda: len(gate.passed) == 1000)
        await trio.sleep(1)
        await assert_unharmed(world)
