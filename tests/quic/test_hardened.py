"""Each hole, shown on aioquic's own class and shown closed on ours.

The first line of the parametrised tests is what would break: when a stock case fails, aioquic has changed and the override may go.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilderStop
from aioquic.quic.stream import QuicStream
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.quic import hardened
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.quic.engine import ConnectionEnded, ConnectionIdIssued, HandshakeCompleted, StreamData
from quicflow_trio.quic.limits import MAX_CRYPTO_FRAMES, MAX_PROBE_INTERVAL
from quicflow_trio.testing.pair import CLIENT, SERVER
from tests.quic.conftest import PairMaker
from tests.quic.harness import (
    ALPN,
    WINDOW,
    Files,
    Pair,
    core_of,
    crypto_frame,
    make_client,
    make_server,
    only,
    packet,
    received,
    stream_frame,
    varint,
)

both_kinds = pytest.mark.parametrize("stock", ["server", ""], ids=["stock", "ours"])
PING = b"\x01\0\0\0"


def closed_with(both: Pair) -> int | None:
    event = core_of(both.server)._close_event
    return None if event is None else event.error_code


def receiver(both: Pair, stream_id: int = 0) -> Any:
    return core_of(both.server)._streams[stream_id].receiver


# -- credit --------------------------------------------------------------------------------------------------------------
@both_kinds
def test_stream_windows_grow_on_arrival_without_anybody_reading(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    both.client.write(both.client.open_stream(), b"x" * (10 * WINDOW))
    both.run(5.0)
    assert len(received(both.server_events)) == (10 * WINDOW if stock else WINDOW)


@both_kinds
def test_the_connection_window_doubles(pair: PairMaker, stock: str) -> None:
    windows = Windows(stream_in=1024 * 1024, stream_out=WINDOW, connection=1024 * 1024, streams=4)
    both = pair(stock=stock, server={"windows": windows})
    both.client.write(both.client.open_stream(), b"x" * 700_000)
    both.run(5.0)
    assert len(received(both.server_events)) == 700_000
    credit = core_of(both.client)._remote_max_data
    assert credit == 2 * 1024 * 1024 if stock else 1024 * 1024 < credit <= 1024 * 1024 + 700_000


@both_kinds
def test_single_bytes_at_growing_offsets_allocate_without_end(pair: PairMaker, stock: str) -> None:
    # Twenty windows here; 537 MB after eleven bytes with aioquic's own window of 1 MiB.
    both = pair(stock=stock)
    limit = WINDOW
    while limit <= 20 * WINDOW:
        both.inject(stream_frame(0, limit - 1, b"x"))
        both.server.datagrams_to_send(both.now)
        limit *= 2
        both.now += 0.1
    held = len(receiver(both)._buffer)
    assert held > 8 * WINDOW if stock else held <= WINDOW
    assert closed_with(both) == (None if stock else QuicErrorCode.FLOW_CONTROL_ERROR)


@both_kinds
def test_fragments_with_holes_pile_up(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    for number in range(600):
        both.inject(stream_frame(0, 2 * number + 1, b"x"))
    # Ours also stops looking at packets once it has decided to close; stock goes on until the close is written.
    assert len(receiver(both)._ranges) == (600 if stock else 513)
    assert closed_with(both) == (None if stock else QuicErrorCode.INTERNAL_ERROR)


# -- the handshake's own data ------------------------------------------------------------------------------------------
def begin(pair: PairMaker, stock: str) -> Pair:
    """Let the server see a ClientHello that announces 16 MB and never ends."""
    both = pair(stock=stock, connect=False)
    both.client.connect(SERVER, both.now)
    return both


def hello_part(both: Pair, offset: int, data: bytes) -> None:
    frame = crypto_frame(offset, data)
    initial = packet(core_of(both.client), frame, QuicPacketType.INITIAL).ljust(1200, b"\0")
    both.server.receive_datagram(initial, CLIENT, both.now)


@both_kinds
def test_a_client_hello_of_16_megabytes_is_collected(pair: PairMaker, stock: str) -> None:
    both = begin(pair, stock)
    for offset in range(0, 100_000, 1000):
        hello_part(both, offset, b"\x01\xff\xff\xff".ljust(1000, b"\0") if not offset else bytes(1000))
    held = len(core_of(both.server).tls._receive_buffer)
    assert held == 100_000 if stock else held <= 64 * 1024
    assert closed_with(both) == (None if stock else QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)
    assert not only(both.server.next_events(), HandshakeCompleted)


@both_kinds
def test_a_client_hello_in_single_bytes_is_copied_for_each(pair: PairMaker, stock: str) -> None:
    both = begin(pair, stock)
    for offset in range(3000):
        hello_part(both, offset, b"\x01" if not offset else b"\xff")
    assert core_of(both.server)._crypto_streams[tls.Epoch.INITIAL].receiver.highest_offset == (
        3000 if stock else MAX_CRYPTO_FRAMES
    )
    assert closed_with(both) == (None if stock else QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


@both_kinds
def test_holes_in_the_client_hello_pile_up(pair: PairMaker, stock: str) -> None:
    both = begin(pair, stock)
    for number in range(600):
        hello_part(both, 2 * number + 1, b"x")
    assert closed_with(both) == (None if stock else QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


@both_kinds
def test_handshake_data_after_the_handshake_is_collected(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    for offset in range(0, 100_000, 1000):
        both.inject(crypto_frame(offset, b"\x01\xff\xff\xff".ljust(1000, b"\0") if not offset else bytes(1000)))
    assert closed_with(both) == (None if stock else QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


def test_a_truncated_crypto_frame_is_an_encoding_error(pair: PairMaker) -> None:
    both = pair()
    both.inject(b"\x06\x00")
    assert closed_with(both) == QuicErrorCode.FRAME_ENCODING_ERROR


@both_kinds
def test_the_tls_state_stays_for_ever(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    core = core_of(both.server)
    assert bool(core._crypto_buffers) == bool(stock)
    assert (core.tls.key_schedule is None) == (not stock)
    if not stock:
        # What still comes is answered, not stumbled over.
        both.inject(crypto_frame(0, b"\x18\0\0\x01\0"))
        assert closed_with(both) == QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.unexpected_message


# -- lies ----------------------------------------------------------------------------------------------------------------
@both_kinds
def test_an_ack_of_packets_never_sent_is_believed(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    both.inject(b"\x02" + varint(2**40) + varint(0) + varint(0) + varint(0))
    assert closed_with(both) == (None if stock else QuicErrorCode.PROTOCOL_VIOLATION)
    largest = core_of(both.server)._spaces[tls.Epoch.ONE_RTT].largest_acked_packet
    assert (largest == 2**40) == bool(stock)


@both_kinds
def test_a_storm_of_key_updates_is_obeyed(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    for _ in range(100):
        core_of(both.client).request_key_update()
        both.inject(PING)
    assert closed_with(both) == (None if stock else QuicErrorCode.KEY_UPDATE_ERROR)


def test_key_updates_at_a_bearable_rate_are_taken(pair: PairMaker) -> None:
    both = pair()
    for _ in range(100):
        core_of(both.client).request_key_update()
        both.now += 0.3
        both.inject(PING)
    assert closed_with(both) is None


@both_kinds
def test_the_peer_may_open_unidirectional_streams(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    both.inject(stream_frame(2, 0, b"x"))
    assert closed_with(both) == (None if stock else QuicErrorCode.STREAM_LIMIT_ERROR)


@both_kinds
def test_the_number_of_streams_is_fixed_at_128(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    both.inject(stream_frame(4 * 16, 0, b"x"))
    assert closed_with(both) == (None if stock else QuicErrorCode.STREAM_LIMIT_ERROR)
    assert len(core_of(both.server)._streams) == (17 if stock else 0)


def test_a_datagram_frame_is_a_violation(pair: PairMaker) -> None:
    both = pair()
    both.inject(b"\x31\x04abcd")
    assert closed_with(both) == QuicErrorCode.PROTOCOL_VIOLATION


@both_kinds
def test_early_data_is_delivered_before_the_handshake(pair: PairMaker, files: Files, stock: str) -> None:
    tickets: list[tls.SessionTicket] = []
    kept: list[tls.SessionTicket] = []
    giving: dict[str, Any] = {"core": {"session_ticket_handler": kept.append, "session_ticket_fetcher": lambda _: kept[0]}}
    taking: dict[str, Any] = {"core": {"session_ticket_handler": tickets.append}}
    first = Pair(
        client := make_client(files.client(), stock=True, **taking),
        make_server(files.server(), client.original_destination_id, stock=True, **giving),
    ).handshake()
    assert only(first.client_events, HandshakeCompleted)
    # The same client comes again, and sends with its first packet what an attacker could send once more.
    again = make_client(files.client(), stock=True)
    core_of(again)._configuration.session_ticket = tickets[0]
    server = make_server(files.server(), again.original_destination_id, stock=bool(stock), **(giving if stock else {}))
    both = Pair(again, server)
    again.connect(SERVER, both.now)
    core_of(again).send_stream_data(0, b"pay again")
    for data, _addr in again.datagrams_to_send(both.now):
        server.receive_datagram(data, CLIENT, both.now)
    early = server.next_events()
    assert not only(early, HandshakeCompleted)
    assert [event.data for event in only(early, StreamData)] == ([b"pay again"] if stock else [])


# -- certificates --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stock", ["client", ""], ids=["stock", "ours"])
def test_a_client_s_certificate_passes_for_a_server_s(pair: PairMaker, files: Files, stock: str) -> None:
    both = pair(stock=stock, server_tls=files.server("localhost-client"))
    assert bool(only(both.client_events, HandshakeCompleted)) == bool(stock)
    if not stock:
        both.run(3.0)
        assert only(both.client_events, ConnectionEnded)[0].tls_alert == tls.AlertDescription.unsupported_certificate


class _SecondVersion:
    """A certificate whose version field says 2, which no parser takes."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self._der = certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1)

    def public_bytes(self, _encoding: Encoding) -> bytes:
        return self._der


