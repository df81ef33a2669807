"""The promise as data: what the checker holds the library to. Change a rule here, not in the checker."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROMISE", "Promise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What must hold in every history.

    Attributes:
        survives_reconnect: false allows `ConnectionLost` whenever a connection ended under the call; true only when one of the two
            processes ended under it, or the two were apart for longer than ``session_ttl``.
        starts_per_process: how often a message's handler may start in one life of its receiver.
        starts_over_lives: how often over all lives of the receiver when the sender did not ask for redelivery.
        session_ttl: seconds that a session is kept without a connection.
        handler_timeout: seconds after which a handler is cancelled.
        calm_seconds: seconds without any fault after which a connection that stands must carry an answer before its time-out.
        back_within: seconds within which a client is connected while both processes run and nothing is wrong.
        slack: seconds that an end may come late, for time-outs that are checked now and then.
        settle_seconds: seconds after the last fault by which everything is connected, answered and given back.
        request_errors: errors that a request may end with, beside its result.
        send_errors: errors that a send or ``delivered()`` may end with.
        endings: reasons for which a connection may end.
    """

    survives_reconnect: bool = False
    starts_per_process: int = 1
    starts_over_lives: int = 1
    session_ttl: float = 120.0
    handler_timeout: float = 10.0
    calm_seconds: float = 60.0
    back_within: float = 75.0
    slack: float = 1.0
    settle_seconds: float = 420.0
    request_errors: frozenset[str] = frozenset(
        {"AckTimeout", "HandlerFailed", "ConnectionLost", "ConnectionClosed", "ClientNotConnected", "SlowConsumer"}
    )
    send_errors: frozenset[str] = frozenset({"ConnectionLost", "ConnectionClosed", "ClientNotConnected", "SlowConsumer"})
    endings: frozenset[str] = frozenset(
        {
            "normal",
            "shutdown",
            "heartbeat_timeout",
            "hello_timeout",
            "session_replaced",
            "idle_timeout",
            "handshake_timeout",
            "unreachable",
        }
    )


PROMISE = Promise()
