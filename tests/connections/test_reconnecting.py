"""Losing the connection and coming back: when, how often, and what becomes of what was under way."""

from __future__ import annotations

import errno
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    ClientState,
    ConfigurationError,
    ConnectionLost,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    TLSConfig,
    open_client,
)
from quicflow_trio.net.udp import DatagramSocket, Network, UdpNetwork
from quicflow_trio.quic.engine import Address
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.connections.machine import CLIENT_TLS, SERVER_TLS, client_of, open_machine, times, until

IDLE, CONNECTING, CONNECTED = ClientState.IDLE, ClientState.CONNECTING, ClientState.CONNECTED


# -- when --------------------------------------------------------------------------------------------------------------
async def attempts_without_a_server(config: ClientConfig, seconds: float) -> list[float]:
    """Waits between the end of each attempt and the start of the next one."""
    async with client_of(MemoryNetwork(), config=config) as client:
        started = trio.current_time()
        await trio.sleep(seconds)
        ends, starts = times(client, IDLE), times(client, CONNECTING)
        assert starts[0] == started
        assert [end - start for start, end in zip(starts, ends, strict=False)] == pytest.approx([10.0] * len(ends))
        return [start - end for end, start in zip(ends, starts[1:], strict=False)]


async def test_waits_are_1_2_4_up_to_60_seconds(autojump_clock: MockClock) -> None:
    waits = await attempts_without_a_server(ClientConfig(jitter=0), 400)
    # The longest counts from the start of an attempt, which took its 10 s here.
    assert waits[:8] == pytest.approx([1, 2, 4, 8, 16, 32, 50, 50])


async def test_one_seed_gives_the_same_attempts_and_another_does_not(autojump_clock: MockClock) -> None:
    first = await attempts_without_a_server(ClientConfig(seed=5, jitter=0.2), 300)
    assert await attempts_without_a_server(ClientConfig(seed=5, jitter=0.2), 300) == pytest.approx(first, abs=1e-6)
    assert await attempts_without_a_server(ClientConfig(seed=6, jitter=0.2), 300) != pytest.approx(first, abs=1e-2)
    for wait, full in zip(first, [1, 2, 4, 8, 16, 32, 50], strict=False):
        assert 0.8 * full <= wait <= full


async def test_a_connection_that_stood_starts_the_waits_over(autojump_clock: MockClock) -> None:
    async with open_machine(start=False) as machine, client_of(machine.network, config=ClientConfig(jitter=0)) as client:
        await trio.sleep(100)
        await machine.start()
        await client.wait_connected()
        await machine.stop()
        await client.state.wait_value(IDLE)
        ended = trio.current_time()
        await client.state.wait_value(CONNECTING)
        assert trio.current_time() - ended == pytest.approx(1.0)


@pytest.mark.parametrize("outage", [5.0, 50.0, 600.0])
@pytest.mark.parametrize("seed", range(8))
async def test_back_within_60_seconds_of_the_network(autojump_clock: MockClock, outage: float, seed: int) -> None:
    network = MemoryNetwork(seed=seed, delay=0.02, jitter=0.01)
    async with open_world(clients=2, network=network, seed=seed) as world:
        client = world.clients["client-0"]
        await trio.sleep(seed * 7)
        network.partition("client-0")
        await trio.sleep(outage)
        network.heal()
        with trio.fail_after(60):
            await client.request(Message.command(b"there?"), ack_timeout=math.inf)
        if outage < 45:
            assert client.statistics().connects == 1, "QUIC bridges a short outage by itself"
        assert world.clients["client-1"].statistics().connects == 1


async def test_back_after_the_server_was_killed(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client_of(machine.network, f"c{number}", config=ClientConfig(seed=number)))
            for number in range(20)
        ]
        for client in clients:
            await client.wait_connected()
        await trio.sleep(3)
        await machine.kill()
        await machine.start()
        with trio.fail_after(120):
            await until(lambda: len(machine.server.sessions) == 20)
        for client in clients:
            assert (await client.request(Message.command(b"x"))).result == b"x"
        # Not as one: what brought a server down must not meet it again at once.
        back = sorted(times(client, CONNECTING)[-1] for client in clients)
        assert len({round(at, 2) for at in back}) >= 10
        assert back[-1] - back[0] > 0.1