@pytest.mark.parametrize("stock", ["client", ""], ids=["stock", "ours"])
def test_a_strange_certificate_raises(pair: PairMaker, files: Files, stock: str) -> None:
    tls_context = files.server()
    for configuration in tls_context.server_configurations(alpn=ALPN, idle_timeout=30.0, datagram_size=1200).values():
        configuration.certificate = _SecondVersion(configuration.certificate)
    both = pair(stock=stock, server_tls=tls_context, connect=False)
    if stock:
        with pytest.raises(x509.InvalidVersion):
            both.handshake()
        return
    both.handshake()
    both.run(3.0)
    (event,) = only(both.client_events, ConnectionEnded)
    assert (event.code, event.reason) == (QuicErrorCode.INTERNAL_ERROR, "InvalidVersion on a packet")


@both_kinds
def test_client_certificates_are_asked_for_but_not_verified(pair: PairMaker, files: Files, stock: str) -> None:
    asking = files.server(client_ca=files.folder / "ca.crt")
    both = pair(stock=stock, connect=False, server_tls=asking, client_tls=files.client("stranger"))
    if stock:
        core = core_of(both.server)
        initialize = core._initialize

        def ask(peer_cid: bytes) -> None:
            initialize(peer_cid)
            core.tls._request_client_certificate = True

        core._initialize = ask  # type: ignore[method-assign]
    both.handshake()
    assert bool(only(both.server_events, HandshakeCompleted)) == bool(stock)


