"""Bytes to frames and back, for both protocols; the layer below ``protocol``. No IO, no clock, no randomness.

- `framing`: cuts a stream into length-delimited bodies, incrementally and within a limit.
- `frames`: what quicflow/2 says, as Python values.
- `backbone1`: the same for quic-backbone-v1, the original's protocol.
- `flow2`: encodes and decodes them; `codec` has the hot ones by hand, `fields` reads everything else, strictly.
- `proto`: the classes generated from ``protos/``. The protobuf library shows nowhere outside this package.
"""

from __future__ import annotations

from .backbone1 import (
    MAX_FRAME,
    BackboneAck,
    BackboneData,
    BackboneFrame,
    BackbonePing,
    BackbonePong,
    Hollow,
    decode_backbone,
    encode_backbone,
    hollow,
)
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
    "MAX_FRAME",
    "MAX_RANGES",
    "PREFIX_SIZE",
    "AckFrame",
    "AckStatus",
    "Authentication",
    "BackboneAck",
    "BackboneData",
    "BackboneFrame",
    "BackbonePing",
    "BackbonePong",
    "CancelFrame",
    "ConfirmFrame",
    "DecodeError",
    "EmptyFrame",
    "Frame",
    "FrameReader",
    "FrameTooLarge",
    "Goodbye",
    "Hello",
    "Hollow",
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
    "decode_backbone",
    "encode",
    "encode_ack",
    "encode_backbone",
    "encode_cancel",
    "encode_confirm",
    "encode_message",
    "encode_ping",
    "encode_pong",
    "encode_receipt",
    "encode_retry_hint",
    "holds_message",
    "hollow",
    "prefix",
    "retry_hint",
]
