"""Each public operation is cancelled at each of its checkpoints in turn: nothing may stay behind, and all goes on working."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    Limits,
    Message,
    MessageType,
    QuicFlowError,
    Request,
    Router,
    Server,
    ServerConfig,
    open_client,
    serve,
)
from quicflow_trio.testing import MemoryNetwork, World, echo_router, open_world, throwaway_tls
from tests.messages.harness import assert_at_rest, cancelled_at, open_sockets, sweep, task_names, until


class Watched:
    """A world of one client in which handlers take a while, and what must be as before after each cancellation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client = world.clients["client-0"]
        self.session = world.server.sessions["client-0"]
        self.tasks = task_names()
        self.sockets = open_sockets(world.network)
        self.connection_ids = world.server.statistics().endpoint.connection_ids
        self.checks = 0

    async def check(self) -> None:
        """See that nothing is left and that both directions still work."""
        self.checks += 1
        for peer in (self.client, self.session):
            payload = b"check %d" % self.checks
            assert (await peer.request(Message.query(payload), ack_timeout=30)).result == payload
        await until(lambda: not any(peer.statistics().handlers_running for peer in (self.client, self.session)))
        await trio.sleep(0.2)
        await trio.testing.wait_all_tasks_blocked()
        assert_at_rest(self.world)
        assert task_names() == self.tasks
        assert open_sockets(self.world.network) == self.sockets
        figures = self.world.server.statistics()
        assert (figures.connected, figures.away, figures.half_open) == (1, 0, 0)
        assert figures.endpoint.connection_ids == self.connection_ids
        assert self.client.statistics().connects == 1


def slow_router() -> Router:
    router = echo_router()
    slow = Router()

    @slow.on(MessageType.COMMAND)
    async def command(request: Request) -> bytes:
        await trio.sleep(0.5)
        return request.message.payload

    for kind in (MessageType.QUERY, MessageType.EVENT):
        route = router.route(kind)
        assert route is not None
        slow.add(kind, route.handler)
    return slow


@contextlib.asynccontextmanager
async def watched(**limits: int) -> AsyncIterator[Watched]:
    own = Limits(**limits)
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=slow_router(),
        client_router=slow_router(),
        server_config=ServerConfig(limits=own, heartbeat_interval=600, heartbeat_timeout=2000),
        client_config=ClientConfig(limits=own, heartbeat_interval=600, heartbeat_timeout=2000),
    ) as world:
        await trio.sleep(1)
        yield Watched(world)


PATIENT = 100.0


# -- send and request --------------------------------------------------------------------------------------------------
async def test_send(autojump_clock: MockClock) -> None:
    async with watched() as watch:
        for peer in (watch.client, watch.session):
            # Before the first checkpoint, and in the wait that comes once in so many messages, which no longer counts as one.
            assert await sweep(lambda peer=peer: peer.send(Message.event(b"x")), watch.check) == 1  # type: ignore[misc]


async def test_send_behind_a_full_outbox(autojump_clock: MockClock) -> None:
    """Cancelled there, the message is not sent, and those behind it move up."""
    received: list[bytes] = []
    gate = trio.Event()
    router = slow_router()
    router_with_gate = Router()

    @router_with_gate.on(MessageType.EVENT, serial=True)
    async def event(request: Request) -> None:
        received.append(request.message.payload[:1])
        await gate.wait()

    for kind in (MessageType.QUERY, MessageType.COMMAND):
        route = router.route(kind)
        assert route is not None
        router_with_gate.add(kind, route.handler)
    limits = Limits(outbox_bytes=4096, lane_window=16 * 1024)
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=router_with_gate,
        server_config=ServerConfig(limits=limits, handler_timeout=math.inf),
        client_config=ClientConfig(limits=limits),
    ) as world:
        lane = world.clients["client-0"].lane("full")
        checkpoints = 0
        # At the first checkpoint (there is one before the wait) and in the wait itself; the third time the handler is let go.
        for count in range(20):
            gate = trio.Event()
            received.clear()
            while True:
                try:
                    lane.send_nowait(Message.event(b"f" + bytes(999)))
                except trio.WouldBlock:
                    await trio.sleep(0.5)
                    if not lane._lane.has_room:
                        break

            async def release(gate: trio.Event) -> None:
                await trio.sleep(1)
                gate.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(release, gate)
                cancelled = await cancelled_at(count, partial(lane.send, Message.event(b"S")))
                # Those that come later are not held up by the one that gave up.
                await lane.send(Message.event(b"L"))
            await until(lambda: b"L" in received)
            assert (b"S" in received) is not cancelled
            await trio.sleep(1)
            assert_at_rest(world)
            if not cancelled and count:
                checkpoints = count
                break
        assert checkpoints >= 2


