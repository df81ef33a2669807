"""The error cases that the h3spec tool checks on a QUIC server, made anew from the sections of the RFCs that ask for them.

Each row of `CASES` is one offence, the section that names the error, and the error we answer with. Two engines talk in virtual time, the
client with its hands free; the answer counts when it has reached the client.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPacketType,
    QuicPreferredAddress,
    QuicTransportParameters,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.tls import AlertDescription, CipherSuite, Epoch, ExtensionType

from quicflow_trio.quic.engine import ConnectionEnded, HandshakeCompleted
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import throwaway_tls
from quicflow_trio.testing.pair import CLIENT, SERVER
from tests.quic.harness import Pair, core_of, crypto_frame, make_client, make_server, only, packet, stream_frame, varint

Attack = Callable[[Pair], None]
E = QuicErrorCode

KEY_UPDATE = b"\x18\0\0\x01\0"
END_OF_EARLY_DATA = b"\x05\0\0\0"
BIDI_OF_SERVER, UNI_OF_CLIENT, UNI_OF_SERVER = 1, 2, 3


@dataclass(frozen=True)
class Case:
    """One offence: what it is, who forbids it, how it is done, and what the server must answer.

    Attributes:
        name: the offence.
        section: where the RFC names the error.
        attack: does it.
        code: of the CONNECTION_CLOSE that answers it.
        when: ``open`` for an attack on a connection that stands, ``handshake`` for one after the server's first flight, ``hello`` for
            one that changes what the client says first.
        alpn: what the client offers.
    """

    name: str
    section: str
    attack: Attack
    code: int
    when: str = "open"
    alpn: tuple[str, ...] = ("quicflow/2",)


# -- ways to offend -----------------------------------------------------------------------------------------------------
def frames(payload: bytes) -> Attack:
    """Say something on a connection that stands."""
    return lambda both: both.inject(payload)


def handshake(payload: bytes) -> Attack:
    """Say something under the keys of the handshake."""
    return lambda both: both.inject(payload, QuicPacketType.HANDSHAKE)


def sealed(epoch: Epoch, payload: bytes, reserved: int) -> Attack:
    """Send a packet whose header and payload are as they are: neither padded nor checked."""

    def attack(both: Pair) -> None:
        core = core_of(both.client)
        number, destination, source = core._packet_number, core._peer_cid.cid, core.host_cid
        core._packet_number += 1
        if epoch is Epoch.ONE_RTT:
            header = bytes((0x43 | reserved | core._cryptos[epoch].key_phase << 2,)) + destination
        else:
            assert core._version == 1
            ids = b"".join(bytes((len(one),)) + one for one in (destination, source))
            header = bytes((0xE3 | reserved,)) + (1).to_bytes(4, "big") + ids + varint(4 + len(payload) + 16)
        # A packet number of four bytes: the sample for header protection is then the tag alone, and the payload may be empty.
        header += number.to_bytes(4, "big")
        both.server.receive_datagram(core._cryptos[epoch].encrypt_packet(header, payload, number), CLIENT, both.now)

    return attack


def parameters(**changes: Any) -> Attack:
    """Claim other transport parameters."""

    def change(extensions: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        ((number, data),) = extensions
        parsed: QuicTransportParameters = pull_quic_transport_parameters(Buffer(data=data))
        for name, value in changes.items():
            setattr(parsed, name, value)
        buffer = Buffer(capacity=1000)
        push_quic_transport_parameters(buffer, parsed)
        return [(number, buffer.data)]

    return extensions(change)


def extensions(change: Callable[[list[tuple[int, bytes]]], list[tuple[int, bytes]]]) -> Attack:
    """Change the extensions of the ClientHello that QUIC adds."""

    def attack(both: Pair) -> None:
        core = core_of(both.client)
        initialize = core._initialize

        def changed(peer_cid: bytes) -> None:
            initialize(peer_cid)
            core.tls.handshake_extensions = change(core.tls.handshake_extensions)

        core._initialize = changed  # type: ignore[method-assign]

    return attack


def new_connection_id(sequence: int, retire: int, connection_id: bytes) -> bytes:
    return b"\x18" + varint(sequence) + varint(retire) + bytes((len(connection_id),)) + connection_id + bytes(16)


PREFERRED = QuicPreferredAddress(
    ipv4_address=("127.0.0.1", 443), ipv6_address=None, connection_id=bytes(8), stateless_reset_token=bytes(16)
)


def nothing(both: Pair) -> None:
    """Offend by what the case says beside."""


CASES = (
    Case("a large offset in STREAM", "RFC 9000 4.1", frames(stream_frame(0, 100_000_000, b"x", fin=True)), E.FLOW_CONTROL_ERROR),
    Case("a stream id over the limit", "RFC 9000 4.6", frames(stream_frame(1_000_000_000, 0, b"x")), E.STREAM_LIMIT_ERROR),
    Case(
        "no initial_source_connection_id",
        "RFC 9000 7.3",
        parameters(initial_source_connection_id=None),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "original_destination_connection_id of a client",
        "RFC 9000 18.2",
        parameters(original_destination_connection_id=b"DUMMY"),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "preferred_address of a client",
        "RFC 9000 18.2",
        parameters(preferred_address=PREFERRED),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "retry_source_connection_id of a client",
        "RFC 9000 18.2",
        parameters(retry_source_connection_id=b"DUMMY"),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "stateless_reset_token of a client",
        "RFC 9000 18.2",
        parameters(stateless_reset_token=bytes(16)),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "max_udp_payload_size below 1200",
        "RFC 9000 7.4, 18.2",
        parameters(max_udp_payload_size=1199),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case(
        "ack_delay_exponent over 20",
        "RFC 9000 7.4, 18.2",
        parameters(ack_delay_exponent=21),
        E.TRANSPORT_PARAMETER_ERROR,
        "hello",
    ),
    Case("max_ack_delay of 2^14", "RFC 9000 7.4, 18.2", parameters(max_ack_delay=2**14), E.TRANSPORT_PARAMETER_ERROR, "hello"),
    Case("a frame of unknown type", "RFC 9000 12.4", frames(b"\x20\0\0\0"), E.FRAME_ENCODING_ERROR),
    Case("a packet without frames", "RFC 9000 12.4", sealed(Epoch.ONE_RTT, b"", 0), E.PROTOCOL_VIOLATION),
    Case(
        "reserved bits in a Handshake packet",
        "RFC 9000 17.2",
        sealed(Epoch.HANDSHAKE, b"\x01" + bytes(20), 0x08),
        E.PROTOCOL_VIOLATION,
        "handshake",
    ),
    Case(
        "PATH_CHALLENGE in a Handshake packet",
        "RFC 9000 17.2.4",
        handshake(b"\x1a01234567"),
        E.PROTOCOL_VIOLATION,
        "handshake",
    ),
    Case("reserved bits in a short header", "RFC 9000 17.3.1", sealed(Epoch.ONE_RTT, b"\x01", 0x08), E.PROTOCOL_VIOLATION),
    Case(
        "RESET_STREAM for a send-only stream",
        "RFC 9000 19.4",
        frames(b"\x04" + varint(UNI_OF_SERVER) + varint(0) + varint(0)),
        E.STREAM_STATE_ERROR,
    ),
    Case(
        "STOP_SENDING for a stream of the server that is not open",
        "RFC 9000 19.5",
        frames(b"\x05" + varint(BIDI_OF_SERVER) + varint(0)),
        E.STREAM_STATE_ERROR,
    ),
    Case("NEW_TOKEN from a client", "RFC 9000 19.7", frames(b"\x07\x04abcd"), E.PROTOCOL_VIOLATION),
    Case(
        "STREAM for a stream of the server that is not open",
        "RFC 9000 19.8",
        frames(stream_frame(BIDI_OF_SERVER, 0, b"x")),
        E.STREAM_STATE_ERROR,
    ),
    Case("STREAM for a send-only stream", "RFC 9000 19.8", frames(stream_frame(UNI_OF_SERVER, 0, b"x")), E.STREAM_STATE_ERROR),
    Case(
        "MAX_STREAM_DATA for a stream of the server that is not open",
        "RFC 9000 19.10",
        frames(b"\x11" + varint(BIDI_OF_SERVER) + varint(1_000_000)),
        E.STREAM_STATE_ERROR,
    ),
    Case(
        "MAX_STREAM_DATA for a receive-only stream",
        "RFC 9000 19.10",
        frames(b"\x11" + varint(UNI_OF_CLIENT) + varint(1_000_000)),
        E.STREAM_STATE_ERROR,
    ),
    Case("MAX_STREAMS over 2^60", "RFC 9000 19.11", frames(b"\x12" + varint(2**60 + 1)), E.FRAME_ENCODING_ERROR),
    Case("STREAMS_BLOCKED over 2^60", "RFC 9000 19.14", frames(b"\x16" + varint(2**60 + 1)), E.FRAME_ENCODING_ERROR),
    Case(
        "NEW_CONNECTION_ID that retires later ones",
        "RFC 9000 19.15",
        frames(new_connection_id(1, 2, bytes(8))),
        E.FRAME_ENCODING_ERROR,
    ),
    Case("NEW_CONNECTION_ID of no bytes", "RFC 9000 19.15", frames(new_connection_id(1, 0, b"")), E.FRAME_ENCODING_ERROR),
    Case("HANDSHAKE_DONE from a client", "RFC 9000 19.20", frames(b"\x1e\0\0\0"), E.PROTOCOL_VIOLATION),
    Case(
        "TLS KeyUpdate in the handshake",
        "RFC 9001 6",
        handshake(crypto_frame(0, KEY_UPDATE)),
        E.CRYPTO_ERROR + AlertDescription.unexpected_message,
        "handshake",
    ),
    Case(
        "TLS KeyUpdate after it",
        "RFC 9001 6",
        frames(crypto_frame(0, KEY_UPDATE)),
        E.CRYPTO_ERROR + AlertDescription.unexpected_message,
    ),
    Case(
        "no protocol in common",
        "RFC 9001 8.1",
        nothing,
        E.CRYPTO_ERROR + AlertDescription.no_application_protocol,
        "hello",
        ("dummy",),
    ),
    Case(
        "no transport parameters",
        "RFC 9001 8.2",
        extensions(lambda _: []),
        E.CRYPTO_ERROR + AlertDescription.missing_extension,
        "hello",
    ),
    Case(
        "transport parameters under the number of a draft",
        "RFC 9001 8.2",
        extensions(lambda given: [(0xFFA5, data) for _, data in given]),
        E.CRYPTO_ERROR + AlertDescription.missing_extension,
        "hello",
    ),
    Case(
        "EndOfEarlyData",
        "RFC 9001 8.3",
        handshake(crypto_frame(0, END_OF_EARLY_DATA)),
        E.CRYPTO_ERROR + AlertDescription.unexpected_message,
        "handshake",
    ),
)
"""All but the last of h3spec's 34: CRYPTO under the keys of early data, which has a test of its own below."""


