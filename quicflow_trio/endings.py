"""What the end of a connection means to those who were using it: an error that trying again may mend, or one that is final."""

from __future__ import annotations

from functools import partial

from .errors import AuthenticationFailed, ConnectionLost, ConnectionRefused, QuicFlowError, SessionReplaced
from .protocol.lane_sender import ErrorFactory
from .protocol.state import CloseCode
from .quic.engine import ConnectionEnded
from .quic.tls import alert_name, is_certificate_alert

__all__ = ["loss", "refusal"]

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


def loss(ended: ConnectionEnded) -> ErrorFactory:
    """Return the error for what was under way on a connection that ended."""
    who = "the peer" if ended.by_peer else "this side"
    kind = "" if ended.application else "transport "
    what = ended.reason or f"{kind}code {ended.code:#x}"
    return partial(ConnectionLost, f"connection ended by {who}: {what}")
