"""What users send: `Message`, and what comes back: `Ack`."""

from __future__ import annotations

import enum
import os
import time
from dataclasses import dataclass
from typing import final

from .wire import AckStatus, MessageType

__all__ = ["Ack", "AckStatus", "Delivery", "Message", "MessageType"]

ID_BYTES = 16


class Delivery(enum.Enum):
    """What may happen to a message whose session ends while it is under way, as when the other side is restarted.

    It makes no difference while both sides live, whatever becomes of their connections: the session goes on with the next one, and a
    message's handler runs exactly once.
    """

    AT_MOST_ONCE = "at most once"
    """It is not sent again: a request raises `ConnectionLost`, and so does `Sent.delivered` unless it had been received. Its handler may
    have run or not."""
    REDELIVER = "redeliver"
    """It goes out again to the other side's next session, before all newer messages, until it is known to be handled: at least once. Its
    handler may have run in the last life of the receiver: ``request.redelivered`` says that this can be. It must not matter, or be
    found out by the message's id. The sender keeps such a message until it is handled, within `Limits.outbox_bytes`; a sender that is
    itself restarted has forgotten it."""


class _IdSource:
    """Unique, time-ordered 16-byte ids: 8 bytes of a counter that follows the wall clock in ns, 8 bytes that name this process.

    A counter costs a tenth of ``uuid4`` (0.2 us against 2.0), which matters at 100,000 messages a second.
    """

    __slots__ = ("_last", "_node")

    def __init__(self) -> None:
        self._last = 0
        self._node = os.urandom(8)

    def renew_node(self) -> None:
        """Take a new process name: a forked child must not continue its parent's ids."""
        self._node = os.urandom(8)

    def next_id(self, now: int) -> bytes:
        last = self._last
        # The wall clock may stand still or jump back; ids still only grow.
        self._last = last = now if now > last else last + 1
        return last.to_bytes(8, "big") + self._node


_ids = _IdSource()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.renew_node)


@final
class Message:
    """One message. Build it with `Message.command`, `Message.event` or `Message.query`; treat it as immutable.

    Attributes:
        id: 16 bytes, unique and time-ordered, set at construction.
        type: what kind of message it is; handlers are registered by it.
        payload: the content, bytes; at most ``Limits.payload`` of either side.
        sender: who sent it: a client id, or ``"server"``; empty on a message that was not received.
        timestamp: when it was built, Unix milliseconds of the sender's clock. Data, never used for deadlines.
        delivery: see `Delivery`.
    """

    __slots__ = ("delivery", "id", "payload", "sender", "timestamp", "type")

    def __init__(
        self,
        type: MessageType,
        payload: bytes = b"",
        *,
        delivery: Delivery = Delivery.AT_MOST_ONCE,
        id: bytes | None = None,
        sender: str = "",
        timestamp: int | None = None,
    ) -> None:
        # bytearray and memoryview are copied: the caller may change them before the message has left.
        if payload.__class__ is not bytes:
            if not isinstance(payload, (bytes, bytearray, memoryview)):
                raise TypeError(f"payload must be bytes, not {payload.__class__.__name__}")
            payload = bytes(payload)
        # Wrong ones would be found out as they are encoded, by the pump, and cost the whole connection.
        if type.__class__ is not MessageType:
            type = MessageType(type)
        if id is not None and len(id) != ID_BYTES:
            raise ValueError(f"id of {len(id)} bytes: expected 16 bytes")
        if id is None or timestamp is None:
            now = time.time_ns()
            if id is None:
                id = _ids.next_id(now)
            if timestamp is None:
                timestamp = now // 1_000_000
        self.type: MessageType = type
        self.payload: bytes = payload
        self.delivery: Delivery = delivery
        self.id: bytes = id
        self.sender: str = sender
        self.timestamp: int = timestamp

    @classmethod
    def command(cls, payload: bytes = b"", *, delivery: Delivery = Delivery.AT_MOST_ONCE) -> Message:
        """Build a message that asks the receiver to do something."""
        return cls(MessageType.COMMAND, payload, delivery=delivery)

    @classmethod
    def event(cls, payload: bytes = b"", *, delivery: Delivery = Delivery.AT_MOST_ONCE) -> Message:
        """Build a message that tells the receiver that something happened."""
        return cls(MessageType.EVENT, payload, delivery=delivery)

    @classmethod
    def query(cls, payload: bytes = b"", *, delivery: Delivery = Delivery.AT_MOST_ONCE) -> Message:
        """Build a message that asks the receiver for an answer."""
        return cls(MessageType.QUERY, payload, delivery=delivery)

    def copy(self) -> Message:
        """Return the same content as a new message: it has an id and a timestamp of its own."""
        return Message(self.type, self.payload, delivery=self.delivery)

    def __repr__(self) -> str:
        name = self.type.name if isinstance(self.type, MessageType) else str(self.type)
        return f"<Message {name} {self.id.hex()} {len(self.payload)} bytes>"


def type_name(type: int) -> str:
    """Return the name of a message type as events and logs show it; of one that this version does not know, its number."""
    return MessageType(type).name.lower() if type in MessageType._value2member_map_ else f"type {type}"


@final
@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a request whose handler succeeded; a failure is raised as `HandlerFailed` instead.

    Attributes:
        status: `AckStatus.SUCCESS`.
        result: what the handler returned, bytes; empty when it returned None.
    """

    status: AckStatus
    result: bytes
