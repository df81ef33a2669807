"""quicflow/2 on the wire: `encode` any frame, `decode` any body.

Schema and rules stand in ``protos/quicflow/v2/flow.proto``. Nothing of the protobuf library shows outside this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from ..errors import LocalProtocolError
from .codec import (
    FAST_DECODERS,
    MAX_RANGES,
    MESSAGE_TAG,
    encode_ack,
    encode_cancel,
    encode_confirm,
    encode_message,
    encode_ping,
    encode_pong,
    encode_receipt,
)
from .fields import DecodeError, parse, schema_of
from .frames import (
    AckFrame,
    AckStatus,
    Authentication,
    CancelFrame,
    ConfirmFrame,
    Frame,
    Goodbye,
    Hello,
    LaneOpen,
    LaneState,
    MessageFrame,
    MessageType,
    PeerLimits,
    PingFrame,
    PongFrame,
    ReceiptFrame,
    Welcome,
)
from .framing import prefix
from .proto.quicflow import v2 as proto

__all__ = [
    "MAX_RANGES",
    "AckFrame",
    "AckStatus",
    "Authentication",
    "CancelFrame",
    "ConfirmFrame",
    "DecodeError",
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
    "decode",
    "encode",
    "encode_ack",
    "encode_cancel",
    "encode_confirm",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_receipt",
    "encode_retry_hint",
    "retry_hint",
]

_SCHEMA: Final = schema_of(proto.Frame)
_HINT_SCHEMA: Final = schema_of(proto.RetryHint)
_LONGEST_HINT_MS: Final = 0xFFFF_FFFF


def encode(frame: Frame) -> bytes:
    """Return ``frame`` as it goes on the stream, length prefix included.

    Raises:
        LocalProtocolError: a field is outside the range that the protocol gives it, or is text that is not Unicode.
    """
    return _ENCODERS[type(frame)](frame)


def decode(body: bytes) -> Frame | None:
    """Read one frame's body, without the length prefix.

    Returns:
        The frame, or None for one of a type that this revision does not know: to be skipped. Unknown fields are dropped;
        ``type`` and ``status`` are plain numbers, known or not.

    Raises:
        DecodeError: the body is malformed, or breaks a rule of the schema: an id that is not 16 bytes, a sequence number 0.
    """
    try:
        frame = FAST_DECODERS[body[0]](body)
    except LookupError:
        frame = None
    return frame if frame is not None else _decode_any(body)


def holds_message(body: bytes) -> bool:
    """Return True when a frame starts as one with a message does, without decoding it. Ours do; for others it is a hint."""
    return body[0] == MESSAGE_TAG


def _decode_any(body: bytes) -> Frame | None:
    for name, values in parse(_SCHEMA, body, oneof=True).items():
        return _BUILDERS[name](values)
    return None


def _build_message(values: dict[str, Any]) -> MessageFrame:
    get = values.get
    frame = MessageFrame(
        get("seq", 0),
        get("id", b""),
        get("type", 0),
        get("payload", b""),
        get("wants_ack", False),
        get("timestamp", 0),
        get("redeliver", False),
        get("redelivered", False),
    )
    if not frame.seq:
        raise DecodeError("message without a sequence number")
    if len(frame.id) != 16:
        raise DecodeError(f"message id of {len(frame.id):,} bytes, not 16")
    return frame


def _build_ack(values: dict[str, Any]) -> AckFrame:
    get = values.get
    frame = AckFrame(get("ack_seq", 0), get("seq", 0), get("status", 0), get("result", b""), get("error", ""), get("more", 0))
    if not frame.ack_seq or not frame.seq:
        raise DecodeError("ack without its sequence numbers")
    if frame.more and (frame.result or frame.error):
        raise DecodeError("ack of several messages with the result of one")
    return frame


def _build_receipt(values: dict[str, Any]) -> ReceiptFrame:
    ranges = tuple((item.get("first", 0), item.get("last", 0)) for item in values.get("handled_ranges", ()))
    if len(ranges) > MAX_RANGES:
        raise DecodeError(f"{len(ranges):,} ranges in one receipt, over the limit of {MAX_RANGES:,}")
    return ReceiptFrame(values.get("received", 0), values.get("handled", 0), ranges)


def _build_cancel(values: dict[str, Any]) -> CancelFrame:
    seq = values.get("seq", 0)
    if not seq:
        raise DecodeError("cancellation without a sequence number")
    return CancelFrame(seq)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Make our records of what `parse` left as dictionaries."""
    if "lanes" in values:
        values["lanes"] = tuple(LaneState(**lane) for lane in values["lanes"])
    if "limits" in values:
        values["limits"] = PeerLimits(**values["limits"])
    return values