def make_pair(alpn: tuple[str, ...] = ("quicflow/2",)) -> Pair:
    server_tls, client_tls = throwaway_tls()
    client = make_client(TLSContext(client_tls), server_name="server", alpn=alpn)
    return Pair(client, make_server(TLSContext(server_tls), client.original_destination_id))


def begin(both: Pair) -> None:
    """Let the client have the server's first flight, and keep back what it answers."""
    both.client.connect(SERVER, both.now)
    for data, _ in both.client.datagrams_to_send(both.now):
        both.server.receive_datagram(data, CLIENT, both.now)
    for data, _ in both.server.datagrams_to_send(both.now):
        both.client.receive_datagram(data, SERVER, both.now)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_offence_is_answered_with_its_error(case: Case) -> None:
    both = make_pair(case.alpn)
    if case.when == "hello":
        case.attack(both)
        both.handshake()
    elif case.when == "handshake":
        begin(both)
        case.attack(both)
    else:
        both.handshake()
        assert only(both.server_events, HandshakeCompleted)
        case.attack(both)
    both.run(20)
    (ended,) = only(both.server_events, ConnectionEnded)
    assert (ended.code, ended.application, ended.by_peer, ended.timed_out) == (case.code, False, False, False)
    (heard,) = only(both.client_events, ConnectionEnded)
    assert (heard.code, heard.application, heard.by_peer) == (case.code, False, True), "the client is told"


