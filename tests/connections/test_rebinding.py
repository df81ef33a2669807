"""A client moves to another local address on purpose: the connection stands, and what is under way ends as it would have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    ConnectionLost,
    LocalProtocolError,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    open_client,
    open_endpoint,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import MemoryNetwork, open_world, throwaway_tls
from tests.connections.machine import client_of, open_machine

ENGINES = ["aioquic", "qh3"]


@pytest.fixture(autouse=True)
def _qh3(request: pytest.FixtureRequest) -> None:
    if "qh3" in request.node.name:
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")


def local_address(client: Client) -> tuple[str, int]:
    endpoint = client._supervisor._endpoint
    assert endpoint is not None
    return endpoint.address[0], endpoint.address[1]


def peer_id(client: Client) -> bytes:
    connection = client._supervisor.connection
    assert connection is not None
    return connection.engine._core._peer_cid.cid  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("far", ENGINES)
@pytest.mark.parametrize("near", ENGINES)
async def test_a_client_keeps_its_connection_at_another_address(autojump_clock: MockClock, near: str, far: str) -> None:
    router = Router()
    handled: list[bytes] = []

    @router.on(MessageType.COMMAND)
    async def slow(request: Request) -> bytes:
        handled.append(request.message.payload)
        await trio.sleep(2)
        return request.message.payload

    async with open_world(
        network=MemoryNetwork(delay=0.02),
        router=router,
        server_config=ServerConfig(engine=far),
        client_config=ClientConfig(engine=near),
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        results: list[bytes] = []

        async def ask(payload: bytes) -> None:
            results.append((await client.request(Message.command(payload))).result)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, b"%d" % number)
            await trio.sleep(1)
            before, known_as = local_address(client), session.remote_address
            assert known_as == before
            counted, started = client.metrics(), trio.current_time()
            await client.rebind()
            assert trio.current_time() - started < 0.2, "a round trip or two, and no time-out"
            assert local_address(client) != before
        assert sorted(results) == sorted(handled) == sorted(b"%d" % number for number in range(20))
        assert client.statistics().connects == 1
        assert session.connected
        assert session.remote_address == local_address(client)
        figures = client.metrics()
        assert figures.datagrams_sent > counted.datagrams_sent, "what was counted at the first socket is not forgotten"
        assert figures.bytes_received > counted.bytes_received


async def test_each_address_has_its_own_connection_id(autojump_clock: MockClock) -> None:
    """Or whoever sees both addresses knows that it is the same client (RFC 9000 section 9.5), both ways."""
    async with open_world(network=MemoryNetwork(delay=0.02)) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        core = session._connection.engine._core  # type: ignore[attr-defined]
        seen = [(local_address(client), peer_id(client), core._peer_cid.cid)]
        for _ in range(30):
            await client.rebind()
            await trio.sleep(0.5)
            seen.append((local_address(client), peer_id(client), core._peer_cid.cid))
            assert (await client.request(Message.query(b"x"))).result == b"x"
        for column in zip(*seen, strict=True):
            assert len(set(column)) == 31
        assert client.statistics().connects == 1
        # Of the addresses before nothing is kept.
        assert world.server.statistics().endpoint.connection_ids <= 6
        assert len(core._network_paths) <= 8


async def test_the_server_makes_sure_of_the_new_address(autojump_clock: MockClock) -> None:
    async with open_world(network=MemoryNetwork(delay=0.02)) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        await client.rebind()
        path = session._connection.engine._core._network_paths[0]  # type: ignore[attr-defined]
        assert path.addr == local_address(client)
        await trio.sleep(0.1)
        assert path.is_validated


@pytest.mark.parametrize("loss", [0.0, 0.3])
async def test_moving_again_and_again_in_the_middle_of_traffic(autojump_clock: MockClock, loss: float) -> None:
    """Each request gets its answer, once, whatever was on its way to an address that nobody has any more."""
    router = Router()
    handled: list[bytes] = []

    @router.on(MessageType.COMMAND)
    async def note(request: Request) -> bytes:
        handled.append(request.message.payload)
        return request.message.payload * 100

    async with open_world(network=MemoryNetwork(delay=0.02, loss=loss, seed=5), router=router) as world:
        client = world.clients["client-0"]
        moved = 0

        async def travel(scope: trio.CancelScope) -> None:
            nonlocal moved
            with scope:
                while True:
                    await trio.sleep(0.3)
                    try:
                        await client.rebind()
                        moved += 1
                    except ConnectionLost as exc:
                        assert "no move now" in str(exc)  # noqa: PT017  some come before the server's next connection id

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(travel, scope)
            for number in range(300):
                payload = b"%d" % number
                assert (await client.request(Message.command(payload), ack_timeout=60)).result == payload * 100
                await trio.sleep(0.02)
            scope.cancel()
        assert handled == [b"%d" % number for number in range(300)]
        assert client.statistics().connects == 1
        assert moved > 20


async def test_clients_that_share_a_socket_cannot(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.02)
    async with (
        open_machine(network),
        open_endpoint(network=network.host("farm")) as endpoint,
        open_client("server", client_id="one", tls=throwaway_tls()[1], network=endpoint) as client,
    ):
        with pytest.raises(LocalProtocolError, match="share a socket"):
            await client.rebind()
        assert (await client.request(Message.command(b"as before"))).result == b"as before"


async def test_no_socket_no_move(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_world(network=MemoryNetwork(delay=0.02)) as world:
        client = world.clients["client-0"]

        async def none_left(_remote: object) -> None:
            raise OSError("no socket left")

        before = local_address(client)
        monkeypatch.setattr(client._supervisor, "_network", type("Net", (), {"bind_for": staticmethod(none_left)})())
        with pytest.raises(OSError, match="no socket left"):
            await client.rebind()
        monkeypatch.undo()
        assert local_address(client) == before
        assert (await client.request(Message.query(b"x"))).result == b"x"


async def test_a_new_address_that_leads_nowhere(autojump_clock: MockClock) -> None:
    """The connection is found dead by its heartbeats, and the session goes on on the next one."""
    network = MemoryNetwork(delay=0.02)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        network.partition("client-0")
        with pytest.raises(ConnectionLost, match="before the server was heard"):
            await client.rebind()
        network.heal("client-0")
        assert (await client.request(Message.query(b"x"))).result == b"x"
        assert client.statistics().connects == 2


async def test_cancelled_the_connection_stands(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.02)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        for seconds in (0.0, 0.001, 0.03, 0.05):
            with trio.move_on_after(seconds):
                await client.rebind()
            assert (await client.request(Message.query(b"x"))).result == b"x"
        assert client.statistics().connects == 1


async def test_a_client_that_has_moved_knows_a_reset_when_it_comes(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The token belongs to the connection id, and moving changes that."""
    network = MemoryNetwork(delay=0.02)
    config = ServerConfig(reset_key_file=tmp_path / "reset.key")
    async with open_machine(network, config=config) as machine, client_of(network) as client:
        await client.wait_connected()
        await trio.sleep(0.1)
        await client.rebind()
        await machine.kill()
        await machine.start()
        asked = trio.current_time()
        with pytest.raises(ConnectionLost, match="stateless reset"):
            await client.request(Message.command(b"are you there?"))
        assert trio.current_time() - asked < 5
        assert client.metrics().stateless_resets_received == 1


