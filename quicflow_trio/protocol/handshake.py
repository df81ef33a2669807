"""Hello and welcome: what each side says first, checked before anything is believed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..config import Limits
from ..errors import ConfigurationError, RemoteProtocolError
from ..wire import Hello, LaneState, PeerLimits, Welcome

__all__ = [
    "ACK_RUNS",
    "ALPN",
    "BACKBONE1",
    "CLIENT_ID_BYTES",
    "RESUMING",
    "REVISION",
    "TOKEN_BYTES",
    "Terms",
    "alpn_offer",
    "check_client_id",
    "check_hello",
    "check_lane_name",
    "check_welcome",
    "make_hello",
    "states_fit",
]

ALPN = "quicflow/2"
BACKBONE1 = "quic-backbone-v1"
"""The original's protocol."""
REVISION = 2
"""Minor revision of quicflow/2. A peer of a later one only adds fields and frames, which are skipped.

1: an ack may answer a run of messages. A peer of revision 0 would skip what it says of the others, so it gets one ack each.
2: sessions resume; with a peer before it every connection has a session of its own. Credentials can be renewed within a connection, and
messages are refused with a status of their own.
"""
ACK_RUNS = 1
"""First revision whose acks may answer several messages."""
RESUMING = 2
"""First revision whose sessions resume."""
TOKEN_BYTES = 32
STATES_BYTES = 28 * 1024
"""What the states of all lanes may take in a hello or welcome; a control frame has 64 KiB, and credentials may take 32 of them."""
STATE_OVERHEAD = 32
CLIENT_ID_BYTES = 256
LANE_NAME_BYTES = 128


@dataclass(frozen=True, slots=True)
class Terms:
    """What the two sides agreed on for one connection.

    Attributes:
        payload: largest payload the peer accepts, bytes.
        lanes: lanes the peer lets this side open, the default lane included.
        heartbeat_interval: seconds between the client's pings.
        revision: of the protocol that both speak.
    """

    payload: int
    lanes: int
    heartbeat_interval: float
    revision: int


def alpn_offer(protocol: str) -> list[str]:
    """Return the protocols that a ``protocol`` of the configuration stands for, the better first."""
    return [ALPN, BACKBONE1] if protocol == "auto" else [protocol]


def _printable(text: str, limit: int) -> str | None:
    """Return what is wrong with an identifier, or None: it goes into logs, labels and URLs, so no control characters."""
    if not text:
        return "is empty"
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        return f"is longer than {limit} bytes"
    if not text.isprintable():
        return "has control or unprintable characters"
    if text != text.strip():
        return "starts or ends with white space"
    return None


def check_client_id(client_id: str) -> None:
    """Check a client id of our own.

    Raises:
        ConfigurationError: it is empty, longer than 256 bytes of UTF-8, or not printable.
    """
    if not isinstance(client_id, str):
        raise ConfigurationError(f"client_id = {client_id!r}: expected a string")
    problem = _printable(client_id, CLIENT_ID_BYTES)
    if problem is not None:
        raise ConfigurationError(f"client_id {problem}: expected 1 to {CLIENT_ID_BYTES} bytes of printable text")


def check_lane_name(name: str) -> str | None:
    """Return what is wrong with a lane's name, or None. The empty name is the default lane."""
    return _printable(name, LANE_NAME_BYTES) if name else None


def make_hello(
    client_id: str, limits: Limits, credentials: bytes = b"", token: bytes = b"", lanes: tuple[LaneState, ...] = ()
) -> Hello:
    """Return the first frame of a client; ``token`` asks for that session to go on, from where ``lanes`` say, if they fit in."""
    if not token or not states_fit(lanes):
        token, lanes = b"", ()
    return Hello(
        revision=REVISION,
        client_id=client_id,
        credentials=credentials,
        session_token=token,
        lanes=lanes,
        limits=PeerLimits(payload=limits.payload, lanes=limits.lanes),
    )


def states_fit(lanes: Collection[LaneState]) -> bool:
    """Return False for lanes so many, with names so long, that a control frame has no room for them: such a session does not resume."""
    return sum(len(lane.name.encode()) + STATE_OVERHEAD for lane in lanes) <= STATES_BYTES


def check_hello(hello: Hello, heartbeat_interval: float) -> Terms:
    """Check a client's hello and return the terms for what we send to it.

    Raises:
        RemoteProtocolError: the client id or the limits are not acceptable; the text is safe to send back.
    """
    problem = _printable(hello.client_id, CLIENT_ID_BYTES)
    if problem is not None:
        raise RemoteProtocolError(f"client id {problem}")
    return _terms(hello.limits, heartbeat_interval, hello.revision)


def check_welcome(welcome: Welcome, heartbeat_interval: float) -> Terms:
    """Check a server's welcome and return the terms for what we send to it; the shorter heartbeat interval counts.

    Raises:
        RemoteProtocolError: the limits or the interval make no sense.
    """
    if welcome.heartbeat_interval_ms < 1:
        raise RemoteProtocolError("the welcome has no heartbeat interval")
    return _terms(welcome.limits, min(heartbeat_interval, welcome.heartbeat_interval_ms / 1000), welcome.revision)


def _terms(limits: PeerLimits, heartbeat_interval: float, revision: int) -> Terms:
    if limits.payload < 1 or limits.lanes < 1:
        raise RemoteProtocolError("the limits offered allow no payload or no lane")
    return Terms(
        payload=limits.payload, lanes=limits.lanes, heartbeat_interval=heartbeat_interval, revision=min(revision, REVISION)
    )
