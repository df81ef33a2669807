"""The hot frames of quicflow/2, encoded and decoded by hand.

A message pays for each of these calls, so they are written for CPython: tables instead of loops, one ``join``, indexing
instead of parsing. The generated classes take 20 to 40 times as long. What is encoded is byte for byte what they (and every
canonical encoder) produce; the tests hold it against two of them.

The decoders read only that canonical layout. They return None, or let LookupError pass, for everything else: unknown
fields, another order of fields, long varints, what is cut off. `fields` then reads the frame again, and decides. So nothing
here needs to tell malformed from unusual, as long as it never accepts what `fields` would refuse or read otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import LocalProtocolError
from .frames import AckFrame, CancelFrame, ConfirmFrame, Frame, MessageFrame, PingFrame, PongFrame, ReceiptFrame

__all__ = [
    "FAST_DECODERS",
    "MAX_RANGES",
    "encode_ack",
    "encode_cancel",
    "encode_confirm",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_receipt",
    "varint",
]

#: Ranges in one receipt. Three fields each keep it within what a receiver reads of one frame.
MAX_RANGES: Final = 4096

_ID_SIZE: Final = 16
_MASK_64: Final = (1 << 64) - 1

# The fields of Frame, as tags.
_PING, _PONG, _MESSAGE, _CANCEL, _ACK, _RECEIPT, _CONFIRM = 0x1A, 0x22, 0x42, 0x4A, 0x52, 0x5A, 0x62

# Seven bits each with more to follow, and all varints of one and two bytes (0.7 MB: most numbers are one look-up).
_MORE: Final = [bytes((low | 0x80,)) for low in range(128)]
_SHORT: Final = [bytes((low,)) for low in range(128)] + [more + bytes((high,)) for high in range(1, 128) for more in _MORE]


def varint(value: int) -> bytes:
    """Return ``value`` as a varint.

    Raises:
        LocalProtocolError: it is negative or over 64 bits.
    """
    if 0 <= value < 0x4000:
        return _SHORT[value]
    if 0 < value < 0x1000_0000:
        return _MORE[value & 0x7F] + _MORE[value >> 7 & 0x7F] + _SHORT[value >> 14]
    if not 0 < value <= _MASK_64:
        raise LocalProtocolError(f"{value} does not fit into 64 bits")
    parts = []
    while value > 0x7F:
        parts.append(_MORE[value & 0x7F])
        value >>= 7
    parts.append(_SHORT[value])
    return b"".join(parts)


def _head(tag: int, size: int) -> bytes:
    """Return what stands before a frame's inner message of ``size`` bytes: length prefix, tag and length."""
    length = varint(size)
    return (1 + len(length) + size).to_bytes(4, "big") + bytes((tag,)) + length


def _number(tag: bytes, value: int) -> bytes:
    return tag + varint(value) if value else b""


# Heads of the sizes that are common.
MESSAGE_TAG: Final = _MESSAGE
"""First byte of a frame that holds a message."""

_MESSAGE_HEADS: Final = [_head(_MESSAGE, size) for size in range(2048)]
_ACK_HEADS: Final = [_head(_ACK, size) for size in range(256)]

# `type` of Message with the tag of the payload behind it; `status` of Ack.
_TYPES: Final = [_number(b"\x18", value) for value in range(8)]
_TYPES_PAYLOAD: Final = [value + b"\x22" for value in _TYPES]
# `redeliver` and `redelivered` of Message, by their truth.
_FLAGS: Final = ((b"", b"\x40\x01"), (b"\x38\x01", b"\x38\x01\x40\x01"))

# The last timestamp encoded, with its field. At tens of thousands of messages a second it rarely differs from the one before.
_stamp: tuple[int, bytes] = (0, b"")


def _enum(tag: bytes, value: int) -> bytes:
    # A negative number takes ten bytes, being sign-extended to 64 bits first.
    return tag + varint(value & _MASK_64)


def encode_message(
    seq: int,
    id: bytes,
    type: int,
    payload: bytes,
    wants_ack: bool,
    timestamp: int,
    redeliver: bool = False,
    redelivered: bool = False,
) -> bytes:
    """Return a `MessageFrame` of these fields as it goes on the stream, length prefix included.

    Raises:
        LocalProtocolError: ``seq`` is below 1 or over 64 bits, or ``id`` is not 16 bytes long.
    """
    global _stamp
    if seq < 1 or len(id) != _ID_SIZE:
        raise LocalProtocolError(f"a message needs a sequence number from 1 and an id of 16 bytes, not {seq} and {len(id)}")
    known, stamp = _stamp
    if known != timestamp:
        stamp = _number(b"\x30", timestamp & _MASK_64)
        _stamp = (timestamp, stamp)
    number = _SHORT[seq] if seq < 0x4000 else varint(seq)
    ack = b"\x28\x01" if wants_ack else b""
    flags = _FLAGS[redeliver][redelivered]
    if payload:
        kind = _TYPES_PAYLOAD[type] if 0 <= type < 8 else _enum(b"\x18", type) + b"\x22"
        size = len(payload)
        length = _SHORT[size] if size < 0x4000 else varint(size)
        inner = b"".join((b"\x08", number, b"\x12\x10", id, kind, length, payload, ack, stamp, flags))
    else:
        kind = _TYPES[type] if 0 <= type < 8 else _enum(b"\x18", type)
        inner = b"".join((b"\x08", number, b"\x12\x10", id, kind, ack, stamp, flags))
    size = len(inner)
    return (_MESSAGE_HEADS[size] if size < 2048 else _head(_MESSAGE, size)) + inner


