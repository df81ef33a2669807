"""Rows 1 and 3 to 8, 19 to 21 of the abuse list: datagrams of nobody, and handshakes that lead nowhere. Each test states its bound."""

from __future__ import annotations

import itertools
import os
import random
import socket as sockets
import statistics
from collections import Counter

import pytest
import trio
import trio.lowlevel
from aioquic import tls as aioquic_tls
from aioquic.quic.packet import QuicErrorCode, QuicPacketType
from trio.testing import MockClock

from quicflow_trio import Limits, ServerConfig
from quicflow_trio.quic.engine import HandshakeCompleted
from quicflow_trio.quic.retry import initial_token
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.abuse.udp import (
    Victim,
    bare_socket,
    first_flight,
    first_flights,
    open_attacker,
    open_victim,
    replies,
    send_all,
)
from tests.connections.raw import PORT
from tests.quic.harness import core_of, crypto_frame, packet

realtime = pytest.mark.realtime
SHORT = b"\x40"


# -- 1: random, truncated, bit-flipped -----------------------------------------------------------------------------------
@realtime
async def test_1_noise_is_dropped() -> None:
    rng = random.Random(1)
    async with open_victim() as victim:
        _engine, initial = first_flight(victim)
        noise = [rng.randbytes(rng.randrange(1, 1400)) for _ in range(3000)]
        noise += [initial[: rng.randrange(1, 1200)] for _ in range(500)]
        for _ in range(200):
            flipped = bytearray(initial)
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            noise.append(bytes(flipped))
        rng.shuffle(noise)
        before = await victim.figures()
        socket = bare_socket(victim)
        await send_all(socket, noise, victim)
        figures = await victim.until(lambda now: now["datagrams_received"] >= before["datagrams_received"] + len(noise))
        # All of the random ones, but for those that look like the first packet of another version; the others are for one connection.
        assert sum(figures["datagrams_dropped"].values()) > 2700
        assert figures["total_connections"] == before["total_connections"]
        socket.close()


