"""Stateless resets and Retry without a network: who says a token, who believes it, and what a token is bound to."""

from __future__ import annotations

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicErrorCode, encode_quic_retry
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.quic.aioquic_engine import AioquicEngine
from quicflow_trio.quic.engine import STATELESS_RESET, ConnectionEnded, ResetTokenLearned
from quicflow_trio.quic.resets import KEY_BYTES, MIN_RESET_SIZE, ResetKey, ResetTable, carries_token
from quicflow_trio.quic.retry import LIFETIME, InitialRate, RetryTokens, initial_token, refusal
from quicflow_trio.quic.routing import Header, parse_header
from quicflow_trio.quic.tls import SUPPORTED_VERSIONS
from quicflow_trio.testing.pair import CLIENT, SERVER
from tests.quic.conftest import PairMaker
from tests.quic.harness import PAIRINGS, Files, core_of, make_client, make_server, only

KEY = ResetKey(bytes(KEY_BYTES))
OTHER_KEY = ResetKey(b"\1" * KEY_BYTES)
NOISE = bytes(range(27))
both_kinds = pytest.mark.parametrize("stock", ["client", ""], ids=["stock", "ours"])


@pytest.fixture
def pairing(request: pytest.FixtureRequest) -> tuple[str, str]:
    near, far = getattr(request, "param", PAIRINGS[0])
    return near, far


all_pairings = pytest.mark.parametrize("pairing", PAIRINGS, indirect=True, ids="-".join)


def ids_in_use(server: AioquicEngine) -> bytes:
    return server.connection_ids[0]


# -- resets ------------------------------------------------------------------------------------------------------------
def test_a_reset_is_smaller_than_what_it_answers_and_looks_like_a_packet() -> None:
    for trigger in range(1600):
        size = KEY.size_for(trigger)
        assert size < max(trigger, 1)
        if size:
            packet = KEY.packet(b"12345678", bytes([255]) * (size - 16))
            assert len(packet) == size >= MIN_RESET_SIZE
            assert packet[0] & 0xC0 == 0x40
    # Two servers that answer each other's resets come to an end.
    assert KEY.size_for(MIN_RESET_SIZE) == 0


def test_a_token_is_told_by_key_and_id() -> None:
    tokens = {key.token(connection_id) for key in (KEY, OTHER_KEY) for connection_id in (b"12345678", b"12345679")}
    assert len(tokens) == 4
    assert ResetKey(bytes(KEY_BYTES)).token(b"12345678") in tokens
    with pytest.raises(ValueError, match="expected 32 bytes"):
        ResetKey(b"short")


@all_pairings
def test_a_client_believes_the_token_of_its_connection(pair: PairMaker) -> None:
    both = pair(server={"reset_key": KEY})
    (learned,) = only(both.client_events, ResetTokenLearned)
    assert learned.token == KEY.token(ids_in_use(both.server))
    both.client.receive_datagram(KEY.packet(ids_in_use(both.server), NOISE), SERVER, both.now)
    both.client.next_events()
    assert both.client.closing
    ended = both.client.ended
    assert ended == ConnectionEnded(0, STATELESS_RESET, application=False, by_peer=True, reset=True)
    assert both.client.datagrams_to_send(both.now) == [], "it says nothing more (RFC 9000 section 10.3.1)"
    assert both.client.last_word == []


@both_kinds
def test_a_reset_is_not_understood(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock, server={"reset_key": KEY})
    both.client.receive_datagram(KEY.packet(ids_in_use(both.server), NOISE), SERVER, both.now)
    assert both.client.closing == (not stock)


@pytest.mark.parametrize("stock", ["server", ""], ids=["stock", "ours"])
def test_tokens_are_random(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock, server={"reset_key": KEY})
    cids = core_of(both.server)._host_cids
    assert len(cids) > 1
    assert [one.stateless_reset_token == KEY.token(one.cid) for one in cids] == [not stock] * len(cids)
    # And the peer was told of these.
    told = {one.cid: one.stateless_reset_token for one in core_of(both.client)._peer_cid_available}
    assert all(KEY.token(cid) == token for cid, token in told.items()) == (not stock)


