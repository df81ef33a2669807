"""`Sent.delivered`: received and kept by the peer, neither more nor less."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientNotConnected, ClientState, ConnectionClosed, ConnectionLost, Message, ServerConfig, open_client
from quicflow_trio.testing import MemoryNetwork, open_world, throwaway_tls
from tests.messages.harness import Gate, Recorder, assert_at_rest, until


async def test_it_returns_on_receipt_and_before_the_handler_ends(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(network=MemoryNetwork(delay=0.1), router=gate.router) as world:
        client = world.clients["client-0"]
        message = Message.command(b"x")
        sent = await client.send(message)
        assert sent.id == message.id
        start = trio.current_time()
        await sent.delivered()
        assert trio.current_time() - start == pytest.approx(0.2, abs=0.01)
        assert (gate.started, gate.passed) == ([b"x"], [])
        await sent.delivered()
        assert trio.current_time() - start == pytest.approx(0.2, abs=0.01), "it is known by now"
        # Behind a message whose handler stands still, the next one is received all the same.
        await (await client.send(Message.command(b"y"))).delivered()
        assert gate.started == [b"x"]
        gate.opened.set()


async def test_it_is_always_a_checkpoint(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        sent = await world.clients["client-0"].send(Message.event())
        await sent.delivered()
        with trio.testing.assert_checkpoints():
            await sent.delivered()
        with trio.CancelScope() as scope:
            scope.cancel()
            await sent.delivered()
        assert scope.cancelled_caught


async def test_several_wait_and_one_that_gives_up_leaves_nothing(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=1.0)
    async with open_world(network=network) as world:
        sent = await world.clients["client-0"].send(Message.event())
        outgoing = sent._outgoing
        returned: list[float] = []

        async def wait() -> None:
            await sent.delivered()
            returned.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            with trio.move_on_after(0.5) as scope:
                await sent.delivered()
            assert scope.cancelled_caught
            assert len(outgoing.watchers or ()) == 3
        assert len(set(returned)) == 1
        assert not outgoing.watchers
        await trio.sleep(5)
        assert_at_rest(world)


async def test_one_that_gives_up_as_the_receipt_comes_leaves_nothing_either(autojump_clock: MockClock) -> None:
    async with open_world(network=MemoryNetwork(delay=1.0)) as world:
        sent = await world.clients["client-0"].send(Message.event())
        with trio.CancelScope() as scope:

            async def cancel_with_the_receipt() -> None:
                await sent.delivered()
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_with_the_receipt)
                await sent.delivered()
        assert sent._outgoing.watchers is None


async def test_it_holds_across_a_reconnect(autojump_clock: MockClock) -> None:
    """Sessions resume: what the connection lost goes out again on the next one, and is handled once."""
    recorder, other = Recorder(), Recorder()
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, router=recorder.router, client_router=other.router) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        network.partition("client-0")
        sent = [await client.send(Message.event(b"kept")), await session.send(Message.event(b"kept"))]
        await until(lambda: not session.connected and client.state.value is not ClientState.CONNECTED)
        with pytest.raises(ClientNotConnected):
            await session.send(Message.event())
        network.heal()
        for one in sent:
            await one.delivered()
        assert recorder.payloads() == other.payloads() == [b"kept"]
        assert world.server.sessions["client-0"] is session
        assert client.metrics().sessions_resumed == world.server.metrics().sessions_resumed == 1
        assert client.metrics().messages_resent == world.server.metrics().messages_resent == 1
        assert client.metrics().messages_lost == world.server.metrics().messages_lost == 0


async def test_a_session_that_ended_before_the_receipt_is_said(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(session_ttl=5)
    async with open_world(network=network, router=recorder.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        network.partition("client-0")
        from_client, from_server = await client.send(Message.event(b"lost")), await session.send(Message.event(b"lost"))
        errors: list[ConnectionLost] = []

        async def wait(index: int) -> None:
            with pytest.raises(ConnectionLost) as caught:
                await (from_client, from_client, from_server)[index].delivered()
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(wait, index)
            await trio.sleep(100)
            # The server has given the session up; the client hears of it when it comes back.
            assert len(errors) == 1
            network.heal()
        assert len({id(error) for error in errors}) == 3, "each gets an exception of its own"
        with pytest.raises(ConnectionLost):
            await from_client.delivered()
        with pytest.raises(ClientNotConnected):
            await session.send(Message.event())
        await (await client.send(Message.event(b"later"))).delivered()
        assert recorder.payloads() == [b"later"]


async def test_a_client_that_closes_says_so(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    _, client_tls = throwaway_tls()
    async with open_client("server", client_id="alone", tls=client_tls, network=network) as client:
        sent = client.send_nowait(Message.event())
    with pytest.raises(ConnectionClosed):
        await sent.delivered()
    with pytest.raises(ConnectionClosed):
        await client.send(Message.event())
    with pytest.raises(ConnectionClosed):
        client.send_nowait(Message.event())
    with pytest.raises(ConnectionClosed):
        await client.request(Message.event())
    assert client.statistics().outbox_bytes == 0


async def test_a_session_that_is_closed_says_so(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(network=MemoryNetwork(delay=0.01), client_router=gate.router) as world:
        session = world.server.sessions["client-0"]
        sent = await session.send(Message.event())
        outcome: list[str] = []

        async def ask() -> None:
            with pytest.raises(ConnectionClosed):
                await session.request(Message.command())
            outcome.append("closed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            await session.close("enough")
        assert outcome == ["closed"]
        await sent.delivered()
        with pytest.raises(ConnectionClosed):
            await session.send(Message.event())
        with pytest.raises(ConnectionClosed):
            await session.request(Message.event())
        gate.opened.set()
        await until(lambda: "client-0" in world.server.sessions)
        assert world.server.session("client-0") is not session


async def test_what_was_sent_while_waiting_for_a_server_goes_out_in_order(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    network = MemoryNetwork(delay=0.01)
    async with open_world(clients=0, network=network, router=recorder.router, server_config=ServerConfig()):
        _, client_tls = throwaway_tls()
        network.partition("late")
        async with open_client("server", client_id="late", tls=client_tls, network=network) as client:
            sent = [client.send_nowait(Message.event(b"%d" % number)) for number in range(10)]
            await trio.sleep(3)
            assert client.statistics().outbox_messages == 10
            network.heal()
            for one in sent:
                await one.delivered()
        assert recorder.payloads() == [b"%d" % number for number in range(10)]
