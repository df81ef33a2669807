"""The engine contract, on real certificates and real packets, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from quicflow_trio.errors import LocalProtocolError
from quicflow_trio.quic.aioquic_engine import AioquicEngine, Windows
from quicflow_trio.quic.engine import (
    ConnectionEnded,
    ConnectionIdIssued,
    ConnectionIdRetired,
    Engine,
    EngineEvent,
    HandshakeCompleted,
    StreamData,
    StreamReset,
    StreamStopped,
)
from quicflow_trio.quic.limits import STANDSTILL
from quicflow_trio.quic.tls import is_certificate_alert
from quicflow_trio.testing.pair import CLIENT, SERVER
from tests.quic.conftest import PairMaker
from tests.quic.harness import (
    AIOQUIC,
    PAIRINGS,
    QH3,
    WINDOW,
    Files,
    Pair,
    core_of,
    make_client,
    make_server,
    not_for_qh3,
    only,
    received,
)

NO_CLIENT_CERTIFICATES = "its server cannot ask for client certificates; the configuration is refused"
OWN_CREDIT = "it gives credit by itself; test_qh3.py tests what holds instead"


@pytest.fixture(params=PAIRINGS, ids="-".join)
def pairing(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Every test here is for every engine, unless it says why not."""
    pairing: tuple[str, str] = request.param
    return pairing


def ended(events: list[EngineEvent]) -> ConnectionEnded:
    (event,) = only(events, ConnectionEnded)
    return event


def test_the_engine_keeps_the_contract(pair: PairMaker, pairing: tuple[str, str]) -> None:
    engine: Engine = pair(connect=False).client  # mypy checks the rest
    assert type(engine).__name__ == {AIOQUIC: "AioquicEngine", QH3: "Qh3Engine"}[pairing[0]]


# -- handshake -----------------------------------------------------------------------------------------------------------
def test_both_sides_complete_the_handshake(pair: PairMaker) -> None:
    both = pair()
    for events in (both.client_events, both.server_events):
        assert only(events, HandshakeCompleted) == [HandshakeCompleted("quicflow/2")]
    assert both.client.original_destination_id == both.server.original_destination_id
    assert both.client.peer_address == SERVER
    assert both.server.peer_address == CLIENT
    assert both.client.rtt == pytest.approx(0.02, abs=0.005)
    assert both.client.peer_certificate is not None
    assert both.server.peer_certificate is None
    assert not both.client.closing
    assert both.client.ended is None
    assert not both.client.terminated


def test_both_sides_choose_the_client_s_first_common_protocol(pair: PairMaker, files: Files) -> None:
    offered = {"alpn": ("quic-backbone-v1", "quicflow/2")}
    both = pair(client=offered)
    assert only(both.server_events, HandshakeCompleted)[0].alpn == "quicflow/2"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_server_may_be_named_by_address(pair: PairMaker, name: str) -> None:
    assert only(pair(client={"server_name": name}).client_events, HandshakeCompleted)


def test_version_2_is_taken_too(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, client="no client offers version 2, and aioquic's can be made to")
    both = pair(connect=False)
    core_of(both.client)._configuration.supported_versions = [0x6B3343CF]
    both.handshake()
    assert only(both.client_events, HandshakeCompleted)
    core: Any = core_of(both.server)
    assert (core.version if pairing[1] == QH3 else core._version) == 0x6B3343CF


@pytest.mark.parametrize(
    ("server", "client", "alert"),
    [
        ("server", {"ca": "other-ca"}, 42),
        ("expired", {}, 45),
        ("server", {"server_name": "elsewhere.example"}, 42),
    ],
)
def test_a_bad_server_certificate_ends_the_handshake_on_both_sides(
    pair: PairMaker, files: Files, pairing: tuple[str, str], server: str, client: dict[str, Any], alert: int
) -> None:
    if pairing[0] == QH3 and alert == 45:
        alert = 42  # It does not tell what is wrong with a certificate.
    both = pair(server_tls=files.server(server), client_tls=files.client(**client))
    both.run(3.0)
    here, there = ended(both.client_events), ended(both.server_events)
    assert (here.tls_alert, here.by_peer, here.application) == (alert, False, False)
    assert (there.tls_alert, there.by_peer, there.application) == (alert, True, False)
    assert is_certificate_alert(here.tls_alert)
    assert not only(both.client_events + both.server_events, HandshakeCompleted)
    assert both.client.peer_certificate is None


