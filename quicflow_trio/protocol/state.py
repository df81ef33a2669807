"""The connection's state machine as a literal table, and the close codes.

A control frame that the table does not list for the state and the sender is a protocol violation: the connection is closed with
the reason. States only move down.
"""

from __future__ import annotations

import enum

from ..errors import RemoteProtocolError
from ..wire import Authentication, Goodbye, Hello, PingFrame, PongFrame, Welcome

__all__ = ["CloseCode", "ConnectionState", "check_control_frame"]


class ConnectionState(enum.IntEnum):
    """Where one connection stands."""

    HANDSHAKE = 0
    """TLS is not done."""
    HELLO = 1
    """TLS is done, the client's hello or the server's welcome is due."""
    OPEN = 2
    """Messages flow both ways."""
    DRAINING = 3
    """A goodbye was said by either side: what is on the wire is finished, nothing new is started."""
    CLOSED = 4
    """Over."""


class CloseCode(enum.IntEnum):
    """Application error codes of CONNECTION_CLOSE (RFC 9000 section 20.2): why a connection ended."""

    NORMAL = 0x00
    """The closing side is done."""
    PROTOCOL_ERROR = 0x01
    """The other side broke the protocol; the reason says how."""
    FRAME_TOO_LARGE = 0x02
    """A frame was announced that is over the limit."""
    HELLO_TIMEOUT = 0x03
    """No hello, or no welcome, in time."""
    HEARTBEAT_TIMEOUT = 0x04
    """Nothing was heard for the heartbeat time-out."""
    SESSION_REPLACED = 0x05
    """A newer connection uses the client id. Permanent: do not reconnect."""
    REJECTED = 0x06
    """The hello is not acceptable. Permanent."""
    AUTHENTICATION_FAILED = 0x07
    """The certificate or credentials are not accepted. Permanent."""
    SHUTDOWN = 0x08
    """The server stops; reconnect later."""
    OVERLOADED = 0x09
    """A limit of the whole server is reached; reconnect later."""
    SLOW_CONSUMER = 0x0A
    """The other side does not read what it asked for."""
    INTERNAL_ERROR = 0x0B
    """The closing side has a defect; its log has the traceback."""
    CREDENTIALS_EXPIRED = 0x0C
    """The credentials are good no longer; come back with fresh ones."""
    AUTHENTICATION_UNAVAILABLE = 0x0D
    """The server could not find out whether the credentials are good; reconnect later."""


_FROM_CLIENT: dict[ConnectionState, frozenset[type]] = {
    ConnectionState.HANDSHAKE: frozenset(),
    ConnectionState.HELLO: frozenset({Hello}),
    ConnectionState.OPEN: frozenset({PingFrame, Goodbye, Authentication}),
    ConnectionState.DRAINING: frozenset({PingFrame, Goodbye, Authentication}),
    ConnectionState.CLOSED: frozenset(),
}
_FROM_SERVER: dict[ConnectionState, frozenset[type]] = {
    ConnectionState.HANDSHAKE: frozenset(),
    ConnectionState.HELLO: frozenset({Welcome, Goodbye}),
    ConnectionState.OPEN: frozenset({PongFrame, Goodbye, Authentication}),
    ConnectionState.DRAINING: frozenset({PongFrame, Goodbye, Authentication}),
    ConnectionState.CLOSED: frozenset(),
}


def check_control_frame(frame: object, state: ConnectionState, *, from_client: bool) -> None:
    """Raise unless ``frame`` may come from that side now.

    Raises:
        RemoteProtocolError: with a reason that goes into the close.
    """
    table = _FROM_CLIENT if from_client else _FROM_SERVER
    if type(frame) not in table[state]:
        sender = "client" if from_client else "server"
        if state is ConnectionState.HELLO:
            wanted = "a hello" if from_client else "a welcome"
            raise RemoteProtocolError(f"the first frame of the {sender} must be {wanted}, not {type(frame).__name__}")
        raise RemoteProtocolError(
            f"{type(frame).__name__} from the {sender} is not allowed on the control stream in {state.name}"
        )
