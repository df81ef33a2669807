"""The promise as data: what the checker holds the library to. Change a rule here, not in the checker."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FORBIDDEN_LANE", "PROMISE", "Promise"]

FORBIDDEN_LANE = "forbidden"
"""Where the server asks for credentials, nobody may send on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What must hold in every history.

    Attributes:
        survives_reconnect: true allows `ConnectionLost` only when the session ended under the call: the other process did, or the two
            were apart for longer than ``session_ttl``, or one of them closed it; false whenever a connection did. What may be
            redelivered outlives the session as well, unless its receiver left or forgot its sender.
        starts_per_session: how often a message's handler may start while its session lasts. In the next one it starts again only for a
            sender that asked for redelivery, and is told.
        redelivered_within: seconds after which whatever may be redelivered has found a process that handles it.
        guarded: whether the server asks for credentials, and lets nobody send on `FORBIDDEN_LANE`.
        session_ttl: seconds that a session is kept without a connection.
        handler_timeout: seconds after which a handler is cancelled.
        session_ends: reasons of a connection's end that are the end of its session, too.
        unnoticed_seconds: seconds that calls may still begin in a session whose other process has been restarted: until this side has
            noticed, and come back.
        calm_seconds: seconds without any fault after which a connection that stands must carry an answer before its time-out: each side
            has noticed by then that the other was restarted.
        back_within: seconds within which a client is connected while both processes run and nothing is wrong.
        slack: seconds that an end may come late, for time-outs that are checked now and then.
        settle_seconds: seconds after the last fault by which everything is connected, answered and given back.
        request_errors: errors that a request may end with, beside its result.
        send_errors: errors that a send or ``delivered()`` may end with.
        endings: reasons for which a connection may end.
    """

    survives_reconnect: bool = True
    starts_per_session: int = 1
    redelivered_within: float = 300.0
    guarded: bool = False
    session_ttl: float = 120.0
    handler_timeout: float = 10.0
    session_ends: frozenset[str] = frozenset({"normal", "shutdown", "session_replaced"})
    unnoticed_seconds: float = 120.0
    calm_seconds: float = 75.0
    back_within: float = 75.0
    slack: float = 1.0
    settle_seconds: float = 420.0
    request_errors: frozenset[str] = frozenset(
        {
            "AckTimeout",
            "HandlerFailed",
            "PermissionDenied",
            "ConnectionLost",
            "ConnectionClosed",
            "ClientNotConnected",
            "SlowConsumer",
        }
    )
    send_errors: frozenset[str] = frozenset({"ConnectionLost", "ConnectionClosed", "ClientNotConnected", "SlowConsumer"})
    endings: frozenset[str] = frozenset(
        {
            "normal",
            "shutdown",
            "heartbeat_timeout",
            "hello_timeout",
            "session_replaced",
            "credentials_expired",
            "stateless_reset",
            "idle_timeout",
            "handshake_timeout",
            "unreachable",
        }
    )


PROMISE = Promise()
