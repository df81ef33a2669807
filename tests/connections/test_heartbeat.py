"""Pings every 15 s, the end after 45 s of silence, and nothing in between that delays them."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio import ClientConfig, ClientNotConnected, ClientState, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.deadlines import Deadlines
from quicflow_trio.flow2 import Flow2
from quicflow_trio.heartbeat import heartbeat
from quicflow_trio.protocol.handshake import Terms
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.testing import MemoryNetwork, open_world, seeded
from quicflow_trio.wire import PingFrame, PongFrame
from tests.connections.machine import client_of, open_machine, times, until
from tests.connections.raw import Raw, open_raw, open_raw_server, welcome

CONNECTED, IDLE = ClientState.CONNECTED, ClientState.IDLE


class PingRecorder:
    """What a server by hand does about a client's control stream."""

    def __init__(self, interval: float, *, answer: bool = True) -> None:
        self.at: list[float] = []
        self._interval = interval
        self._answer = answer
        self._frames = 0

    def __call__(self, raw: Raw, event: EngineEvent) -> None:
        if not isinstance(event, StreamData):
            return
        frames = raw.frames()
        for frame in frames[self._frames :]:
            if isinstance(frame, PingFrame):
                self.at.append(trio.current_time())
                if self._answer:
                    raw.write(0, PongFrame(frame.number))
            elif not self.at:
                raw.write(0, welcome(self._interval))
        self._frames = len(frames)


@pytest.mark.parametrize(("ours", "asked", "agreed"), [(15.0, 15.0, 15.0), (15.0, 5.0, 5.0), (4.0, 15.0, 4.0)])
async def test_the_client_pings_at_the_shorter_interval(
    autojump_clock: MockClock, ours: float, asked: float, agreed: float
) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = PingRecorder(asked)
    config = ClientConfig(heartbeat_interval=ours)
    async with open_raw_server(network, recorder), client_of(network, config=config) as client:
        await client.wait_connected()
        await trio.sleep(10 * agreed + 1)
        assert client.state.value is CONNECTED
    # One at once, so that a round-trip time is known, then at the interval without drift.
    first = recorder.at[0]
    assert [at - first for at in recorder.at] == pytest.approx([agreed * beat for beat in range(11)], abs=1e-3)