def encode_ack(ack_seq: int, seq: int, status: int, result: bytes, error: str = "", more: int = 0) -> bytes:
    """Return an `AckFrame` of these fields as it goes on the stream, length prefix included.

    What UTF-8 cannot carry of ``error`` (lone surrogates, as file names bring them into exceptions) becomes a question mark.

    Raises:
        LocalProtocolError: a sequence number is below 1 or over 64 bits, or there is ``more`` beside a result or an error.
    """
    if ack_seq < 1 or seq < 1:
        raise LocalProtocolError(f"an ack needs sequence numbers from 1, not {ack_seq} and {seq}")
    if more and (result or error):
        raise LocalProtocolError("an ack of several messages has neither result nor error")
    number = _SHORT[ack_seq] if ack_seq < 0x4000 else varint(ack_seq)
    answers = _SHORT[seq] if seq < 0x4000 else varint(seq)
    kind = _TYPES[status] if 0 <= status < 8 else _enum(b"\x18", status)
    if result or error:
        text = error.encode("utf-8", "replace")
        length = b"\x22" + varint(len(result)) if result else b""
        text_length = b"\x2a" + varint(len(text)) if text else b""
        inner = b"".join((b"\x08", number, b"\x10", answers, kind, length, result, text_length, text))
    else:
        inner = b"".join((b"\x08", number, b"\x10", answers, kind, _number(b"\x30", more)))
    size = len(inner)
    return (_ACK_HEADS[size] if size < 256 else _head(_ACK, size)) + inner


def encode_receipt(received: int, handled: int, ranges: Sequence[tuple[int, int]] = ()) -> bytes:
    """Return a `ReceiptFrame` of these fields as it goes on the stream, length prefix included.

    Raises:
        LocalProtocolError: more than `MAX_RANGES` ranges, or a number that is negative or over 64 bits.
    """
    if len(ranges) > MAX_RANGES:
        raise LocalProtocolError(f"{len(ranges):,} ranges in one receipt, over the limit of {MAX_RANGES:,}")
    parts = [_number(b"\x08", received), _number(b"\x10", handled)]
    for first, last in ranges:
        inner = _number(b"\x08", first) + _number(b"\x10", last)
        parts += b"\x1a", _SHORT[len(inner)], inner
    body = b"".join(parts)
    return _head(_RECEIPT, len(body)) + body


def encode_cancel(seq: int) -> bytes:
    """Return a `CancelFrame` as it goes on the stream, length prefix included.

    Raises:
        LocalProtocolError: ``seq`` is below 1 or over 64 bits.
    """
    if seq < 1:
        raise LocalProtocolError(f"a cancellation needs a sequence number from 1, not {seq}")
    return _encode_number(_CANCEL, seq)


def encode_confirm(acked: int) -> bytes:
    """Return a `ConfirmFrame` of this field as it goes on the stream, length prefix included."""
    return _encode_number(_CONFIRM, acked)


def encode_ping(number: int) -> bytes:
    """Return a `PingFrame` as it goes on the stream, length prefix included."""
    return _encode_number(_PING, number)


def encode_pong(number: int) -> bytes:
    """Return a `PongFrame` as it goes on the stream, length prefix included."""
    return _encode_number(_PONG, number)


def _encode_number(tag: int, number: int) -> bytes:
    inner = _number(b"\x08", number)
    return _head(tag, len(inner)) + inner


# What may follow the payload of a Message, as it usually looks, and what was read out of it lately: the messages of one
# millisecond have it in common. `_TAILS_KEPT` bounds what a peer can make us remember.
_tail_layout: Final = re.compile(rb"(\x28\x01)?(?:\x30([\x80-\xff]{0,8}[\x00-\x7f]))?(\x38\x01)?(\x40\x01)?", re.DOTALL)
_tails: dict[bytes, tuple[bool, int, bool, bool]] = {}
_TAILS_KEPT: Final = 256
# A length has five bytes at most.
_LENGTH_BITS: Final = 35


def _varint_at(data: bytes, position: int, bits: int = 63) -> tuple[int, int]:
    """Return the varint at ``position`` and where it ends, unless it is cut off or longer than ``bits`` need (LookupError)."""
    low = data[position]
    if low < 0x80:
        return low, position + 1
    high = data[position + 1]
    if high < 0x80:
        return low & 0x7F | high << 7, position + 2
    value = low & 0x7F
    for shift in range(7, bits, 7):
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
    raise LookupError


