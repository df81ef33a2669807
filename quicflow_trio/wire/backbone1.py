"""quic-backbone-v1 on the wire: the frames of the original's protocol as Python values, and back.

Schema and rules stand in ``protos/quic/backbone/v1/backbone.proto``. A frame is an envelope (type, serialised message, timestamp) behind
the same length prefix as in quicflow/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from ..errors import LocalProtocolError
from .codec import varint
from .fields import DecodeError, parse, schema_of
from .framing import prefix
from .proto.quic.backbone import v1 as proto

__all__ = [
    "MAX_FRAME",
    "BackboneAck",
    "BackboneData",
    "BackboneFrame",
    "BackbonePing",
    "BackbonePong",
    "FrameKind",
    "Hollow",
    "decode_backbone",
    "encode_backbone",
    "hollow",
]

MAX_FRAME: Final = 10_485_760
"""Longest body of a frame, bytes."""

_MASK_64: Final = (1 << 64) - 1


class FrameKind(IntEnum):
    """What an envelope holds."""

    PING = 1
    PONG = 2
    DATA = 3
    ACK = 4


@dataclass(slots=True)
class BackbonePing:
    """Heartbeat of the client, and the first frame of a connection.

    Attributes:
        client_id: registers the session on stream 0; of no meaning later.
    """

    client_id: str = ""


@dataclass(slots=True)
class BackbonePong:
    """Answer to a ping.

    Attributes:
        server_time: Unix ms.
    """

    server_time: int = 0


@dataclass(slots=True)
class BackboneData:
    """One message.

    Attributes:
        msg_id: a UUID as text.
        sender_id: who sent it.
        receiver_id: for whom; empty is everyone.
        type: a `MessageType`, or a number that the protocol has no name for.
        payload: the user's bytes.
        wait_ack: an answer is wanted.
        timestamp: Unix ms.
    """

    msg_id: str = ""
    sender_id: str = ""
    receiver_id: str = ""
    type: int = 0
    payload: bytes = b""
    wait_ack: bool = False
    timestamp: int = 0


@dataclass(slots=True)
class BackboneAck:
    """Answer to a message.

    Attributes:
        msg_id: of the message, as its sender wrote it.
        status: an `AckStatus`, or a number that the protocol has no name for.
        result: what the handler returned.
        error: what went wrong, for people.
    """

    msg_id: str = ""
    status: int = 0
    result: bytes = b""
    error: str = ""


BackboneFrame: TypeAlias = BackbonePing | BackbonePong | BackboneData | BackboneAck

_FRAME: Final = schema_of(proto.Frame)
_KINDS: Final = {
    FrameKind.PING: (schema_of(proto.PingFrame), BackbonePing),
    FrameKind.PONG: (schema_of(proto.PongFrame), BackbonePong),
    FrameKind.DATA: (schema_of(proto.DataMessage), BackboneData),
    FrameKind.ACK: (schema_of(proto.AckMessage), BackboneAck),
}


# -- encoding --------------------------------------------------------------------------------------------------------------
def _bytes(tag: bytes, value: bytes) -> bytes:
    return tag + varint(len(value)) + value if value else b""


def _text(tag: bytes, value: str) -> bytes:
    try:
        return _bytes(tag, value.encode())
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"{value!r} cannot be sent: it is not Unicode text") from exc


def _number(tag: bytes, value: int) -> bytes:
    # A negative number takes ten bytes, being sign-extended to 64 bits.
    return tag + varint(value & _MASK_64) if value else b""


def _content(frame: BackboneFrame) -> tuple[FrameKind, bytes]:
    match frame:
        case BackboneData():
            return FrameKind.DATA, b"".join(
                (
                    _text(b"\x0a", frame.msg_id),
                    _text(b"\x12", frame.sender_id),
                    _text(b"\x1a", frame.receiver_id),
                    _number(b"\x20", frame.type),
                    _bytes(b"\x2a", frame.payload),
                    b"\x30\x01" if frame.wait_ack else b"",
                    _number(b"\x38", frame.timestamp),
                )
            )
        case BackboneAck():
            head = _text(b"\x0a", frame.msg_id) + _number(b"\x10", frame.status)
            return FrameKind.ACK, head + _bytes(b"\x1a", frame.result) + _text(b"\x22", frame.error)
        case BackbonePing():
            return FrameKind.PING, _text(b"\x0a", frame.client_id)
        case BackbonePong():
            return FrameKind.PONG, _number(b"\x08", frame.server_time)


def encode_backbone(frame: BackboneFrame, timestamp: int) -> bytes:
    """Return ``frame`` in its envelope as it goes on the stream, length prefix included; ``timestamp`` is Unix ms.

    Raises:
        LocalProtocolError: a text is not Unicode.
    """
    kind, content = _content(frame)
    return prefix(b"\x08" + varint(kind) + _bytes(b"\x12", content) + _number(b"\x18", timestamp))


# -- decoding --------------------------------------------------------------------------------------------------------------
def decode_backbone(body: bytes) -> BackboneFrame | None:
    """Read one frame's body, without the length prefix.

    Returns:
        The frame; None for one of a type that the protocol does not have.

    Raises:
        DecodeError: it is malformed.
    """
    envelope = parse(_FRAME, body)
    known = _KINDS.get(envelope.get("type", 0))
    if known is None:
        return None
    schema, make = known
    frame: BackboneFrame = make(**parse(schema, envelope.get("payload", b"")))
    return frame


@dataclass(slots=True)
class Hollow:
    """Where the payload stands in the body of a DATA frame that is too long to be kept.

    Attributes:
        content: where the message begins in the body.
        field: where the payload's field begins.
        start: where the payload begins.
        end: where it ends.
        content_end: where the message ends.
    """

    content: int
    field: int
    start: int
    end: int
    content_end: int

    def fill(self, body: bytes) -> BackboneData:
        """Return the message of a body out of which the payload was cut.

        Raises:
            DecodeError: what is left is malformed.
        """
        after = body[self.start : self.start + self.content_end - self.end]
        return BackboneData(**parse(_KINDS[FrameKind.DATA][0], body[self.content : self.field] + after))


def hollow(head: bytes) -> Hollow:
    """Find the payload of a DATA frame from the first bytes of its body, in which it must begin.

    Raises:
        DecodeError: it does not, or this is another frame.
    """
    position, kind = 0, 0
    while True:
        tag, position = _varint(head, position)
        value, position = _varint(head, position)
        if tag == 0x12:
            break
        if tag != 0x08:
            raise DecodeError("a frame over the limit does not begin as one does")
        kind = value
    if kind != FrameKind.DATA:
        raise DecodeError(f"a frame over the limit has type {kind}, not DATA")
    content, content_end = position, position + value
    while True:
        field = position
        tag, position = _varint(head, position)
        value, position = _varint(head, position)
        if tag == 0x2A:
            if position + value > content_end:
                raise DecodeError("field payload is cut off")
            return Hollow(content, field, position, position + value, content_end)
        if tag & 7 == 2:
            position += value
        elif tag & 7:
            raise DecodeError(f"field {tag >> 3} has wire type {tag & 7} where none such can be")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise DecodeError("the payload does not begin where it should")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a varint is too long")