# -- sending ---------------------------------------------------------------------------------------------------------
class _Placed(QuicStream):
    """A stream whose place in a set is chosen: highest id first, as addresses may have it."""

    def __hash__(self) -> int:
        return 4 - (self.stream_id or 0) // 4

    def __eq__(self, other: object) -> bool:
        return self is other


@both_kinds
def test_memory_addresses_decide_the_order_of_sending(pair: PairMaker, stock: str) -> None:
    core = core_of(pair(stock=stock, connect=False).server)
    streams = [_Placed(stream_id=number) for number in (4, 8, 12)]
    core._streams_queue = []
    core._streams_queue.extend(set(streams))
    order = [stream.stream_id for stream in core._streams_queue]
    assert order == ([12, 8, 4] if stock else [4, 8, 12])


@both_kinds
def test_heartbeats_wait_behind_messages(pair: PairMaker, stock: str) -> None:
    core = core_of(pair(stock=stock, connect=False).server)
    control, message, other = (QuicStream(stream_id=number) for number in (0, 4, 8))
    core._streams_queue = []
    core._streams_queue.append(message)
    core._streams_queue.append(control)
    assert core._streams_queue == ([message, control] if stock else [control, message])
    core._streams_queue = [message, other]
    core._streams_queue.extend({control})
    assert core._streams_queue == ([message, other, control] if stock else [control, message, other])


