"""What a session survives and what ends it, and what is left of it then."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    ClientNotConnected,
    ClientState,
    ConnectionLost,
    DisconnectEvent,
    Limits,
    Message,
    MessageType,
    QuicFlowError,
    Request,
    Router,
    ServerConfig,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import MemoryNetwork, World, open_world, seeded
from quicflow_trio.wire import LaneOpen, LaneState, MessageFrame, PingFrame, Welcome, encode
from tests.auth.tokens import authenticator, token, virtual_time
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import hello, open_raw
from tests.connections.test_resuming import cut

SOON = ClientConfig(backoff_initial=0.01, backoff_max=0.1, seed=1)
SURVIVED = {CloseCode.HEARTBEAT_TIMEOUT, CloseCode.HELLO_TIMEOUT, CloseCode.CREDENTIALS_EXPIRED}
FINAL = {CloseCode.SESSION_REPLACED, CloseCode.REJECTED, CloseCode.AUTHENTICATION_FAILED}


def slow_router(started: trio.Event, seconds: float = 1.0) -> Router:
    router = Router()

    @router.on(MessageType.QUERY)
    async def think(request: Request) -> bytes:
        started.set()
        await trio.sleep(seconds)
        return request.message.payload[::-1]

    return router


async def outcome(client: Client, outcomes: list[object]) -> None:
    try:
        outcomes.append((await client.request(Message.query(b"ab"), ack_timeout=math.inf)).result)
    except QuicFlowError as exc:
        outcomes.append(type(exc))


@pytest.mark.parametrize("by_client", [False, True])
@pytest.mark.parametrize("code", [code for code in CloseCode if code not in FINAL])
async def test_which_closes_a_session_survives(autojump_clock: MockClock, code: CloseCode, by_client: bool) -> None:
    """Both sides are of one mind: else one would wait for what the other has given up."""
    started = trio.Event()
    outcomes: list[object] = []
    async with open_world(network=MemoryNetwork(delay=0.01), router=slow_router(started), client_config=SOON) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, client, outcomes)
            await started.wait()
            connection = client._supervisor.connection if by_client else session._connection
            assert connection is not None
            connection.close(code, "in a test")
        if code in SURVIVED:
            assert outcomes == [b"ba"]
            assert world.server.session("client-0") is session
        else:
            assert outcomes == [ConnectionLost]
            await client.wait_connected()
            await until(lambda: "client-0" in world.server.sessions)
            assert world.server.session("client-0") is not session
        assert (await client.request(Message.query(b"cd"))).result == b"dc"


async def test_a_session_waits_for_fresh_credentials(autojump_clock: MockClock) -> None:
    """They ran out during a request: its result is there when the client comes back with others."""
    clock = virtual_time()
    started = trio.Event()
    outcomes: list[object] = []
    async with (
        open_machine(router=slow_router(started, 20.0), authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=token(valid_for=10), config=SOON) as client,
    ):
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        first = session.identity
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, client, outcomes)
            await client.state.wait_value(ClientState.IDLE)
            client._credentials.replace(token(now=clock(), valid_for=1000))
        assert outcomes == [b"ba"]
        assert machine.server.session("worker") is session
        assert session.identity is not first
        assert machine.server.metrics().disconnects == {"server:credentials_expired": 1}


async def test_a_client_that_returns_too_late_gets_a_new_session(autojump_clock: MockClock) -> None:
    started = trio.Event()
    outcomes: list[object] = []
    config = ServerConfig(session_ttl=10)
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, router=slow_router(started), server_config=config, client_config=SOON) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, client, outcomes)
            await started.wait()
            network.partition("client-0")
            cut(client._supervisor.connection)
            cut(session._connection)
            await until(lambda: world.server.statistics().away == 1)
            given_up = await session.send(Message.event()) if session.connected else None
            await trio.sleep(9)
            assert world.server.statistics().away == 1
            await trio.sleep(2)
            assert world.server.statistics().away == 0
            assert outcomes == [], "the client cannot know yet"
            network.heal()
        assert outcomes == [ConnectionLost]
        assert given_up is None
        assert world.server.session("client-0") is not session


async def test_what_is_under_way_waits_for_a_client_that_is_away_and_new_calls_do_not(autojump_clock: MockClock) -> None:
    started = trio.Event()
    network = MemoryNetwork(delay=0.01)
    results: list[bytes] = []

    async def ask(world: World) -> None:
        results.append((await world.server.session("client-0").request(Message.query(b"ab"), ack_timeout=math.inf)).result)

    async with open_world(network=network, client_router=slow_router(started), client_config=SOON) as world:
        session = world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, world)
            await started.wait()
            network.partition("client-0")
            cut(session._connection)
            cut(world.clients["client-0"]._supervisor.connection)
            await until(lambda: not session.connected)
            for call in (session.send, session.request):
                with pytest.raises(ClientNotConnected):
                    await call(Message.query())
            with pytest.raises(ClientNotConnected):
                session.send_nowait(Message.query())
            assert (await world.server.broadcast(Message.query())).sent == 0
            await trio.sleep(50)
            assert results == []
            network.heal()
        assert results == [b"ba"]


async def test_what_handlers_hold_does_not_grow_with_the_reconnects(autojump_clock: MockClock) -> None:
    """Each new stream brings a whole window of credit: what comes on it is not decoded while the handlers hold as much."""
    router = Router()

    @router.on(MessageType.EVENT)
    async def stand(request: Request) -> None:
        await trio.sleep_forever()

    limits = Limits(lane_window=32 * 1024)
    config = ServerConfig(handler_timeout=math.inf, limits=limits)
    held = []
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01), router=router, server_config=config) as world:
        async with open_raw(world.network, "first") as first:
            first.open(hello())
            welcome = await first.frame(Welcome)
            session = world.server.sessions["raw"]
            for number in range(20):
                async with open_raw(world.network, f"host-{number}") as raw:
                    raw.open(replace(hello(), session_token=welcome.session_token))
                    again = await raw.frame(Welcome)
                    assert again.resumed
                    (received,) = (state.received for state in again.lanes) if again.lanes else (0,)
                    assert not again.lanes or again.lanes == (LaneState("", received, 0),)
                    frames = [
                        MessageFrame(seq, seq.to_bytes(16, "big"), int(MessageType.EVENT), bytes(1000), False, 0)
                        for seq in range(received + 1, received + 101)
                    ]
                    raw.open(LaneOpen(), *frames)
                    await trio.sleep(1)
                    held.append(session.statistics().held_bytes)
                    # Not with a word of the application, which would end the session.
                    raw.engine.close(0, "gone", application=False)
                    raw.kick()
                    await trio.sleep(1)
        assert len(held) == 20
        assert held[0] > 32 * 1024 - 2000
        assert max(held) <= 2 * (32 * 1024 + 2000)
        assert held[1:] == [held[1]] * 19
        await session.close()


@pytest.mark.parametrize("seed", range(8))
async def test_a_cancelled_server_says_so_on_a_connection_that_came_later(autojump_clock: MockClock, seed: int) -> None:
    """In whatever order its tasks, that of the session and that of the connection, are cancelled."""
    with seeded(seed):
        await see_a_server_stop()


async def see_a_server_stop() -> None:
    async with open_machine() as machine, client_of(machine.network, config=SOON) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        cut(client._supervisor.connection)
        await client.state.wait_value(ClientState.IDLE)
        await client.wait_connected()
        assert machine.server.sessions["worker"] is session
        assert session._connection is not session.home
        async with client.open_events(kinds=[DisconnectEvent]) as events:
            await machine.stop()
            event = await events.__anext__()
        assert isinstance(event, DisconnectEvent)
        assert (event.reason.value, event.detail, event.by_peer) == ("shutdown", "server shutdown", True)


async def test_a_client_that_leaves_while_it_is_away_first_hands_over_its_answers(autojump_clock: MockClock) -> None:
    """Within its `close_grace`: whoever asked would else learn from the session's end only that it is over."""
    started = trio.Event()
    results: list[bytes] = []
    network = MemoryNetwork(delay=0.01)

    async with open_machine(network) as machine, trio.open_nursery() as nursery:
        async with client_of(network, config=SOON, router=slow_router(started, 0.5)) as client:
            await client.wait_connected()
            session = machine.server.sessions["worker"]

            async def ask() -> None:
                results.append((await session.request(Message.query(b"ab"), ack_timeout=math.inf)).result)

            nursery.start_soon(ask)
            await started.wait()
            cut(client._supervisor.connection)
            await client.state.wait_value(ClientState.IDLE)
        assert results == [b"ba"]


