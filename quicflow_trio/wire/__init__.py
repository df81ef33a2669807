"""Bytes to frames and back, for both protocols; the layer below ``protocol``. No IO, no clock, no randomness.

- `framing`: cuts a stream into length-delimited bodies, incrementally and within a limit.
- `frames`: what quicflow/2 says, as Python values.
- `flow2`: encodes and decodes them; `codec` has the hot ones by hand, `fields` reads everything else, strictly.
- `proto`: the classes generated from ``protos/``. The protobuf library shows nowhere outside this package.
"""

from __future__ import annotations

from .fields import DecodeError
from .flow2 import (
    MAX_RANGES,
    decode,
    encode,
    encode_ack,
    encode_cancel,
    encode_confirm,
    encode_message,
    encode_ping,
    encode_pong,
    encode_receipt,
    encode_retry_hint,
    holds_message,
    retry_hint,
)
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
from .framing import PREFIX_SIZE, EmptyFrame, FrameReader, FrameTooLarge, prefix

__all__ = [
    "PREFIX_SIZE",
    "MAX_RANGES",
    "AckFrame",
    "AckStatus",
    "Authentication",
    "CancelFrame",
    "ConfirmFrame",
    "DecodeError",
    "EmptyFrame",
    "Frame",
    "FrameReader",
    "FrameTooLarge",
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
    "holds_message",
    "prefix",
    "retry_hint",
]
