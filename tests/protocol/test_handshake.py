"""Hello and welcome: what is believed of them."""

from __future__ import annotations

import pytest

from quicflow_trio.config import Limits
from quicflow_trio.errors import ConfigurationError, RemoteProtocolError
from quicflow_trio.protocol.handshake import (
    CLIENT_ID_BYTES,
    LANE_NAME_BYTES,
    REVISION,
    check_client_id,
    check_hello,
    check_lane_name,
    check_welcome,
    make_hello,
)
from quicflow_trio.wire import Hello, PeerLimits, Welcome

GOOD_IDS = ["a", "worker-1", "Zoë", "工場", "a b", "x" * CLIENT_ID_BYTES, "ü" * (CLIENT_ID_BYTES // 2)]
BAD_IDS = {
    "": "is empty",
    "x" * (CLIENT_ID_BYTES + 1): "longer than 256 bytes",
    "ü" * (CLIENT_ID_BYTES // 2) + "x": "longer than 256 bytes",
    "a\x00b": "control or unprintable",
    "a\nINFO forged line": "control or unprintable",
    "a\x1b[31m": "control or unprintable",
    "a\u202eb": "control or unprintable",
    "\ud800": "control or unprintable",
    " a": "white space",
    "a ": "white space",
}
LIMITS = PeerLimits(payload=1000, lanes=4)


def hello(client_id: str = "a", limits: PeerLimits = LIMITS) -> Hello:
    return Hello(revision=REVISION, client_id=client_id, limits=limits)


@pytest.mark.parametrize("client_id", GOOD_IDS)
def test_good_client_ids(client_id: str) -> None:
    check_client_id(client_id)
    assert check_hello(hello(client_id), 15.0).payload == 1000


@pytest.mark.parametrize("client_id", BAD_IDS)
def test_bad_client_ids_are_refused_on_both_sides(client_id: str) -> None:
    with pytest.raises(ConfigurationError, match=BAD_IDS[client_id]):
        check_client_id(client_id)
    with pytest.raises(RemoteProtocolError, match=BAD_IDS[client_id]) as caught:
        check_hello(hello(client_id), 15.0)
    # The reason goes back on the wire and into the log: nothing of the id may be in it.
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 80


def test_a_client_id_is_text() -> None:
    with pytest.raises(ConfigurationError, match="expected a string"):
        check_client_id(7)  # type: ignore[arg-type]


def test_lane_names() -> None:
    assert check_lane_name("") is None
    assert check_lane_name("bulk") is None
    assert check_lane_name("x" * LANE_NAME_BYTES) is None
    assert check_lane_name("x" * (LANE_NAME_BYTES + 1)) == "is longer than 128 bytes"
    assert check_lane_name("a\nb") == "has control or unprintable characters"


def test_a_hello_carries_our_limits() -> None:
    made = make_hello("worker-1", Limits(payload=123, lanes=5))
    assert (made.client_id, made.revision, made.limits) == ("worker-1", REVISION, PeerLimits(payload=123, lanes=5))
    assert made.session_token == made.credentials == b""


def test_a_later_revision_is_welcome() -> None:
    assert check_hello(Hello(revision=7, client_id="a", limits=LIMITS), 15.0).lanes == 4


def test_the_terms_are_what_the_peer_accepts_and_the_servers_interval() -> None:
    terms = check_hello(hello(), 15.0)
    assert (terms.payload, terms.lanes, terms.heartbeat_interval) == (1000, 4, 15.0)


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(15.0, 5000, 5.0), (5.0, 15_000, 5.0), (0.01, 1, 0.001)])
def test_the_shorter_heartbeat_interval_counts(ours: float, theirs: int, agreed: float) -> None:
    assert check_welcome(Welcome(heartbeat_interval_ms=theirs, limits=LIMITS), ours).heartbeat_interval == agreed


def test_a_welcome_without_an_interval_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="no heartbeat interval"):
        check_welcome(Welcome(limits=LIMITS), 15.0)


@pytest.mark.parametrize("limits", [PeerLimits(), PeerLimits(payload=1), PeerLimits(lanes=1)])
def test_limits_that_allow_nothing_are_refused(limits: PeerLimits) -> None:
    with pytest.raises(RemoteProtocolError, match="no payload or no lane"):
        check_hello(hello(limits=limits), 15.0)
    with pytest.raises(RemoteProtocolError, match="no payload or no lane"):
        check_welcome(Welcome(heartbeat_interval_ms=1, limits=limits), 15.0)
