"""The ready-made world: what it gives, and that it notices what was left behind."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, ClientState, Message, MessageType, Request, Router, Server, ServerConfig
from quicflow_trio.testing import MemoryNetwork, echo_router, open_world


async def test_everybody_is_connected_when_the_block_starts(autojump_clock: MockClock) -> None:
    async with open_world(clients=5, network=MemoryNetwork(delay=0.05)) as world:
        assert list(world.clients) == [f"client-{number}" for number in range(5)]
        assert all(client.state.value is ClientState.CONNECTED for client in world.clients.values())
        assert sorted(world.server.sessions) == sorted(world.clients)
        assert world.server.sessions["client-3"].remote_address[0] == "client-3"
    assert all(client.state.value is ClientState.IDLE for client in world.clients.values())
    assert world.server.statistics().endpoint.connection_ids == 0


async def test_no_client_is_a_world_too(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world:
        assert not world.server.sessions


async def test_it_echoes_unless_told_otherwise(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        assert (await client.request(Message.command(b"a"))).result == b"a"
        assert (await client.request(Message.query(b"b"))).result == b"b"
        assert (await client.request(Message.event(b"c"))).result == b""
        assert (await session.request(Message.query(b"d"))).result == b"d"
    assert echo_router().route(int(MessageType.RESPONSE)) is None


async def test_routers_and_configurations_are_used(autojump_clock: MockClock) -> None:
    router, client_router = Router(), Router()

    @router.on(MessageType.COMMAND)
    async def on_server(request: Request) -> bytes:
        return b"server"

    @client_router.on(MessageType.COMMAND)
    async def on_client(request: Request) -> bytes:
        return b"client"

    async with open_world(
        router=router,
        client_router=client_router,
        server_config=ServerConfig(heartbeat_interval=3.0),
        client_config=ClientConfig(ack_timeout=5.0),
    ) as world:
        client = world.clients["client-0"]
        assert (await client.request(Message.command(b""))).result == b"server"
        assert (await world.server.sessions["client-0"].request(Message.command(b""))).result == b"client"
        assert client._supervisor.connection is not None
        assert client._supervisor.connection.terms is not None
        assert client._supervisor.connection.terms.heartbeat_interval == 3.0


async def test_each_client_has_a_seed_of_its_own(autojump_clock: MockClock) -> None:
    async with open_world(clients=3, seed=40) as world:
        assert [client._supervisor._config.seed for client in world.clients.values()] == [40, 41, 42]
    async with open_world(clients=2, seed=40, client_config=ClientConfig(seed=7)) as world:
        assert [client._supervisor._config.seed for client in world.clients.values()] == [7, 7]


async def test_an_exception_of_the_block_leaves_as_itself_and_at_once(autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the whole block is what is tested
        async with open_world(clients=2):
            started = trio.current_time()
            raise ZeroDivisionError
    assert trio.current_time() == started


async def test_leaving_waits_for_what_is_under_way(autojump_clock: MockClock) -> None:
    router, handled = Router(), []

    @router.on(MessageType.EVENT)
    async def slow(request: Request) -> None:
        await trio.sleep(2)
        handled.append(request.message.payload)

    async with open_world(router=router, network=MemoryNetwork(delay=0.01)) as world:
        await world.clients["client-0"].send(Message.event(b"x"))
    assert handled == [b"x"]


async def test_it_notices_what_was_left_behind(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    # The check is only worth something if it fails when something is left.
    with pytest.raises(AssertionError, match=r"left behind: \{'bytes held for handlers': 5\}"):
        async with open_world() as world:
            world.server._admission.budget.held += 5
    with pytest.raises(AssertionError, match=r"left behind: \{'waiting requests of client-0': 1\}"):
        async with open_world() as world:
            world.clients["client-0"]._link.share.active += 1
    with pytest.raises(AssertionError, match=r"left behind: \{'waiting requests': 3\}"):
        async with open_world() as world:
            world.server._admission.table.active += 3


async def test_a_stuck_handler_does_not_outlive_the_drain(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def stuck(request: Request) -> None:
        await trio.sleep_forever()

    config = ServerConfig(handler_timeout=math.inf)
    started = trio.current_time()
    async with open_world(router=router, server_config=config) as world:
        await world.clients["client-0"].send(Message.command(b""))
        await trio.sleep(1)
        server: Server = world.server
    assert trio.current_time() - started < 60
    assert server.statistics().tasks == 0
