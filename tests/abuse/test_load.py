"""Too much of what is allowed, handlers that misbehave, clocks that jump (rows 33 to 37 of the abuse list)."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    ClientNotConnected,
    ConnectionClosed,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    SlowConsumer,
    WaitingTableFull,
    open_client,
)
from quicflow_trio.protocol.waiting import WaitingShare, WaitingTable
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.testing import echo_router, throwaway_tls
from quicflow_trio.wire import AckFrame, LaneOpen, PingFrame, PongFrame, encode_message
from tests.abuse.siege import MIB, Siege, besieged, closed_soon
from tests.connections.raw import open_raw

WAITING, SHARE = 4000, 2000


# -- row 33: more requests than may wait -----------------------------------------------------------------------------------
async def test_33_one_request_too_many(autojump_clock: MockClock) -> None:
    """Bound: the share of a session, the limit of the server; the next is refused before it waits; 0 when all is over.

    A twelfth of the shipped limits, as each request here is a task of this process; the shipped ones are counted below. The cap on
    memory is for those tasks.
    """
    config = ServerConfig(limits=Limits(waiting=WAITING, waiting_per_session=SHARE), ack_timeout=100.0)
    outcomes: list[str] = []
    async with besieged(server_config=config, memory=96 * MIB, every=0.5) as siege:

        async def ask(client_id: str) -> None:
            try:
                await siege.server.sessions[client_id].request(Message.command(b""))
            except (WaitingTableFull, ConnectionClosed) as exc:
                outcomes.append(type(exc).__name__)

        async with open_raw(siege.network, "a") as a, open_raw(siege.network, "b") as b, trio.open_nursery() as nursery:
            await a.greet("a")
            await b.greet("b")
            for _ in range(SHARE):
                nursery.start_soon(ask, "a")
            await trio.sleep(1)
            assert siege.server.statistics().requests_waiting == SHARE
            # The culprit's share is used up; everybody else's is not.
            with pytest.raises(WaitingTableFull, match="of this session"):
                await siege.server.sessions["a"].request(Message.command(b""))
            assert siege.risen("requests_refused") == 1
            for _ in range(WAITING - SHARE):
                nursery.start_soon(ask, "b")
            await trio.sleep(1)
            assert siege.server.statistics().requests_waiting == WAITING
            with pytest.raises(WaitingTableFull, match="the limit is 4,000"):
                await siege.server.sessions["client-0"].request(Message.command(b""))
            assert siege.risen("requests_refused") == 2
            await siege.server.sessions["a"].close()
            await siege.server.sessions["b"].close()
    assert len(outcomes) == WAITING
    assert "WaitingTableFull" not in outcomes


def test_33_the_shipped_limits() -> None:
    """Bound: 50,000 on a server, 25,000 of one session."""
    limits = Limits()
    table = WaitingTable(limits.waiting, limits.waiting_per_session)
    shares = [WaitingShare(table), WaitingShare(table), WaitingShare(table)]
    for share in shares[:2]:
        for _ in range(25_000):
            share.enter()
        with pytest.raises(WaitingTableFull):
            share.enter()
    with pytest.raises(WaitingTableFull, match="50,000 requests"):
        shares[2].enter()
    assert (table.active, table.refused) == (50_000, 3)
    for share in shares[:2]:
        for _ in range(25_000):
            share.leave()
    assert table.active == 0


# -- row 34: unicast to nobody, broadcast storms --------------------------------------------------------------------------
async def test_34_unicast_to_nobody(autojump_clock: MockClock) -> None:
    """Bound: a typed error at once; nothing is queued for ids that nobody has."""
    async with besieged(expect={"messages_sent": 0, "broadcasts_sent": 1}) as siege:
        for client_id in ("", "nobody", "a\nb", "x" * 100_000):
            with pytest.raises(ClientNotConnected):
                siege.server.session(client_id)
        report = await siege.server.broadcast(Message.event(b""), to=[f"nobody-{number}" for number in range(1000)])
        assert (report.sent, len(report.failed)) == (0, 1000)
        assert {type(error) for error in report.failed.values()} == {ClientNotConnected}
        assert len(siege.server.known_sessions()) == 1


async def test_34_a_storm_of_broadcasts(autojump_clock: MockClock) -> None:
    """Bound: one outbox for each client that does not read; from then on it is left out, and named."""
    windows = Windows(stream_in=10_000, stream_out=100_000, connection=1_000_000, streams=20)
    config = ServerConfig(limits=Limits(outbox_bytes=64 * 1024))
    expect = {"broadcasts_sent": 1000}
    async with besieged(server_config=config, expect=expect) as siege, open_raw(siege.network, windows=windows) as raw:
        raw.grants = False
        await raw.greet()
        for number in range(1000):
            last = await siege.server.broadcast(Message.event(bytes(1000)))
            if number % 50 == 0:
                await trio.sleep(0.05)
        assert isinstance(last.failed["raw"], SlowConsumer)
        assert siege.server.sessions["raw"].statistics().outbox_bytes <= 66 * 1024
        await siege.server.sessions["raw"].close()


# -- row 35: heartbeats -------------------------------------------------------------------------------------------------
async def test_35_clients_that_only_beat(autojump_clock: MockClock) -> None:
    """Bound: they stay, at two packets each way per 15 s. `bench-connections --full` has ten thousand."""
    tls = throwaway_tls()[1]
    async with besieged(every=5.0, memory=64 * MIB) as siege, trio.open_nursery() as nursery:
        started = 0

        async def idle(number: int) -> None:
            nonlocal started
            async with open_client(
                "server", client_id=f"idle-{number}", tls=tls, router=echo_router(), network=siege.network.host(f"idle-{number}")
            ) as client:
                await client.wait_connected()
                started += 1
                await trio.sleep_forever()

        for number in range(40):
            nursery.start_soon(idle, number)
        await trio.sleep(5)
        assert started == 40
        sent = siege.risen("datagrams_sent")
        await trio.sleep(300)
        assert siege.server.statistics().connected == 41
        assert siege.risen("heartbeats_received") >= 40 * 19
        assert siege.risen("heartbeat_timeouts") == 0
        # Of the 41st are the requests beside.
        assert siege.risen("datagrams_sent") - sent <= 2.5 * (40 * 20 + 60)
        nursery.cancel_scope.cancel()


async def test_35_a_thousand_pings_a_second(autojump_clock: MockClock) -> None:
    """Bound: 200 a second are answered; 400 over that the connection is closed."""
    expect = {"disconnects:server:protocol_error": 1, "decoding_errors": 1}
    async with besieged(expect=expect) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        number = 0
        with trio.fail_after(1.5):
            while not raw.engine.closing:
                number += 1
                raw.write(0, PingFrame(number))
                await trio.sleep(0.001)
        assert (await closed_soon(raw)).reason == "too many pings"
        assert len([frame for frame in raw.frames() if isinstance(frame, PongFrame)]) <= 200 + 200


# -- row 36: handlers that misbehave --------------------------------------------------------------------------------------
class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even that")


async def raises(_: Request) -> None:
    raise ValueError("text\nof \x1b[2J the handler " + "x" * 100_000)


async def raises_strangely(_: Request) -> None:
    raise Unprintable


async def raises_a_group(_: Request) -> None:
    raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])


async def hangs(_: Request) -> None:
    await trio.sleep_forever()


async def returns_much(_: Request) -> bytes:
    return bytes(100 * MIB)


async def returns_nonsense(_: Request) -> bytes:
    return 4711  # type: ignore[return-value]  # that is the abuse


async def cancels_itself(_: Request) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.sleep(1)
    raise RuntimeError("cancelled, and then this")


HANDLERS: dict[str, tuple[Callable[[Request], Awaitable[bytes | None]], str]] = {
    "raises": (raises, "ValueError: text"),
    "raises what cannot be shown": (raises_strangely, "Unprintable"),
    "raises a group": (raises_a_group, "several"),
    "hangs": (hangs, "ran past its deadline of 2 s"),
    "returns 100 MB": (returns_much, "104,857,600 bytes"),
    "returns no bytes": (returns_nonsense, "int"),
    "cancels itself": (cancels_itself, "cancelled, and then this"),
}


@pytest.mark.parametrize("what", HANDLERS)
async def test_36_a_handler_that_misbehaves(autojump_clock: MockClock, what: str) -> None:
    """Bound: a failure ack of at most a few KB, within the handler's deadline; nothing of a result over the limit is kept.

    A result of 100 MB is the handler's own memory while it is made; the library adds nothing to it.
    """
    handler, text = HANDLERS[what]
    router = Router()
    router.add(MessageType.COMMAND, handler)
    config = ServerConfig(handler_timeout=2.0)
    async with besieged(router=router, server_config=config, expect={"handlers_failed": 5}) as siege:
        async with open_raw(siege.network) as raw:
            await raw.greet()
            frames = (encode_message(seq, seq.to_bytes(16, "big"), 1, b"", True, 0) for seq in range(1, 6))
            with trio.fail_after(4):
                stream_id = raw.open(LaneOpen(), *frames)
                ack = await raw.frame(AckFrame, stream_id, 1)
                assert text in ack.error
                assert len(ack.error) < 4096
                await raw.wait(lambda: siege.risen("handlers_failed") == 5)
        assert siege.server.metrics().handlers_running == 0


async def test_36_handlers_that_are_cancelled(autojump_clock: MockClock) -> None:
    """Bound: an asker that gives up ends its handler; a client that goes ends its handlers with its session."""
    ended: list[str] = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def hang(request: Request) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(request.message.payload.decode())

    async with besieged(router=router, expect={"handlers_timed_out": 0}) as siege:
        client = siege.world.clients["client-0"]
        with trio.move_on_after(1):
            await client.request(Message.command(b"given up"))
        await trio.sleep(0.5)
        assert ended == ["given up"]
        with pytest.raises(AckTimeout):
            await client.request(Message.command(b"timed out"), ack_timeout=1)
        await trio.sleep(0.5)
        async with open_raw(siege.network) as raw:
            await raw.greet()
            raw.open(LaneOpen(), encode_message(1, bytes(16), 1, b"gone", True, 0))
            await trio.sleep(0.5)
        await trio.sleep(1.5)
        assert ended == ["given up", "timed out", "gone"]


async def test_36_a_session_that_is_over_has_no_timer(autojump_clock: MockClock) -> None:
    """Each timer holds a whole session: who comes, sends one message and goes, again and again, would pile them up."""
    left = []

    def timers(siege: Siege) -> int:
        heap = siege.server._admission.deadlines
        return sum(entry.live and type(entry).__name__ == "Dispatcher" for _, _, entry in heap._entries)

    async with besieged(server_config=ServerConfig(handler_timeout=40.0), every=50.0) as siege:
        await trio.sleep(45)
        for number in range(5):
            async with open_raw(siege.network, f"raw-{number}") as raw:
                await raw.greet(f"raw-{number}")
                stream_id = raw.open(LaneOpen(), encode_message(1, bytes(16), 1, b"", True, 0))
                await raw.frame(AckFrame, stream_id)
        await trio.sleep(3)
        left.append(timers(siege))
    assert left == [0]


# -- row 37: wall clocks ------------------------------------------------------------------------------------------------
class Jumping:
    """A wall clock that says something else each time it is asked."""

    def __init__(self) -> None:
        self._values = [0, -(2**62), 2**62, 3_600_000_000_000, -1, 4_102_444_800_000_000_000]
        self.asked = 0

    def time_ns(self) -> int:
        self.asked += 1
        return self._values[self.asked % len(self._values)]

    def time(self) -> float:
        return self.time_ns() / 1e9


async def test_37_a_wall_clock_that_jumps(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound: deadlines and latencies do not move by what the wall clock says; messages made under it are delivered."""
    clock = Jumping()
    router = Router()

    @router.on(MessageType.COMMAND)
    async def slow(request: Request) -> None:
        await trio.sleep(10)

    async with besieged(router=router, expect={"heartbeat_timeouts": 0, "decoding_errors": 0}, every=1.0) as siege:
        monkeypatch.setattr(time, "time_ns", clock.time_ns)
        monkeypatch.setattr(time, "time", clock.time)
        client = siege.world.clients["client-0"]
        for timeout in (0.5, 3.0):
            started = trio.current_time()
            with pytest.raises(AckTimeout):
                await client.request(Message.command(b""), ack_timeout=timeout)
            assert trio.current_time() - started == pytest.approx(timeout)
        for _ in range(20):
            assert (await client.request(Message.query(b"x"))).result == b"x"
        await trio.sleep(120)
        assert siege.server.metrics().uptime_seconds < 200
        monkeypatch.undo()
    assert clock.asked > 20


@pytest.mark.parametrize("timestamp", [0, 1, -1, -(2**63), 2**63 - 1, 3_600_000])
async def test_37_timestamps_are_data(autojump_clock: MockClock, timestamp: int) -> None:
    """Bound: any 64 bits are a timestamp; the handler sees it, and nothing is computed with it."""
    seen: list[int] = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def note(request: Request) -> None:
        seen.append(request.message.timestamp)

    async with (
        besieged(router=router, expect={"decoding_errors": 0, "handlers_failed": 0}) as siege,
        open_raw(siege.network) as raw,
    ):
        await raw.greet()
        stream_id = raw.open(LaneOpen(), encode_message(1, bytes(16), 1, b"", True, timestamp))
        await raw.frame(AckFrame, stream_id)
    assert seen == [timestamp]
    assert math.isfinite(siege.latencies[-1])
