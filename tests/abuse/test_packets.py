"""Rows 2, 9 to 12, 15 to 18 and 22 of the abuse list: what a peer can say in well-encrypted packets. Over real UDP; see `udp`."""

from __future__ import annotations

import os
import random

import pytest
import trio
from aioquic import tls as aioquic_tls
from aioquic.quic.packet import QuicErrorCode, QuicPacketType

from quicflow_trio.quic.limits import CONNECTION_IDS
from tests.abuse.udp import bare_socket, open_attacker, open_victim, replies, send_all
from tests.quic.harness import core_of, crypto_frame, packet, stream_frame, varint

pytestmark = pytest.mark.realtime

PING = b"\x01\0\0\0"
TRANSPORT_ERRORS = range(0x200)


# -- 2: random frames ----------------------------------------------------------------------------------------------------
async def test_2_random_frames_get_the_right_transport_error() -> None:
    rng = random.Random(2)
    # What stands first in the packet decides: each of these is wrong in itself.
    wrong = {
        "unknown type": (b"\x3f", QuicErrorCode.FRAME_ENCODING_ERROR),
        "cut off": (b"\x06\x00", QuicErrorCode.FRAME_ENCODING_ERROR),
        "HANDSHAKE_DONE of a client": (b"\x1e", QuicErrorCode.PROTOCOL_VIOLATION),
        "NEW_TOKEN of a client": (b"\x07\x01x", QuicErrorCode.PROTOCOL_VIOLATION),
        "data of a stream never opened": (b"\x11" + varint(1) + varint(5), QuicErrorCode.STREAM_STATE_ERROR),
        "a stream over the limit": (stream_frame(4 * 500, 0, b"x"), QuicErrorCode.STREAM_LIMIT_ERROR),
        "a one-way stream": (stream_frame(2, 0, b"x"), QuicErrorCode.STREAM_LIMIT_ERROR),
        "retired before it was issued": (b"\x19" + varint(60), QuicErrorCode.PROTOCOL_VIOLATION),
        "MAX_STREAMS beyond 2^60": (b"\x12" + varint(2**60 + 1), QuicErrorCode.FRAME_ENCODING_ERROR),
    }
    async with open_victim() as victim:
        for name, (frame, code) in wrong.items():
            async with open_attacker(victim) as client:
                client.inject(frame + bytes(3) if name != "cut off" else frame)
                ended = await client.closed()
                assert not ended.application
                assert ended.code == code, (name, ended)
        for _ in range(20):
            async with open_attacker(victim) as client:
                for _packet in range(20):
                    if client.engine.closing:
                        break
                    client.inject(rng.randbytes(rng.randrange(4, 300)))
                    await trio.sleep(0.002)
                ended = await client.closed()
                assert not ended.application
                assert ended.code in TRANSPORT_ERRORS
                assert " on a packet" not in ended.reason, "no exception but those that mean a transport error"


# -- 9: a ClientHello of 16 MB -------------------------------------------------------------------------------------------
async def test_9_a_client_hello_of_16_megabytes_is_closed_at_64_kib() -> None:
    async with open_victim(limits={"initials_per_second": 1000}) as victim, open_attacker(victim, handshake=False) as client:
        for sent in range(0, 100_000, 1000):
            data = b"\x01\xff\xff\xff".ljust(1000, b"\0") if not sent else bytes(1000)
            client.inject(crypto_frame(sent, data), QuicPacketType.INITIAL, pad=1200)
            await trio.sleep(0.001)
        with trio.fail_after(1):
            while not client.engine.closing:
                client.feed(await client.socket.receive())
        ended = client.engine.ended
        assert ended is not None
        assert (ended.code, ended.by_peer) == (QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, True)


# -- 10: one byte at ever larger offsets -----------------------------------------------------------------------------------
async def test_10_one_byte_beyond_the_window_is_a_flow_control_error() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("offsets")
        memory, offset = victim.memory(), 1024
        while not client.engine.closing and offset < 2**32:
            client.inject(stream_frame(4, offset, b"x"))
            offset *= 2
            await trio.sleep(0.05)
        ended = await client.closed()
        assert (ended.code, ended.application) == (QuicErrorCode.FLOW_CONTROL_ERROR, False)
        assert offset <= 4 * 1024 * 1024, "the first beyond the window of 512 KiB"
        assert victim.memory() - memory <= 8 * 1024 * 1024


# -- 11: fragments -------------------------------------------------------------------------------------------------------
async def test_11_fragments_with_holes_are_closed_at_512() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("fragments")
        cpu, sent = victim.cpu(), 0
        while not client.engine.closing and sent < 1000:
            # Forty to a packet, as an attacker would.
            client.inject(b"".join(stream_frame(4, 2 * number + 1, b"x") for number in range(sent, sent + 40)))
            sent += 40
            await trio.sleep(0.005)
        ended = await client.closed()
        assert (ended.code, ended.reason) == (QuicErrorCode.INTERNAL_ERROR, "too many fragments of one stream")
        assert sent <= 512 + 5 * 40
        # 50 ms for the attack; the client beside takes its share in the meantime.
        assert victim.cpu() - cpu <= 0.05 + 0.2