def early_packet(both: Pair, keys: CryptoPair) -> bytes:
    core = core_of(both.client)
    core._cryptos[Epoch.ZERO_RTT] = keys
    return packet(core, crypto_frame(0, KEY_UPDATE), QuicPacketType.ZERO_RTT)


@pytest.mark.parametrize("has_keys", [False, True], ids=["as shipped", "if there were keys"])
def test_crypto_in_early_data(has_keys: bool) -> None:
    """RFC 9001 section 8.3 wants a PROTOCOL_VIOLATION. There is nothing to violate as shipped: the server hands no tickets out, so it
    has no keys for early data, drops such packets unread and goes on. Given the keys by force it answers as it should."""
    both = make_pair()
    keys = [CryptoPair(), CryptoPair()]
    for number, pair in enumerate(keys):
        direction = pair.recv if number else pair.send
        direction.setup(cipher_suite=CipherSuite.AES_128_GCM_SHA256, secret=bytes(32), version=1)
    both.client.connect(SERVER, both.now)
    for data, _ in both.client.datagrams_to_send(both.now):
        both.server.receive_datagram(data, CLIENT, both.now)
    if has_keys:
        core_of(both.server)._cryptos[Epoch.ZERO_RTT] = keys[1]
    both.server.receive_datagram(early_packet(both, keys[0]), CLIENT, both.now)
    both.run(20)
    ended = [event.code for event in only(both.server_events, ConnectionEnded)]
    assert ended == ([E.PROTOCOL_VIOLATION] if has_keys else [])
    assert bool(only(both.server_events, HandshakeCompleted)) is not has_keys


def test_the_list_is_complete() -> None:
    """h3spec's own count, so that no row can be lost unnoticed."""
    assert len({case.name for case in CASES}) == len(CASES) == 33
    assert all(case.section.startswith(("RFC 9000 ", "RFC 9001 ")) for case in CASES)
    assert int(ExtensionType.QUIC_TRANSPORT_PARAMETERS) == 0x0039, "what RFC 9001 section 8.2 assigned; drafts had 0xffa5"
