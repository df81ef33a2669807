"""Requests: the waiting table, deadlines, cancellation that reaches the handler, and handlers that ask back."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    ClientConfig,
    ConfigurationError,
    HandlerFailed,
    Limits,
    Message,
    MessageType,
    Peer,
    Request,
    Router,
    ServerConfig,
    WaitingTableFull,
)
from quicflow_trio.protocol.outgoing import OutgoingRequest
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.messages.harness import Gate, assert_at_rest, until


# -- the waiting table -------------------------------------------------------------------------------------------------
async def test_ten_thousand_requests_in_flight_end_with_an_empty_table(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    config = ServerConfig(handler_timeout=math.inf, workers=10_000)
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config) as world:
        client = world.clients["client-0"]
        results: list[bytes] = []

        async def ask(number: int) -> None:
            results.append((await client.request(Message.command(b"%d" % number))).result)

        async with trio.open_nursery() as nursery:
            for number in range(10_000):
                nursery.start_soon(ask, number)
            await until(lambda: len(gate.started) == 10_000)
            assert client.statistics().requests_waiting == 10_000
            gate.opened.set()
        assert results == [b"done"] * 10_000
        assert sorted(gate.started) == sorted(b"%d" % number for number in range(10_000))
        await trio.sleep(1)
        assert_at_rest(world)
        assert len(client._link.deadlines) <= 130


async def test_one_over_the_limit_is_refused_at_once_on_either_side(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    limits = Limits(waiting=10, waiting_per_session=6)
    async with open_world(
        clients=2,
        router=gate.router,
        client_router=gate.router,
        server_config=ServerConfig(limits=limits),
        client_config=ClientConfig(limits=limits),
    ) as world:
        client = world.clients["client-0"]
        one, two = (world.server.sessions[f"client-{number}"] for number in range(2))
        async with trio.open_nursery() as nursery:
            # A client has one session, and all of its table; a server's session has a share.
            for peer, count in ((client, 10), (one, 6), (two, 4)):
                for _ in range(count):
                    nursery.start_soon(partial(peer.request, Message.command()))
            await until(lambda: len(gate.started) == 20)
            start = trio.current_time()
            for peer in (client, one, two):
                with pytest.raises(WaitingTableFull):
                    await peer.request(Message.query())
                # Only waiting is limited: what wants no ack goes on.
                await (await peer.send(Message.event())).delivered()
            assert trio.current_time() == start
            figures = world.server.statistics()
            assert (figures.requests_waiting, figures.requests_refused) == (10, 2)
            gate.opened.set()
        for peer in (client, one, two):
            assert (await peer.request(Message.query(b"q"))).result == b"q"
        assert_at_rest(world)


# -- deadlines ---------------------------------------------------------------------------------------------------------
async def test_the_ack_deadline_is_exact_and_the_handler_is_cancelled(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        start = trio.current_time()
        with pytest.raises(AckTimeout, match=r"no ack within 2\.5 s"):
            await client.request(Message.command(), ack_timeout=2.5)
        assert trio.current_time() - start == pytest.approx(2.5)
        assert session.statistics().handlers_running == 1
        await trio.sleep(0.1)
        assert session.statistics().handlers_running == 0
        assert gate.passed == []
        assert_at_rest(world)


async def test_the_default_comes_from_the_configuration(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    async with open_world(
        router=gate.router,
        client_router=gate.router,
        client_config=ClientConfig(ack_timeout=3.0),
        server_config=ServerConfig(ack_timeout=4.0),
    ) as world:
        start = trio.current_time()
        with pytest.raises(AckTimeout):
            await world.clients["client-0"].request(Message.command())
        assert trio.current_time() - start == pytest.approx(3)
        with pytest.raises(AckTimeout):
            await world.server.sessions["client-0"].request(Message.command())
        assert trio.current_time() - start == pytest.approx(7)


async def test_an_infinite_deadline_waits_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(router=gate.router, server_config=ServerConfig(handler_timeout=math.inf)) as world:
        client = world.clients["client-0"]

        async def open_late() -> None:
            await trio.sleep(10_000)
            gate.opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_late)
            assert (await client.request(Message.command(), ack_timeout=math.inf)).result == b"done"
        # The heap has the pump's alarm as well.
        assert not any(isinstance(entry, OutgoingRequest) for _, _, entry in client._link.deadlines._entries)


@pytest.mark.parametrize("seconds", [0, -1, -math.inf, math.nan])
async def test_a_deadline_that_is_none_is_refused(autojump_clock: MockClock, seconds: float) -> None:
    async with open_world() as world:
        with pytest.raises(ConfigurationError, match="ack_timeout"):
            await world.clients["client-0"].request(Message.command(), ack_timeout=seconds)
        assert_at_rest(world)


async def test_a_deadline_passes_without_a_connection_too(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        network.partition("client-0")
        await until(lambda: client.state.value.value != "connected")
        start = trio.current_time()
        with pytest.raises(AckTimeout):
            await client.request(Message.command(bytes(1000)), ack_timeout=5)
        assert trio.current_time() - start == pytest.approx(5)
        assert client.statistics().outbox_bytes == 0, "it will not be sent after all"
        network.heal()
        await client.wait_connected()
        assert (await client.request(Message.command(b"x"))).result == b"x"


async def test_the_callers_own_deadline_works_as_everywhere(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router) as world:
        with pytest.raises(trio.TooSlowError), trio.fail_after(2):
            await world.clients["client-0"].request(Message.command(), ack_timeout=20)
        await trio.sleep(0.1)
        assert world.server.sessions["client-0"].statistics().handlers_running == 0
        assert_at_rest(world)


async def test_an_ack_that_crosses_the_deadline_is_ignored_and_counted(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        await trio.sleep(1)
        return b"late"

    async with open_world(network=MemoryNetwork(delay=0.1), router=router) as world:
        client = world.clients["client-0"]
        with pytest.raises(AckTimeout):
            # The handler ends at 1.1 s, its ack arrives at 1.2.
            await client.request(Message.command(), ack_timeout=1.15)
        await trio.sleep(1)
        assert client._lane.acks_ignored == 1
        assert (await client.request(Message.command())).result == b"late"
        assert client._lane.acks_ignored == 1
        assert_at_rest(world)


# -- cancellation ------------------------------------------------------------------------------------------------------
async def test_cancelled_requests_cancel_handlers_running_and_queued(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    config = ServerConfig(workers=3, handler_timeout=math.inf)
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(client.request, Message.command(b"%d" % number))
            await trio.sleep(1)
            assert len(gate.started) == 3
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert len(gate.started) == 3, "the queued ones were passed over"
        assert session.statistics().messages_received == 3
        assert session._link.dispatcher.cancelled == 10
        assert_at_rest(world)
        gate.opened.set()
        assert (await client.request(Message.command())).result == b"done"


async def test_requests_on_the_wire_and_behind_it_get_their_results_after_a_reconnect(autojump_clock: MockClock) -> None:
    gate = Gate()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(handler_timeout=math.inf)
    async with open_world(network=network, router=gate.router, server_config=config) as world:
        client = world.clients["client-0"]
        outcome: list[bytes] = []

        async def on_the_wire() -> None:
            outcome.append((await client.request(Message.command(b"first"), ack_timeout=1000)).result)

        async def behind() -> None:
            await until(lambda: client.state.value.value != "connected", seconds=100)
            outcome.append((await client.request(Message.query(b"second"), ack_timeout=1000)).result)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(on_the_wire)
            nursery.start_soon(behind)
            await trio.sleep(30)
            network.partition("client-0")
            await until(lambda: client.state.value.value != "connected")
            # Its handler ends while nobody can hear of it.
            gate.opened.set()
            await trio.sleep(1)
            network.heal()
        assert sorted(outcome) == [b"done", b"second"]
        assert gate.started == [b"first"]
        assert client.statistics().requests_waiting == 0
        await trio.sleep(40)


# -- handlers that ask back --------------------------------------------------------------------------------------------
def chain(depth_limit: int) -> Router:
    """Commands say how deep to go: each handler asks its peer for one less."""
    router = Router()

    @router.on(MessageType.COMMAND)
    async def deeper(request: Request) -> bytes:
        depth = int(request.message.payload)
        if depth == 0:
            return b"bottom"
        return (await request.peer.request(Message.command(b"%d" % (depth - 1)), ack_timeout=math.inf)).result

    @router.on(MessageType.QUERY)
    async def answer(request: Request) -> bytes:
        return request.message.payload

    return router


async def test_handlers_ask_their_peer_with_all_workers_taken_on_both_sides(autojump_clock: MockClock) -> None:
    """Each side's answers need no worker of the asking side: no cycle, so nothing may time out."""
    router = Router()

    @router.on(MessageType.COMMAND)
    async def ask_back(request: Request) -> bytes:
        return (await request.peer.lane("answers").request(Message.query(request.message.payload))).result

    @router.on(MessageType.QUERY)
    async def answer(request: Request) -> bytes:
        await trio.sleep(0.01)
        return request.message.payload

    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=router,
        client_router=router,
        server_config=ServerConfig(workers=4),
        client_config=ClientConfig(workers=4),
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        answered: list[bytes] = []

        async def ask(peer: Peer, number: int) -> None:
            answered.append((await peer.request(Message.command(b"%d" % number), ack_timeout=math.inf)).result)

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, client, number)
                nursery.start_soon(ask, session, number)
        assert len(answered) == 400
        # Each side answers one after the other on its lane for answers: 200 of 10 ms, and some round trips.
        assert trio.current_time() - start < 25
        await trio.sleep(1)
        assert_at_rest(world)


