"""How long to wait before the next attempt, and which ends of a connection are final. Pure: no clock, seeded jitter."""

from __future__ import annotations

import random
from functools import partial

from .errors import AuthenticationFailed, ConnectionLost, ConnectionRefused, QuicFlowError, SessionReplaced
from .protocol.lane_sender import ErrorFactory
from .protocol.state import CloseCode
from .quic.engine import ConnectionEnded
from .quic.tls import alert_name, is_certificate_alert

__all__ = ["Backoff", "loss", "refusal"]


class Backoff:
    """Exponential backoff: ``initial``, twice that, ... up to ``maximum`` seconds, each shortened by a seeded share.

    Args:
        initial: first wait, seconds.
        maximum: longest wait, seconds.
        jitter: largest share of a wait that is taken off, 0 to 1, so that clients that lost one server do not return as one.
        seed: seed of that share; None takes one from the operating system.
    """

    def __init__(self, initial: float, maximum: float, jitter: float, seed: int | None = None) -> None:
        self._initial = initial
        self._maximum = maximum
        self._jitter = jitter
        self._random = random.Random(seed)
        self._next = initial

    def next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        delay = self._next
        self._next = min(delay * 2, self._maximum)
        return delay * (1 - self._jitter * self._random.random())

    def reset(self) -> None:
        """Start over: a connection stood."""
        self._next = self._initial


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