def test_insecure_takes_any_certificate(pair: PairMaker, files: Files) -> None:
    both = pair(server_tls=files.server("expired"), client_tls=files.client(ca="other-ca", insecure=True))
    assert only(both.client_events, HandshakeCompleted)
    assert both.client.peer_certificate is None


def test_no_common_protocol_is_no_certificate_error(pair: PairMaker) -> None:
    both = pair(client={"alpn": ("http/0.9",)})
    both.run(3.0)
    assert ended(both.client_events).tls_alert == 120
    assert not is_certificate_alert(120)


def test_a_client_certificate_is_verified_and_shown(pair: PairMaker, files: Files, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, server=NO_CLIENT_CERTIFICATES)
    asking = files.server(client_ca=files.folder / "ca.crt")
    both = pair(server_tls=asking, client_tls=files.client("worker-1"))
    assert only(both.server_events, HandshakeCompleted)
    from quicflow_trio.quic.certificates import certificate_names

    assert both.server.peer_certificate is not None
    assert certificate_names(both.server.peer_certificate) == {"worker-1"}


@pytest.mark.parametrize(("certificate", "alert"), [(None, 116), ("stranger", 48), ("expired-client", 45), ("server", 43)])
def test_a_bad_client_certificate_is_refused_before_any_data(
    pair: PairMaker, files: Files, pairing: tuple[str, str], certificate: str | None, alert: int
) -> None:
    not_for_qh3(pairing, server=NO_CLIENT_CERTIFICATES)
    asking = files.server(client_ca=files.folder / "ca.crt")
    both = pair(connect=False, server_tls=asking, client_tls=files.client(certificate))

    def send_early() -> None:
        # The client is through before the server has looked at its certificate.
        if only(both.client_events, HandshakeCompleted) and not both.client.closing and not sent:
            sent.append(both.client.open_stream())
            both.client.write(sent[0], b"too early", fin=True)

    sent: list[int] = []
    both.on_round = send_early
    both.handshake()
    both.run(3.0)
    assert sent
    assert ended(both.client_events).tls_alert == alert
    assert ended(both.client_events).by_peer
    assert ended(both.server_events).tls_alert == alert
    assert is_certificate_alert(alert)
    assert not only(both.server_events, HandshakeCompleted)
    assert not only(both.server_events, StreamData)
    assert both.server.peer_certificate is None


# -- streams and credit --------------------------------------------------------------------------------------------------
def opened(both: Pair, side: str = "client") -> int:
    engine: AioquicEngine = getattr(both, side)
    return engine.open_stream()


def test_bytes_arrive_in_order_with_fin(pair: PairMaker) -> None:
    both = pair()
    stream = opened(both)
    assert both.client.credit(stream) == WINDOW
    both.client.write(stream, b"a" * 5000)
    both.client.write(stream, b"b", fin=True)
    assert both.client.unsent(stream) == both.client.unacked() == 5001
    assert both.client.credit(stream) == WINDOW - 5001
    both.run(1.0)
    assert received(both.server_events, stream) == b"a" * 5000 + b"b"
    assert only(both.server_events, StreamData)[-1].fin
    assert both.client.unacked() == 0
    both.server.write(stream, b"answer", fin=True)
    both.run(1.0)
    assert received(both.client_events, stream) == b"answer"
    assert repr(only(both.client_events, StreamData)[0]) == f"StreamData(stream_id={stream}, 6 bytes, fin=True)"
    # Finished both ways, the stream's state is gone, and asking for it does no harm.
    assert both.client.credit(stream) == both.client.unsent(stream) == both.client.unacked() == 0
    assert not both.client.grant(stream, 10**9)
    both.client.reset(stream, 1)
    both.client.stop(stream, 1)
    with pytest.raises(LocalProtocolError, match="finished"):
        both.client.write(stream, b"more")


