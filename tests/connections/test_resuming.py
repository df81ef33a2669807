"""Sessions that survive their connections: exactly once while both sides live, redelivered or lost when one was restarted."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    Client,
    ClientConfig,
    ClientNotConnected,
    ConnectionLost,
    Delivery,
    Limits,
    Message,
    MessageType,
    Peer,
    Request,
    Router,
    ServerConfig,
)
from quicflow_trio.connection import Connection
from quicflow_trio.lanes import KEPT_ACKS
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.sessions import Session
from quicflow_trio.testing import MemoryNetwork, World, open_world, seeded
from quicflow_trio.wire import Hello, LaneOpen, LaneState, MessageFrame, Welcome
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import hello, open_raw

SOON = ClientConfig(backoff_initial=0.01, backoff_max=0.1, seed=1)


class Counting:
    """Counts how often each message was handled; answers with the payload backwards, after a while."""

    def __init__(self, seed: int = 0) -> None:
        self.runs: Counter[bytes] = Counter()
        self.redelivered: list[bytes] = []
        self.order: list[bytes] = []
        self._random = random.Random(seed)
        self.router = Router()
        for type in MessageType:
            self.router.add(type, self.handle)

    async def handle(self, request: Request) -> bytes:
        message = request.message
        self.runs[message.id] += 1
        self.order.append(message.payload)
        if request.redelivered:
            self.redelivered.append(message.payload)
        if message.type is not MessageType.EVENT:
            await trio.sleep(self._random.choice((0, 0, 0.01, 0.3)))
        return message.payload[::-1]


def cut(connection: Connection | None) -> None:
    """End a connection as the network would: without a word of the application."""
    if connection is not None and not connection.engine.closing:
        connection.engine.close(0, "cut", application=False)
        connection.pump.kick()


async def talk(peer: Peer, random: random.Random, ids: set[bytes], count: int) -> None:
    """Send requests and messages on two lanes, and see that each request gets its own result."""

    async def ask(number: int) -> None:
        await trio.sleep(random.random() * 2)
        message = Message.query(b"%d" % number + bytes(random.choice((0, 0, 2000))))
        lane = peer.lane(random.choice(("", "second")))
        while True:
            try:
                ack = await lane.request(message, ack_timeout=math.inf)
            except ClientNotConnected:
                # The server refuses what is new while the client is away.
                await trio.sleep(0.05)
                continue
            break
        ids.add(message.id)
        assert ack.result == message.payload[::-1]

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(ask, number)


@pytest.mark.parametrize("seed", range(12))
async def test_exactly_once_whenever_the_connection_is_cut(autojump_clock: MockClock, seed: int) -> None:
    server, client_side = Counting(seed), Counting(seed + 1)
    network = MemoryNetwork(seed=seed, delay=0.01, jitter=0.005, loss=0.05, reorder=0.1)
    chance = random.Random(seed)
    with seeded(seed):
        async with open_world(
            network=network, router=server.router, client_router=client_side.router, client_config=SOON
        ) as world:
            client, session = world.clients["client-0"], world.server.sessions["client-0"]
            sent: set[bytes] = set()
            received: set[bytes] = set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk, client, chance, sent, 60)
                nursery.start_soon(talk, session, chance, received, 60)
                for _ in range(8):
                    await trio.sleep(chance.random() * 0.4)
                    cut(chance.choice((client._supervisor.connection, session._connection)))
            assert world.server.session("client-0") is session
            assert (len(sent), len(received)) == (60, 60)
            assert server.runs == dict.fromkeys(sent, 1)
            assert client_side.runs == dict.fromkeys(received, 1)
            assert client.metrics().sessions_resumed >= 1
            assert client.metrics().messages_lost == world.server.metrics().messages_lost == 0


@pytest.mark.parametrize("seed", range(10))
async def test_order_is_kept_over_reconnects(autojump_clock: MockClock, seed: int) -> None:
    server = Counting()
    chance = random.Random(seed)
    async with open_world(network=MemoryNetwork(seed=seed, delay=0.01), router=server.router, client_config=SOON) as world:
        client = world.clients["client-0"]
        for number in range(200):
            sent = await client.send(Message.event(b"%d" % number))
            await trio.sleep(0.005)
            if chance.random() < 0.03:
                cut(client._supervisor.connection)
        await sent.delivered()
        assert server.order == [b"%d" % number for number in range(200)]
        assert client.metrics().messages_sent == 200


async def test_a_request_taken_back_while_away_is_not_handled(autojump_clock: MockClock) -> None:
    """Whether the message or only its cancellation was lost; and those around it are."""
    server = Counting()
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, router=server.router, client_config=SOON) as world:
        client = world.clients["client-0"]
        network.partition("client-0")
        first = await client.send(Message.event(b"first"))
        with trio.move_on_after(1):
            await client.request(Message.query(b"taken back"))
        with pytest.raises(AckTimeout):
            await client.request(Message.query(b"timed out"), ack_timeout=1)
        last = await client.send(Message.event(b"last"))
        cut(client._supervisor.connection)
        network.heal()
        await last.delivered()
        await first.delivered()
        assert (await client.request(Message.query(b"ab"))).result == b"ba"
        assert server.order == [b"first", b"last", b"ab"]


async def test_a_handler_is_cancelled_although_its_cancellation_was_lost(autojump_clock: MockClock) -> None:
    router, ended = Router(), trio.Event()

    @router.on(MessageType.COMMAND)
    async def stand(request: Request) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(handler_timeout=math.inf)
    async with open_world(network=network, router=router, server_config=config, client_config=SOON) as world:
        client = world.clients["client-0"]
        with trio.move_on_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.request, Message.command())
                await trio.sleep(1)
                network.partition("client-0")
        cut(client._supervisor.connection)
        network.heal()
        with trio.fail_after(30):
            await ended.wait()


async def test_a_restarted_server_gets_again_what_may_be_redelivered(autojump_clock: MockClock) -> None:
    counting = Counting()
    async with open_machine(router=counting.router) as machine, client_of(machine.network, config=SOON) as client:
        await client.wait_connected()
        machine.network.partition("worker")
        kept = Message.event(b"kept", delivery=Delivery.REDELIVER)
        asked = Message.query(b"asked", delivery=Delivery.REDELIVER)
        outcomes: list[object] = []

        async def ask(message: Message) -> None:
            try:
                outcomes.append((await client.request(message, ack_timeout=math.inf)).result)
            except ConnectionLost:
                outcomes.append(ConnectionLost)

        async with trio.open_nursery() as nursery:
            sent = await client.send(kept)
            nursery.start_soon(ask, asked)
            nursery.start_soon(ask, Message.query(b"once"))
            await trio.sleep(1)
            cut(client._supervisor.connection)
            await machine.kill()
            machine.network.heal()
            await machine.start()
        await sent.delivered()
        assert outcomes == [ConnectionLost, b"deksa"]
        assert counting.runs == {kept.id: 1, asked.id: 1}
        assert sorted(counting.redelivered) == [b"asked", b"kept"]


async def test_a_restarted_client_gets_again_what_may_be_redelivered(autojump_clock: MockClock) -> None:
    counting = Counting()
    async with open_machine() as machine, client_of(machine.network, host="first") as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        machine.network.partition("first")
        kept = await session.send(Message.event(b"kept", delivery=Delivery.REDELIVER))
        lost = await session.send(Message.event(b"lost"))
        async with client_of(machine.network, host="second", router=counting.router) as newer:
            await newer.wait_connected()
            await kept.delivered()
            with pytest.raises(ConnectionLost):
                await lost.delivered()
            assert counting.order == counting.redelivered == [b"kept"]


@pytest.mark.parametrize("token", ["none", "wrong", "of another"])
async def test_only_the_token_of_a_session_resumes_it(autojump_clock: MockClock, token: str) -> None:
    async with open_world(clients=2, network=MemoryNetwork(delay=0.01)) as world:
        session = world.server.sessions["client-0"]
        shown = {"none": b"", "wrong": bytes(32), "of another": world.server.sessions["client-1"].token}[token]
        cut(session._connection)
        world.network.partition("client-0")
        async with open_raw(world.network) as raw:
            raw.open(replace(hello("client-0"), session_token=shown))
            welcome = await raw.frame(Welcome)
            assert not welcome.resumed
            assert len(welcome.session_token) == 32
            assert welcome.session_token != session.token
            assert world.server.session("client-0") is not session
        world.network.heal()


async def test_a_hello_that_says_what_cannot_be_gets_a_new_session(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world, open_raw(world.network, "first") as first:
        first.open(hello())
        token = (await first.frame(Welcome)).session_token
        async with open_raw(world.network, "second") as second:
            second.open(replace(hello(), session_token=token, lanes=(LaneState("", 7, 7),)))
            assert not (await second.frame(Welcome)).resumed


async def test_a_connection_that_seems_alive_is_taken_over_within_the_session(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world, open_raw(world.network, "first") as first:
        first.open(hello())
        token = (await first.frame(Welcome)).session_token
        session = world.server.sessions["raw"]
        async with open_raw(world.network, "second") as second:
            second.open(replace(hello(), session_token=token))
            welcome = await second.frame(Welcome)
            assert (welcome.resumed, welcome.session_id) == (True, session.id)
            assert world.server.sessions["raw"] is session
            assert session.remote_address[0] == "second"
            assert (await first.ended()).code == 5
            await trio.sleep(1)
            assert session.connected
            assert world.server.statistics().away == 0


async def test_a_peer_of_the_revision_before_has_a_session_per_connection(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world, open_raw(world.network) as raw:
        raw.open(replace(hello(), revision=1))
        assert (await raw.frame(Welcome)).session_token == b""
        session = world.server.sessions["raw"]
        sent = await session.send(Message.event())
        raw.engine.close(1, "gone")
        raw.kick()
        with pytest.raises(ConnectionLost):
            await sent.delivered()


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Hello(session_token=b"secret")) + repr(Welcome(session_token=b"secret"))


async def test_acks_are_kept_within_the_limit_until_they_are_confirmed(autojump_clock: MockClock) -> None:
    """Those that were written and those that wait; they are confirmed in time, although the limit is small."""
    counting = Counting()
    config = ServerConfig(limits=Limits(outbox_bytes=4096), workers=4)
    async with open_world(network=MemoryNetwork(delay=0.01), router=counting.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        most = 0
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.request, Message.query(bytes(1000)))
            while len(counting.runs) < 200:
                await trio.sleep(0.01)
                most = max(most, kept(session))
        assert 1000 < most < 5 * 4096 + 5 * 1100
        await trio.sleep(1)
        assert kept(session) < 4096


async def test_acks_that_are_never_confirmed_are_bounded(autojump_clock: MockClock) -> None:
    """They hold no handler back. A peer that comes back without them gets an error, not a wrong answer and not silence."""
    counting = Counting()
    config = ServerConfig(limits=Limits(outbox_bytes=4096))
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01), router=counting.router, server_config=config) as world:
        async with open_raw(world.network, "first") as first:
            first.open(hello())
            token = (await first.frame(Welcome)).session_token
            stream_id = first.open(LaneOpen())
            for seq in range(1, 301):
                first.write(stream_id, MessageFrame(seq, seq.to_bytes(16, "big"), 3, bytes(10_000), True, 0))
                await trio.sleep(0.01)
            await trio.sleep(5)
            assert len(counting.runs) == 300
            assert 1_000_000 < kept(world.server.sessions["raw"]) <= KEPT_ACKS + 10_100
            async with open_raw(world.network, "second") as second:
                second.open(replace(hello(), session_token=token))
                assert (await second.frame(Welcome)).resumed
                second.open(LaneOpen(acked=0))
                ended = await second.ended()
                assert (ended.application, ended.code) == (True, CloseCode.PROTOCOL_ERROR)
                assert "went unconfirmed" in ended.reason
        assert len(counting.runs) == 300


async def test_with_the_queue_policy_new_messages_wait_for_the_client(autojump_clock: MockClock) -> None:
    counting = Counting()
    config = ServerConfig(away="queue")
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, client_router=counting.router, server_config=config) as world:
        session = world.server.sessions["client-0"]
        network.partition("client-0")
        await until(lambda: not session.connected)
        sent = await session.send(Message.event(b"later"))
        network.heal()
        await sent.delivered()
        assert counting.order == [b"later"]


def kept(session: Session) -> int:
    return sum(lane.kept_bytes + lane.ack_bytes for lane in session._link.session_lanes.values())


async def test_nothing_is_left_of_a_session_whose_client_stays_away(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)

    async def leave(world: World, client: Client) -> None:
        network.partition("client-0")
        await until(lambda: not world.server.sessions)
        assert world.server.statistics().away == 1
        await trio.sleep(121)
        assert world.server.statistics().away == 0
        with pytest.raises(ClientNotConnected):
            world.server.session("client-0")
        network.heal()
        await client.wait_connected()

    async with open_world(network=network) as world:
        await leave(world, world.clients["client-0"])