# -- 12: streams opened and left -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("data", [b"\0", b""], ids=["one byte", "nothing"])
async def test_12_streams_opened_and_left_are_capped(data: bytes) -> None:
    async with open_victim(limits={"lanes": 16}) as victim, open_attacker(victim) as client:
        await client.greet("streams")
        # The control stream and sixteen lanes. One byte is the beginning of a length.
        for number in range(1, 17):
            client.inject(stream_frame(4 * number, 0, data))
        await trio.sleep(0.2)
        assert not client.engine.closing
        assert (await victim.figures())["connected_clients"] == 2
        client.inject(stream_frame(4 * 17, 0, data))
        ended = await client.closed()
        assert (ended.code, ended.application) == (QuicErrorCode.STREAM_LIMIT_ERROR, False)


# -- 15: ACKs of packets never sent --------------------------------------------------------------------------------------
@pytest.mark.parametrize("largest", [10_000, 2**62 - 1])
async def test_15_an_ack_of_a_packet_never_sent_is_a_violation(largest: int) -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("acks")
        client.inject(b"\x02" + varint(largest) + varint(0) + varint(0) + varint(0))
        ended = await client.closed()
        assert (ended.code, ended.application) == (QuicErrorCode.PROTOCOL_VIOLATION, False)


# -- 16: connection ids and path challenges --------------------------------------------------------------------------------
async def test_16_more_connection_ids_than_allowed_are_an_error() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("ids")
        for number in range(10, 10 + CONNECTION_IDS + 4):
            client.inject(b"\x18" + varint(number) + varint(0) + b"\x08" + os.urandom(8) + os.urandom(16))
            await trio.sleep(0.01)
        ended = await client.closed()
        assert ended.code == QuicErrorCode.CONNECTION_ID_LIMIT_ERROR


async def test_16_ids_that_retire_all_before_them_are_an_error() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("retire")
        # Each makes the server retire one: it would owe the peer a frame for every one of ours.
        for number in range(10, 400):
            if client.engine.closing:
                break
            client.inject(b"\x18" + varint(number) + varint(number) + b"\x08" + os.urandom(8) + os.urandom(16))
            if number % 20 == 0:
                await trio.sleep(0.005)
        ids = (await victim.figures())["connection_ids"]
        assert ids <= 4 * (CONNECTION_IDS + 1)
        if client.engine.closing:
            assert client.engine.ended is not None
            assert client.engine.ended.code == QuicErrorCode.CONNECTION_ID_LIMIT_ERROR


async def test_16_retired_ids_are_replaced_and_the_table_does_not_grow() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("retired")
        before = await victim.figures()
        for number in range(300):
            if client.engine.closing:
                break
            # Not the one in use, which would be a violation.
            client.inject(b"\x19" + varint(number + 1) + bytes(2))
            await trio.sleep(0.002)
        figures = await victim.figures()
        assert figures["connection_ids"] <= before["connection_ids"]
        assert (figures["datagrams_sent"] - before["datagrams_sent"]) < 3000


async def test_16_path_challenges_are_answered_one_for_one_at_most() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("challenges")
        heard, memory = len(client.events), victim.memory()
        sent_before = client.socket.statistics()
        # Fifty to a packet: 450 bytes that would ask for fifty packets of 1,200.
        for _ in range(100):
            client.inject(b"".join(b"\x1a" + os.urandom(8) for _ in range(50)))
            await trio.sleep(0.004)
        await trio.sleep(0.3)
        now = client.socket.statistics()
        got, gave = now.bytes_in - sent_before.bytes_in, now.bytes_out - sent_before.bytes_out
        assert got <= 3 * gave, f"{got} bytes for {gave}"
        assert victim.memory() - memory <= 8 * 1024 * 1024
        assert heard <= len(client.events)


# -- 17: key updates -----------------------------------------------------------------------------------------------------
async def test_17_a_storm_of_key_updates_is_closed() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("keys")
        for _ in range(100):
            if client.engine.closing:
                break
            core_of(client.engine).request_key_update()
            client.inject(PING)
            await trio.sleep(0.001)
        # The close may be encrypted with keys that this client has gone past: what counts is that the server has closed.
        await victim.until(lambda now: now["connected_clients"] == 1, seconds=1.0)
        figures = await victim.figures()
        assert figures["disconnects"] == {"server:transport": 1}


# -- 18: migration to a victim's address ---------------------------------------------------------------------------------
async def test_18_an_address_that_is_not_validated_gets_three_times_what_it_sent() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        await client.greet("traveller")
        # The attacker has the server send a lot, and says that it is now somebody else, who answers nothing.
        innocent = bare_socket(victim)
        await trio.sleep(0.1)
        core = core_of(client.engine)
        claimed = [packet(core, PING + bytes(40)) for _ in range(3)]
        spent = sum(map(len, claimed))
        await send_all(innocent, claimed, victim)
        got = sum(map(len, await replies(innocent, 2.0)))
        assert 0 < got <= 3 * spent, f"{got} bytes for {spent}"
        innocent.close()


# -- 22: DATAGRAM frames -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("frame", [b"\x30", b"\x31\x00", b"\x31\x44\x00" + bytes(1024)], ids=["empty", "length 0", "large"])
async def test_22_datagram_frames_were_never_offered(frame: bytes) -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        client.inject(frame)
        ended = await client.closed()
        assert (ended.code, ended.application) == (QuicErrorCode.PROTOCOL_VIOLATION, False)


# -- and the ends of a handshake -----------------------------------------------------------------------------------------
async def test_handshake_data_after_the_handshake_is_refused() -> None:
    async with open_victim() as victim, open_attacker(victim) as client:
        assert core_of(client.engine)._handshake_complete
        client.inject(crypto_frame(0, b"\x18\0\0\x01\0"))
        ended = await client.closed()
        assert ended.tls_alert == aioquic_tls.AlertDescription.unexpected_message