async def test_the_defaults_are_15_and_45_seconds(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_machine(network) as machine, client_of(network) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        beats: list[float] = []
        await trio.sleep(0.1)
        for _ in range(5):
            await trio.sleep(15)
            assert session.last_heartbeat is not None
            beats.append(session.last_heartbeat - session.connected_at)
        assert beats == pytest.approx([15 * beat + 0.02 for beat in range(1, 6)], abs=0.02)
        network.partition("worker")
        last_frame = session.connected_at + beats[-1]
        await until(lambda: not session.connected)
        # Neither the next ping's due time nor QUIC's idle time-out decides, but the last frame.
        assert session.history[-1].at - last_frame == pytest.approx(45.0, abs=0.05)
        assert session.history[-1].change == "disconnected"
        assert session.history[-1].detail == "heartbeat timeout"


async def test_a_silent_client_leaves_the_list_and_stays_known_for_its_time_to_live(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            await raw.greet()
            raw.write(0, PingFrame(1))
            await raw.frame(PongFrame)
            heard = trio.current_time()
            session = world.server.sessions["raw"]
            ended = await raw.ended()
            assert trio.current_time() - heard == pytest.approx(45.0, abs=0.05)
            assert (ended.code, ended.reason) == (CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")
        assert list(world.server.sessions) == ["client-0"]
        assert world.server.session("raw") is session
        assert not session.connected
        assert world.server.statistics().disconnects == {"server:heartbeat_timeout": 1}
        assert world.server.statistics().away == 1
        with pytest.raises(ClientNotConnected, match="raw"):
            await session.send(Message.event(b""))
        await trio.sleep(119)
        assert world.server.session("raw") is session
        await trio.sleep(2)
        with pytest.raises(ClientNotConnected, match="raw"):
            world.server.session("raw")
        # The one beside it never noticed.
        assert world.clients["client-0"].statistics().attempts == 1


async def test_a_frame_of_any_kind_keeps_a_client(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world, open_raw(world.network) as raw:
        await raw.greet()
        for number in range(5):
            await trio.sleep(44)
            raw.write(0, b"\0\0\0\x03\xf8\x07\x01")  # field 127: a frame of a later revision
            assert "raw" in world.server.sessions, number


async def test_the_client_notices_a_dead_server(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_machine(network) as machine, client_of(network) as client:
        await client.wait_connected()
        await trio.sleep(20)  # the last pong came 15 s after connecting
        await machine.kill()
        await client.state.wait_value(IDLE)
        lost = trio.current_time() - times(client, CONNECTED)[0]
        assert lost == pytest.approx(15 + 45, abs=0.1)
        assert client.statistics().history[-1].reason == "heartbeat timeout"


async def test_a_server_that_stops_answering_is_noticed_too(autojump_clock: MockClock) -> None:
    # Its kernel and its QUIC still acknowledge: only frames count.
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, PingRecorder(15.0, answer=False)) as server, client_of(network) as client:
        await client.wait_connected()
        await client.state.wait_value(IDLE)
        assert trio.current_time() == pytest.approx(45, abs=0.1)
        assert (await server.peers[0].ended()).code == CloseCode.HEARTBEAT_TIMEOUT


async def test_heartbeats_do_not_wait_behind_messages(autojump_clock: MockClock) -> None:
    # Handlers stand still and both lanes are full to the last byte of credit: pings go on at their pace.
    stuck = Router()

    @stuck.on(MessageType.EVENT)
    async def never(request: Request) -> None:
        await trio.sleep_forever()

    config = ServerConfig(handler_timeout=math.inf, workers=1)
    async with open_world(router=stuck, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]

        async def flood(name: str) -> None:
            while True:
                await client.lane(name).send(Message.event(bytes(10_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood, "")
            nursery.start_soon(flood, "second")
            await trio.sleep(1)
            full = client.statistics()
            beats: list[float] = []
            for _ in range(6):
                await trio.sleep(15)
                assert session.last_heartbeat is not None
                beats.append(session.last_heartbeat - session.connected_at)
            assert beats == pytest.approx([15 * beat + 0.02 for beat in range(1, 7)], abs=0.05)
            assert client.statistics().messages_sent == full.messages_sent, "the lanes do stand still"
            assert client.statistics().outbox_bytes >= 2_000_000
            nursery.cancel_scope.cancel()
        await session.close()


async def test_heartbeats_keep_their_pace_in_a_flood(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(heartbeat_interval=0.5)
    async with open_world(network=network, client_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]

        async def flood() -> None:
            for _ in range(3000):
                await client.send(Message.event(bytes(1000)))

        gaps: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            before = session.last_heartbeat or 0.0
            for _ in range(300):
                await trio.sleep(0.01)
                if session.last_heartbeat not in (None, before):
                    assert session.last_heartbeat is not None
                    gaps.append(session.last_heartbeat - before)
                    before = session.last_heartbeat
        assert gaps[1:] == pytest.approx([0.5] * len(gaps[1:]), abs=0.05)
        assert len(gaps) >= 5


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.2])
async def test_the_round_trip_time_is_known_on_both_sides(autojump_clock: MockClock, delay: float) -> None:
    async with open_world(network=MemoryNetwork(delay=delay)) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        await trio.sleep(20)
        assert client.statistics().rtt == pytest.approx(2 * delay, abs=0.001)
        assert session.rtt == pytest.approx(2 * delay, abs=0.05)


async def test_a_pong_that_nobody_asked_for_changes_nothing(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    recorder = PingRecorder(15.0)

    async with open_raw_server(network, recorder) as server, client_of(network) as client:
        await client.wait_connected()
        await trio.sleep(1)
        rtt = client.statistics().rtt
        server.peers[0].write(0, PongFrame(999), PongFrame(1))
        server.peers[0].transmit()
        await trio.sleep(1)
        assert client.statistics().rtt == rtt
        assert client.state.value is CONNECTED


# -- the pace itself ---------------------------------------------------------------------------------------------------
class Counting:
    def __init__(self, interval: float) -> None:
        self.terms = Terms(payload=1, lanes=1, heartbeat_interval=interval, revision=1)
        self.at: list[float] = []
        self.deadlines = Deadlines()

    def ping(self) -> None:
        self.at.append(trio.current_time())
        assert len(self.at) < 1000, "the same beat came for ever"


async def test_no_beat_comes_twice_whatever_the_start(autojump_clock: MockClock) -> None:
    # (start + 15.0) - start is less than 15 for one start in fifty: in virtual time the same beat would come for ever.
    starts = random.Random(1)
    for _ in range(200):
        await trio.sleep(starts.random() * 10)
        counting: Any = Counting(15.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(counting.deadlines.run)
            nursery.start_soon(heartbeat, counting)
            await trio.sleep(100)
            nursery.cancel_scope.cancel()
        assert len(counting.deadlines) == 1, "cancelled, it leaves what the heap forgets by itself"
        assert counting.deadlines.next_deadline() == math.inf
        gaps = [later - earlier for earlier, later in zip(counting.at, counting.at[1:], strict=False)]
        assert gaps == pytest.approx([15.0] * 6)


async def test_beats_that_were_slept_through_are_skipped(mock_clock: MockClock) -> None:
    counting: Any = Counting(15.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(counting.deadlines.run)
        nursery.start_soon(heartbeat, counting)
        await trio.testing.wait_all_tasks_blocked()
        for jump in (100, 5, 15):
            mock_clock.jump(jump)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert counting.at == [0, 100, 105, 120]


async def test_only_so_many_unanswered_pings_are_remembered(autojump_clock: MockClock) -> None:
    config = ClientConfig(heartbeat_interval=0.1, heartbeat_timeout=30.0)
    async with open_world(network=MemoryNetwork(delay=0.01), client_config=config) as world:
        connection = world.clients["client-0"]._supervisor.connection
        assert connection is not None
        world.network.partition("client-0")
        await trio.sleep(20)
        assert isinstance(connection._dialect, Flow2)
        assert len(connection._dialect._pings._times) <= 16


# -- long paths ------------------------------------------------------------------------------------------------------------
async def test_a_path_that_becomes_slow_is_measured_anew(autojump_clock: MockClock) -> None:
    # Probes used to come every quarter of a second at most. A packet that a probe has repeated is forgotten, so with a round trip over
    # that no ack counted any more, the round trip was never measured again, and everything was sent for ever.
    network = MemoryNetwork(delay=0.001)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        for _ in range(20):
            await client.request(Message.command(b"x"))
        network.delay = 1.0
        await trio.sleep(20)
        lost = client.metrics().packets_lost
        await client.send(Message.event(bytes(500)))
        await trio.sleep(4)
        assert client.metrics().unacked_bytes == 0
        assert client.metrics().packets_lost - lost < 3


@pytest.mark.parametrize("seed", range(6))
def test_a_path_that_is_slow_from_the_start_is_measured(seed: int) -> None:
    @seeded(seed)
    async def main() -> None:
        async with open_world(network=MemoryNetwork(delay=1.0)) as world:
            client = world.clients["client-0"]
            await trio.sleep(10)
            lost = client.metrics().packets_lost
            await client.send(Message.event(bytes(500)))
            await trio.sleep(10)
            assert client.metrics().unacked_bytes == 0
            assert client.metrics().packets_lost - lost < 3

    trio.run(main, clock=MockClock(autojump_threshold=0))
