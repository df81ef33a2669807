"""Connections that have not said hello, and datagrams that belong to none."""

from __future__ import annotations

import os
import random
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientState, Limits, Message, ServerConfig
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.aioquic_engine import client_engine
from quicflow_trio.quic.routing import parse_header
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import MemoryNetwork, open_world, seeded
from tests.connections.machine import CLIENT_TLS
from tests.connections.raw import PORT, WINDOWS, hello, open_raw

SERVER = ("server", PORT)


def first_packets(count: int) -> list[bytes]:
    """First datagrams of so many clients that will say nothing else."""
    tls = TLSContext(CLIENT_TLS)
    packets = []
    for _ in range(count):
        engine = client_engine(tls, server_name="server", alpn=["quicflow/2"], idle_timeout=30, windows=WINDOWS)
        engine.connect(SERVER, 0.0)
        packets.append(engine.datagrams_to_send(0.0)[0][0])
    return packets


async def test_the_oldest_makes_room(autojump_clock: MockClock) -> None:
    config = ServerConfig(limits=Limits(half_open=3))
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=config) as world, AsyncExitStack() as stack:
        raws = []
        for number in range(5):
            raws.append(await stack.enter_async_context(open_raw(world.network, f"raw-{number}")))
            await trio.sleep(0.1)
        assert [raw.engine.closing for raw in raws] == [True, True, False, False, False]
        ended = await raws[0].ended()
        assert (ended.application, ended.code, ended.reason) == (True, CloseCode.OVERLOADED, "too many half-open connections")
        assert world.server.statistics().half_open == 3
        assert world.server.statistics().refused == {"server:overloaded": 2}
        # Who says hello is half open no longer, and makes room.
        await raws[2].greet("raw")
        assert world.server.statistics().half_open == 2
        async with open_raw(world.network, "late"):
            await trio.sleep(0.1)
            assert not raws[3].engine.closing


@pytest.mark.parametrize("count", [64, 500])
async def test_a_burst_of_first_packets(autojump_clock: MockClock, count: int) -> None:
    # They come in one batch of the socket, before the task of the first has run: the cap holds all the same.
    config = ServerConfig(limits=Limits(half_open=10, initials_per_second=1000), handshake_timeout=5.0)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        socket = await world.network.host("flood").bind("flood", 0)
        ids = world.server.statistics().endpoint.connection_ids
        socket.send_nowait([(packet, SERVER) for packet in first_packets(count)])
        highest = 0
        for _ in range(30):
            await trio.sleep(0.001)
            highest = max(highest, world.server.statistics().half_open)
        assert highest == 10
        # A real client still gets in.
        async with open_raw(world.network) as raw:
            with trio.fail_after(1):
                await raw.greet()
            await world.server.sessions["raw"].close()
        await trio.sleep(6)
        figures = world.server.statistics()
        assert (figures.half_open, figures.endpoint.connection_ids, figures.tasks) == (0, ids, 3)
        assert sum(figures.refused.values()) == count
        assert (await world.clients["client-0"].request(Message.command(b"x"))).result == b"x"
        socket.close()


@pytest.mark.parametrize("seed", range(6))
async def test_a_hello_that_meets_its_own_eviction(autojump_clock: MockClock, seed: int) -> None:
    # The hello and the first packet of the next client stand in one batch or in two: whichever comes first, nothing breaks.
    config = ServerConfig(limits=Limits(half_open=1))
    with seeded(seed):
        async with open_world(clients=1, network=MemoryNetwork(delay=0.01), server_config=config) as world:
            async with open_raw(world.network) as raw:
                socket = await world.network.host("flood").bind("flood", 0)
                raw.open(hello())
                raw.transmit()
                socket.send_nowait([(b"noise", SERVER)] * (62 if seed % 2 else 63))
                socket.send_nowait([(first_packets(1)[0], SERVER)])
                await trio.sleep(1)
                assert "raw" in world.server.sessions or raw.engine.closing
                assert world.server.statistics().half_open == 1
                socket.close()
            assert "internal error" not in world.server.statistics().disconnects
            await trio.sleep(15)


async def test_noise(autojump_clock: MockClock) -> None:
    noise = random.Random(1)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        socket = await world.network.host("noise").bind("noise", 0)
        packet = first_packets(1)[0]
        datagrams = [b"", b"\x40", b"\xc0", b"\xff" * 7]
        datagrams += [noise.randbytes(noise.randrange(1, 1500)) for _ in range(500)]
        datagrams += [packet[: noise.randrange(1, 1199)] for _ in range(100)]
        for _ in range(100):
            mutated = bytearray(packet)
            mutated[noise.randrange(1, len(mutated))] ^= 1 << noise.randrange(8)
            datagrams.append(bytes(mutated))
        socket.send_nowait([(datagram, SERVER) for datagram in datagrams])
        await trio.sleep(60)
        figures = world.server.statistics()
        assert figures.endpoint.dropped["empty"] == 1
        assert figures.endpoint.dropped["malformed"] > 10
        assert figures.endpoint.dropped["unknown connection"] > 10
        assert figures.half_open == 0
        assert figures.endpoint.connection_ids == 5
        assert world.clients["client-0"].statistics().connects == 1
        socket.close()


