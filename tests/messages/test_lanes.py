"""Lanes: independent of each other, bounded in number, and as lasting as their session."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    ClientConfig,
    ConfigurationError,
    LaneLimitReached,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    open_client,
    serve,
)
from quicflow_trio.testing import MemoryNetwork, open_world, throwaway_tls
from tests.messages.harness import Gate, Recorder, assert_at_rest, until


async def test_each_lane_keeps_its_own_order(autojump_clock: MockClock) -> None:
    server, client = Recorder(), Recorder()
    network = MemoryNetwork(seed=5, loss=0.1, delay=0.02, reorder=0.2)
    async with open_world(network=network, router=server.router, client_router=client.router) as world:
        for peer, recorder in ((world.clients["client-0"], server), (world.server.sessions["client-0"], client)):
            names = ["", "blue", "grün", "a b"]
            for number in range(50):
                for name in names:
                    sent = await peer.lane(name).send(Message.event(f"{name}:{number}".encode()))
            await sent.delivered()
            await until(lambda recorder=recorder: len(recorder.received) == 200)  # type: ignore[misc]
            for name in names:
                mine = [one for one in recorder.payloads() if one.startswith(name.encode() + b":")]
                assert mine == [f"{name}:{number}".encode() for number in range(50)]
            assert peer.statistics().lanes == 4


async def test_a_lost_packet_of_one_lane_does_not_hold_up_another(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router) as world:
        client = world.clients["client-0"]
        await client.lane("slow").send(Message.command(b"stuck"))
        start = trio.current_time()
        for number in range(20):
            assert (await client.lane("fast").request(Message.query(b"%d" % number))).result == b"%d" % number
        assert trio.current_time() - start < 1
        gate.opened.set()


async def test_the_same_name_is_the_same_lane(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        blue = client.lane("blue")
        assert client.lane("blue") is blue
        assert blue.lane("blue") is blue
        assert blue.lane("") is client
        assert client.lane("") is client
        session = world.server.sessions["client-0"]
        assert session.lane("") is session
        # A name used in both directions is two lanes.
        await session.lane("blue").request(Message.command())
        await blue.request(Message.command())
        assert (client.statistics().lanes, session.statistics().lanes) == (2, 2)


@pytest.mark.parametrize("name", [" blue", "blue ", "a\nb", "\x00", "x" * 129, "é" * 65, "\ud800"])
async def test_a_name_that_the_peer_would_refuse_is_refused_here(autojump_clock: MockClock, name: str) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        with pytest.raises(ConfigurationError, match="lane name"):
            client.lane(name)
        assert client.statistics().lanes == 1


async def test_the_longest_name_passes(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        for name in ("x" * 128, "é" * 64):
            assert (await client.lane(name).request(Message.command(b"x"))).result == b"x"


async def test_the_number_of_lanes_is_bounded_by_both_sides(autojump_clock: MockClock) -> None:
    for own, peers in ((3, 16), (16, 3), (3, 3)):
        async with open_world(
            client_config=ClientConfig(limits=Limits(lanes=own)), server_config=ServerConfig(limits=Limits(lanes=peers))
        ) as world:
            for peer in (world.clients["client-0"], world.server.sessions["client-0"]):
                for name in ("a", "b"):
                    assert (await peer.lane(name).request(Message.command(b"x"))).result == b"x"
                with pytest.raises(LaneLimitReached, match="the limit is 3"):
                    peer.lane("c")
                peer.lane("a")
            assert_at_rest(world)


async def test_lanes_opened_before_the_peers_limit_was_known_are_refused_by_name(autojump_clock: MockClock) -> None:
    """Their messages would wait for ever for a stream that the peer does not allow."""
    server_tls, client_tls = throwaway_tls()
    network = MemoryNetwork(delay=0.01)
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        async with open_client("server", client_id="early", tls=client_tls, network=network) as client:
            allowed = [client.lane(name).send_nowait(Message.event(name.encode())) for name in ("", "a", "b")]
            refused = [client.lane(name).send_nowait(Message.event(name.encode())) for name in ("c", "d")]

            async def run() -> None:
                config = ServerConfig(limits=Limits(lanes=3))
                await serve(recorder.router, host="server", tls=server_tls, network=network, config=config)

            nursery.start_soon(run)
            for sent in allowed:
                with trio.fail_after(60):
                    await sent.delivered()
            for sent in refused:
                with pytest.raises(LaneLimitReached), trio.fail_after(5):
                    await sent.delivered()
            with pytest.raises(LaneLimitReached), trio.fail_after(5):
                await client.lane("d").request(Message.command())
            await client.lane("a").request(Message.command())
            assert client.statistics().outbox_messages == 0
        nursery.cancel_scope.cancel()
    assert sorted(recorder.payloads(MessageType.EVENT)) == [b"", b"a", b"b"]


async def test_lanes_and_what_waits_on_them_outlive_a_clients_connection(autojump_clock: MockClock) -> None:
    recorder = Recorder()
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, router=recorder.router) as world:
        client = world.clients["client-0"]
        blue = client.lane("blue")
        for number in range(10):
            await blue.send(Message.event(b"blue %d" % number))
            sent = await client.send(Message.event(b"%d" % number))
        await sent.delivered()
        await trio.sleep(1)
        network.partition("client-0")
        await until(lambda: client.state.value.value != "connected")
        for number in range(10, 20):
            last_blue = await blue.send(Message.event(b"blue %d" % number))
            sent = await client.send(Message.event(b"%d" % number))
        assert client.statistics().outbox_messages == 20
        network.heal()
        await sent.delivered()
        await last_blue.delivered()
        assert client.lane("blue") is blue
        assert [one for one in recorder.payloads() if one.isdigit()] == [b"%d" % number for number in range(20)]
        assert [one for one in recorder.payloads() if one.startswith(b"blue")] == [b"blue %d" % number for number in range(20)]
        assert client.statistics().connects == 2
        await until(lambda: "client-0" in world.server.sessions)
        await trio.sleep(1)
        assert_at_rest(world)


async def test_a_handler_answers_on_a_lane_of_its_own(autojump_clock: MockClock) -> None:
    router, client = Router(), Recorder()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> None:
        await request.peer.lane("progress").send(Message.event(b"half"))
        await request.peer.lane("progress").send(Message.event(b"done"))

    config = ServerConfig(handler_timeout=math.inf)
    async with open_world(router=router, client_router=client.router, server_config=config) as world:
        await world.clients["client-0"].request(Message.command())
        await until(lambda: len(client.received) == 2)
        assert client.payloads() == [b"half", b"done"]