def _inner(body: bytes) -> int:
    """Return where the inner message begins, if it is all there is in ``body``; otherwise LookupError."""
    end = len(body)
    if end < 130 and body[1] == end - 2:
        return 2
    size, position = _varint_at(body, 1, _LENGTH_BITS)
    if position + size != end:
        raise LookupError
    return position


def _read_tail(tail: bytes) -> tuple[bool, int, bool, bool] | None:
    match = _tail_layout.fullmatch(tail)
    # Without a tail the payload may have been cut off.
    if match is None or not tail:
        return None
    ack, stamp, redeliver, redelivered = match.groups()
    values = (ack is not None, _varint_at(stamp, 0)[0] if stamp else 0, redeliver is not None, redelivered is not None)
    if len(_tails) >= _TAILS_KEPT:
        _tails.clear()
    _tails[tail] = values
    return values


def _decode_message(body: bytes) -> MessageFrame | None:
    position = _inner(body)
    seq = body[position + 1]
    if body[position] != 0x08:
        return None
    position += 2
    if seq > 0x7F:
        seq, position = _varint_at(body, position - 1)
    if not seq or body[position] != 0x12 or body[position + 1] != _ID_SIZE or body[position + 18] != 0x18:
        return None
    id = body[position + 2 : position + 18]
    type = body[position + 19]
    if type > 0x7F:
        return None
    if body[position + 20] == 0x22:
        size = body[position + 21]
        position += 22
        if size > 0x7F:
            size, position = _varint_at(body, position - 1, _LENGTH_BITS)
        payload = body[position : position + size]
        tail = body[position + size :]
    else:
        payload = b""
        tail = body[position + 20 :]
    values = _tails.get(tail) or _read_tail(tail)
    if values is None:
        return None
    wants_ack, timestamp, redeliver, redelivered = values
    return MessageFrame(seq, id, type, payload, wants_ack, timestamp, redeliver, redelivered)


def _decode_ack(body: bytes) -> AckFrame | None:
    position = _inner(body)
    ack_seq = body[position + 1]
    if body[position] != 0x08:
        return None
    position += 2
    if ack_seq > 0x7F:
        ack_seq, position = _varint_at(body, position - 1)
    seq = body[position + 1]
    if body[position] != 0x10:
        return None
    position += 2
    if seq > 0x7F:
        seq, position = _varint_at(body, position - 1)
    status = body[position + 1]
    if not ack_seq or not seq or body[position] != 0x18 or status > 0x7F:
        return None
    position += 2
    if position == len(body):
        return AckFrame(ack_seq, seq, status, b"", "")
    size = body[position + 1]
    if body[position] == 0x30:
        more, position = _varint_at(body, position + 1)
        return AckFrame(ack_seq, seq, status, b"", "", more) if position == len(body) else None
    if body[position] != 0x22:
        return None
    position += 2
    if size > 0x7F:
        size, position = _varint_at(body, position - 1, _LENGTH_BITS)
    # Behind the result only the error could stand, and failures may take the slow path.
    if position + size != len(body):
        return None
    return AckFrame(ack_seq, seq, status, body[position:], "")


def _read_numbers(data: bytes, position: int, end: int) -> tuple[int, int, int]:
    """Return fields 1 and 2, both numbers and in this order, and where they end; what is not there is 0."""
    first = second = 0
    if position < end and data[position] == 0x08:
        first, position = _varint_at(data, position + 1)
    if position < end and data[position] == 0x10:
        second, position = _varint_at(data, position + 1)
    return first, second, position


def _decode_receipt(body: bytes) -> ReceiptFrame | None:
    end = len(body)
    received, handled, position = _read_numbers(body, _inner(body), end)
    if position == end:
        return ReceiptFrame(received, handled, ())
    ranges: list[tuple[int, int]] = []
    while position < end:
        stop = position + 2 + body[position + 1]
        if body[position] != 0x1A or body[position + 1] > 0x7F or stop > end or len(ranges) == MAX_RANGES:
            return None
        first, last, position = _read_numbers(body, position + 2, stop)
        if position != stop:
            return None
        ranges.append((first, last))
    return ReceiptFrame(received, handled, tuple(ranges))


def _decode_number(body: bytes) -> int:
    number, nothing, position = _read_numbers(body, _inner(body), len(body))
    if nothing or position != len(body):
        raise LookupError
    return number


def _decode_cancel(body: bytes) -> CancelFrame | None:
    seq = _decode_number(body)
    return CancelFrame(seq) if seq else None


def _decode_confirm(body: bytes) -> ConfirmFrame:
    return ConfirmFrame(_decode_number(body))


def _decode_ping(body: bytes) -> PingFrame:
    return PingFrame(_decode_number(body))


def _decode_pong(body: bytes) -> PongFrame:
    return PongFrame(_decode_number(body))


#: By the first byte of a body. None or LookupError: not canonical, read it the general way.
FAST_DECODERS: Final[dict[int, Callable[[bytes], Frame | None]]] = {
    _PING: _decode_ping,
    _PONG: _decode_pong,
    _MESSAGE: _decode_message,
    _CANCEL: _decode_cancel,
    _ACK: _decode_ack,
    _RECEIPT: _decode_receipt,
    _CONFIRM: _decode_confirm,
}
