"""What a message costs in packets, socket calls and turns: counted, not timed. One transmit per message would be ten times slower."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from trio.testing import MockClock

from quicflow_trio import Client, Message, MessageType, Request, Router, open_client, serve
from quicflow_trio.net.udp import UdpSocket
from quicflow_trio.quic.engine import Address
from quicflow_trio.testing import MemoryNetwork, open_world, throwaway_tls


@dataclass
class Calls:
    """Calls of both sides' sockets, and the datagrams in them."""

    sizes: list[int] = field(default_factory=list)

    @property
    def datagrams(self) -> int:
        return sum(self.sizes)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    stock = UdpSocket.send_nowait

    def send_nowait(self: UdpSocket, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        found.sizes.append(len(datagrams))
        return stock(self, datagrams)

    monkeypatch.setattr(UdpSocket, "send_nowait", send_nowait)
    return found


async def take(request: Request) -> None:
    """Handle a message without a result."""


@asynccontextmanager
async def connected() -> AsyncIterator[Client]:
    router = Router()
    router.add(MessageType.COMMAND, take)
    router.add(MessageType.EVENT, take)
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls))
        async with open_client("127.0.0.1", server.address[1], client_id="a", tls=client_tls) as client:
            await client.request(Message.command())
            await trio.sleep(0.1)  # The handshake's last packets.
            yield client
        nursery.cancel_scope.cancel()


async def ask(client: Client, times: int) -> None:
    for _ in range(times):
        await client.request(Message.command(bytes(200)))


@pytest.mark.realtime
async def test_many_requests_at_once_over_udp(calls: Calls) -> None:
    async with connected() as client:
        calls.sizes.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(128):
                nursery.start_soon(ask, client, 20)
        # 2,560 requests of 245 bytes fill 548 packets of 1,200. Acks and receipts of a turn share one.
        assert calls.datagrams < 2560 * 0.4
        assert len(calls.sizes) < 2560 * 0.2


@pytest.mark.realtime
async def test_messages_in_a_row_over_udp(calls: Calls) -> None:
    async with connected() as client:
        calls.sizes.clear()
        for _ in range(2560):
            sent = await client.send(Message.event(bytes(200)))
        await sent.delivered()
        assert calls.datagrams < 2560 * 0.4
        assert len(calls.sizes) < 2560 * 0.2


async def test_one_request_after_the_other_is_one_packet_each_way(autojump_clock: MockClock) -> None:
    # The ack goes with the receipt, the QUIC ACK of one side with the next packet of it, and both in the turn that brought the cause.
    network = MemoryNetwork(delay=0.001)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        assert client._supervisor.connection is not None
        await trio.sleep(1)
        turns, before = client._supervisor.connection.pump.turns, network.statistics().sent
        await ask(client, 100)
        assert network.statistics().sent - before <= 2 * 100 + 5
        assert client._supervisor.connection.pump.turns - turns <= 100 + 5


async def test_acks_of_one_turn_are_a_few_bytes(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.001)
    async with open_world(network=network) as world:
        client = world.clients["client-0"]
        await trio.sleep(1)
        before = client.statistics().bytes_received
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.request, Message.command())
        assert client.statistics().bytes_received - before < 200 * 3


async def test_no_packet_is_built_in_vain(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock starts one more after each packet that it sends, and one for each that it receives, to find that nothing belongs into it."""
    built = 0
    stock = QuicPacketBuilder.start_packet

    def start_packet(self: QuicPacketBuilder, packet_type: QuicPacketType, crypto: CryptoPair) -> None:
        nonlocal built
        built += 1
        stock(self, packet_type, crypto)

    network = MemoryNetwork(delay=0.001)
    async with open_world(network=network, clients=3) as world:
        client = world.clients["client-0"]
        await trio.sleep(1)
        monkeypatch.setattr(QuicPacketBuilder, "start_packet", start_packet)
        before = network.statistics().sent
        await ask(client, 50)
        for _ in range(500):
            last = await client.send(Message.event(bytes(200)))
        await last.delivered()
        await world.server.broadcast(Message.event())
        await trio.sleep(60)  # heartbeats
        sent = network.statistics().sent - before
        assert sent > 300
        assert built - sent <= 5, "but for the times when the congestion window is used up"


async def test_a_broadcast_is_three_packets_a_client_however_slow_its_handler(autojump_clock: MockClock) -> None:
    """The message, its receipt, the ACK of that. That it was handled is told with whatever comes next."""
    clients = Router()

    @clients.on(MessageType.EVENT)
    async def slow(request: Request) -> None:
        await trio.sleep(0.5)

    network = MemoryNetwork(delay=0.001)
    async with open_world(network=network, clients=4, client_router=clients) as world:
        await world.server.broadcast(Message.event())
        await trio.sleep(2)
        before = network.statistics().sent
        await world.server.broadcast(Message.event(bytes(200)))
        await trio.sleep(2)
        assert network.statistics().sent - before == 3 * 4
