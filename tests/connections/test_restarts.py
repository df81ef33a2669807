"""A server that was killed and started again says so: its clients wait for no time-out. Retry, and what it costs a client."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    ClientState,
    ConfigurationError,
    ConnectionLost,
    DisconnectEvent,
    DisconnectReason,
    Limits,
    Message,
    ServerConfig,
    open_client,
    open_endpoint,
)
from quicflow_trio.testing import MemoryNetwork
from tests.connections.machine import CLIENT_TLS, Machine, client_of, open_machine, times, until

DELAY = 0.05
ENGINES = ["aioquic", "qh3"]
pairings = pytest.mark.parametrize(("near", "far"), [(near, far) for near in ENGINES for far in ENGINES])


@pytest.fixture(autouse=True)
def _qh3(request: pytest.FixtureRequest) -> None:
    if "qh3" in request.node.name:
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")


@asynccontextmanager
async def a_pair(key: Path | None, near: str = "aioquic", far: str = "aioquic") -> AsyncIterator[tuple[Machine, Client]]:
    network = MemoryNetwork(delay=DELAY)
    server = ServerConfig(reset_key_file=key, engine=far)
    client = ClientConfig(engine=near, jitter=0, backoff_initial=1)
    async with open_machine(network, config=server) as machine, client_of(network, config=client) as worker:
        await worker.wait_connected()
        yield machine, worker


async def lost_request(client: Client) -> None:
    """The request ends as soon as the new server has said that it knows nothing of the session."""
    with pytest.raises(ConnectionLost, match=r"stateless reset\); the peer does not know the session any more"):
        await client.request(Message.command(b"are you there?"))


@pairings
async def test_a_client_knows_within_a_round_trip_of_its_next_packet(
    autojump_clock: MockClock, tmp_path: Path, near: str, far: str
) -> None:
    async with a_pair(tmp_path / "reset.key", near, far) as (machine, client):
        await trio.sleep(1)
        await machine.kill()
        await machine.start()
        await trio.sleep(1)
        assert client.state.value is ClientState.CONNECTED, "nobody has told it yet"
        asked = trio.current_time()
        async with client.open_events(kinds=[DisconnectEvent]) as events, trio.open_nursery() as nursery:
            nursery.start_soon(lost_request, client)
            event = await anext(events)
            assert trio.current_time() - asked == pytest.approx(2 * DELAY, abs=0.01)
        assert isinstance(event, DisconnectEvent)
        assert (event.reason, event.by_peer) == (DisconnectReason.STATELESS_RESET, True)
        await client.wait_connected()
        assert (await client.request(Message.command(b"and now?"))).result == b"and now?"
        assert client.metrics().disconnects == {"server:stateless_reset": 1}
        assert client.metrics().stateless_resets_received == machine.server.metrics().stateless_resets_sent == 1


async def test_without_the_key_it_waits_for_its_heartbeats(autojump_clock: MockClock) -> None:
    async with a_pair(None) as (machine, client):
        await machine.kill()
        await machine.start()
        asked = trio.current_time()
        with pytest.raises(ConnectionLost, match="heartbeat"):
            await client.request(Message.command(b"are you there?"), ack_timeout=1000)
        assert trio.current_time() - asked > 30
        # It was told, many times over, but not by the token that it knows.
        assert machine.server.metrics().stateless_resets_sent > 3
        assert client.metrics().stateless_resets_received == 0


async def test_each_client_on_a_shared_socket_is_told_by_itself(autojump_clock: MockClock, tmp_path: Path) -> None:
    network = MemoryNetwork(delay=DELAY)
    config = ServerConfig(reset_key_file=tmp_path / "reset.key")
    async with (
        open_machine(network, config=config) as machine,
        open_endpoint(network=network.host("farm")) as endpoint,
        AsyncExitStack() as stack,
    ):
        clients = [
            await stack.enter_async_context(open_client("server", client_id=f"worker-{number}", tls=CLIENT_TLS, network=endpoint))
            for number in range(20)
        ]
        for client in clients:
            await client.wait_connected()
        await machine.kill()
        await machine.start()
        # One of them says something: it learns, and the others go on until they do.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost_request, clients[7])
            await clients[7].state.wait_value(ClientState.IDLE)
            assert all(client.state.value is ClientState.CONNECTED for client in clients if client is not clients[7])
        # Their next heartbeat is 15 s away at most; a heartbeat time-out would take 45.
        await trio.sleep(16)
        for client in clients:
            await client.wait_connected()
            assert (await client.request(Message.command(b"x"))).result == b"x"
        assert len(machine.server.sessions) == 20
        assert endpoint.statistics().resets_received == 20
        assert machine.server.statistics().endpoint.resets_sent == 20


async def test_resets_that_are_lost_come_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "reset.key") as (machine, client):
        await machine.kill()
        await machine.start()
        machine.network.partition("server")
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(ConnectionLost, match="stateless reset"):
                    await client.request(Message.command())

            nursery.start_soon(ask)
            await trio.sleep(0.3)
            machine.network.heal("server")
            healed = trio.current_time()
        # With the next probe of QUIC's.
        assert trio.current_time() - healed < 2


# -- the key ---------------------------------------------------------------------------------------------------------
async def test_a_key_is_made_once_and_for_its_owner_only(autojump_clock: MockClock, tmp_path: Path) -> None:
    path = tmp_path / "reset.key"
    config = ServerConfig(reset_key_file=path)
    async with open_machine(config=config) as machine:
        text = path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await machine.kill()
        await machine.start()
        assert path.read_text() == text
    assert os.listdir(tmp_path) == [path.name]  # noqa: PTH208


@pytest.mark.parametrize("content", ["", "abc", "zz" * 32, "ab" * 31, "\N{SNOWMAN}"])
async def test_a_key_that_is_none_is_said_at_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "reset.key"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="reset_key_file"):
        async with open_machine(config=ServerConfig(reset_key_file=path)):
            pytest.fail("it started")
    assert path.read_text() == content


async def test_a_key_in_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"reset_key_file.*No such file"):
        async with open_machine(config=ServerConfig(reset_key_file=tmp_path / "nowhere" / "reset.key")):
            pytest.fail("it started")


# -- Retry -------------------------------------------------------------------------------------------------------------
@pairings
async def test_a_client_that_is_asked_to_show_its_address(autojump_clock: MockClock, near: str, far: str) -> None:
    network = MemoryNetwork(delay=DELAY)
    server = ServerConfig(limits=Limits(initials_per_second=0), engine=far)
    async with open_machine(network, config=server) as machine:
        async with client_of(network, config=ClientConfig(engine=near)) as client:
            started = trio.current_time()
            await client.wait_connected()
            # One round trip for the Retry, one for the handshake, one for the hello.
            assert trio.current_time() - started == pytest.approx(6 * DELAY, abs=0.04)
            assert (await client.request(Message.command(b"x" * 100_000))).result == b"x" * 100_000
            figures = machine.server.metrics()
            assert (figures.retries_sent, figures.tokens_refused) == (1, 0)
        await until(lambda: not machine.server.sessions)
        await trio.sleep(200)
        assert machine.server.statistics().endpoint.connection_ids == 0


async def test_retries_begin_with_too_many_first_packets_and_end_after_them(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=DELAY)
    config = ServerConfig(limits=Limits(initials_per_second=5))
    async with open_machine(network, config=config) as machine, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(network, f"worker-{number}")) for number in range(12)]
        for client in clients:
            await client.wait_connected()
        assert machine.server.metrics().retries_sent == 7
        await trio.sleep(3)
        late = await stack.enter_async_context(client_of(network, "late"))
        await late.wait_connected()
        assert machine.server.metrics().retries_sent == 7


async def test_a_lost_retry_comes_again(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=DELAY, loss=0.3, seed=4)
    config = ServerConfig(limits=Limits(initials_per_second=0))
    async with open_machine(network, config=config) as machine, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client_of(network, f"worker-{number}")) for number in range(20)]
        with trio.fail_after(60):
            for client in clients:
                await client.wait_connected()
        assert machine.server.metrics().retries_sent > 20
        assert machine.server.metrics().tokens_refused == 0


# -- coming back ---------------------------------------------------------------------------------------------------------
async def test_a_drained_server_s_clients_are_asked_back_one_after_the_other(autojump_clock: MockClock) -> None:
    count = 100
    async with open_machine() as machine, AsyncExitStack() as stack:
        config = ClientConfig(jitter=0)
        clients = [
            await stack.enter_async_context(client_of(machine.network, f"worker-{number}", config=config))
            for number in range(count)
        ]
        for client in clients:
            await client.wait_connected()
        await machine.server.drain(grace=5, retry_after=3.0)
        drained = trio.current_time()
        for client in clients:
            await client.state.wait_value(ClientState.IDLE)
        await machine.start()
        for client in clients:
            await client.wait_connected()
        returns = sorted(times(client, ClientState.CONNECTING)[-1] - drained for client in clients)
        # Three seconds, their own one of backoff, and 500 a second from there.
        assert returns[0] == pytest.approx(4.0, abs=0.1)
        assert returns == pytest.approx([returns[0] + number / 500 for number in range(count)], abs=0.01)