async def test_noise_on_the_id_of_a_connection(autojump_clock: MockClock) -> None:
    noise = random.Random(2)
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        session, client = world.server.sessions["client-0"], world.clients["client-0"]
        socket = await world.network.host("noise").bind("noise", 0)
        for connection_id in session._connection.engine.connection_ids:
            socket.send_nowait([(b"\x40" + connection_id + noise.randbytes(50), SERVER)] * 20)
            socket.send_nowait([(b"\xc0\0\0\0\1\x08" + connection_id + noise.randbytes(1200), SERVER)] * 20)
        await trio.sleep(1)
        assert (await client.request(Message.command(b"x"))).result == b"x"
        assert session.remote_address[0] == "client-0"
        assert client.statistics().connects == 1
        socket.close()


async def test_another_version_is_negotiated_and_nothing_else(autojump_clock: MockClock) -> None:
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world:
        socket = await world.network.host("other").bind("other", 0)
        greased = bytes((0xC0,)) + b"\x1a\x2a\x3a\x4a" + b"\x08destinat" + b"\x06source"
        socket.send_nowait([(greased.ljust(1200, b"\0"), SERVER)])
        [(answer, _)] = await socket.receive()
        header = parse_header(answer)
        assert header is not None
        assert (header.version, header.destination, header.source) == (0, b"source", b"destinat")
        assert len(answer) < 1200
        # Too small for an Initial, a version negotiation packet itself, and ours but short: no answer, no state.
        socket.send_nowait([(greased.ljust(1199, b"\0"), SERVER), (answer.ljust(1200, b"\0"), SERVER)])
        socket.send_nowait([(first_packets(1)[0][:1199], SERVER)])
        with trio.move_on_after(5) as silence:
            await socket.receive()
        assert silence.cancelled_caught
        figures = world.server.statistics()
        assert figures.endpoint.negotiations == 1
        assert (figures.half_open, figures.connections, figures.endpoint.connection_ids) == (0, 0, 0)
        socket.close()


async def test_a_repeated_first_packet_opens_no_second_connection(autojump_clock: MockClock) -> None:
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world:
        socket = await world.network.host("twice").bind("twice", 0)
        packet = first_packets(1)[0]
        socket.send_nowait([(packet, SERVER)] * 5)
        await trio.sleep(0.1)
        socket.send_nowait([(packet, SERVER)] * 5)
        await trio.sleep(0.1)
        assert world.server.statistics().connections == 1
        await trio.sleep(11)
        assert world.server.statistics().endpoint.connection_ids == 0
        socket.close()


async def test_a_closed_connection_answers_now_and_then(autojump_clock: MockClock) -> None:
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            await raw.greet()
            ids = world.server.sessions["raw"]._connection.engine.connection_ids
            await world.server.sessions["raw"].close("enough")
            assert world.server.statistics().endpoint.last_words == 1
            assert world.server.statistics().endpoint.connection_ids == 0
        socket = await world.network.host("late").bind("late", 0)
        await trio.sleep(1)
        figures = world.server.statistics().endpoint
        heard = figures.dropped.get("closed connection", 0)
        socket.send_nowait([(b"\x40" + ids[0] + os.urandom(40), SERVER)] * (64 - heard))
        await trio.sleep(1)
        before = world.server.statistics().endpoint.socket.datagrams_out
        for _ in range(100):
            socket.send_nowait([(b"\x40" + ids[0] + os.urandom(40), SERVER)])
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        # Of the 65th to the 164th packet only the 128th is answered, and to the peer it knew, not to whoever sends now.
        assert world.server.statistics().endpoint.socket.datagrams_out - before == 1
        assert world.server.statistics().endpoint.dropped == {"closed connection": 164}
        await trio.sleep(45)
        socket.send_nowait([(b"\x40" + ids[0] + os.urandom(40), SERVER)])
        await trio.sleep(1)
        assert world.server.statistics().endpoint.dropped["unknown connection"] == 1
        socket.close()


async def test_a_client_that_leaves_is_told_nothing_more(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            await raw.greet()
        await trio.sleep(1)
        assert world.server.statistics().endpoint.last_words == 0, "the peer closed: there is nothing to repeat"
        assert world.clients["client-0"].state.value is ClientState.CONNECTED