@pytest.mark.parametrize("from_server", [False, True])
async def test_a_real_cycle_ends_at_the_handler_deadline_with_a_typed_failure(
    autojump_clock: MockClock, from_server: bool
) -> None:
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=chain(10),
        client_router=chain(10),
        server_config=ServerConfig(workers=2, handler_timeout=10),
        client_config=ClientConfig(workers=2, handler_timeout=10),
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        peer: Peer = session if from_server else client
        # Up to two handlers on each side: depth 3 needs exactly those.
        assert (await peer.request(Message.command(b"3"))).result == b"bottom"
        start = trio.current_time()
        with pytest.raises(HandlerFailed) as caught:
            await peer.request(Message.command(b"4"), ack_timeout=math.inf)
        assert caught.value.timed_out
        assert "deadline of 10 s" in caught.value.reason
        assert trio.current_time() - start == pytest.approx(10, abs=0.2)
        await trio.sleep(11)
        assert_at_rest(world)
        # It recovers.
        assert (await peer.request(Message.command(b"3"))).result == b"bottom"
        assert (await peer.request(Message.query(b"q"))).result == b"q"


async def test_crossing_floods_of_asking_handlers_end(autojump_clock: MockClock) -> None:
    """Both directions, all workers in a cycle on both sides: typed failures at the deadline, no hang, then all is well."""
    config = {"workers": 4, "handler_timeout": 5.0}
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=chain(10),
        client_router=chain(10),
        server_config=ServerConfig(**config),  # type: ignore[arg-type]
        client_config=ClientConfig(**config),  # type: ignore[arg-type]
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        outcomes: list[str] = []

        async def ask(peer: Peer) -> None:
            try:
                await peer.request(Message.command(b"3"), ack_timeout=60)
            except HandlerFailed:
                outcomes.append("failed")
            else:
                outcomes.append("answered")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(ask, client)
                    nursery.start_soon(ask, session)
        assert len(outcomes) == 40
        await trio.sleep(10)
        assert_at_rest(world)
        assert (await client.request(Message.command(b"3"))).result == b"bottom"