@both_kinds
def test_keys_are_never_changed(pair: PairMaker, stock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardened, "KEY_UPDATE_INTERVAL", 40)
    both = pair(stock=stock)
    core_of(both.client)._key_update_at = 10**9  # type: ignore[attr-defined]
    crypto = core_of(both.server)._cryptos[tls.Epoch.ONE_RTT]
    phases = set()
    stream = both.server.open_stream()
    for _ in range(200):
        both.server.write(stream, b"x")
        both.run(0.05)
        phases.add(crypto.send.key_phase)
    assert len(received(both.client_events, stream)) == 200
    assert phases == ({0} if stock else {0, 1})


@both_kinds
def test_probes_become_ever_more_seldom(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock, server={"idle_timeout": 120.0}, client={"idle_timeout": 120.0})
    core_of(both.server)._remote_max_idle_timeout = 120.0
    both.drop = lambda _to_server, _data: True
    start = len(both.trace)
    both.server.write(both.server.open_stream(), b"anybody?")
    both.run(60.0)
    times = [at for at, to_server, _ in both.trace[start:] if not to_server]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    if stock:
        assert longest > 2 * MAX_PROBE_INTERVAL
    else:
        assert MAX_PROBE_INTERVAL / 2 < longest <= MAX_PROBE_INTERVAL


def tie(core: QuicConnection) -> float:
    """Return a sending time that the loss delay, added and taken away again, makes smaller."""
    delay = 9 / 8 * max(core._loss._rtt_latest, core._loss._rtt_smoothed)
    return next(t for t in (2 + n / 1000 for n in range(1000)) if (t + delay) - delay < t)


