"""Every error that quicflow_trio raises on purpose.

One root, so that one ``except`` catches the library and nothing else::

    QuicFlowError
     +-- ConfigurationError            also ValueError: a field is out of its range
     +-- PayloadTooLarge               also ValueError: refused before anything was sent
     +-- LaneLimitReached              no further lane may be opened on this session
     +-- ClientNotConnected            unicast to nobody
     +-- WaitingTableFull              too many requests wait for an ack; refused at once
     +-- SlowConsumer                  the peer's outbox is full and the caller asked not to wait
     +-- AckTimeout                    also trio.TooSlowError: no ack within ``ack_timeout``
     +-- HandlerFailed                 the peer's handler raised, ran out of time or had no answer
     +-- ConnectionClosed              also trio.ClosedResourceError: this side closed it
     +-- ConnectionLost                also trio.BrokenResourceError: the peer or the network ended it
     +-- ConnectionRefused             also trio.BrokenResourceError: permanent, no reconnect
     |    +-- AuthenticationFailed     a certificate or credentials did not verify
     +-- SessionReplaced               also trio.BrokenResourceError: a newer connection has this client id
     +-- PermissionDenied              the peer does not let this client send that
     +-- RateLimited                   the peer takes no more for now; says when to try again
     +-- CredentialsRefused            raised by an authenticator: the client may not connect
     +-- CredentialsUnavailable        the client's credentials function failed
     +-- ProtocolError
          +-- LocalProtocolError       this side tried what the protocol forbids
          +-- RemoteProtocolError      the peer did

Closed versus lost follows Trio: *closed* is what you did, *lost* is what was done to you. Each waiter gets an
exception of its own (``raise ... from cause``); a stored instance is never raised twice.
"""

from __future__ import annotations

import trio

__all__ = [
    "AckTimeout",
    "AuthenticationFailed",
    "ClientNotConnected",
    "ConfigurationError",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionRefused",
    "CredentialsRefused",
    "CredentialsUnavailable",
    "HandlerFailed",
    "LaneLimitReached",
    "LocalProtocolError",
    "PayloadTooLarge",
    "PermissionDenied",
    "ProtocolError",
    "QuicFlowError",
    "RateLimited",
    "RemoteProtocolError",
    "SessionReplaced",
    "SlowConsumer",
    "WaitingTableFull",
]


class QuicFlowError(Exception):
    """Root of the tree above."""


class ConfigurationError(QuicFlowError, ValueError):
    """A configuration field is outside its allowed range; the message names both."""


class PayloadTooLarge(QuicFlowError, ValueError):
    """The payload is longer than this side or the peer accepts.

    Attributes:
        size: length of the refused payload, in bytes.
        limit: the largest payload allowed, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"payload of {size:,} bytes is over the limit of {limit:,} bytes")
        self.size: int = size
        self.limit: int = limit


class LaneLimitReached(QuicFlowError):
    """Opening this lane would pass ``Limits.lanes`` of this side or of the peer."""


class ClientNotConnected(QuicFlowError):
    """No client with this id is connected (or, for ``Server.session``, known).

    Attributes:
        client_id: the id that was asked for.
    """

    def __init__(self, client_id: str) -> None:
        super().__init__(f"client {client_id!r} is not connected")
        self.client_id: str = client_id


class WaitingTableFull(QuicFlowError):
    """``Limits.waiting`` (or a session's share) requests wait already; this one was not sent."""


class SlowConsumer(QuicFlowError):
    """The peer reads more slowly than this side sends and its bounded outbox is full."""


class AckTimeout(QuicFlowError, trio.TooSlowError):
    """No ack arrived within the request's ``ack_timeout``; the peer was told to cancel the handler."""


class HandlerFailed(QuicFlowError):
    """The peer's handler did not succeed.

    Attributes:
        reason: what the peer says went wrong, as text; empty when it said nothing.
        timed_out: true when the handler ran past the peer's ``handler_timeout``.
    """

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason or "the handler failed without a reason")
        self.reason: str = reason
        self.timed_out: bool = timed_out


class PermissionDenied(QuicFlowError):
    """The peer does not let this side send messages of this type on this lane; no handler was started."""


class RateLimited(QuicFlowError):
    """This side has sent more than the peer takes from it for now; no handler was started.

    Attributes:
        retry_after: the same message will be taken in so many seconds, if nothing else is sent until then.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after: float = retry_after


class CredentialsRefused(QuicFlowError):
    """What an authenticator raises to refuse a client. The reason goes to the client: it should not help an attacker.

    Attributes:
        reason: why, in a few words.
        expired: true when fresh credentials of the same kind would do: a client that can make some tries again.
    """

    def __init__(self, reason: str, *, expired: bool = False) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.expired: bool = expired


class CredentialsUnavailable(QuicFlowError):
    """The function that `open_client` was given for fresh credentials raised or took too long."""


class ConnectionClosed(QuicFlowError, trio.ClosedResourceError):
    """This side closed the connection, client or server, so the call cannot complete."""


class ConnectionLost(QuicFlowError, trio.BrokenResourceError):
    """The connection ended under the call: peer gone, network gone, or heartbeat timed out."""


class ConnectionRefused(QuicFlowError, trio.BrokenResourceError):
    """The server will not take this client, now or later: the client does not try again."""


class AuthenticationFailed(ConnectionRefused):
    """A certificate did not verify, or the server did not accept the client's credentials."""


class SessionReplaced(QuicFlowError, trio.BrokenResourceError):
    """A newer connection with the same client id took the session over: this one does not reconnect."""


class ProtocolError(QuicFlowError):
    """The message protocol was violated."""


class LocalProtocolError(ProtocolError):
    """This side tried something that the protocol does not allow in the present state."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow; its connection is closed with the reason."""