async def test_more_lanes_than_a_hello_has_room_for_end_with_their_connection(autojump_clock: MockClock) -> None:
    """A documented limit: about 28 KiB of names and states. Beyond it a cut is an error for what is under way, at once."""
    started = trio.Event()
    limits = Limits(lanes=300)
    outcomes: list[object] = []
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=slow_router(started),
        server_config=ServerConfig(limits=limits),
        client_config=replace(SOON, limits=limits),
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        for number in range(250):
            await client.lane(f"{number:0100}").send(Message.query(b""))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, client, outcomes)
            await trio.sleep(0.3)
            cut(client._supervisor.connection)
        assert outcomes == [ConnectionLost]
        assert world.server.session("client-0") is not session
        assert (await client.request(Message.query(b"cd"))).result == b"dc"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (b"\x00\x00", CloseCode.PROTOCOL_ERROR),
        (bytes(4), CloseCode.PROTOCOL_ERROR),
        (b"\x00\x00\x00\x02\x08", CloseCode.PROTOCOL_ERROR),
        (b"\xff\xff\xff\xff", CloseCode.FRAME_TOO_LARGE),
        (b"\x00\x00\x00\x02\xff\xff", CloseCode.PROTOCOL_ERROR),
        (encode(PingFrame(1)), CloseCode.PROTOCOL_ERROR),
        (encode(LaneOpen("a", 1)), CloseCode.PROTOCOL_ERROR),
        (encode(LaneOpen("a")) * 2, CloseCode.PROTOCOL_ERROR),
    ],
)
async def test_nonsense_where_a_lane_is_opened_again(autojump_clock: MockClock, first: bytes, code: CloseCode) -> None:
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network, "first") as raw, open_raw(world.network, "second") as again:
            raw.open(hello())
            token = (await raw.frame(Welcome)).session_token
            raw.open(LaneOpen("a"))
            await trio.sleep(0.1)
            again.open(replace(hello(), session_token=token))
            assert (await again.frame(Welcome)).lanes == (LaneState("a", 0, 0),)
            again.write(again.engine.open_stream(), first, fin=first == b"\x00\x00" or len(first) == 5)
            ended = await again.ended()
            assert (ended.application, ended.code) == (True, code)
        assert world.server.statistics().held_bytes == 0
