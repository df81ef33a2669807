"""The frames of quicflow/2 as Python values. What they mean stands in ``protos/quicflow/v2/flow.proto``.

The hot frames (seven classes whose names end in ``Frame``) are slotted but not frozen: a frozen dataclass sets its fields
through ``object.__setattr__``, which for eight fields costs more than the whole rest of decoding. Treat them as values all
the same. Sequence numbers count from 1; timestamps are Unix milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

__all__ = [
    "AckFrame",
    "AckStatus",
    "CancelFrame",
    "ConfirmFrame",
    "Frame",
    "Goodbye",
    "Hello",
    "LaneOpen",
    "LaneState",
    "MessageFrame",
    "MessageType",
    "PeerLimits",
    "PingFrame",
    "PongFrame",
    "ReceiptFrame",
    "Welcome",
]


class MessageType(IntEnum):
    """What a message asks of its receiver."""

    COMMAND = 1
    EVENT = 2
    QUERY = 3
    RESPONSE = 4


class AckStatus(IntEnum):
    """How the handling of a message ended."""

    SUCCESS = 1
    FAILURE = 2
    TIMEOUT = 3
    DENIED = 4
    RATE_LIMITED = 5


@dataclass(slots=True)
class MessageFrame:
    """One message on the forward half of a lane.

    Attributes:
        seq: number in the lane.
        id: 16 bytes.
        type: a `MessageType`, or a number that this revision has no name for.
        payload: the user's bytes.
        wants_ack: an `AckFrame` is to answer it.
        timestamp: when the sender made it, Unix ms.
        redeliver: the sender keeps it until it is handled.
        redelivered: this may not be the first time that the receiver gets it.
    """

    seq: int
    id: bytes
    type: int
    payload: bytes
    wants_ack: bool
    timestamp: int
    redeliver: bool = False
    redelivered: bool = False


@dataclass(slots=True)
class AckFrame:
    """The outcome of one message, or the same one of several that follow each other, on the return half of their lane.

    Attributes:
        ack_seq: number among the acks of the lane, of the first message's.
        seq: of the message that it answers, the first one.
        status: an `AckStatus`, or a number that this revision has no name for.
        result: what the handler returned.
        error: what went wrong, for people.
        more: how many further messages it answers; 0 when there is a result or an error.
    """

    ack_seq: int
    seq: int
    status: int
    result: bytes = b""
    error: str = ""
    more: int = 0


@dataclass(slots=True)
class ReceiptFrame:
    """Progress of a lane, on its return half.

    Attributes:
        received: every message up to here was received.
        handled: every message up to here was handled.
        ranges: what was handled beyond, as (first, last), both included, as the peer gave them: neither their order nor
            their bounds are checked here.
    """

    received: int
    handled: int
    ranges: tuple[tuple[int, int], ...] = ()


@dataclass(slots=True)
class CancelFrame:
    """The sender no longer wants message ``seq`` handled."""

    seq: int


@dataclass(slots=True)
class ConfirmFrame:
    """The sender of a lane has taken every ack up to ``acked``: they need not be kept for a resume."""

    acked: int


@dataclass(slots=True)
class PingFrame:
    """Heartbeat; a `PongFrame` of the same number answers it."""

    number: int


@dataclass(slots=True)
class PongFrame:
    """Answer to the `PingFrame` of the same number."""

    number: int


@dataclass(frozen=True, slots=True)
class LaneState:
    """How far one of the peer's lanes has come here.

    Attributes:
        name: of the lane; empty for the default lane.
        received: every message up to here was received.
        handled: every message up to here was handled.
    """

    name: str = ""
    received: int = 0
    handled: int = 0


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """What the sender of this record accepts.

    Attributes:
        payload: largest message payload and handler result, bytes; 0 when the peer said nothing.
        lanes: lanes the other side may open; 0 when the peer said nothing.
    """

    payload: int = 0
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of the control stream, client to server.

    Attributes:
        revision: of this protocol, as the client speaks it.
        client_id: who it is.
        credentials: for the server's authenticator; kept out of ``repr``.
        session_token: of the session to resume, or empty; kept out of ``repr``.
        lanes: the server's lanes as the client has received them.
        limits: what the client accepts.
    """

    revision: int = 0
    client_id: str = ""
    credentials: bytes = field(default=b"", repr=False)
    session_token: bytes = field(default=b"", repr=False)
    lanes: tuple[LaneState, ...] = ()
    limits: PeerLimits = PeerLimits()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server's answer to `Hello`.

    Attributes:
        revision: of this protocol, as the server speaks it.
        session_id: names the session in logs.
        session_token: resumes the session; kept out of ``repr``.
        resumed: true when the session of the client's token goes on.
        lanes: the client's lanes as the server has received them.
        heartbeat_interval_ms: how often the client is to ping, milliseconds.
        limits: what the server accepts.
    """

    revision: int = 0
    session_id: bytes = b""
    session_token: bytes = field(default=b"", repr=False)
    resumed: bool = False
    lanes: tuple[LaneState, ...] = ()
    heartbeat_interval_ms: int = 0
    limits: PeerLimits = PeerLimits()


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender is about to leave.

    Attributes:
        code: an application error code.
        reason: for people.
        retry_after_ms: come back no sooner, milliseconds; 0 says nothing about it.
    """

    code: int = 0
    reason: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Authentication:
    """Credentials of a session that goes on, or the server's word on them.

    Attributes:
        number: 1, 2, 3 ... of the client's; the answer has the same. 0 stands for those of the hello.
        credentials: the client's, kept out of ``repr``.
        valid_for_ms: how long the server takes them from now on, milliseconds; 0 says that they have no end.
        error: why it does not take them; empty when it does.
    """

    number: int = 0
    credentials: bytes = field(default=b"", repr=False)
    valid_for_ms: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class LaneOpen:
    """First frame of a lane's forward half.

    Attributes:
        name: of the lane; empty for the default lane.
        acked: acks of the lane that its sender has taken, over the life of the session; those after it are replayed.
    """

    name: str = ""
    acked: int = 0


Frame: TypeAlias = (
    MessageFrame
    | AckFrame
    | ReceiptFrame
    | CancelFrame
    | ConfirmFrame
    | PingFrame
    | PongFrame
    | Hello
    | Welcome
    | Goodbye
    | Authentication
    | LaneOpen
)