def test_both_sides_open_streams(pair: PairMaker) -> None:
    both = pair()
    assert [opened(both) for _ in range(3)] == [0, 4, 8]
    assert [opened(both, "server") for _ in range(2)] == [1, 5]
    both.server.write(5, b"hello")
    both.run(1.0)
    assert received(both.client_events, 5) == b"hello"


def test_streams_beyond_the_peer_s_limit_are_refused_here(pair: PairMaker) -> None:
    both = pair(connect=False)
    with pytest.raises(LocalProtocolError):
        both.client.open_stream()
    both.handshake()
    for _ in range(16):
        opened(both)
    with pytest.raises(LocalProtocolError, match="16 streams"):
        opened(both)


def test_a_finished_stream_gives_its_place_back(pair: PairMaker, pairing: tuple[str, str]) -> None:
    both = pair()
    if pairing[1] == AIOQUIC:
        both.server.raise_stream_limit(4)  # never lowers
    for number in range(100):
        stream = opened(both)
        both.client.write(stream, b"x", fin=True)
        both.run(0.1)
        both.server.write(stream, b"y", fin=True)
        both.run(0.1)
        assert received(both.client_events, stream) == b"y", number


@pytest.mark.parametrize("streams", [1000])
def test_the_stream_limit_can_be_raised_after_the_handshake(pair: PairMaker, pairing: tuple[str, str], streams: int) -> None:
    not_for_qh3(pairing, server="the number of streams stands from the first packet on")
    both = pair()
    both.server.raise_stream_limit(streams)
    both.run(0.5)
    ids = [opened(both) for _ in range(streams)]
    with pytest.raises(LocalProtocolError):
        opened(both)
    both.client.write(ids[-1], b"last")
    both.run(1.0)
    assert received(both.server_events, ids[-1]) == b"last"


def test_the_sender_stops_at_the_granted_byte_and_goes_on_after_a_grant(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, server=OWN_CREDIT)
    both = pair()
    stream = opened(both)
    both.client.write(stream, b"x" * (3 * WINDOW))
    assert both.client.credit(stream) == -2 * WINDOW
    both.run(2.0)
    assert len(received(both.server_events)) == WINDOW
    assert both.client.unsent(stream) == 2 * WINDOW
    assert both.server.grant(stream, WINDOW + 100), "a blocked peer gets the least update"
    both.run(2.0)
    assert len(received(both.server_events)) == WINDOW + 100
    assert both.server.grant(stream, 3 * WINDOW)
    assert both.server.grant(stream, 10), "the update above has not left yet"
    both.run(2.0)
    assert not both.server.grant(stream, 10), "credit is never taken back"
    assert len(received(both.server_events)) == 3 * WINDOW
    assert both.client.unacked() == 0


def test_the_return_half_has_credit_of_its_own(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, client=OWN_CREDIT)
    windows = Windows(stream_in=WINDOW, stream_out=4000, connection=10 * WINDOW, streams=4)
    both = pair(client={"windows": windows})
    stream = opened(both)
    both.client.write(stream, b"?")
    both.run(0.5)
    assert both.server.credit(stream) == 4000
    assert not both.client.grant(stream, 4999), "less than a quarter of 4,000 is new"
    assert both.client.grant(stream, 5000)
    both.run(0.5)
    assert both.server.credit(stream) == 5000


def test_who_nearly_stands_still_is_told_of_whatever_is_new(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, server=OWN_CREDIT)
    both = pair()
    stream = opened(both)
    both.client.write(stream, bytes(WINDOW - STANDSTILL - 1))
    both.run(0.5)
    assert not both.server.grant(stream, WINDOW + 1)
    both.client.write(stream, b"?")
    both.run(0.5)
    assert both.client.credit(stream) == STANDSTILL + 1