@all_pairings
@pytest.mark.parametrize("change", ["other key", "other id", "one bit", "too short", "long header"])
def test_a_client_believes_no_other_token(pair: PairMaker, pairing: tuple[str, str], change: str) -> None:
    both = pair(server={"reset_key": KEY})
    right = KEY.packet(ids_in_use(both.server), NOISE)
    wrong = {
        "other key": OTHER_KEY.packet(ids_in_use(both.server), NOISE),
        "other id": KEY.packet(b"87654321", NOISE),
        "one bit": right[:-1] + bytes((right[-1] ^ 1,)),
        "too short": right[-MIN_RESET_SIZE + 1 :],
        "long header": bytes((right[0] | 0x80,)) + right[1:],
    }[change]
    both.client.receive_datagram(wrong, SERVER, both.now)
    both.run(1.0)
    assert not both.client.closing


def test_the_token_of_an_id_that_is_not_in_use_is_not_believed(pair: PairMaker) -> None:
    both = pair(server={"reset_key": KEY})
    first, second = both.server.connection_ids[:2]
    both.client.receive_datagram(KEY.packet(second, NOISE), SERVER, both.now)
    assert not both.client.closing
    core_of(both.client).change_connection_id()
    both.run(1.0)
    tokens = [event.token for event in only(both.client_events, ResetTokenLearned)]
    assert tokens == [KEY.token(first), KEY.token(second)]
    both.client.receive_datagram(KEY.packet(first, NOISE), SERVER, both.now)
    assert not both.client.closing
    both.client.receive_datagram(KEY.packet(second, NOISE), SERVER, both.now)
    assert both.client.closing


def test_the_table_finds_tokens_and_forgets_their_owners() -> None:
    table: ResetTable[str] = ResetTable(b"secret")
    table.add(KEY.token(b"1"), "one")
    table.add(KEY.token(b"2"), "two")
    table.add(KEY.token(b"1"), "two")  # whoever came first keeps it
    assert table.lookup(KEY.packet(b"1", NOISE)) == "one"
    assert table.lookup(KEY.packet(b"2", NOISE)) == "two"
    assert table.lookup(KEY.packet(b"3", NOISE)) is None
    assert table.lookup(KEY.token(b"1")) is None, "too short for a packet"
    for number in range(100):
        table.add(KEY.token(b"of three %d" % number), "three")
    assert len(table) == 2 + 8
    assert table.lookup(KEY.packet(b"of three 99", NOISE)) == "three"
    assert table.lookup(KEY.packet(b"of three 0", NOISE)) is None
    for owner in ("one", "two", "three", "nobody"):
        table.remove_owner(owner)
    assert len(table) == 0
    assert not table._marks


@given(st.binary(max_size=100))
def test_no_bytes_carry_a_token_by_chance(data: bytes) -> None:
    token = KEY.token(b"12345678")
    assert not carries_token(data, token)
    assert not carries_token(data, None)
    assert carries_token(bytes(5) + data + token, token)


# -- Retry ---------------------------------------------------------------------------------------------------------------
TOKENS = RetryTokens(b"secret")


def first_initial(files: Files, engine: str = "aioquic") -> tuple[AioquicEngine, bytes, Header]:
    client = make_client(files.client(), engine=engine)
    client.connect(SERVER, 1.0)
    ((data, _addr),) = client.datagrams_to_send(1.0)
    header = parse_header(data)
    assert header is not None
    assert header.is_initial
    return client, data, header


def retried(files: Files, engine: str = "aioquic", now: float = 1.0) -> tuple[AioquicEngine, bytes, Header, Header]:
    """Return a client that was sent a Retry, its second Initial, and the headers of the first and the second."""
    client, data, first = first_initial(files, engine)
    assert initial_token(data) == b""
    retry = TOKENS.retry(first, CLIENT, now)
    assert len(retry) < 120 < len(data)
    client.receive_datagram(retry, SERVER, 1.1)
    again = client.datagrams_to_send(1.1)[0][0]
    second = parse_header(again)
    assert second is not None
    assert second.destination != first.destination
    return client, again, first, second


@all_pairings
def test_a_client_brings_the_token_back(files: Files, pairing: tuple[str, str]) -> None:
    client, again, first, second = retried(files, pairing[0])
    token = initial_token(again)
    assert TOKENS.original_id(token, second, CLIENT, 1.5) == first.destination
    server = make_server(files.server(), first.destination, engine=pairing[1], retry_source_id=second.destination)
    server.receive_datagram(again, CLIENT, 1.2)
    flight = server.datagrams_to_send(1.2)
    assert flight
    for data, _addr in flight:
        client.receive_datagram(data, SERVER, 1.3)
    client.next_events()
    assert not client.closing, "the transport parameters name both ids (RFC 9000 section 7.3)"


