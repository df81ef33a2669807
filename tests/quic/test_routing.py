"""Routing: headers from anybody, the version negotiation reply, the table."""

from __future__ import annotations

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, encode_quic_version_negotiation, pull_quic_header
from hypothesis import example, given
from hypothesis import strategies as st

from quicflow_trio.quic.engine import HandshakeCompleted
from quicflow_trio.quic.routing import CONNECTION_ID_LENGTH, Header, RoutingTable, parse_header, version_negotiation
from quicflow_trio.testing.pair import CLIENT, SERVER
from tests.quic.conftest import PairMaker
from tests.quic.harness import Files, make_client, make_server, only

V2 = 0x6B3343CF
ID, SOURCE = b"12345678", b"abcdefgh"


def long_header(
    version: int = 1, *, first: int = 0xC0, destination: bytes = ID, source: bytes = SOURCE, size: int = 1200
) -> bytes:
    head = bytes((first,)) + version.to_bytes(4, "big")
    head += bytes((len(destination),)) + destination + bytes((len(source),)) + source
    return head.ljust(size, b"\0")


@given(st.binary(max_size=1500))
@example(b"")
@example(b"\xc0")
@example(b"\xc0\0\0\0\1\x08")
@example(b"\xc0\0\0\0\1\x00\x05ab")
def test_no_bytes_whatever_raise(data: bytes) -> None:
    header = parse_header(data)
    if header is None:
        return
    assert header.size == len(data)
    assert header.destination in data
    reply = version_negotiation(header)
    if reply is not None:
        assert len(reply) < len(data)
        answer = parse_header(reply)
        assert answer is not None
        assert version_negotiation(answer) is None


@given(st.binary(min_size=1, max_size=60), st.sampled_from([1, V2, 0, 77]), st.integers(0, 21), st.integers(0, 21))
def test_it_agrees_with_aioquic(tail: bytes, version: int, destination: int, source: int) -> None:
    data = long_header(version, first=0x80 | tail[0], destination=bytes(destination), source=bytes(source), size=0) + tail
    try:
        theirs = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_LENGTH)
    except ValueError:
        return
    ours = parse_header(data)
    assert ours is not None
    assert (ours.destination, ours.source, ours.version) == (theirs.destination_cid, theirs.source_cid, theirs.version)


def test_real_packets_are_understood(pair: PairMaker) -> None:
    both = pair(connect=False)
    both.client.connect(SERVER, both.now)
    ((first, _addr),) = both.client.datagrams_to_send(both.now)
    header = parse_header(first)
    assert header == Header(True, 1, both.client.original_destination_id, both.client.connection_ids[0], True, 1200)
    both.server.receive_datagram(first, CLIENT, both.now)
    both.run(1.0)
    both.client.write(both.client.open_stream(), b"x")
    ((short, _addr),) = both.client.datagrams_to_send(both.now)
    header = parse_header(short)
    assert header is not None
    assert not header.is_long
    assert not header.is_initial
    assert header.destination in both.server.connection_ids


@pytest.mark.parametrize(
    ("data", "initial"),
    [
        (long_header(), True),
        (long_header(V2, first=0xD0), True),
        (long_header(V2), False),  # a Retry, numbered otherwise
        (long_header(first=0xE0), False),
        (long_header(size=1199), False),
        (long_header(destination=b"1234567"), False),
        (long_header(77), False),
        (long_header(0), False),
    ],
)
def test_what_opens_a_connection(data: bytes, initial: bool) -> None:
    header = parse_header(data)
    assert header is not None
    assert header.is_initial == initial


@pytest.mark.parametrize(
    "data",
    [
        b"\x40" + ID[:-1],
        b"\x00" + ID + bytes(20),
        long_header(first=0x80),
        long_header(destination=bytes(21)),
        long_header(source=bytes(21)),
        b"\xc0\0\0\0\1\x00\x00"[:6],
    ],
)
def test_what_can_be_no_packet(data: bytes) -> None:
    assert parse_header(data) is None


