"""Frames of `quic-backbone-v1`, by hand from its schema: a prefix of four bytes, then protobuf."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 10_485_760
PING, PONG, DATA, ACK = 1, 2, 3, 4
COMMAND, EVENT, QUERY, RESPONSE = 1, 2, 3, 4
SUCCESS, FAILURE, TIMEOUT = 1, 2, 3
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class BadFrame(ValueError):
    """What came is no frame."""


@dataclass
class Frame:
    """The outer message; times are Unix milliseconds."""

    type: int
    payload: bytes
    timestamp: int


@dataclass
class Data:
    """One message."""

    msg_id: str
    sender_id: str
    receiver_id: str
    type: int
    payload: bytes
    wait_ack: bool
    timestamp: int


@dataclass
class Ack:
    """The answer to one message."""

    msg_id: str
    status: int
    result: bytes = b""
    error: str = ""


# -- encoding -----------------------------------------------------------------------------------------------------------
def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value) if value else b""


def _block(field: int, value: bytes | str) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | LENGTH) + _varint(len(value)) + value if value else b""


def _frame(kind: int, payload: bytes, now: int) -> bytes:
    body = _number(1, kind) + _block(2, payload) + _number(3, now)
    return struct.pack(">I", len(body)) + body


def ping(client_id: str, now: int) -> bytes:
    """Encode a PING, prefix included."""
    return _frame(PING, _block(1, client_id), now)


def pong(now: int) -> bytes:
    """Encode a PONG."""
    return _frame(PONG, _number(1, now), now)


def data(message: Data, now: int) -> bytes:
    """Encode a DATA."""
    ids = _block(1, message.msg_id) + _block(2, message.sender_id) + _block(3, message.receiver_id)
    rest = _number(4, message.type) + _block(5, message.payload) + _number(6, message.wait_ack) + _number(7, message.timestamp)
    return _frame(DATA, ids + rest, now)


def ack(answer: Ack, now: int) -> bytes:
    """Encode an ACK."""
    payload = _block(1, answer.msg_id) + _number(2, answer.status) + _block(3, answer.result) + _block(4, answer.error)
    return _frame(ACK, payload, now)


# -- decoding -----------------------------------------------------------------------------------------------------------
def body_length(prefix: bytes) -> int:
    """Return how long the body is that these four bytes announce."""
    (length,) = struct.unpack(">I", prefix)
    if not 0 < length <= LARGEST:
        raise BadFrame(f"a frame of {length} bytes")
    return int(length)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise BadFrame("cut off in a number")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 2**64 - 1, at
    raise BadFrame("a number of more than ten bytes")


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(raw):
        tag, at = _read_varint(raw, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == VARINT:
            number, at = _read_varint(raw, at)
            yield field, number
            continue
        if wire_type == LENGTH:
            length, at = _read_varint(raw, at)
        elif wire_type in (FIXED64, FIXED32):
            length = 8 if wire_type == FIXED64 else 4
        else:
            raise BadFrame(f"wire type {wire_type}")
        if not field or at + length > len(raw):
            raise BadFrame("cut off in a field")
        if wire_type == LENGTH:
            yield field, raw[at : at + length]
        at += length


class _Message:
    """The fields of one message; of several with one number the last counts, and what is missing is zero or empty."""

    def __init__(self, raw: bytes) -> None:
        self._values = dict(_fields(raw))

    def number(self, field: int) -> int:
        value = self._values.get(field, 0)
        if not isinstance(value, int):
            raise BadFrame(f"field {field} is no number")
        return value - 2**64 if value >= 2**63 else value

    def block(self, field: int) -> bytes:
        value = self._values.get(field, b"")
        if not isinstance(value, bytes):
            raise BadFrame(f"field {field} is no block")
        return value

    def text(self, field: int) -> str:
        try:
            return self.block(field).decode()
        except UnicodeDecodeError as error:
            raise BadFrame(f"field {field} is no text") from error


def read_frame(body: bytes) -> Frame:
    """Decode what stands behind the prefix."""
    fields = _Message(body)
    return Frame(fields.number(1), fields.block(2), fields.number(3))


def read_ping(payload: bytes) -> str:
    """Return the client's id."""
    return _Message(payload).text(1)


def read_pong(payload: bytes) -> int:
    """Return the server's time."""
    return _Message(payload).number(1)


def read_data(payload: bytes) -> Data:
    """Decode a message."""
    m = _Message(payload)
    return Data(m.text(1), m.text(2), m.text(3), m.number(4), m.block(5), bool(m.number(6)), m.number(7))


def read_ack(payload: bytes) -> Ack:
    """Decode an answer."""
    m = _Message(payload)
    return Ack(m.text(1), m.number(2), m.block(3), m.text(4))
