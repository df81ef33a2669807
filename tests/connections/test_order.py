"""What a lane promises across reconnects: earlier messages first, serial handlers one at a time, workers counted once."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    Client,
    ClientConfig,
    ClientState,
    ConnectionClosed,
    Limits,
    Message,
    MessageType,
    Peer,
    Request,
    Router,
    ServerConfig,
    open_client,
)
from quicflow_trio.testing import MemoryNetwork, World, open_world, seeded, throwaway_tls
from tests.connections.machine import until


class Slow:
    """Handlers that take a second each."""

    def __init__(self, *, serial: bool) -> None:
        self.started: list[int] = []
        self.most = 0
        self._running = 0
        self.router = Router()
        self.router.add(MessageType.EVENT, self.handle, serial=serial)

    async def handle(self, request: Request) -> None:
        self.started.append(int(request.message.payload))
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            await trio.sleep(1)
        finally:
            self._running -= 1


async def deliver(peer: Peer, *numbers: int) -> None:
    for number in numbers:
        sent = await peer.send(Message.event(b"%d" % number))
    await sent.delivered()


async def reconnect(world: World, client: Client) -> None:
    await world.server.sessions["client-0"].close("maintenance")
    await client.state.wait_value(ClientState.IDLE)
    await client.wait_connected()


@pytest.mark.parametrize("serial", [True, False])
async def test_a_server_handles_what_came_before_the_reconnect_first(autojump_clock: MockClock, serial: bool) -> None:
    slow = Slow(serial=serial)
    config = ServerConfig(workers=1)
    async with open_world(router=slow.router, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        await deliver(client, *range(6))
        await reconnect(world, client)
        await deliver(client, *range(6, 9))
        await reconnect(world, client)
        await deliver(client, *range(9, 12))
        await until(lambda: len(slow.started) == 12)
        assert slow.started == list(range(12))
        assert slow.most == 1
        await trio.sleep(2)


async def test_a_client_handles_what_came_before_the_reconnect_first(autojump_clock: MockClock) -> None:
    slow = Slow(serial=True)
    async with open_world(client_router=slow.router, network=MemoryNetwork(delay=0.01)) as world:
        await deliver(world.server.sessions["client-0"], *range(6))
        await reconnect(world, world.clients["client-0"])
        await deliver(world.server.sessions["client-0"], *range(6, 10))
        await until(lambda: len(slow.started) == 10)
        assert (slow.started, slow.most) == (list(range(10)), 1)
        await trio.sleep(2)


async def test_other_lanes_do_not_wait_for_the_earlier_connection(autojump_clock: MockClock) -> None:
    slow = Slow(serial=True)
    async with open_world(router=slow.router, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        await deliver(client, *range(20))
        await reconnect(world, client)
        await deliver(client.lane("other"), 100)
        await trio.sleep(0.1)
        assert 100 in slow.started
        assert 19 not in slow.started
        await until(lambda: len(slow.started) == 21)
        await trio.sleep(2)


async def test_a_client_that_comes_back_again_and_again_gets_no_more_workers(autojump_clock: MockClock) -> None:
    slow = Slow(serial=False)
    config = ServerConfig(workers=4)
    async with open_world(router=slow.router, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        for _ in range(5):
            await deliver(client, *range(20))
            await reconnect(world, client)
        assert slow.most == 4
        assert world.server.statistics().away > 0, "sessions that finish their handlers are seen"
        await until(lambda: len(slow.started) == 100)
        assert slow.most == 4
        await trio.sleep(2)
        assert world.server.statistics().away == 0
        assert world.server.session("client-0")._link.received_lanes.keys() <= {""}


async def test_a_session_that_ends_lets_the_next_one_start(autojump_clock: MockClock) -> None:
    """A serial handler that never ends holds its lane back for the time to live of its session, and no longer."""
    stuck = Router()
    started: list[bytes] = []

    @stuck.on(MessageType.EVENT, serial=True)
    async def stand_still(request: Request) -> None:
        started.append(request.message.payload)
        if request.message.payload == b"0":
            await trio.sleep_forever()

    config = ServerConfig(handler_timeout=math.inf, session_ttl=60)
    async with open_world(router=stuck, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        await deliver(client, 0, 1)
        await reconnect(world, client)
        await deliver(client, 2)
        await trio.sleep(50)
        assert started == [b"0"]
        await trio.sleep(20)
        assert started == [b"0", b"2"], "what waited behind the stuck one ended with its session"


@pytest.mark.parametrize("seed", range(8))
async def test_a_server_that_is_cancelled_wakes_no_session_that_has_ended(autojump_clock: MockClock, seed: int) -> None:
    """Sessions of one client share a worker limit: the end of one handler must not start another in a nursery that is closed."""
    stuck = Router()

    @stuck.on(MessageType.EVENT)
    async def stand_still(request: Request) -> None:
        await trio.sleep_forever()

    config = ServerConfig(workers=1, handler_timeout=math.inf)
    with seeded(seed), trio.move_on_after(10) as scope:
        async with open_world(router=stuck, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
            client = world.clients["client-0"]
            for _ in range(3):
                for name in ("", "second"):
                    await deliver(client.lane(name), *range(5))
                await reconnect(world, client)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_lane_whose_predecessor_is_done_starts_though_others_stand_still(autojump_clock: MockClock) -> None:
    """Each lane may always run one handler; having come after an older one must not take that away."""
    started: list[bytes] = []
    router = Router()

    @router.on(MessageType.EVENT)
    async def handle(request: Request) -> None:
        started.append(request.message.payload)
        await trio.sleep(math.inf if request.message.payload == b"0" else 5)

    config = ServerConfig(workers=1, handler_timeout=math.inf)
    async with open_world(router=router, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        await deliver(client.lane("stuck"), 0)
        await deliver(client, 1)
        await reconnect(world, client)
        await deliver(client, 2)
        await trio.sleep(1)
        assert started == [b"0", b"1"]
        await trio.sleep(10)
        assert started == [b"0", b"1", b"2"]


# -- leaving while the network is away -----------------------------------------------------------------------------------
@asynccontextmanager
async def cut_off(grace: float) -> AsyncIterator[tuple[World, Client]]:
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(close_grace=grace, seed=1, limits=Limits(outbox_bytes=4_000_000))
    async with open_world(clients=0, network=network) as world:
        client_tls = throwaway_tls()[1]
        async with open_client("server", client_id="a", tls=client_tls, network=network, config=config) as client:
            await client.wait_connected()
            network.partition("a")
            yield world, client


async def test_leaving_uses_its_grace_for_what_was_never_written(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with cut_off(300) as (world, client):
            sent = [client.send_nowait(Message.event(bytes(100_000))) for _ in range(20)]
            await trio.sleep(1)
            unwritten = client.statistics().outbox_messages
            assert unwritten > 0

            async def heal() -> None:
                await trio.sleep(50)
                world.network.heal()

            nursery.start_soon(heal)
        for one in sent[-unwritten:]:
            await one.delivered()


async def test_leaving_does_not_wait_for_longer_than_its_grace(autojump_clock: MockClock) -> None:
    async with cut_off(5) as (_, client):
        sent = client.send_nowait(Message.event(bytes(1_000_000)))
        lost = client.send_nowait(Message.event(bytes(1_000_000)))
    closed = client.statistics().history[-1]
    assert closed.reason == "client disconnect"
    assert closed.at == pytest.approx(5, abs=0.1)
    with pytest.raises(ConnectionClosed):
        await lost.delivered()
    with pytest.raises(ConnectionClosed):
        await sent.delivered()


async def test_a_timeout_says_that_there_is_no_connection(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_client("server", client_id="a", tls=throwaway_tls()[1], network=network) as client:
        with pytest.raises(AckTimeout, match=r"there is no connection \(the last attempt: handshake timeout\)"):
            await client.request(Message.command(), ack_timeout=20)


async def test_a_closed_server_broadcasts_to_nobody_and_says_so(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        server = world.server
    with pytest.raises(ConnectionClosed):
        await server.broadcast(Message.event())


async def test_a_server_cannot_send_a_client_away_for_ever(autojump_clock: MockClock) -> None:
    async with open_world(network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        await world.server.drain(grace=1, retry_after=1_000_000)
        await client.state.wait_value(ClientState.IDLE)
        start = trio.current_time()
        await client.state.wait_value(ClientState.CONNECTING)
        assert trio.current_time() - start <= ClientConfig().backoff_max + 1