# -- 3: mutated ClientHello and transport parameters ---------------------------------------------------------------------
@realtime
async def test_3_changed_hellos_get_an_alert_or_silence() -> None:
    rng = random.Random(3)
    async with open_victim(limits={"initials_per_second": 10_000}) as victim:
        socket = bare_socket(victim)
        for _ in range(60):
            engine, _initial = first_flight(victim)
            core = core_of(engine)
            hello = bytearray(core._crypto_streams[aioquic_tls.Epoch.INITIAL].sender._buffer)
            for _change in range(rng.randrange(1, 6)):
                # The transport parameters are at the end.
                at = rng.randrange(len(hello) // 2, len(hello)) if rng.random() < 0.5 else rng.randrange(len(hello))
                hello[at] = rng.randrange(256)
            data = packet(core, crypto_frame(0, bytes(hello)), QuicPacketType.INITIAL).ljust(1200, b"\0")
            await send_all(socket, [data], victim)
        figures = await victim.until(lambda now: not now["half_open"])
        assert figures["total_connections"] == 1, "the client beside"
        assert sum(figures["connections_refused"].values()) == 60
        assert figures["connections_refused"].get("server:tls", 0) > 0
        socket.close()


# -- 4: version negotiation, and two servers told of each other ------------------------------------------------------------
@realtime
async def test_4_version_negotiation_gets_no_reply() -> None:
    async with open_victim() as victim:
        socket = bare_socket(victim)
        packets = [b"\xc0" + bytes(4) + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0\0\0\1" * 300 for _ in range(50)]
        await send_all(socket, packets, victim)
        await victim.until(lambda now: now["datagrams_dropped"].get("unknown_connection", 0) >= 50)
        assert await replies(socket) == []
        socket.close()


@realtime
@pytest.mark.parametrize("trigger", ["unknown version", "unknown connection"])
async def test_4_two_servers_that_answer_each_other_fall_silent(trigger: str) -> None:
    # What is said to one is passed on to the other, as it would be if each had been told the other's address.
    async with open_victim() as one, open_victim() as other:
        relay = (bare_socket(one), bare_socket(other))
        first = b"\xca\x1a\x2a\x3a\x4a\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
        data = [first.ljust(1200, b"\0") if trigger == "unknown version" else SHORT + os.urandom(1199)]
        passed = 0
        for victim, socket in itertools.cycle([(one, relay[0]), (other, relay[1])]):
            await send_all(socket, data, victim)
            passed += len(data)
            data = await replies(socket, 0.1)
            if not data:
                break
        # A version negotiation is not answered; of resets each is smaller than the one before, 43 bytes at most and 21 at least.
        assert passed <= (2 if trigger == "unknown version" else 25)
        for socket in relay:
            socket.close()


# -- 5: small Initials ---------------------------------------------------------------------------------------------------
@realtime
async def test_5_initials_below_1200_bytes_are_dropped() -> None:
    async with open_victim() as victim:
        socket = bare_socket(victim)
        small = [data[:1199] for data in await first_flights(victim, 50)]
        before = (await victim.figures())["connections"]
        await send_all(socket, small, victim)
        figures = await victim.until(lambda now: sum(now["datagrams_dropped"].values()) >= 50)
        assert figures["connections"] == before
        assert await replies(socket) == []
        socket.close()


# -- 6: spoofed Initials -------------------------------------------------------------------------------------------------
@realtime
@pytest.mark.no_cover
async def test_6_a_flood_of_spoofed_initials_turns_retry_on() -> None:
    rate = 5000
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as flood:
        async with open_victim(limits={"initials_per_second": 50}) as victim:
            # Nobody reads what this socket gets. The first ones are whole; of the others only the header will be looked at.
            real = await first_flights(victim, 150)
            flood.bind(("127.0.0.1", 0))
            for data in real:
                flood.sendto(data, victim.address)
                await trio.lowlevel.checkpoint()
            await victim.until(lambda now: now["retries_sent"] >= 50)
            quiet = [victim.cpu()]
            for _ in range(4):
                await trio.sleep(0.5)
                quiet.append(victim.cpu())
            before, started, sent = (victim.cpu(), 0), trio.current_time(), 0
            came_in, halves, used = 0, 0, 1.0
            # What else runs on the machine makes the same work dearer, never cheaper: the best half second counts, and there may be more.
            while (seconds := trio.current_time() - started) < 2 or (used > 0.1 and seconds < 15):
                # In steps, for a machine that cannot keep up: the client beside runs here as well.
                for _ in range(min(50, round(seconds * rate) - sent)):
                    flood.sendto(real[0][:6] + os.urandom(8) + real[0][14:], victim.address)
                    sent += 1
                if seconds > came_in / 2:
                    # A real client still gets in, one round trip later.
                    async with open_attacker(victim) as client:
                        assert client.got(HandshakeCompleted)
                    came_in += 1
                if seconds >= (halves + 1) / 2:
                    halves, after = halves + 1, (victim.cpu(), sent)
                    extra = (
                        after[0] - before[0] - statistics.median(later - earlier for earlier, later in itertools.pairwise(quiet))
                    )
                    used, before = min(used, extra / (after[1] - before[1]) * rate), after
                await trio.sleep(0.002)
            figures = await victim.figures()
            assert figures["retries_sent"] > sent / 2
            assert figures["half_open"] <= 110, "a Retry leaves nothing behind"
            assert came_in >= 4
            assert used <= 0.1, f"{used:.1%} of a core for {sent / seconds:.0f} Initials/s"


# -- 7: tokens -----------------------------------------------------------------------------------------------------------
@realtime
@pytest.mark.parametrize("trick", ["forged", "other address", "other id"])
async def test_7_a_token_that_is_none_gets_invalid_token(trick: str) -> None:
    async with open_victim(limits={"initials_per_second": 0}) as victim:
        before = await victim.figures()
        engine, initial = first_flight(victim)
        socket, elsewhere = bare_socket(victim), bare_socket(victim)
        await send_all(socket, [initial], victim)
        (retry,) = await replies(socket)
        assert len(retry) < len(initial)
        engine.receive_datagram(retry, victim.address, trio.current_time())
        again = bytearray(engine.datagrams_to_send(trio.current_time())[0][0])
        token = initial_token(bytes(again))
        at = bytes(again).index(token)
        if trick == "forged":
            again[at] ^= 1
        elif trick == "other id":
            again[6] ^= 1
        asker = elsewhere if trick == "other address" else socket
        await send_all(asker, [bytes(again)], victim)
        (answer,) = await replies(asker)
        if trick != "other id":  # to that one the answer is encrypted for the id that it should have used
            engine.receive_datagram(answer, victim.address, trio.current_time())
            assert engine.ended is not None
            assert (engine.ended.code, engine.ended.by_peer) == (QuicErrorCode.INVALID_TOKEN, True)
        figures = await victim.figures()
        assert figures["tokens_refused"] == 1
        for name in ("connections", "connection_ids", "half_open", "tasks"):
            assert figures[name] == before[name], "stateless"
        socket.close()
        elsewhere.close()


async def test_7_an_expired_token_gets_invalid_token(autojump_clock: MockClock) -> None:
    config = ServerConfig(limits=Limits(initials_per_second=0))
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01), server_config=config) as world:
        socket = await world.network.host("late").bind_for(("server", PORT))
        victim = Victim.__new__(Victim)
        victim.address = ("server", PORT)
        engine, initial = first_flight(victim)
        socket.send_nowait([(initial, victim.address)])
        ((retry, _addr),) = await socket.receive()
        engine.receive_datagram(retry, victim.address, trio.current_time())
        again = engine.datagrams_to_send(trio.current_time())[0][0]
        await trio.sleep(11)
        socket.send_nowait([(again, victim.address)])
        ((answer, _addr),) = await socket.receive()
        engine.receive_datagram(answer, victim.address, trio.current_time())
        assert engine.ended is not None
        assert engine.ended.code == QuicErrorCode.INVALID_TOKEN
        assert world.server.metrics().tokens_refused == 1
        assert world.server.statistics().connections == 0
        socket.close()