@pytest.mark.realtime
@pytest.mark.parametrize("near", ENGINES)
async def test_over_real_udp(near: str) -> None:
    from tests.abuse.udp import Victim

    victim = await trio.to_thread.run_sync(Victim, {})
    try:
        with trio.fail_after(30):
            config = ClientConfig(engine=near)
            async with open_client(*victim.address, client_id="mover", tls=throwaway_tls()[1], config=config) as client:
                await client.wait_connected()
                await client.request(Message.command(b"one"))
                for number in range(5):
                    before = local_address(client)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(client.request, Message.command(b"under way"))
                        await client.rebind()
                    assert local_address(client) != before
                    assert (await client.request(Message.command(b"%d" % number))).result == b"%d" % number
                    await trio.sleep(0.2)
                assert client.statistics().connects == 1
            await trio.to_thread.run_sync(victim.stop)
    finally:
        victim.process.kill()


@pytest.mark.parametrize("how", ["rebind", "seen elsewhere"])
async def test_what_was_lost_comes_again_at_once_at_the_new_address(autojump_clock: MockClock, how: str) -> None:
    """Not when the probes come again that had become seldom while there was nobody at the address before: more was on its way than may be."""
    arrived: list[float] = []
    router = Router()

    @router.on(MessageType.EVENT)
    async def note(request: Request) -> None:
        arrived.append(trio.current_time())

    network = MemoryNetwork(delay=0.05)
    waits = []
    for seconds in (3.0, 4.2, 5.9, 8.8, 11.0):
        arrived.clear()
        async with open_world(network=network, client_router=router) as world:
            client = world.clients["client-0"]
            await trio.sleep(1)
            network.partition("client-0")
            await world.server.sessions["client-0"].send(Message.event(bytes(100_000)))
            await trio.sleep(seconds)
            network.heal("client-0")
            healed = trio.current_time()
            if how == "rebind":
                await client.rebind()
            else:
                network.readdress("client-0")
                await client.request(Message.query(b"x"))
            while not arrived:  # noqa: ASYNC110  virtual time
                await trio.sleep(0.01)
            waits.append(arrived[0] - healed)
    assert max(waits) < 1.5, waits


async def test_a_close_finds_a_client_that_has_moved(autojump_clock: MockClock) -> None:
    """The server has closed while the client is seen at another port already: its next packet is answered there."""
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        network.partition("client-0")
        assert session._connection is not None
        session._connection.close(CloseCode.HEARTBEAT_TIMEOUT, "heartbeat timeout")
        await trio.sleep(2)
        network.heal("client-0")
        network.readdress("client-0")
        with trio.fail_after(5):
            await client.request(Message.query(b"x"), ack_timeout=math.inf)