@pytest.mark.parametrize("destination", [b"", ID, bytes(range(255))])
def test_a_foreign_version_is_answered_with_ours(destination: bytes) -> None:
    header = parse_header(long_header(0x1A2A3A4A, destination=destination))
    assert header is not None
    reply = version_negotiation(header)
    assert reply is not None
    expected = encode_quic_version_negotiation(source_cid=destination, destination_cid=SOURCE, supported_versions=[1, V2])
    assert reply[1:] == expected[1:], "the first byte is arbitrary"


@pytest.mark.parametrize(
    "data", [long_header(1), long_header(V2, first=0xD0), long_header(0), long_header(77, size=1199), b"\x40" + bytes(1300)]
)
def test_what_gets_no_answer(data: bytes) -> None:
    header = parse_header(data)
    assert header is not None
    assert version_negotiation(header) is None


def test_a_client_that_begins_with_another_version_comes_back_with_ours(files: Files) -> None:
    client = make_client(files.client())
    configuration = client._core._configuration
    configuration.original_version = 0x1A2A3A4A
    configuration.supported_versions = [0x1A2A3A4A, 1]
    client.connect(SERVER, 1.0)
    ((first, _addr),) = client.datagrams_to_send(1.0)
    header = parse_header(first)
    assert header is not None
    reply = version_negotiation(header)
    assert reply is not None
    client.receive_datagram(reply, SERVER, 1.0)
    ((second, _addr),) = client.datagrams_to_send(1.0)
    again = parse_header(second)
    assert again is not None
    assert again.is_initial
    server = make_server(files.server(), again.destination)
    assert pull_quic_header(Buffer(data=second), 8).packet_type is QuicPacketType.INITIAL
    server.receive_datagram(second, CLIENT, 1.0)
    for data, _ in server.datagrams_to_send(1.0):
        client.receive_datagram(data, SERVER, 1.0)
    assert only(client.next_events(), HandshakeCompleted)


# -- the table -------------------------------------------------------------------------------------------------------
def test_the_table_forgets_an_owner_entirely() -> None:
    table: RoutingTable[str] = RoutingTable()
    assert table.add(b"1", "anna")
    assert table.add(b"2", "anna")
    assert table.add(b"2", "anna"), "an id may be told twice"
    assert table.add(b"3", "bert")
    assert not table.add(b"3", "anna"), "and never changes hands"
    assert table.lookup(b"3") == "bert"
    assert table.lookup(b"4") is None
    assert table.ids_of("anna") == {b"1", b"2"}
    assert (len(table), table.owners) == (3, 2)
    table.remove(b"1")
    table.remove(b"1")
    assert table.lookup(b"1") is None
    table.remove_owner("anna")
    table.remove_owner("anna")
    assert (len(table), table.owners) == (1, 1)
    table.remove(b"3")
    assert (len(table), table.owners) == (0, 0)
    assert table.ids_of("bert") == frozenset()


@given(st.lists(st.tuples(st.sampled_from("arxo"), st.integers(0, 5), st.integers(0, 3))))
def test_both_directions_of_the_table_agree(steps: list[tuple[str, int, int]]) -> None:
    table: RoutingTable[int] = RoutingTable()
    model: dict[bytes, int] = {}
    for step, number, owner in steps:
        connection_id = bytes((number,))
        if step == "a":
            assert table.add(connection_id, owner) == (model.setdefault(connection_id, owner) == owner)
        elif step == "r":
            table.remove(connection_id)
            model.pop(connection_id, None)
        elif step == "x":
            table.remove_owner(owner)
            model = {key: value for key, value in model.items() if value != owner}
        assert table.lookup(connection_id) == model.get(connection_id)
        assert table.ids_of(owner) == {key for key, value in model.items() if value == owner}
        assert (len(table), table.owners) == (len(model), len(set(model.values())))
