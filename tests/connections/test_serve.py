"""`serve` and `Server`: starting, being cancelled, surviving its own defects, figures."""

from __future__ import annotations

import logging
import socket
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    ClientConfig,
    ClientNotConnected,
    ClientState,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    Message,
    MessageType,
    Request,
    Router,
    Server,
    ServerConfig,
    TLSConfig,
    open_client,
    serve,
)
from quicflow_trio.admission import Admission
from quicflow_trio.connection import Connection
from quicflow_trio.flow2 import Flow2
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import MemoryNetwork, echo_router, open_world
from quicflow_trio.wire import PingFrame
from tests.connections.machine import CLIENT_TLS, SERVER_TLS, client_of, open_machine, times, until
from tests.connections.raw import open_raw

IDLE, CONNECTED = ClientState.IDLE, ClientState.CONNECTED


# -- starting ----------------------------------------------------------------------------------------------------------
async def test_a_clients_tls_on_a_server_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"TLSConfig\.server"):
        await serve(Router(), tls=CLIENT_TLS, network=MemoryNetwork())


async def test_a_key_that_does_not_match_is_said_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    broken = tmp_path_factory.mktemp("tls") / "broken.pem"
    broken.write_text("not PEM at all")
    assert SERVER_TLS.key_file is not None
    with pytest.raises(ConfigurationError, match="cert_file"):
        await serve(Router(), tls=TLSConfig.server(broken, SERVER_TLS.key_file), network=MemoryNetwork())


async def test_a_port_out_of_range_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="port = 70000"):
        await serve(Router(), host="server", port=70_000, tls=SERVER_TLS, network=MemoryNetwork())


@pytest.mark.realtime
async def test_a_port_in_use_is_an_os_error_that_says_which() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot bind UDP 127\.0\.0\.1 port {port}: Address already in use"):
            await serve(Router(), host="127.0.0.1", port=port, tls=SERVER_TLS)


@pytest.mark.realtime
async def test_over_real_sockets_on_a_free_port() -> None:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, echo_router(), host="127.0.0.1", port=0, tls=SERVER_TLS))
        host, port = server.address
        assert host == "127.0.0.1"
        assert port > 0
        with trio.fail_after(10):
            async with open_client(host, port, client_id="worker", tls=CLIENT_TLS) as client:
                assert (await client.request(Message.command(b"hi"))).result == b"hi"
                session = server.sessions["worker"]
                assert session.remote_address[0] == "127.0.0.1"
                assert session.rtt is not None
            await until(lambda: not server.sessions)
            await server.drain(grace=1)


@pytest.mark.realtime
async def test_a_restarted_server_over_real_sockets() -> None:
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, echo_router(), host="127.0.0.1", port=0, tls=SERVER_TLS))
        port = server.address[1]
        config = ClientConfig(backoff_initial=0.05, jitter=0)
        with trio.fail_after(20):
            async with open_client("127.0.0.1", port, client_id="worker", tls=CLIENT_TLS, config=config) as client:
                await client.wait_connected()
                await server.aclose()
                await client.state.wait_value(IDLE)
                again = partial(serve, echo_router(), host="127.0.0.1", port=port, tls=SERVER_TLS)
                server = await nursery.start(again)
                assert (await client.request(Message.command(b"hi"))).result == b"hi"
                assert client.statistics().connects == 2
            await server.aclose()


@pytest.mark.realtime
@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True), ("server", False)])
async def test_beyond_loopback_it_warns(caplog: pytest.LogCaptureFixture, host: str, warns: bool) -> None:
    network = MemoryNetwork() if host == "server" else None
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, Router(), host=host, port=0, tls=SERVER_TLS, network=network))
        assert server.address[0] == host
        await server.aclose()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert bool(warnings) is warns
    if warns:
        assert "beyond this machine" in warnings[0].getMessage()


# -- ending ------------------------------------------------------------------------------------------------------------
async def test_cancelling_serve_tells_every_client(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network, "one") as one, client_of(machine.network, "two") as two:
        for client in (one, two):
            await client.wait_connected()
        stopped = trio.current_time()
        await machine.stop()
        for client in (one, two):
            await client.state.wait_value(IDLE)
            change = client.statistics().history[-1]
            assert change.reason == "server shutdown"
            assert change.at - stopped == pytest.approx(0.01)


async def test_calls_under_way_when_the_server_is_cancelled(autojump_clock: MockClock) -> None:
    router, outcomes, started = Router(), [], trio.Event()

    @router.on(MessageType.COMMAND)
    async def slow(request: Request) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            outcomes.append("handler cancelled")
            raise

    async def ask(call: object, label: str) -> None:
        try:
            await call(Message.command(b""))  # type: ignore[operator]
        except (ConnectionLost, ConnectionClosed) as exc:
            outcomes.append(f"{label} {type(exc).__name__}")

    async with open_machine(router=router) as machine, client_of(machine.network, router=router) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, client.request, "client")
            nursery.start_soon(ask, session.request, "server")
            await started.wait()
            await trio.sleep(1)
            await machine.stop()
            await until(lambda: len(outcomes) == 3)
        with pytest.raises(ConnectionClosed):
            await session.send(Message.event(b""))
        assert not session.connected
    assert sorted(outcomes) == ["client ConnectionLost", "handler cancelled", "handler cancelled", "server ConnectionClosed"]


async def test_aclose_twice_and_from_two_tasks(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.server.aclose)
            nursery.start_soon(machine.server.aclose)
        await machine.server.aclose()
        assert machine.server.statistics().connected == 0
        assert machine.server.statistics().endpoint.connection_ids == 0
        with pytest.raises(ClientNotConnected):
            machine.server.session("worker")


