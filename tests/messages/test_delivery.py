"""Everything arrives, in order per lane, over a network that loses, delays, doubles and reorders; and in few packets over a good one."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Ack,
    AckStatus,
    AuthenticationFailed,
    ClientConfig,
    Delivery,
    Limits,
    Message,
    MessageType,
    PayloadTooLarge,
    Peer,
    ServerConfig,
    open_client,
)
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.messages.harness import KINDS, Recorder, assert_at_rest, until

MIB = 1 << 20


async def send_all(peer: Peer, count: int) -> None:
    """Send ``count`` messages of each kind in turn, half of them with a request of the same kind, and see each acked."""
    acked: list[bytes] = []

    async def request(message: Message) -> None:
        ack = await peer.request(message, ack_timeout=120)
        assert ack == Ack(AckStatus.SUCCESS, message.payload[::-1])
        acked.append(message.payload)

    async with trio.open_nursery() as nursery:
        for kind in KINDS:
            for number in range(count):
                nursery.start_soon(request, Message(kind, b"request %d" % number))
        for number in range(count):
            for kind in KINDS:
                sent = await peer.send(Message(kind, b"%d" % number))
        await sent.delivered()
    assert len(acked) == count * len(KINDS)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_over_a_bad_network_nothing_is_lost_doubled_or_out_of_order(autojump_clock: MockClock, seed: int) -> None:
    network = MemoryNetwork(seed=seed, loss=0.2, delay=0.03, reorder=0.2, duplicate=0.1)
    server, client = Recorder(), Recorder()
    async with open_world(network=network, router=server.router, client_router=client.router, seed=seed) as world:
        peer = world.clients["client-0"]
        session = world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all, peer, 100)
            nursery.start_soon(send_all, session, 100)

            async def broadcasts() -> None:
                for number in range(100):
                    report = await world.server.broadcast(Message.event(b"broadcast %d" % number), ack_timeout=120)
                    assert (report.sent, [*report.acked], report.failed) == (1, ["client-0"], {})

            nursery.start_soon(broadcasts)
        for recorder in (server, client):
            for kind in KINDS:
                payloads = recorder.payloads(kind)
                assert [one for one in payloads if one.isdigit()] == [b"%d" % number for number in range(100)]
                requests = [one for one in payloads if one.startswith(b"request")]
                assert sorted(requests) == sorted(b"request %d" % number for number in range(100))
            assert len({message.id for message in recorder.received}) == len(recorder.received)
        broadcast = [one for one in client.payloads(MessageType.EVENT) if one.startswith(b"broadcast")]
        assert broadcast == [b"broadcast %d" % number for number in range(100)]
        statistics = network.statistics()
        assert statistics.lost
        assert statistics.duplicated
        assert statistics.reordered
        await trio.sleep(5)
        assert_at_rest(world)


async def test_what_the_sender_chose_is_what_the_receiver_sees(autojump_clock: MockClock) -> None:
    server = Recorder()
    async with open_world(router=server.router) as world:
        message = Message.query(b"payload", delivery=Delivery.REDELIVER)
        await world.clients["client-0"].request(message)
        [received] = server.received
        assert (received.id, received.type, received.payload) == (message.id, MessageType.QUERY, b"payload")
        assert (received.sender, received.timestamp, received.delivery) == ("client-0", message.timestamp, Delivery.REDELIVER)
        back = Message.command()
        client = Recorder()
        world.clients["client-0"]._link.dispatcher._router = client.router  # type: ignore[attr-defined]
        await world.server.sessions["client-0"].request(back)
        assert (client.received[0].sender, client.received[0].delivery) == ("server", Delivery.AT_MOST_ONCE)


async def test_a_mebibyte_goes_both_ways(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        payload = bytes(range(256)) * (MIB // 256)
        assert (await client.request(Message.command(payload))).result == payload
        assert (await session.request(Message.command(payload))).result == payload
        await trio.sleep(1)
        assert_at_rest(world)


async def test_a_payload_over_the_own_limit_is_refused_before_it_is_queued(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        large = Message.command(bytes(MIB + 1))
        with pytest.raises(PayloadTooLarge) as caught:
            await client.send(large)
        assert (caught.value.size, caught.value.limit) == (MIB + 1, MIB)
        with pytest.raises(PayloadTooLarge):
            client.send_nowait(large)
        with pytest.raises(PayloadTooLarge):
            await client.request(large)
        report = await world.server.broadcast(large, ack_timeout=5)
        assert report.sent == 0
        assert isinstance(report.failed["client-0"], PayloadTooLarge)
        assert_at_rest(world)
        assert (await client.request(Message.command(b"x"))).result == b"x"


async def test_the_peers_smaller_limit_counts_once_it_is_known(autojump_clock: MockClock) -> None:
    small = ServerConfig(limits=Limits(payload=1000))
    server = Recorder()
    async with open_world(network=MemoryNetwork(delay=0.01), router=server.router, server_config=small) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        for peer in (client, session):
            with pytest.raises(PayloadTooLarge) as caught:
                await peer.request(Message.command(bytes(1001)))
            assert caught.value.limit == 1000
        assert (await client.request(Message.command(bytes(1000)))).result == bytes(1000)


async def test_what_was_queued_before_the_peers_limit_was_known_is_refused_by_name(autojump_clock: MockClock) -> None:
    """Neither may the large ones go out, where the peer would cut the connection, nor the small ones between them be lost."""
    small = ServerConfig(limits=Limits(payload=1000), session_ttl=0)
    server = Recorder()
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, router=server.router, server_config=small) as world:
        client = world.clients["client-0"]
        network.partition("client-0")
        await until(lambda: client.state.value.value != "connected")
        # Between connections only the own limit is known.
        sent = [await client.send(Message.command(bytes(size))) for size in (10, 2000, 20, 3000, 30)]
        outcome: list[str] = []

        async def request() -> None:
            with pytest.raises(PayloadTooLarge):
                await client.request(Message.command(bytes(4000)), ack_timeout=1000)
            outcome.append("refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            await trio.sleep(0.1)
            network.heal()
        for one, refused in zip(sent, (False, True, False, True, False), strict=True):
            if refused:
                with pytest.raises(PayloadTooLarge):
                    await one.delivered()
            else:
                await one.delivered()
        assert outcome == ["refused"]
        assert [len(payload) for payload in server.payloads()] == [10, 20, 30]
        assert (await client.request(Message.command(b"ab"))).result == b"ba"
        assert client.statistics().connects == 2
        await trio.sleep(1)
        assert_at_rest(world)


@pytest.mark.parametrize("operation", ["send", "request"])
async def test_what_waits_for_a_server_that_refuses_the_client_is_told(autojump_clock: MockClock, operation: str) -> None:
    network = MemoryNetwork(delay=0.01)
    # The public authorities have not signed the server's certificate.
    async with open_world(clients=0, network=network), open_client("server", client_id="stranger", network=network) as client:

        async def call(size: int) -> None:
            with pytest.raises(AuthenticationFailed):
                await getattr(client, operation)(Message.event(bytes(size)))

        async with trio.open_nursery() as nursery:
            for size in (10, MIB, 20):
                nursery.start_soon(call, size)
        figures = client.statistics()
        assert (figures.outbox_bytes, figures.outbox_messages, figures.requests_waiting) == (0, 0, 0)


async def test_messages_sent_in_a_row_share_packets(autojump_clock: MockClock) -> None:
    """A packet per message costs 20 times the time: sends that do not wait must not wake the pump one by one."""
    network = MemoryNetwork(delay=0.01)
    server = Recorder()
    async with open_world(network=network, router=server.router) as world:
        client = world.clients["client-0"]
        assert client._supervisor.connection is not None
        turns = client._supervisor.connection.pump.turns
        before = network.statistics().sent
        for number in range(1000):
            sent = await client.send(Message.event(b"%d" % number))
        await sent.delivered()
        # 1,000 messages of some 40 bytes fill 34 datagrams of 1,200 bytes; the peer acknowledges every second.
        assert network.statistics().sent - before < 120
        assert client._supervisor.connection.pump.turns - turns < 120
        assert len(server.received) == 1000


async def test_requests_at_once_share_packets(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        before = network.statistics().sent
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.request, Message.command(b"x" * 20))
        assert network.statistics().sent - before < 60


async def test_a_sender_who_never_waits_lets_others_run(autojump_clock: MockClock) -> None:
    async with open_world(client_config=ClientConfig(limits=Limits(outbox_bytes=64 * MIB))) as world:
        client = world.clients["client-0"]
        others = 0
        done = False

        async def other() -> None:
            nonlocal others
            while not done:
                others += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(1000):
                # A lane asked for afresh each time is the same lane, and counts on.
                await client.lane("busy").send(Message.event(b""))
            done = True
        assert others > 10
