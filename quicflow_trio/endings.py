"""What the end of a connection means to those who were using it: an error that trying again may mend, or one that is final."""

from __future__ import annotations

from functools import partial

from .errors import AuthenticationFailed, ConnectionLost, ConnectionRefused, QuicFlowError, SessionReplaced
from .observe.events import DisconnectEvent, DisconnectReason
from .observe.instruments import Instruments
from .observe.logs import printable
from .observe.metrics import count
from .protocol.outgoing import ErrorFactory
from .protocol.state import CloseCode
from .quic.engine import ConnectionEnded
from .quic.tls import alert_name, is_certificate_alert

__all__ = [
    "HANDSHAKE_TIMEOUT",
    "UNREACHABLE",
    "disconnect_reason",
    "ending_text",
    "loss",
    "reason_label",
    "refusal",
    "report_end",
    "survivable",
]

HANDSHAKE_TIMEOUT = "handshake timeout"
"""What this side says to itself when TLS was not done in time: QUIC has no code for it."""
UNREACHABLE = "nobody listens there"
"""What a client says to itself when the network tells it so."""

_REASONS = {int(code): DisconnectReason[code.name] for code in CloseCode}
_LOCAL_REASONS = {HANDSHAKE_TIMEOUT: DisconnectReason.HANDSHAKE_TIMEOUT, UNREACHABLE: DisconnectReason.UNREACHABLE}

# Alerts of RFC 8446 section 6.2 that the same two configurations will run into again.
_HANDSHAKE_FAILURE = 40
_PROTOCOL_VERSION = 70
_INSUFFICIENT_SECURITY = 71
_MISSING_EXTENSION = 109
_UNRECOGNIZED_NAME = 112
_NO_APPLICATION_PROTOCOL = 120
_FINAL_ALERTS = frozenset(
    {
        _HANDSHAKE_FAILURE,
        _PROTOCOL_VERSION,
        _INSUFFICIENT_SECURITY,
        _MISSING_EXTENSION,
        _UNRECOGNIZED_NAME,
        _NO_APPLICATION_PROTOCOL,
    }
)

_FINAL_CODES: dict[int, type[QuicFlowError]] = {
    CloseCode.SESSION_REPLACED: SessionReplaced,
    CloseCode.REJECTED: ConnectionRefused,
    CloseCode.AUTHENTICATION_FAILED: AuthenticationFailed,
}


def refusal(ended: ConnectionEnded) -> ErrorFactory | None:
    """Return the error of an end that trying again cannot mend, None when it may."""
    who = "the server" if ended.by_peer else "this client"
    if ended.application:
        kind = _FINAL_CODES.get(ended.code) if ended.by_peer else None
        return None if kind is None else partial(kind, ended.reason or f"close code {ended.code}")
    alert = ended.tls_alert
    if alert is None:
        return None
    text = f"TLS alert {alert_name(alert)} from {who}" + (f": {ended.reason}" if ended.reason else "")
    if is_certificate_alert(alert):
        return partial(AuthenticationFailed, text)
    return partial(ConnectionRefused, text) if alert in _FINAL_ALERTS else None


_OF_THE_CONNECTION = frozenset({CloseCode.HEARTBEAT_TIMEOUT, CloseCode.HELLO_TIMEOUT, CloseCode.CREDENTIALS_EXPIRED})


def survivable(ended: ConnectionEnded) -> bool:
    """Return True for an end that says nothing about the session, so that it can go on on another connection.

    The network's, a silence, a welcome that did not come through to a client that resumes, and credentials that have run out: the client
    may come back with fresh ones. All others end the session:
    one side is done (NORMAL, SHUTDOWN), has found a defect in itself (INTERNAL_ERROR), or holds the other for broken or a stranger; what
    it has in memory is not to be built upon.
    """
    return not ended.application or ended.code in _OF_THE_CONNECTION


def loss(ended: ConnectionEnded) -> ErrorFactory:
    """Return the error for what was under way on a connection that ended."""
    who = "the peer" if ended.by_peer else "this side"
    kind = "" if ended.application else "transport "
    what = ended.reason or f"{kind}code {ended.code:#x}"
    return partial(ConnectionLost, f"connection ended by {who}: {what}")


def disconnect_reason(ended: ConnectionEnded) -> DisconnectReason:
    """Return why a connection ended, as one of a fixed set: peers choose the text of theirs, so it must not name a time series."""
    if ended.application:
        return _REASONS.get(ended.code, DisconnectReason.OTHER)
    if ended.reset:
        return DisconnectReason.STATELESS_RESET
    if ended.timed_out:
        return DisconnectReason.IDLE_TIMEOUT
    if ended.tls_alert is not None:
        return DisconnectReason.TLS
    local = None if ended.by_peer else _LOCAL_REASONS.get(ended.reason)
    return DisconnectReason.TRANSPORT if local is None else local


def reason_label(ended: ConnectionEnded, *, is_client: bool) -> str:
    """Return who closed and why, ``server:heartbeat_timeout`` for one; the names that ends are counted by."""
    return f"{'client' if ended.by_peer is not is_client else 'server'}:{disconnect_reason(ended).value}"


def ending_text(ended: ConnectionEnded) -> str:
    """Return why a connection ended as the closing side put it, fit for a log."""
    return printable(ended.reason) or f"code {ended.code:#x}"


def report_end(instruments: Instruments, client_id: str, ended: ConnectionEnded, *, is_client: bool) -> None:
    """Count and report the end of a connection that had completed its hello."""
    count(instruments.counters.disconnects, reason_label(ended, is_client=is_client))
    events = instruments.events
    if events.active:
        reason = disconnect_reason(ended)
        detail = ending_text(ended)
        events.emit(DisconnectEvent(at=events.now(), client_id=client_id, reason=reason, detail=detail, by_peer=ended.by_peer))