def test_a_small_update_rides_in_a_packet_that_leaves_anyway(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, server=OWN_CREDIT)
    both = pair()
    stream = opened(both)
    both.client.write(stream, b"?")
    both.run(0.5)
    assert not both.server.grant(stream, WINDOW + WINDOW // 8)
    both.run(0.5)
    assert both.client.credit(stream) == WINDOW - 1, "it is not worth a packet"
    both.client.write(stream, b"?")
    both.run(0.5)
    assert both.client.credit(stream) == WINDOW + WINDOW // 8 - 2, "the ACK took it along"


@pytest.mark.parametrize("lost", [1, 3])
def test_a_lost_update_is_sent_again(pair: PairMaker, pairing: tuple[str, str], lost: int) -> None:
    not_for_qh3(pairing, server=OWN_CREDIT)
    both = pair()
    stream = opened(both)
    both.client.write(stream, b"x" * (2 * WINDOW))
    both.run(1.0)
    assert both.server.grant(stream, 2 * WINDOW)
    left = [lost]

    def drop(to_server: bool, _data: bytes) -> bool:
        if to_server or not left[0]:
            return False
        left[0] -= 1
        return True

    both.drop = drop
    both.run(5.0)
    assert left == [0]
    assert len(received(both.server_events)) == 2 * WINDOW


def test_a_lost_connection_update_is_sent_again(pair: PairMaker) -> None:
    # The connection window binds here, against the advice, so that losing MAX_DATA would stop everything.
    windows = Windows(stream_in=WINDOW, stream_out=WINDOW, connection=20_000, streams=4)
    both = pair(server={"windows": windows})
    both.loss = 0.2
    both.client.write(opened(both), b"x" * WINDOW)
    both.run(60.0, until=lambda: len(received(both.server_events)) == WINDOW)
    assert len(received(both.server_events)) == WINDOW


@pytest.mark.parametrize("seed", [1, 2])
def test_a_big_transfer_survives_a_fifth_of_its_packets_lost_both_ways(pair: PairMaker, seed: int) -> None:
    both = pair(seed=seed)
    both.loss = 0.2
    up, down = bytes(range(256)) * 1200, bytes(reversed(range(256))) * 1200
    stream = opened(both)
    both.client.write(stream, up, fin=True)

    def consume() -> None:
        both.server.grant(stream, len(received(both.server_events)) + WINDOW)
        both.client.grant(stream, len(received(both.client_events)) + WINDOW)
        if not answered and received(both.server_events):
            answered.append(True)
            both.server.write(stream, down, fin=True)

    answered: list[bool] = []
    both.on_round = consume
    both.run(120.0, until=lambda: len(received(both.client_events)) == len(down) and not both.client.unacked())
    assert received(both.server_events) == up
    assert received(both.client_events) == down
    both.run(5.0, until=lambda: not both.server.unacked())
    assert both.server.unacked() == 0


def test_one_seed_gives_one_trace(pair: PairMaker, files: Files) -> None:
    def trace(seed: int) -> list[tuple[float, bool, int]]:
        # Ed25519 and fixed serial numbers: with ECDSA the certificate and the signature vary in length.
        both = pair(server_tls=files.server("ed-server"), client_tls=files.client(ca="ed-ca"), seed=seed)
        both.loss = 0.1
        for _ in range(6):
            both.client.write(opened(both), b"x" * 30_000, fin=True)
        both.run(10.0)
        return both.trace

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


def test_unacked_leaves_out_what_was_acknowledged_out_of_order(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, client="it counts packets that are not acknowledged, not bytes of streams")
    both = pair()
    first = [True]

    def drop(to_server: bool, data: bytes) -> bool:
        lost = to_server and len(data) > 1000 and first[0]
        first[0] = first[0] and not lost
        return lost

    both.drop = drop
    both.client.write(opened(both), b"x" * 5000, fin=True)
    stream = core_of(both.client)._streams[0]
    both.run(1.0, until=lambda: both.client.unacked() < 1300)
    assert stream.sender._buffer_start == 0
    assert 1000 < both.client.unacked() < 1300, "the first packet only, which was lost"
    both.run(1.0)
    assert both.client.unacked() == 0


def test_a_fin_alone_counts_until_it_is_acknowledged(pair: PairMaker) -> None:
    both = pair()
    stream = opened(both)
    both.client.write(stream, b"", fin=True)
    assert both.client.unacked() == 1
    both.run(1.0)
    assert both.client.unacked() == 0


def test_reset_and_stop(pair: PairMaker) -> None:
    both = pair()
    a, b = opened(both), opened(both)
    both.client.write(a, b"x" * 1000)
    both.client.write(b, b"x")
    both.run(0.5)
    both.client.write(a, b"never sent")
    both.client.reset(a, 7)
    assert both.client.credit(a) == both.client.unsent(a) == both.client.unacked() == 0
    with pytest.raises(LocalProtocolError, match="reset"):
        both.client.write(a, b"more")
    both.server.stop(b, 9)
    both.run(0.5)
    assert only(both.server_events, StreamReset) == [StreamReset(a, 7), StreamReset(b, 9)]
    assert only(both.client_events, StreamStopped) == [StreamStopped(b, 9)]
    both.server.stop(b, 9)
    both.run(0.5)
    assert len(only(both.client_events, StreamStopped)) == 1


def test_what_was_never_opened_cannot_be_written(pair: PairMaker) -> None:
    both = pair()
    with pytest.raises(LocalProtocolError):
        both.client.write(1, b"x")
    assert both.client.credit(1) == 0
    assert not both.client.grant(1, 10**6)


# -- closing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("application", [True, False])
def test_a_close_tells_code_and_reason(pair: PairMaker, side: str, application: bool) -> None:
    both = pair()
    closer: AioquicEngine = getattr(both, side)
    closer.close(2, "draining", application=application)
    closer.close(3, "too late")
    assert closer.closing
    assert closer.ended == ConnectionEnded(2, "draining", application, by_peer=False)
    assert not closer.terminated
    stream = 0 if side == "client" else 1
    with pytest.raises(LocalProtocolError):
        closer.write(stream, b"never opened")
    both.run(5.0)
    events = {"client": both.client_events, "server": both.server_events}
    mine, theirs = ended(events.pop(side)), ended(*events.values())
    assert mine == ConnectionEnded(2, "draining", application, by_peer=False)
    assert theirs == ConnectionEnded(2, "draining", application, by_peer=True)
    assert both.client.terminated
    assert both.server.terminated
    assert both.client.get_timer() is None
    both.client.handle_timer(both.now)
    assert both.client.datagrams_to_send(both.now) == []


def test_writing_to_a_closing_connection_does_nothing(pair: PairMaker) -> None:
    both = pair()
    stream = opened(both)
    both.client.close(0)
    both.client.write(stream, b"lost")
    assert both.client.unacked() == 0


def test_a_close_that_was_lost_is_repeated_ever_more_seldom(pair: PairMaker) -> None:
    both = pair()
    both.server.write(both.server.open_stream(), b"still here")
    ((data, _addr),) = both.server.datagrams_to_send(both.now)
    both.client.close(4, "bye")
    assert len(both.client.datagrams_to_send(both.now)) == 1  # lost
    answers = []
    for _ in range(16):
        both.client.receive_datagram(data, SERVER, both.now)
        answers.append(both.client.datagrams_to_send(both.now))
    assert [number for number, answer in enumerate(answers, 1) if answer] == [1, 2, 4, 8, 16]
    both.server.receive_datagram(answers[-1][0][0], CLIENT, both.now)
    both.run(5.0)
    assert ended(both.server_events) == ConnectionEnded(4, "bye", True, by_peer=True)


def test_silence_ends_a_connection(pair: PairMaker) -> None:
    both = pair(client={"idle_timeout": 10.0})
    both.drop = lambda _to_server, _data: True
    both.run(8.0)
    assert not both.client.terminated
    both.run(30.0)
    for events in (both.client_events, both.server_events):
        event = ended(events)
        assert event.timed_out
        assert not event.by_peer
        assert not event.application


def test_closing_before_anybody_was_heard_ends_at_once(files: Files, pairing: tuple[str, str]) -> None:
    server = make_server(files.server(), b"12345678", engine=pairing[1])
    server.close(1, "no room")
    assert server.terminated
    assert ended(server.next_events()) == ConnectionEnded(1, "no room", True, by_peer=False)
    assert server.datagrams_to_send(1.0) == []
    client = make_client(files.client(), engine=pairing[0])
    client.close(0)
    assert ended(client.next_events()).code == 0


def test_a_client_that_nobody_answers_can_be_closed(files: Files, pairing: tuple[str, str]) -> None:
    client = make_client(files.client(), engine=pairing[0])
    client.connect(SERVER, 1.0)
    client.datagrams_to_send(1.0)
    client.close(0)
    assert client.datagrams_to_send(1.1)
    timer = client.get_timer()
    assert timer is not None
    client.handle_timer(timer)
    assert ended(client.next_events()).by_peer is False


# -- order of calls ----------------------------------------------------------------------------------------------------
def test_everything_may_be_called_before_the_first_datagram(files: Files, pairing: tuple[str, str]) -> None:
    here, there = pairing
    for engine in (make_client(files.client(), engine=here), make_server(files.server(), b"12345678", engine=there)):
        assert engine.datagrams_to_send(1.0) == []
        assert engine.get_timer() is None
        engine.handle_timer(1.0)
        assert engine.next_events() == []
        assert engine.rtt is None
        assert engine.peer_address is None
        assert len(engine.connection_ids) == 1
        assert engine.unacked() == 0
        assert not engine.closing
    server = make_server(files.server(), b"12345678", engine=there)
    server.receive_datagram(b"\x40garbage of some length", CLIENT, 1.0)
    assert server.datagrams_to_send(1.0) == []


def test_a_timer_fires_only_when_it_is_due(pair: PairMaker) -> None:
    both = pair()
    both.client.write(opened(both), b"x")
    both.transmit()
    timer = both.client.get_timer()
    assert timer is not None
    both.client.handle_timer(timer - 0.01)
    assert both.client.get_timer() == timer
    assert both.client.datagrams_to_send(timer - 0.01) == []
    both.client.handle_timer(timer)
    assert both.client.datagrams_to_send(timer), "the probe"
    later = both.client.get_timer()
    assert later is not None
    assert later > timer


def test_a_timer_that_waits_for_the_transmit_does_not_spin(pair: PairMaker) -> None:
    both = pair()
    both.client.write(opened(both), b"x")
    both.run(0.0105)  # the server owes an ACK
    timer = both.server.get_timer()
    assert timer is not None
    both.server.handle_timer(timer)
    again = both.server.get_timer()
    assert again is not None
    assert again > timer
    assert both.server.datagrams_to_send(timer), "the ACK, although `now` is a hair before the nudged timer"


def test_connection_ids_follow_the_events(pair: PairMaker) -> None:
    both = pair(connect=False)
    known = set(both.server.connection_ids)
    both.handshake()
    known |= {event.connection_id for event in only(both.server_events, ConnectionIdIssued)}
    assert known == set(both.server.connection_ids)
    assert len(known) == 4
    assert len(only(both.server_events, ConnectionIdIssued)) == 3, "each is told once"
    core_of(both.client).change_connection_id()
    both.client.write(opened(both), b"x")
    both.run(1.0)
    retired = {event.connection_id for event in only(both.server_events, ConnectionIdRetired)}
    known |= {event.connection_id for event in only(both.server_events, ConnectionIdIssued)}
    assert len(retired) == 1
    assert known - retired == set(both.server.connection_ids)


def test_a_client_may_move(pair: PairMaker, pairing: tuple[str, str]) -> None:
    not_for_qh3(pairing, server="it goes on to the old address until the new one is validated")
    both = pair()
    stream = opened(both)
    both.client.write(stream, b"x" * 100)
    for data, _addr in both.client.datagrams_to_send(both.now):
        both.server.receive_datagram(data, ("elsewhere", 9), both.now)
    assert both.server.peer_address == ("elsewhere", 9)
    # Three times what came from there, until the address is validated.
    both.server.write(stream, b"y" * 20_000)
    sent = sum(len(data) for data, addr in both.server.datagrams_to_send(both.now) if addr == ("elsewhere", 9))
    assert 0 < sent <= 3 * 200
