"""Many clients on one endpoint: one socket, one reading task, figures counted once, clean ends."""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial
from typing import Any

import pytest
import trio

from quicflow_trio import (
    AckTimeout,
    Client,
    ClientConfig,
    ClientEndpoint,
    ClientState,
    Message,
    Server,
    open_client,
    open_endpoint,
    serve,
)
from quicflow_trio.testing import MemoryNetwork, echo_router, throwaway_tls

CONFIG = ClientConfig(seed=1)
SERVER_TLS, CLIENT_TLS = throwaway_tls()


def tasks() -> Counter[str]:
    """Every task of this run, by the last part of its name."""
    names: Counter[str] = Counter()
    pending = [trio.lowlevel.current_root_task()]
    while pending:
        task = pending.pop()
        if task is not None:
            names[task.name.rpartition(".")[2]] += 1
            for nursery in task.child_nurseries:
                pending.extend(nursery.child_tasks)
    return names


async def start(nursery: trio.Nursery, network: MemoryNetwork | None = None, port: int = 0) -> Server:
    """Start a server that echoes, in memory or on loopback."""
    host = "127.0.0.1" if network is None else "server"
    run = partial(serve, echo_router(), host=host, port=port, tls=SERVER_TLS, network=network)
    server: Server = await nursery.start(run)
    return server


async def open_many(
    stack: contextlib.AsyncExitStack, endpoint: ClientEndpoint, address: tuple[str, int], number: int, **options: Any
) -> list[Client]:
    """Open clients on an endpoint and wait until all are connected."""
    clients = []
    for index in range(number):
        opened = open_client(
            address[0], address[1], client_id=f"c{index}", tls=CLIENT_TLS, config=CONFIG, network=endpoint, **options
        )
        clients.append(await stack.enter_async_context(opened))
    for client in clients:
        await client.wait_connected()
    return clients


async def echo(client: Client) -> None:
    payload = client.client_id.encode()
    assert (await client.request(Message.query(payload=payload))).result == payload


@pytest.mark.parametrize("simulated", [True, False], ids=["memory", "udp"])
async def test_clients_share_one_socket_and_one_reading_task(simulated: bool) -> None:
    network = MemoryNetwork() if simulated else None
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        host = None if network is None else network.host("program")
        async with open_endpoint(network=host) as endpoint, contextlib.AsyncExitStack() as stack:
            clients = await open_many(stack, endpoint, server.address, 12)
            async with trio.open_nursery() as requests:
                for client in clients:
                    requests.start_soon(echo, client)
            assert endpoint.connections == 12
            assert len({session.remote_address for session in server.sessions.values()}) == 1
            # The server has one as well, under another name.
            assert tasks()["_read"] == 1
            figures = endpoint.statistics()
            assert figures.socket.datagrams_in >= 24
            # Counted there, and not once for each client.
            assert [client.metrics().datagrams_received for client in clients] == [0] * 12
        assert endpoint.connections == 0
        closed = endpoint.statistics()
        assert closed.connection_ids == 0
        assert closed.socket.datagrams_out >= figures.socket.datagrams_out
        assert tasks()["_read"] == 0
        await server.aclose()