# The names of the schema and those of our records are the same, and so are the defaults.
_BUILDERS: Final[dict[str, Callable[[dict[str, Any]], Frame]]] = {
    "hello": lambda values: Hello(**_nested(values)),
    "welcome": lambda values: Welcome(**_nested(values)),
    "ping": lambda values: PingFrame(values.get("number", 0)),
    "pong": lambda values: PongFrame(values.get("number", 0)),
    "goodbye": lambda values: Goodbye(**values),
    "authentication": lambda values: Authentication(**values),
    "lane_open": lambda values: LaneOpen(**values),
    "message": _build_message,
    "cancel": _build_cancel,
    "ack": _build_ack,
    "receipt": _build_receipt,
    "confirm": lambda values: ConfirmFrame(values.get("acked", 0)),
}


def _serialise(frame: proto.Frame) -> bytes:
    try:
        return prefix(bytes(frame))
    except UnicodeEncodeError as exc:
        raise LocalProtocolError(f"{exc.object!r} cannot be sent: it is not Unicode text") from exc


def _lanes(lanes: tuple[LaneState, ...]) -> list[proto.LaneState]:
    return [proto.LaneState(name=lane.name, received=lane.received, handled=lane.handled) for lane in lanes]


def _limits(limits: PeerLimits) -> proto.PeerLimits | None:
    return proto.PeerLimits(payload=limits.payload, lanes=limits.lanes) if limits != PeerLimits() else None


def _encode_hello(frame: Hello) -> bytes:
    hello = proto.Hello(
        revision=frame.revision,
        client_id=frame.client_id,
        credentials=frame.credentials,
        session_token=frame.session_token,
        lanes=_lanes(frame.lanes),
        limits=_limits(frame.limits),
    )
    return _serialise(proto.Frame(hello=hello))


def _encode_welcome(frame: Welcome) -> bytes:
    welcome = proto.Welcome(
        revision=frame.revision,
        session_id=frame.session_id,
        session_token=frame.session_token,
        resumed=frame.resumed,
        lanes=_lanes(frame.lanes),
        heartbeat_interval_ms=frame.heartbeat_interval_ms,
        limits=_limits(frame.limits),
    )
    return _serialise(proto.Frame(welcome=welcome))


def _encode_goodbye(frame: Goodbye) -> bytes:
    goodbye = proto.Goodbye(code=frame.code, reason=frame.reason, retry_after_ms=frame.retry_after_ms)
    return _serialise(proto.Frame(goodbye=goodbye))


def _encode_authentication(frame: Authentication) -> bytes:
    authentication = proto.Authentication(
        number=frame.number, credentials=frame.credentials, valid_for_ms=frame.valid_for_ms, error=frame.error
    )
    return _serialise(proto.Frame(authentication=authentication))


def encode_retry_hint(seconds: float) -> bytes:
    """Return what an ack of status RATE_LIMITED has as its result: try again in so many seconds, rounded up to milliseconds."""
    return bytes(proto.RetryHint(after_ms=min(max(math.ceil(seconds * 1000), 1), _LONGEST_HINT_MS)))


def retry_hint(result: bytes) -> float:
    """Read what `encode_retry_hint` made; return seconds, 0 for what makes no sense: it is a hint."""
    try:
        after_ms: int = parse(_HINT_SCHEMA, result).get("after_ms", 0)
    except DecodeError:
        return 0.0
    return after_ms / 1000


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    MessageFrame: lambda f: encode_message(f.seq, f.id, f.type, f.payload, f.wants_ack, f.timestamp, f.redeliver, f.redelivered),
    AckFrame: lambda f: encode_ack(f.ack_seq, f.seq, f.status, f.result, f.error, f.more),
    ReceiptFrame: lambda f: encode_receipt(f.received, f.handled, f.ranges),
    CancelFrame: lambda f: encode_cancel(f.seq),
    ConfirmFrame: lambda f: encode_confirm(f.acked),
    PingFrame: lambda f: encode_ping(f.number),
    PongFrame: lambda f: encode_pong(f.number),
    Hello: _encode_hello,
    Welcome: _encode_welcome,
    Goodbye: _encode_goodbye,
    Authentication: _encode_authentication,
    LaneOpen: lambda f: _serialise(proto.Frame(lane_open=proto.LaneOpen(name=f.name, acked=f.acked))),
}