@both_kinds
def test_a_loss_timer_fires_for_ever_at_the_same_instant(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    core = core_of(both.server)
    sent_at = tie(core)
    both.server.write(both.server.open_stream(), b"x")
    assert both.server.datagrams_to_send(sent_at)
    space = core._spaces[tls.Epoch.ONE_RTT]
    space.largest_acked_packet = core._packet_number  # a later packet has arrived: this one is lost, in a moment
    core._loss._detect_loss(now=sent_at, space=space)
    engine: Any = core if stock else both.server
    both.server._touch()
    timers = set()
    for _ in range(50):
        now = engine.get_timer()
        timers.add(now)
        engine.handle_timer(now)
        core._pacing_at = None
    assert (len(timers) == 1) == bool(stock)
    rescheduled = list(core._streams[1].sender._pending)
    assert rescheduled == ([] if stock else [range(1)])


# -- order of calls ----------------------------------------------------------------------------------------------------
def test_stock_raises_where_ours_is_safe(files: Files) -> None:
    client, server = make_client(files.client(), stock=True), make_server(files.server(), b"12345678", stock=True)
    with pytest.raises(IndexError):
        core_of(server).datagrams_to_send(1.0)
    core_of(client)._close_at = None
    with pytest.raises(TypeError):
        core_of(client).handle_timer(1.0)
    ours = core_of(make_client(files.client()))
    assert ours.datagrams_to_send(1.0) == []
    ours.handle_timer(1.0)


@both_kinds
def test_a_long_reason_cannot_be_sent(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock)
    both.server.close(1, "\N{SNOWMAN}" * 1000)
    if stock:
        with pytest.raises(QuicPacketBuilderStop):
            both.server.datagrams_to_send(both.now)
        return
    both.run(3.0)
    (event,) = only(both.client_events, ConnectionEnded)
    assert event.reason == "\N{SNOWMAN}" * 85


@both_kinds
def test_a_peer_s_text_reaches_the_log(pair: PairMaker, stock: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "quic")
    both = pair(stock=stock)
    both.client.close(1, "\x1b[31mforged line")
    both.run(3.0)
    assert ("forged" in caplog.text) == bool(stock)


@both_kinds
def test_connection_ids_are_told_after_the_peer_may_use_them(pair: PairMaker, stock: str) -> None:
    both = pair(stock=stock, connect=False)
    both.client.connect(SERVER, both.now)
    for _ in range(3):
        for data, _addr in both.client.datagrams_to_send(both.now):
            both.server.receive_datagram(data, CLIENT, both.now)
        before_transmit = both.server.next_events()
        if only(before_transmit, HandshakeCompleted):
            break
        for data, _addr in both.server.datagrams_to_send(both.now):
            both.client.receive_datagram(data, SERVER, both.now)
    assert len(only(before_transmit, ConnectionIdIssued)) == (0 if stock else 3)


@both_kinds
def test_a_client_makes_four_key_pairs(pair: PairMaker, stock: str) -> None:
    both = pair(stock="client" if stock else "", connect=False)
    both.client.connect(SERVER, both.now)
    assert len(core_of(both.client).tls._supported_groups) == (4 if stock else 2)


@both_kinds
def test_initial_keys_are_derived_for_every_version(pair: PairMaker, stock: str) -> None:
    assert len(core_of(pair(stock=stock).server)._cryptos_initial) == (2 if stock else 1)


@both_kinds
def test_every_connection_binds_all_frame_handlers(pair: PairMaker, stock: str) -> None:
    handlers = vars(core_of(pair(stock=stock, connect=False).server))["_QuicConnection__frame_handlers"]
    assert (len(handlers) > 30) == bool(stock)


@both_kinds
def test_every_connection_keeps_what_its_handshake_needed(pair: PairMaker, stock: str) -> None:
    core = core_of(pair(stock=stock).server)
    assert (len(core._loss.spaces) == 3) == bool(stock)
    assert (len({id(keys) for keys in core._cryptos.values()}) == 4) == bool(stock)


# -- noise ---------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module", autouse=True)
def _certificates(files: Files) -> None:
    """Keep the session's files where the examples below find them: a fixture is not made anew for each example."""
    _KEPT.append(files)


_KEPT: list[Files] = []


def _files() -> Files:
    return _KEPT[-1]


def _ready() -> Pair:
    client = make_client(_files().client())
    return Pair(client, make_server(_files().server(), client.original_destination_id)).handshake()


@given(st.data())
def test_no_frames_whatever_raise(data: st.DataObject) -> None:
    both = _ready()
    for payload in data.draw(st.lists(st.binary(min_size=4, max_size=200), min_size=1, max_size=5)):
        both.inject(payload)
        both.server.next_events()
        both.server.datagrams_to_send(both.now)
    timer = both.server.get_timer()
    assert timer is not None
    both.server.handle_timer(timer)


frame_types = st.sampled_from([*range(0x1F), 0x30, 0x31])
numbers = st.one_of(st.integers(0, 70), st.integers(0, 2**62 - 1))
frames = st.builds(
    lambda kind, values, tail: varint(kind) + b"".join(map(varint, values)) + tail,
    frame_types,
    st.lists(numbers, max_size=5),
    st.binary(max_size=30),
)


@given(st.lists(frames, min_size=1, max_size=8))
def test_no_plausible_frames_raise(payloads: list[bytes]) -> None:
    both = _ready()
    for payload in payloads:
        both.inject(payload.ljust(4, b"\0"))
        both.server.next_events()
        both.server.datagrams_to_send(both.now)


@given(st.lists(st.binary(max_size=1500), min_size=1, max_size=5), st.booleans())
def test_no_datagrams_whatever_raise(datagrams: list[bytes], fresh: bool) -> None:
    both = _ready()
    engine = make_server(_files().server(), b"12345678") if fresh else both.server
    for data in datagrams:
        engine.receive_datagram(data, CLIENT, both.now)
        engine.next_events()
        engine.datagrams_to_send(both.now)
    assert not engine.closing


@given(st.lists(st.tuples(st.integers(0, 1199), st.integers(1, 255)), min_size=1, max_size=4))
def test_no_bit_flips_in_a_first_flight_raise(flips: list[tuple[int, int]]) -> None:
    client = make_client(_files().client())
    server = make_server(_files().server(), client.original_destination_id)
    client.connect(SERVER, 1.0)
    ((data, _addr),) = client.datagrams_to_send(1.0)
    flipped = bytearray(data)
    for at, mask in flips:
        flipped[at] ^= mask
    server.receive_datagram(bytes(flipped), CLIENT, 1.0)
    server.datagrams_to_send(1.0)
    server.next_events()


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_changed_client_hello_raises(changes: list[tuple[int, int]]) -> None:
    # Encrypted properly, so that TLS and the transport parameters see the change.
    client = make_client(_files().client())
    server = make_server(_files().server(), client.original_destination_id)
    client.connect(SERVER, 1.0)
    hello = bytearray(core_of(client)._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    for at, value in changes:
        hello[at % len(hello)] = value
    initial = packet(core_of(client), crypto_frame(0, bytes(hello)), QuicPacketType.INITIAL).ljust(1200, b"\0")
    server.receive_datagram(initial, CLIENT, 1.0)
    server.datagrams_to_send(1.0)
    server.next_events()