@realtime
async def test_7_refusals_are_bounded() -> None:
    # A flood of forged tokens must not be the dearer way in.
    async with open_victim() as victim:
        _engine, initial = first_flight(victim)
        forged = [initial[:6] + os.urandom(8) + initial[14:23] + b"\x10" + os.urandom(16) + bytes(1160) for _ in range(1000)]
        socket = bare_socket(victim)
        await send_all(socket, forged, victim)
        figures = await victim.until(lambda now: now["tokens_refused"] >= 1000)
        assert figures["connections"] == 1
        assert 50 <= len(await replies(socket)) <= 200
        socket.close()


# -- 8: handshakes that are never finished -------------------------------------------------------------------------------
@realtime
async def test_8_handshakes_never_finished_are_capped_and_end() -> None:
    cap = 100
    async with open_victim(limits={"half_open": cap, "initials_per_second": 10_000}, handshake_timeout=1.0) as victim:
        socket = bare_socket(victim)
        highest = 0
        for _ in range(4):
            # Half of the cap opens at once; from there on clients are asked for a token, which these do not bring.
            await send_all(socket, await first_flights(victim, cap), victim)
            highest = max(highest, (await victim.figures())["half_open"])
        assert cap / 2 <= highest <= cap
        figures = await victim.until(lambda now: not now["half_open"], seconds=5.0)
        assert figures["connections_refused"]["server:handshake_timeout"] >= cap / 2
        assert figures["retries_sent"] >= cap
        socket.close()


# -- 19: short packets for unknown connections ---------------------------------------------------------------------------
@realtime
async def test_19_resets_are_bounded_and_smaller() -> None:
    async with open_victim() as victim:
        socket = bare_socket(victim)
        for size in (22, 25, 43, 44, 200, 1200):
            await send_all(socket, [SHORT + os.urandom(size - 1)], victim)
            (reset,) = await replies(socket, 0.1)
            assert 21 <= len(reset) < min(size, 44)
        await send_all(socket, [SHORT + os.urandom(20)], victim)
        assert await replies(socket, 0.1) == [], "there is no smaller one"
        count, before, started = 8000, (await victim.figures())["stateless_resets_sent"], trio.current_time()
        for _ in range(count // 1000):
            await send_all(socket, [SHORT + os.urandom(60) for _ in range(1000)], victim)
        figures = await victim.until(
            lambda now: now["datagrams_dropped"].get("unknown_connection", 0) + now["kernel_drops"] >= count
        )
        sent = figures["stateless_resets_sent"] - before
        assert 1000 < sent <= 2000 * (1.1 + trio.current_time() - started)
        await replies(socket, 0.1)
        socket.close()


# -- 20: 0-RTT -----------------------------------------------------------------------------------------------------------
@realtime
async def test_20_early_data_is_never_delivered() -> None:
    async with open_victim() as victim:
        async with open_attacker(victim) as client:
            await client.greet("early")
            # No ticket, so nobody can make the keys of early data.
            assert core_of(client.engine)._session_ticket_handler is None
            assert not client.engine._core.tls.session_resumed
        before = await victim.figures()
        # A whole first flight, and behind it what claims to be early data on the same connection, twice.
        _engine, initial = first_flight(victim)
        early = b"\xd0" + initial[1:14] + initial[14:23] + b"\x44\x00" + os.urandom(1024)
        socket = bare_socket(victim)
        await send_all(socket, [initial, early, early], victim)
        await trio.sleep(0.2)
        figures = await victim.figures()
        assert figures["total_connections"] == before["total_connections"]
        assert figures["connections"] == before["connections"] + 1
        await victim.until(lambda now: not now["half_open"])
        socket.close()


# -- 21: a close that is lost --------------------------------------------------------------------------------------------
@realtime
async def test_21_a_lost_close_is_said_again() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("deaf")
        dropped: Counter[str] = Counter()
        receive = client.engine.receive_datagram

        def deaf(data: bytes, address: object, now: float) -> None:
            dropped["datagrams"] += 1

        # The server closes for a second hello, and the client does not hear it.
        client.engine.receive_datagram = deaf  # type: ignore[method-assign,assignment]
        from tests.connections.raw import hello

        client.write(0, hello("deaf"))
        await victim.until(lambda now: now["connected_clients"] == 1)
        await client.wait(lambda: dropped["datagrams"])
        client.engine.receive_datagram = receive  # type: ignore[method-assign]
        assert not client.engine.closing
        started = trio.current_time()
        # Its next packet is answered by the same close.
        client.inject(b"\x01\0\0\0")
        client.inject(b"\x01\0\0\0")
        ended = await client.closed()
        assert ended.application
        assert trio.current_time() - started < 0.5
