"""What the simulation has found: the smallest test of each, without it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, Delivery, DisconnectEvent, DisconnectReason, Message, MessageType, Request, Router
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import echo_router, open_world, seeded
from quicflow_trio.wire import Welcome
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import hello, open_raw


async def test_a_lane_that_came_with_what_is_redelivered_is_that_of_its_name(autojump_clock: MockClock) -> None:
    # The session made a second lane of the same name, and its client closed: "lane 'bulk' was opened twice".
    async with open_machine() as machine, client_of(machine.network, host="first") as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        machine.network.partition("first")
        kept = await session.lane("bulk").send(Message.event(delivery=Delivery.REDELIVER))
        async with client_of(machine.network, host="second", router=echo_router()) as newer:
            await newer.wait_connected()
            await kept.delivered()
            session = machine.server.sessions["worker"]
            assert (await session.lane("bulk").request(Message.command(b"once more"))).result == b"once more"
            assert session.statistics().lanes == 2
            assert newer.statistics().connects == 1


@seeded(1)
async def test_a_server_that_stops_says_so_to_those_who_came_back_too(autojump_clock: MockClock) -> None:
    # The task of a session's first connection closed the one that carried it since, for "internal error", if its turn came first.
    async with open_world(clients=8, client_config=ClientConfig(backoff_initial=0.01)) as world, AsyncExitStack() as stack:
        clients = world.clients.values()
        for session in world.server.sessions.values():
            session._connection.engine.close(0, "cut", application=False)
            session._connection.pump.kick()
        await until(lambda: all(client.statistics().connects == 2 for client in clients))
        ends = [await stack.enter_async_context(client.open_events(kinds=[DisconnectEvent])) for client in clients]
        await trio.sleep(0.1)
        await world.server.aclose()
        for events in ends:
            end = await anext(events)
            assert isinstance(end, DisconnectEvent)
            assert end.reason is DisconnectReason.SHUTDOWN


async def test_a_session_outlives_a_welcome_that_does_not_come(autojump_clock: MockClock) -> None:
    # The server had resumed the session, and ended it when the client gave up waiting to be told so.
    async with open_world(clients=0) as world, open_raw(world.network, "first") as first:
        first.open(hello())
        token = (await first.frame(Welcome)).session_token
        session = world.server.sessions["raw"]
        world.network.partition("first")
        async with open_raw(world.network, "second") as second:
            second.open(replace(hello(), session_token=token))
            assert (await second.frame(Welcome)).resumed
            second.engine.close(int(CloseCode.HELLO_TIMEOUT), "hello timeout")
            second.kick()
            await until(lambda: not session.connected)
        async with open_raw(world.network, "third") as third:
            third.open(replace(hello(), session_token=token))
            assert (await third.frame(Welcome)).resumed
            assert world.server.sessions["raw"] is session


@pytest.mark.parametrize("ack_timeout", [None, 10.0])
async def test_broadcasts_leave_in_the_order_in_which_they_are_begun(
    autojump_clock: MockClock, ack_timeout: float | None
) -> None:
    # Each yielded before it took its place in the outboxes: of two begun at the same time either could be the first.
    received: list[bytes] = []
    router = Router()

    @router.on(MessageType.EVENT)
    async def take(request: Request) -> None:
        received.append(request.message.payload)

    begun: list[bytes] = []
    with seeded(1):
        async with open_world(client_router=router) as world:

            async def begin(payload: bytes) -> None:
                begun.append(payload)
                await world.server.broadcast(Message.event(payload), ack_timeout=ack_timeout)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(begin, b"%d" % number)
            await until(lambda: len(received) == 20)
    assert received == begun


async def test_a_client_that_is_closed_leaves_no_timer(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        assert (await world.server.sessions["client-0"].request(Message.command(b"x"))).result == b"x"
        await trio.sleep(0.1)
    assert not any(entry.live for _at, _order, entry in client._deadlines._entries)