@pytest.mark.parametrize("change", ["address", "port", "time", "future", "id", "bit", "secret", "cut", "none"])
def test_a_token_is_bound_to_address_time_and_id(files: Files, change: str) -> None:
    _client, again, _first, second = retried(files)
    token, address, now, tokens = initial_token(again), CLIENT, 1.5, TOKENS
    assert tokens.original_id(token, second, address, now) is not None
    match change:
        case "address":
            address = ("other", CLIENT[1])
        case "port":
            address = (CLIENT[0], CLIENT[1] + 1)
        case "time":
            now = 1.1 + LIFETIME
        case "future":
            now = -1.0
        case "id":
            second = second._replace(destination=b"elsewhere"[:8])
        case "bit":
            token = token[:20] + bytes((token[20] ^ 1,)) + token[21:]
        case "secret":
            tokens = RetryTokens(b"another")
        case "cut":
            token = token[:-1]
        case "none":
            token = b""
    assert tokens.original_id(token, second, address, now) is None


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
@pytest.mark.parametrize("source", [b"", b"client id of twenty B"[:20]])
def test_a_retry_is_what_the_rfc_says(version: int, source: bytes) -> None:
    header = Header(True, version, b"first id", source, True, 1200)
    retry = TOKENS.retry(header, CLIENT, 1.0)
    at = 7 + len(source)
    ours, token = retry[at : at + 8], retry[at + 8 : -16]
    # Of aioquic's own making, a constant for each version included: the tag shows that the client's first packet was seen.
    assert retry == encode_quic_retry(version, ours, source, b"first id", token)
    assert retry == TOKENS.retry(header, CLIENT, 1.0), "the same for each repetition"
    assert TOKENS.original_id(token, header._replace(destination=ours), CLIENT, 1.0) == b"first id"


@pytest.mark.parametrize("length", [0, 1, 63, 64, 300])
def test_a_token_is_found_at_any_length(length: int) -> None:
    token = bytes(range(256))[:length] + bytes(max(0, length - 256))
    data = b"\xc0\0\0\0\1\x08" + bytes(8) + b"\x03abc" + encode_uint_var(length) + token
    assert initial_token(data + bytes(1200)) == token
    assert all(initial_token(data[:cut]) == b"" for cut in range(len(data)))


@given(st.binary(max_size=80), st.binary(min_size=8, max_size=20))
def test_no_bytes_are_a_token_by_chance(token: bytes, destination: bytes) -> None:
    header = Header(True, 1, destination, b"", True, 1200)
    assert TOKENS.original_id(token, header, CLIENT, 5.0) is None


@given(st.binary(max_size=1500))
def test_no_bytes_raise_where_a_token_is_looked_for(data: bytes) -> None:
    assert isinstance(initial_token(data), bytes)


@pytest.mark.parametrize("engine", ["aioquic", "qh3"])
def test_a_client_without_a_good_token_is_told_so(files: Files, engine: str) -> None:
    client, again, _first, second = retried(files, engine)
    packet = refusal(second)
    assert len(packet) < len(again)
    client.receive_datagram(packet, SERVER, 1.2)
    client.next_events()
    ended = client.ended
    assert ended is not None
    assert (ended.code, ended.by_peer, ended.application) == (QuicErrorCode.INVALID_TOKEN, True, False)


def test_the_address_counts_as_shown_after_a_retry(files: Files) -> None:
    _client, again, first, second = retried(files)
    for retry_source, expected in ((second.destination, True), (None, False)):
        server = make_server(files.server(), first.destination, retry_source_id=retry_source)
        server.receive_datagram(again, CLIENT, 1.2)
        assert core_of(server)._network_paths[0].is_validated is expected


def test_the_rate_of_first_packets() -> None:
    rate = InitialRate(3)
    assert [rate.too_fast(0.1 * number) for number in range(5)] == [False, False, False, True, True]
    assert rate.too_fast(1.5), "for a second more"
    assert not rate.too_fast(2.5)
    assert not rate.too_fast(60.0)
    assert InitialRate(0).too_fast(5.0), "none is free"


def test_addresses_that_look_alike(files: Files) -> None:
    _client, _data, first = first_initial(files)
    made = {TOKENS.retry(first, address, 1.0) for address in (("a", 11), ("a 1", 1), ("a1", 1), ("a", 1))}
    assert len(made) == 4