async def test_one_client_leaves_and_the_others_stay(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        async with open_endpoint(network=network.host("program")) as endpoint, contextlib.AsyncExitStack() as stack:
            clients = await open_many(stack, endpoint, server.address, 3)
            async with open_client(*server.address, client_id="guest", tls=CLIENT_TLS, network=endpoint) as guest:
                await echo(guest)
                assert endpoint.connections == 4
            assert endpoint.connections == 3
            await trio.sleep(300)
            for client in clients:
                await echo(client)
                assert client.statistics().connects == 1
        await server.aclose()


@pytest.mark.parametrize("cancelled", [True, False])
async def test_leaving_the_block_ends_connections_that_are_still_open(
    autojump_clock: trio.testing.MockClock, cancelled: bool
) -> None:
    network = MemoryNetwork()
    clients: list[Client] = []

    async def live(endpoint: ClientEndpoint, number: int) -> None:
        opened = open_client(*server.address, client_id=f"c{number}", tls=CLIENT_TLS, config=CONFIG, network=endpoint)
        async with opened as client:
            clients.append(client)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        async with trio.open_nursery() as outside:
            with trio.CancelScope() as scope:
                async with open_endpoint(network=network.host("program")) as endpoint:
                    for number in range(3):
                        outside.start_soon(live, endpoint, number)  # noqa: ASYNC111  (they outlive it, which is the point)
                    await trio.sleep(1)
                    assert len(server.sessions) == 3
                    if cancelled:
                        scope.cancel()
                        await trio.sleep_forever()
            await trio.testing.wait_all_tasks_blocked()
            assert endpoint.connections == 0
            assert tasks()["_read"] == 0
            # Each has said goodbye.
            assert not server.sessions
            await trio.sleep(60)
            for client in clients:
                # It tries again, and is told the reason.
                assert client.state.value is ClientState.IDLE
                assert "shared endpoint was closed" in client.statistics().history[-1].reason
                # The socket's timers have ended with it; a client's own deadlines have not.
                with pytest.raises(AckTimeout), trio.fail_after(10):
                    await client.request(Message.command(), ack_timeout=5)
            outside.cancel_scope.cancel()
        await server.aclose()


async def test_an_exception_of_the_block_leaves_as_itself(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)

        async def fail() -> None:
            async with open_endpoint(network=network.host("program")) as endpoint, contextlib.AsyncExitStack() as stack:
                await open_many(stack, endpoint, server.address, 2)
                raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await fail()
        await server.aclose()


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_at_any_point_nothing_stays(autojump_clock: trio.testing.MockClock, steps: int) -> None:
    network = MemoryNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        before = tasks()
        with trio.move_on_after(steps * 0.007):
            async with open_endpoint(network=network.host("program")) as endpoint, trio.open_nursery() as clients:

                async def one(number: int) -> None:
                    opened = open_client(*server.address, client_id=f"c{number}", tls=CLIENT_TLS, config=CONFIG, network=endpoint)
                    async with opened as client:
                        while True:
                            await echo(client)

                for number in range(3):
                    clients.start_soon(one, number)
        assert endpoint.connections == 0
        assert endpoint.statistics().connection_ids == 0
        assert not [address for address in network._sockets if address[0] == "program"]
        await trio.sleep(60)
        assert tasks() == before
        assert not server.sessions
        await server.aclose()


async def test_all_give_up_an_attempt_when_nobody_listens() -> None:
    """On UDP, since only a real network says so."""
    with contextlib.closing(trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)) as taken:
        await taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with open_endpoint() as endpoint, contextlib.AsyncExitStack() as stack:
        for number in range(4):
            opened = open_client("127.0.0.1", port, client_id=f"c{number}", tls=CLIENT_TLS, config=CONFIG, network=endpoint)
            client = await stack.enter_async_context(opened)
            # Long before the handshake times out.
            with trio.fail_after(5):
                await client.state.wait_value(ClientState.CONNECTING)
                await client.state.wait_value(ClientState.IDLE)


async def test_a_silent_attempt_makes_way_for_a_new_socket(autojump_clock: trio.testing.MockClock) -> None:
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        async with open_endpoint(network=network.host("program")) as endpoint, contextlib.AsyncExitStack() as stack:
            (client,) = await open_many(stack, endpoint, server.address, 1)
            network.partition("program")
            await client.state.wait_value(ClientState.IDLE)
            first = await stack.enter_async_context(
                open_client(*server.address, client_id="late", tls=CLIENT_TLS, config=CONFIG, network=endpoint)
            )
            await trio.sleep(120)
            # However many attempts have failed meanwhile.
            assert sum(address[0] == "program" for address in network._sockets) <= 2
            network.heal()
            await first.wait_connected()
            await client.wait_connected()
            await echo(client)
        await server.aclose()


async def test_a_defect_in_reading_costs_no_more_than_a_reconnect(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        server = await start(nursery, network)
        async with open_endpoint(network=network.host("program")) as endpoint, contextlib.AsyncExitStack() as stack:
            clients = await open_many(stack, endpoint, server.address, 2)
            (line,) = endpoint._open

            def broken(_: object) -> None:
                raise ZeroDivisionError("a defect")

            monkeypatch.setattr(line.endpoint, "_route", broken)
            for client in clients:
                await client.state.wait_value(ClientState.IDLE)
            for client in clients:
                await client.wait_connected()
                await echo(client)
            assert endpoint.connections == 2
        await server.aclose()