async def test_clients_of_a_drained_server_come_back_spread_out(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, AsyncExitStack() as stack:
        clients: list[Client] = [
            await stack.enter_async_context(client_of(machine.network, f"c{number}", config=ClientConfig(seed=number)))
            for number in range(20)
        ]
        for client in clients:
            await client.wait_connected()
        await machine.server.drain(grace=5, retry_after=10.0)
        await machine.start()
        await until(lambda: len(machine.server.sessions) == 20)
        away = sorted(times(client, CONNECTING)[-1] - times(client, IDLE)[-1] for client in clients)
        assert away[0] >= 10.0, "asked to stay away so long"
        assert len({round(wait, 3) for wait in away}) >= 15, "and not back in one instant"


# -- what is not a loss ------------------------------------------------------------------------------------------------
class Resolver:
    """A network whose names resolve only sometimes."""

    def __init__(self, network: Network, failures: int) -> None:
        self._network = network
        self.failures = failures
        self.asked = 0

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        if self.asked <= self.failures:
            raise OSError(errno.ENOENT, "no such host today")
        return await self._network.resolve(host, port)

    async def bind(self, host: str, port: int) -> DatagramSocket:
        return await self._network.bind(host, port)

    async def bind_for(self, remote: Address) -> DatagramSocket:
        return await self._network.bind_for(remote)

    def for_client(self, client_id: str) -> Network:
        return self


async def test_a_name_that_does_not_resolve_is_tried_again(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        resolver = Resolver(machine.network.host("worker"), 3)
        async with open_client(
            "server", client_id="worker", tls=CLIENT_TLS, network=resolver, config=ClientConfig(jitter=0)
        ) as client:
            await client.wait_connected()
            assert resolver.asked == 4
            assert times(client, CONNECTING) == pytest.approx([0, 1, 3, 7])
            assert "no such host today" in client.statistics().history[1].reason


class Several(Resolver):
    """A name with several addresses; only the last is a server's."""

    async def resolve(self, host: str, port: int) -> list[Address]:
        return [("nobody", port), ("nothing", port), ("server", port)]


async def test_each_address_of_a_name_gets_its_turn(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        network = Several(machine.network.host("worker"), 0)
        async with open_client("server", client_id="worker", tls=CLIENT_TLS, network=network) as client:
            await client.wait_connected()
            assert client.statistics().attempts == 1
            # Each may take the handshake time-out, but there is no backoff between them.
            assert times(client, CONNECTING) == pytest.approx([0, 10, 20], abs=0.1)


@pytest.mark.realtime
async def test_a_port_where_nobody_listens_ends_an_attempt_at_once() -> None:
    # Else a server that is down costs the handshake time-out on each attempt, and so does "localhost" where the server has IPv4 only.
    socket = await UdpNetwork().bind("127.0.0.1", 0)
    socket.close()
    config = ClientConfig(backoff_initial=0.01, backoff_max=0.01, handshake_timeout=3600)
    async with open_client("127.0.0.1", socket.address[1], client_id="w", tls=CLIENT_TLS, config=config) as client:
        with trio.fail_after(30):
            await until(lambda: client.statistics().attempts >= 3)
        assert client.statistics().history[1].reason == "nobody listens there"


async def test_a_connection_that_stands_does_not_believe_that_nobody_listens(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        client._supervisor._refused_by_network()
        assert (await client.request(Message.command(b"still there"))).result == b"still there"
        assert client.statistics().connects == 1


@pytest.mark.parametrize("port", [-1, 0, 65_536, 10**9])
async def test_a_port_that_cannot_be_is_said_at_once(autojump_clock: MockClock, port: int) -> None:
    # Found only by the first attempt, it would be retried for ever.
    with pytest.raises(ConfigurationError, match=r"port = .*from 1 to 65,535"):
        async with open_client("server", port, client_id="worker", tls=CLIENT_TLS, network=MemoryNetwork()):
            pytest.fail("the block must not start")


@pytest.mark.parametrize("client_id", ["", "x" * 257, "a\nb"])
async def test_a_client_id_that_cannot_be_is_said_at_once(client_id: str) -> None:
    with pytest.raises(ConfigurationError, match="client_id"):
        async with open_client("server", client_id=client_id, tls=CLIENT_TLS, network=MemoryNetwork()):
            pytest.fail("the block must not start")


async def test_a_servers_tls_on_a_client_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"TLSConfig\.client"):
        async with open_client("server", client_id="worker", tls=SERVER_TLS, network=MemoryNetwork()):
            pytest.fail("the block must not start")


async def test_insecure_works_and_is_said_in_the_log(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        open_machine() as machine,
        open_client("server", client_id="w", tls=TLSConfig.client(insecure=True), network=machine.network) as client,
    ):
        await client.wait_connected()
    assert "does not verify" in caplog.text


async def test_a_defect_in_an_attempt_is_logged_and_tried_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Defect(Resolver):
        async def resolve(self, host: str, port: int) -> list[Address]:
            self.asked += 1
            if self.asked == 1:
                raise ZeroDivisionError("a defect")
            return await super().resolve(host, port)

    async with open_machine() as machine:
        network = Defect(machine.network.host("worker"), 0)
        async with open_client("server", client_id="worker", tls=CLIENT_TLS, network=network) as client:
            await client.wait_connected()
            assert client.statistics().history[1].reason == "internal error"
    assert "ZeroDivisionError" in caplog.text


# -- what was under way ------------------------------------------------------------------------------------------------
async def test_a_request_under_way_is_lost_and_a_queued_one_goes_out_later(autojump_clock: MockClock) -> None:
    router = Router()
    handled: list[bytes] = []

    @router.on(MessageType.COMMAND)
    async def slow(request: Request) -> bytes:
        handled.append(request.message.payload)
        await trio.sleep(20 if request.message.payload == b"slow" else 0)
        return b"done"

    outcomes: dict[str, str] = {}

    async def ask(client: Client, payload: bytes) -> None:
        try:
            outcomes[payload.decode()] = (await client.request(Message.command(payload), ack_timeout=200)).result.decode()
        except ConnectionLost:
            outcomes[payload.decode()] = "lost"

    async with open_machine(router=router) as machine, client_of(machine.network) as client:
        await client.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client, b"slow")
            await trio.sleep(1)
            await machine.kill()
            await client.state.wait_value(IDLE)
            await trio.testing.wait_all_tasks_blocked()
            assert outcomes == {}, "whether the session goes on is for the next connection to say"
            nursery.start_soon(ask, client, b"queued")
            await trio.testing.wait_all_tasks_blocked()
            sent = [await client.send(Message.command(b"%d" % number)) for number in range(10)]
            assert client.statistics().outbox_messages == 11
            await machine.start()
        assert outcomes == {"slow": "lost", "queued": "done"}
        for one in sent:
            await one.delivered()
        assert handled == [b"slow", b"queued", *(b"%d" % number for number in range(10))]


async def test_what_was_written_and_not_receipted_is_reported(autojump_clock: MockClock) -> None:
    """Once the server says that it has given up the session."""
    async with open_world(network=MemoryNetwork(delay=0.01), server_config=ServerConfig(session_ttl=0)) as world:
        client = world.clients["client-0"]
        world.network.partition("client-0")
        sent = await client.send(Message.event(b"gone"))
        await client.state.wait_value(IDLE)
        await trio.sleep(10)
        world.network.heal()
        with pytest.raises(ConnectionLost, match="heartbeat timeout; the peer does not know the session any more"):
            await sent.delivered()
        with pytest.raises(ConnectionLost):
            await sent.delivered()
        await client.state.wait_value(CONNECTED)


async def test_a_request_times_out_while_the_client_is_away(autojump_clock: MockClock) -> None:
    async with client_of(MemoryNetwork()) as client:
        started = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await client.request(Message.command(b"x"), ack_timeout=12)
        assert trio.current_time() - started == pytest.approx(12)
        assert client.statistics().requests_waiting == client.statistics().outbox_messages == 0


@pytest.mark.parametrize("side", ["client", "server"])
async def test_handlers_outlive_the_connection(autojump_clock: MockClock, side: str) -> None:
    router, ended = Router(), trio.Event()

    @router.on(MessageType.EVENT)
    async def slow(request: Request) -> None:
        await trio.sleep(25)
        ended.set()

    there, here = (router, None) if side == "server" else (None, router)
    async with open_world(network=MemoryNetwork(delay=0.01), router=there, client_router=here) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        await trio.sleep(30)
        world.network.partition("client-0")
        world.network.heal()
        await (client if side == "server" else session).send(Message.event(b""))
        await until(lambda: session.statistics().handlers_running or client.statistics().handlers_running)
        assert client._supervisor.connection is not None
        client._supervisor.connection.close(client._supervisor.connection.farewell[0], "test")
        await client.state.wait_value(IDLE)
        await client.state.wait_value(CONNECTED)
        assert not ended.is_set()
        await ended.wait()


async def test_counters_go_on_over_connections(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        for round_ in range(1, 4):
            await client.request(Message.command(b"x" * 100))
            await client.send(Message.event(b"y"))
            await machine.stop()
            await client.state.wait_value(IDLE)
            assert client.statistics().messages_sent == 2 * round_
            assert client.statistics().bytes_sent > 150 * round_
            assert client.statistics().unacked_bytes == 0
            await machine.start()
            await client.wait_connected()


def test_the_fake_networks_are_networks() -> None:
    networks: Sequence[Network] = [Resolver(MemoryNetwork(), 0), Several(MemoryNetwork(), 0)]
    assert all(network.for_client("a") is network for network in networks)