async def test_send_before_the_first_connection(autojump_clock: MockClock) -> None:
    """Cancelled while it waits for the server, the message is not sent once there is one."""
    server_tls, client_tls = throwaway_tls()
    network = MemoryNetwork(delay=0.01)
    for operation in ("send", "request"):
        for size in (1, 3000):
            received: list[bytes] = []
            router = Router()

            async def handle(request: Request, received: list[bytes] = received) -> None:
                received.append(request.message.payload[:1])

            router.add(MessageType.EVENT, handle)
            config = ClientConfig(limits=Limits(outbox_bytes=4096))
            async with trio.open_nursery() as nursery:
                async with open_client("server", client_id="early", tls=client_tls, network=network, config=config) as client:
                    await trio.sleep(0.1)
                    for count in range(3):
                        if size > 1 and count == 2:
                            client.send_nowait(Message.event(b"f" + bytes(size)))
                            client.send_nowait(Message.event(b"f" + bytes(size)))
                        held = client.statistics().outbox_bytes
                        message = Message.event(b"S" + bytes(size))
                        call: Callable[[], Awaitable[object]] = partial(getattr(client, operation), message)
                        assert await cancelled_at(count, call, everyone=count == 2)
                        assert client.statistics().outbox_bytes == held
                    assert client.statistics().requests_waiting == 0
                    nursery.start_soon(partial(serve, router, host="server", tls=server_tls, network=network))
                    await client.request(Message.event(b"L"), ack_timeout=60)
                    assert [one for one in received if one != b"f"] == [b"L"]
                nursery.cancel_scope.cancel()
    assert open_sockets(network) == set()


async def test_request(autojump_clock: MockClock) -> None:
    async with watched() as watch:
        for peer in (watch.client, watch.session):
            for ack_timeout in (PATIENT, math.inf):
                request = partial(peer.request, Message.command(b"slow"), ack_timeout=ack_timeout)
                assert await sweep(request, watch.check) == 2


async def test_request_while_the_rest_of_the_program_moves_on(autojump_clock: MockClock) -> None:
    """Cancelled not only where its own task waits, but after each step of any task: on the wire, at the peer, on the way back."""
    async with watched() as watch:
        for peer in (watch.client, watch.session):
            request = partial(peer.request, Message.command(bytes(5000)))
            count = await sweep(request, watch.check, everyone=True)
            assert count > 15


async def test_delivered(autojump_clock: MockClock) -> None:
    async with watched() as watch:
        for peer in (watch.client, watch.session):

            async def send_and_wait(peer: Client = peer) -> None:  # type: ignore[assignment]
                sent = await peer.send(Message.event(b"x"))
                try:
                    await sent.delivered()
                finally:
                    assert not sent._outgoing.watchers

            assert await sweep(send_and_wait, watch.check) == 2
            assert await sweep(send_and_wait, watch.check, everyone=True) > 5


# -- broadcast ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ack_timeout", [None, PATIENT, math.inf])
async def test_broadcast(autojump_clock: MockClock, ack_timeout: float | None) -> None:
    async with watched() as watch:
        server = watch.world.server
        count = await sweep(lambda: server.broadcast(Message.command(b"all"), ack_timeout=ack_timeout), watch.check)
        assert count == (1 if ack_timeout is None else 2)
        count = await sweep(
            lambda: server.broadcast(Message.command(b"all"), ack_timeout=ack_timeout), watch.check, everyone=True
        )
        assert count == 1 if ack_timeout is None else count > 10


async def test_broadcast_to_more_than_a_portion(autojump_clock: MockClock) -> None:
    async with open_world(clients=66, network=MemoryNetwork(delay=0.01), client_router=slow_router()) as world:

        async def check() -> None:
            await trio.sleep(1)
            assert_at_rest(world)

        for ack_timeout in (None, PATIENT):
            count = await sweep(partial(world.server.broadcast, Message.command(b"all"), ack_timeout=ack_timeout), check)
            assert count == (2 if ack_timeout is None else 3)


# -- clients and servers -----------------------------------------------------------------------------------------------
async def test_open_client(autojump_clock: MockClock) -> None:
    _, client_tls = throwaway_tls()
    async with watched() as watch:
        world = watch.world

        async def use_another() -> None:
            async with open_client(
                "server", client_id="another", tls=client_tls, router=slow_router(), network=world.network
            ) as client:
                assert (await client.request(Message.command(b"x"), ack_timeout=PATIENT)).result == b"x"
                await client.send(Message.event(b"y"))

        async def check() -> None:
            await until(lambda: not world.server.statistics().half_open and len(world.server.sessions) == 1)
            # A session is kept for a while; the handler it still runs is let go when the client said goodbye.
            await until(lambda: not world.server.statistics().away, seconds=200)
            await until(lambda: world.server.statistics().endpoint.connection_ids == watch.connection_ids, seconds=200)
            await watch.check()

        assert await sweep(use_another, check) >= 4
        assert await sweep(use_another, check, everyone=True, stride=3) > 60


async def test_rebind(autojump_clock: MockClock) -> None:
    async with watched() as watch:

        async def check() -> None:
            # One socket of the client as before, wherever it is now.
            assert len(open_sockets(watch.world.network)) == len(watch.sockets)
            watch.sockets = open_sockets(watch.world.network)
            await watch.check()

        assert await sweep(watch.client.rebind, check) >= 3
        assert await sweep(watch.client.rebind, check, everyone=True) > 5