async def test_a_cancelled_aclose_still_closes(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        with trio.CancelScope() as scope:
            scope.cancel()
            await machine.server.aclose()
        await machine.server.aclose()


async def test_closing_a_session(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network, config=ClientConfig(jitter=0)) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        await session.close("out with you")
        assert not session.connected
        assert "worker" not in machine.server.sessions
        with pytest.raises(ConnectionClosed, match="out with you"):
            await session.send(Message.event(b""))
        with pytest.raises(ConnectionClosed, match="out with you"):
            session.send_nowait(Message.event(b""))
        await session.close("again")
        await client.state.wait_value(IDLE)
        assert client.statistics().history[-1].reason == "out with you"
        # Not banned: it comes back as a new session.
        await client.wait_connected()
        await until(lambda: "worker" in machine.server.sessions)
        assert machine.server.sessions["worker"] is not session
        assert len(times(client, CONNECTED)) == 2


async def test_a_cancelled_session_close_goes_on_by_itself(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.close()
        await client.state.wait_value(IDLE)


# -- its own defects -----------------------------------------------------------------------------------------------------
async def test_a_defect_in_one_connection_takes_no_other_down(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Flow2._control_frame

    def broken(self: Flow2, frame: object) -> None:
        if isinstance(frame, PingFrame) and frame.number == 666:
            raise ZeroDivisionError("a defect")
        original(self, frame)

    monkeypatch.setattr(Flow2, "_control_frame", broken)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        ids = world.server.statistics().endpoint.connection_ids
        async with open_raw(world.network) as raw:
            await raw.greet()
            raw.write(0, PingFrame(666))
            ended = await raw.ended()
            # The peer is told at once that the fault is not its own.
            assert (ended.application, ended.code, ended.reason) == (True, CloseCode.INTERNAL_ERROR, "internal error")
        await trio.sleep(1)
        assert (await world.clients["client-0"].request(Message.command(b"x"))).result == b"x"
        figures = world.server.statistics()
        assert figures.disconnects["server:internal_error"] == 1
        assert (figures.connected, figures.away, figures.half_open, figures.endpoint.connection_ids) == (1, 0, 0, ids)
    assert "ZeroDivisionError" in caplog.text


async def test_a_defect_before_the_hello(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(admission: Admission, connection: Connection) -> None:
        raise ZeroDivisionError("a defect")

    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world:
        monkeypatch.setattr(Admission, "handshake_completed", broken)
        async with open_raw(world.network, handshake=False) as raw:
            assert (await raw.ended()).by_peer
        await trio.sleep(1)
        figures = world.server.statistics()
        assert (figures.half_open, figures.endpoint.connection_ids) == (0, 0)
        monkeypatch.undo()
        async with open_raw(world.network, "well") as raw:
            await raw.greet()
            await world.server.sessions["raw"].close()
    assert "ZeroDivisionError" in caplog.text


async def test_a_defect_in_the_clients_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        connection = client._supervisor.connection
        assert connection is not None

        def broken(now: float) -> None:
            raise ZeroDivisionError("a defect")

        monkeypatch.setattr(connection, "flush", broken)
        # Not written yet, so it goes out on the next connection.
        assert (await client.request(Message.command(b"x"))).result == b"x"
        assert client.statistics().connects == 2
    assert "ZeroDivisionError" in caplog.text


# -- figures -------------------------------------------------------------------------------------------------------------
async def test_statistics(autojump_clock: MockClock) -> None:
    async with open_world(clients=3, network=MemoryNetwork(delay=0.01)) as world:
        figures = world.server.statistics()
        assert (figures.connected, figures.away, figures.half_open, figures.connections) == (3, 0, 0, 3)
        assert figures.tasks == 2 + 3
        assert figures.disconnects == figures.refused == {}
        assert figures.endpoint.connection_ids == 3 * 5
        assert sorted(world.server.sessions) == ["client-0", "client-1", "client-2"]
        session = world.server.sessions["client-1"]
        assert session.client_id == "client-1"
        assert session.connected
        assert session.remote_address == ("client-1", 49152)
        assert abs(session.connected_at - world.server._instruments.epoch - trio.current_time()) < 1
        assert len(session.id) == 16
        world.network.partition("client-1")
        await until(lambda: "client-1" not in world.server.sessions)
        assert world.server.statistics().away == 1
        assert session.remote_address == ("client-1", 49152), "remembered"
        world.network.heal()
        with pytest.raises(TypeError):
            world.server.sessions["new"] = session  # type: ignore[index]
        with pytest.raises(ClientNotConnected, match="'nobody' is not connected"):
            world.server.session("nobody")


async def test_the_session_ttl_ends_handlers_too(autojump_clock: MockClock) -> None:
    router, ended_at = Router(), []

    @router.on(MessageType.COMMAND)
    async def hang(request: Request) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended_at.append(trio.current_time())

    config = ServerConfig(session_ttl=10.0, handler_timeout=1000.0)
    async with open_world(router=router, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        client = world.clients["client-0"]
        await client.send(Message.command(b""))
        await trio.sleep(1)
        world.network.partition("client-0")
        await until(lambda: not world.server.sessions)
        left = trio.current_time()
        await trio.sleep(15)
        assert [at - left for at in ended_at] == pytest.approx([10.0], abs=0.05)
        assert world.server.statistics().away == 0
        world.network.heal()
