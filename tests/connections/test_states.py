"""Idle, connecting, connected: how a client's state is watched, logged and kept; the deadlines of the handshake."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio import Client, ClientConfig, ClientState, ConnectionClosed, ConnectionLost, Message, ServerConfig
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import LaneOpen, MessageFrame, MessageType, Welcome
from tests.connections.machine import client_of, open_machine, states, until
from tests.connections.raw import Raw, hello, open_raw, open_raw_server, welcome

IDLE, CONNECTING, CONNECTED = ClientState.IDLE, ClientState.CONNECTING, ClientState.CONNECTED


async def test_a_life_from_idle_to_idle(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quicflow_trio.supervisor")
    seen: list[tuple[ClientState, ClientState]] = []

    async def watch(client: Client) -> None:
        async for change in client.state.transitions():
            seen.append(change)

    async with open_machine() as machine, trio.open_nursery() as nursery:
        async with client_of(machine.network) as client:
            assert client.state.value is IDLE
            assert await client.state.wait_value(CONNECTING) is CONNECTING
            nursery.start_soon(watch, client)  # noqa: ASYNC111  it ends by itself when the client is left
            assert await client.state.wait_value(CONNECTED) is CONNECTED
            await client.wait_connected()
            assert client.state.value is CONNECTED
        assert client.state.value is IDLE
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [(CONNECTED, CONNECTING), (IDLE, CONNECTED)]
    logged = [fields for record in caplog.records if (fields := record.__dict__["quicflow"])["event"] == "state changed"]
    assert [(fields["client_id"], fields["old"], fields["new"]) for fields in logged] == [
        ("worker", "idle", "connecting"),
        ("worker", "connecting", "connected"),
        ("worker", "connected", "idle"),
    ]


async def test_the_history_has_times_and_reasons_and_an_end(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        await machine.stop()
        await client.state.wait_value(IDLE)
        changes = client.statistics().history
        assert [change.state for change in changes] == [CONNECTING, CONNECTED, IDLE]
        assert [change.at for change in changes] == sorted(change.at for change in changes)
        assert changes[-1].reason == "server shutdown"
        for _ in range(4):
            await machine.start()
            await client.state.wait_value(CONNECTED)
            await machine.stop()
            await client.state.wait_value(IDLE)
    assert client.statistics().connects == 5


async def test_the_history_is_bounded(autojump_clock: MockClock) -> None:
    # A client that cannot connect for a year must not remember a year.
    config = ClientConfig(backoff_initial=0.01, backoff_max=0.01, handshake_timeout=0.01)
    async with client_of(MemoryNetwork(), config=config) as client:
        await trio.sleep(10)
        assert len(client.statistics().history) == 100
        assert client.statistics().attempts > 400
        assert client.statistics().connects == 0


async def test_messages_sent_before_the_connection_wait_for_it(autojump_clock: MockClock) -> None:
    async with open_machine(start=False) as machine, client_of(machine.network) as client, trio.open_nursery() as nursery:
        sent = client.send_nowait(Message.event(b"first"))
        nursery.start_soon(client.send, Message.event(b"second"))
        await trio.sleep(20)
        assert client.statistics().outbox_messages == 2
        assert len(nursery.child_tasks) == 1, "`send` waits for the first connection"
        await machine.start()
        await sent.delivered()
        await until(lambda: machine.server.session("worker").statistics().messages_received == 2)


async def test_wait_connected_and_wait_closed_after_the_end(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        async with client_of(machine.network) as client:
            await client.wait_connected()
        with pytest.raises(ConnectionClosed):
            await client.wait_connected()
        await client.wait_closed()
        with pytest.raises(ConnectionClosed):
            await client.send(Message.event(b""))
        with pytest.raises(ConnectionClosed):
            client.send_nowait(Message.event(b""))


async def test_wait_connected_is_told_when_the_client_closes(autojump_clock: MockClock) -> None:
    outcome: list[str] = []

    async def wait(client: Client) -> None:
        try:
            await client.wait_connected()
        except ConnectionClosed:
            outcome.append("closed")

    async with trio.open_nursery() as nursery, client_of(MemoryNetwork()) as client:
        nursery.start_soon(wait, client)  # noqa: ASYNC111  what happens when it is left is the question
        await trio.sleep(1)
    assert outcome == ["closed"]


async def test_wait_connected_leaves_nothing_when_cancelled(autojump_clock: MockClock) -> None:
    async with client_of(MemoryNetwork()) as client:
        with trio.move_on_after(1) as scope:
            await client.wait_connected()
        assert scope.cancelled_caught
        assert len(client._supervisor.changed) == 0


# -- deadlines ---------------------------------------------------------------------------------------------------------
async def test_the_client_gives_up_a_handshake_after_its_deadline(autojump_clock: MockClock) -> None:
    async with client_of(MemoryNetwork(), config=ClientConfig(handshake_timeout=7.0, jitter=0)) as client:
        await trio.sleep(7.5)
        assert [(change.at, change.state) for change in client.statistics().history] == [(0.0, CONNECTING), (7.0, IDLE)]
        assert client.statistics().history[-1].reason == "handshake timeout"


async def test_the_client_gives_up_a_server_that_does_not_welcome_it(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)

    async with (
        open_raw_server(network, lambda raw, event: None) as server,
        client_of(network, config=ClientConfig(hello_timeout=4.0, jitter=0)) as client,
    ):
        await until(lambda: client.state.value is IDLE and client.statistics().attempts == 1 and states(client)[-1] is IDLE)
        ended = await server.peers[0].ended()
        assert (ended.code, ended.reason) == (CloseCode.HELLO_TIMEOUT, "hello timeout")
        assert client.statistics().history[-1].at == pytest.approx(4.0, abs=0.1)


async def test_the_server_closes_a_client_that_does_not_say_hello(autojump_clock: MockClock) -> None:
    config = ServerConfig(hello_timeout=3.0)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        async with open_raw(world.network) as raw:
            started = trio.current_time()
            ended = await raw.ended()
            assert (ended.code, ended.reason) == (CloseCode.HELLO_TIMEOUT, "hello timeout")
            assert trio.current_time() - started == pytest.approx(3.0, abs=0.1)
        assert world.server.statistics().refused == {"server:hello_timeout": 1}
        assert world.server.statistics().half_open == 0


async def test_half_a_hello_is_no_hello(autojump_clock: MockClock) -> None:
    async with open_world(clients=0, server_config=ServerConfig(hello_timeout=3.0)) as world, open_raw(world.network) as raw:
        raw.open(b"\0\0\0\x10half")
        assert (await raw.ended()).code == CloseCode.HELLO_TIMEOUT


async def test_the_server_closes_a_handshake_that_stops(autojump_clock: MockClock) -> None:
    config = ServerConfig(handshake_timeout=2.0)
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        async with open_raw(world.network, handshake=False):
            await trio.sleep(0.011)
            assert world.server.statistics().half_open == 1
            world.network.partition("raw")
            await trio.sleep(1.9)
            assert world.server.statistics().half_open == 1
            await trio.sleep(0.2)
            assert world.server.statistics().half_open == 0
            assert world.server.statistics().endpoint.connection_ids == 0
        assert world.server.statistics().refused == {"server:handshake_timeout": 1}


# -- a server that misbehaves ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([hello()], "must be a welcome, not Hello"),
        ([welcome(), welcome()], "Welcome from the server is not allowed"),
        ([Welcome()], "no heartbeat interval"),
        ([b"\0\0\0\0"], "frame of 0 bytes"),
        ([b"\xff\xff\xff\xff"], "over the limit"),
    ],
)
async def test_what_a_server_may_not_say(autojump_clock: MockClock, answer: list[Welcome | bytes], reason: str) -> None:
    network = MemoryNetwork(delay=0.01)

    def on_event(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData) and len(raw.streams) == 1 and not raw.engine.closing:
            raw.write(0, *answer)

    async with open_raw_server(network, on_event) as server, client_of(network, config=ClientConfig(jitter=0)) as client:
        # The client closes with the reason and, as the server may be mended meanwhile, comes back.
        await until(lambda: client.statistics().attempts == 2)
        ended = await server.peers[0].ended()
        assert ended.code in (CloseCode.PROTOCOL_ERROR, CloseCode.FRAME_TOO_LARGE)
        assert reason in ended.reason


async def test_lane_data_may_overtake_the_welcome(autojump_clock: MockClock) -> None:
    # Streams are independent: the packet with the welcome can be lost while the server's first message gets through.
    network = MemoryNetwork(delay=0.01)

    def on_event(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData) and len(raw.streams) == 1:
            raw.open(LaneOpen(), MessageFrame(1, bytes(16), MessageType.EVENT, b"early", False, 1))

    async with open_raw_server(network, on_event) as server, client_of(network) as client:
        await trio.sleep(1)
        assert client.statistics().messages_received == 0
        server.peers[0].write(0, welcome())
        server.peers[0].transmit()
        await until(lambda: client.statistics().messages_received == 1)
        assert client.state.value is CONNECTED


async def test_a_request_under_way_ends_when_the_server_breaks_the_protocol(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)

    def on_event(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData):
            if event.stream_id == 0 and len(raw.frames()) == 1:
                raw.write(0, welcome())
            elif event.stream_id == 4:
                raw.write(4, welcome())

    async with open_raw_server(network, on_event), client_of(network) as client:
        with pytest.raises(ConnectionLost, match="return half"):
            await client.request(Message.command(b"x"))