async def test_wait_connected(autojump_clock: MockClock) -> None:
    _, client_tls = throwaway_tls()
    async with watched() as watch:
        network = watch.world.network

        async def connect() -> None:
            async with open_client("server", client_id="another", tls=client_tls, network=network) as client:
                for count in range(3):
                    if not await cancelled_at(count, client.wait_connected):
                        break
                    assert len(client._supervisor.changed) == 0
                await client.wait_connected()
                assert await cancelled_at(0, client.wait_connected)
                for count in range(3):
                    assert await cancelled_at(count, client.wait_closed, everyone=count == 2)

        await connect()
        await until(lambda: not watch.world.server.statistics().away, seconds=200)
        await watch.check()


@contextlib.asynccontextmanager
async def serving(network: MemoryNetwork, started: list[Server]) -> AsyncIterator[None]:
    server_tls, _ = throwaway_tls()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(serve, slow_router(), host="server", tls=server_tls, network=network, config=ServerConfig(session_ttl=5))
        )
        started.append(server)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ending", ["cancel", "drain", "aclose"])
async def test_serve(autojump_clock: MockClock, ending: str) -> None:
    """A client talks to a server that is cancelled after each step: its sockets and tasks are gone, the client comes back."""
    _, client_tls = throwaway_tls()
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(backoff_initial=0.1, backoff_max=0.2, seed=1)
    tasks = task_names()
    async with open_client(
        "server", client_id="faithful", tls=client_tls, router=slow_router(), network=network, config=config
    ) as client:

        async def live() -> None:
            started: list[Server] = []
            async with serving(network, started):
                with contextlib.suppress(QuicFlowError):
                    await client.request(Message.command(b"x"), ack_timeout=PATIENT)
                if ending == "drain":
                    await started[0].drain(grace=1)
                elif ending == "aclose":
                    await started[0].aclose()

        async def check() -> None:
            await trio.testing.wait_all_tasks_blocked()
            assert {host for host, _ in open_sockets(network)} <= {"faithful"}
            assert client.statistics().requests_waiting == 0
            await until(lambda: client.statistics().outbox_bytes == 0 and client._lane.unreceipted == 0)

        assert await sweep(live, check) >= 2
        # Steps of the client's own tasks count as well: its attempts, its backoff.
        assert await sweep(live, check, everyone=True, stride=2, limit=400) > 20
        async with serving(network, []):
            assert (await client.request(Message.command(b"back"), ack_timeout=PATIENT)).result == b"back"
    await trio.testing.wait_all_tasks_blocked()
    assert task_names() == tasks
    assert open_sockets(network) == set()


async def test_drain_cancelled_leaves_a_server_that_drains(autojump_clock: MockClock) -> None:
    _, client_tls = throwaway_tls()
    for count in (0, 1, 2, 5, 10, 20, 40):
        network = MemoryNetwork(delay=0.01)
        started: list[Server] = []
        async with open_client("server", client_id="one", tls=client_tls, network=network) as client, serving(network, started):
            await client.wait_connected()
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    with contextlib.suppress(QuicFlowError):
                        await client.request(Message.command(b"x"))

                nursery.start_soon(ask)
                await trio.sleep(0.2)
                await cancelled_at(count, partial(started[0].drain, grace=5), everyone=count > 2)
            # It goes on from where it was, and ends.
            with trio.fail_after(10):
                await started[0].drain(grace=5)
            assert ("server", 8474) not in open_sockets(network)
            with trio.fail_after(1):
                await started[0].aclose()


async def test_session_close(autojump_clock: MockClock) -> None:
    async with open_world(
        network=MemoryNetwork(delay=0.01), client_config=ClientConfig(backoff_initial=0.01, backoff_max=0.01)
    ) as world:
        client = world.clients["client-0"]

        async def close() -> None:
            await world.server.sessions["client-0"].close("sweep")

        async def check() -> None:
            # Begun, it goes on by itself; cancelled before, nothing has happened.
            await trio.sleep(1)
            await client.wait_connected()
            await until(lambda: [*world.server.sessions] == ["client-0"])
            assert (await client.request(Message.command(b"x"))).result == b"x"
            assert world.server.statistics().away == 0
            await trio.sleep(0.5)
            assert_at_rest(world)

        assert await sweep(close, check) >= 1
        assert await sweep(close, check, everyone=True) >= 2


async def test_a_cancellation_is_kept_no_longer_than_its_message(autojump_clock: MockClock) -> None:
    """Nothing else is said on the lane after it, so the peer has to tell by itself that it is done with it."""
    async with open_world(network=MemoryNetwork(delay=0.01), router=slow_router()) as world:
        client = world.clients["client-0"]
        with trio.move_on_after(0.1) as scope:
            await client.request(Message.command(b"x"))
        assert scope.cancelled_caught
        await trio.sleep(1)
        assert not client._link.lanes[""]._cancelled
