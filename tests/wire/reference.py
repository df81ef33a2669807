"""Second opinions on the wire format: google's protobuf and the generated classes, and strategies for frames.

google's classes are built from the schema below, written down once more by hand, in a descriptor pool of their own. So a
slip in the schema shows too, no compiler is needed, and no other user of google's default pool is in the way.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import strategies as st

from quicflow_trio import wire
from quicflow_trio.wire import codec
from quicflow_trio.wire.proto.quicflow import v2 as generated

SCHEMA = {
    "LaneState": "name string 1, received uint64 2, handled uint64 3",
    "PeerLimits": "payload uint64 1, lanes uint32 2",
    "Hello": "revision uint32 1, client_id string 2, credentials bytes 3, session_token bytes 4, lanes *LaneState 5, "
    "limits PeerLimits 6",
    "Welcome": "revision uint32 1, session_id bytes 2, session_token bytes 3, resumed bool 4, lanes *LaneState 5, "
    "heartbeat_interval_ms uint32 6, limits PeerLimits 7",
    "Ping": "number uint64 1",
    "Pong": "number uint64 1",
    "Goodbye": "code uint32 1, reason string 2, retry_after_ms uint32 3",
    "Authentication": "number uint64 1, credentials bytes 2, valid_for_ms uint64 3, error string 4",
    "RetryHint": "after_ms uint32 1",
    "LaneOpen": "name string 1, acked uint64 2",
    "Message": "seq uint64 1, id bytes 2, type enum 3, payload bytes 4, wants_ack bool 5, timestamp int64 6, redeliver bool 7, "
    "redelivered bool 8",
    "Cancel": "seq uint64 1",
    "Confirm": "acked uint64 1",
    "Ack": "ack_seq uint64 1, seq uint64 2, status enum 3, result bytes 4, error string 5, more uint64 6",
    "SeqRange": "first uint64 1, last uint64 2",
    "Receipt": "received uint64 1, handled uint64 2, handled_ranges *SeqRange 3",
    "Frame": "hello Hello 1, welcome Welcome 2, ping Ping 3, pong Pong 4, goodbye Goodbye 5, authentication Authentication 6, lane_open LaneOpen 7, "
    "message Message 8, cancel Cancel 9, ack Ack 10, receipt Receipt 11, confirm Confirm 12",
}

#: Which member of the envelope's oneof a frame of ours is.
MEMBERS: dict[type, str] = {
    wire.Hello: "hello",
    wire.Welcome: "welcome",
    wire.PingFrame: "ping",
    wire.PongFrame: "pong",
    wire.Goodbye: "goodbye",
    wire.Authentication: "authentication",
    wire.LaneOpen: "lane_open",
    wire.MessageFrame: "message",
    wire.CancelFrame: "cancel",
    wire.ConfirmFrame: "confirm",
    wire.AckFrame: "ack",
    wire.ReceiptFrame: "receipt",
}


def _google_frame() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="reference.proto", package="reference", syntax="proto3")
    # Both enums of the schema are open, so one stands for them here.
    file.enum_type.add(name="Kind").value.add(name="KIND_UNSPECIFIED", number=0)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        if name == "Frame":
            message.oneof_decl.add(name="body")
        for text in fields.split(", "):
            field_name, kind, number = text.split()
            field = message.field.add(name=field_name, number=int(number), label=kinds.LABEL_OPTIONAL)
            if kind.startswith("*"):
                field.label = kinds.LABEL_REPEATED
            if (kind := kind.lstrip("*")) in SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".reference.{kind}"
            elif kind == "enum":
                field.type, field.type_name = kinds.TYPE_ENUM, ".reference.Kind"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if name == "Frame":
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("reference.Frame"))


GoogleFrame = _google_frame()


def as_fields(frame: wire.Frame) -> dict[str, Any]:
    """Return the schema's fields of a frame, messages inside as dictionaries."""
    values = dataclasses.asdict(frame)
    if isinstance(frame, wire.ReceiptFrame):
        values["handled_ranges"] = [{"first": first, "last": last} for first, last in values.pop("ranges")]
    if values.get("limits") == {"payload": 0, "lanes": 0}:
        del values["limits"]
    return values


def by_google(frame: wire.Frame) -> bytes:
    """Return the body of ``frame`` as google's protobuf serialises it."""
    body: bytes = GoogleFrame(**{MEMBERS[type(frame)]: as_fields(frame)}).SerializeToString()
    return body


def by_generated(frame: wire.Frame) -> bytes:
    """Return the body of ``frame`` as the generated classes serialise it."""
    values = as_fields(frame)
    match frame:
        case wire.Hello() | wire.Welcome():
            values["lanes"] = [generated.LaneState(**lane) for lane in values["lanes"]]
            if "limits" in values:
                values["limits"] = generated.PeerLimits(**values["limits"])
        case wire.ReceiptFrame():
            values["handled_ranges"] = [generated.SeqRange(**item) for item in values["handled_ranges"]]
        case wire.MessageFrame():
            values["type"] = generated.MessageType(values["type"])
        case wire.AckFrame():
            values["status"] = generated.AckStatus(values["status"])
    member = MEMBERS[type(frame)]
    inner = getattr(generated, "".join(part.capitalize() for part in member.split("_")))(**values)
    return bytes(generated.Frame(**{member: inner}))


def read_by_google(body: bytes) -> wire.Frame | None:
    """Read a body with google's protobuf, as a frame of ours; its own DecodeError when it refuses."""
    envelope = GoogleFrame.FromString(body)
    member = envelope.WhichOneof("body")
    if member is None:
        return None
    inner = getattr(envelope, member)
    kind = next(kind for kind, name in MEMBERS.items() if name == member)
    values = {field.name: getattr(inner, field.name) for field in inner.DESCRIPTOR.fields}
    if "lanes" in values:
        values["lanes"] = tuple(wire.LaneState(lane.name, lane.received, lane.handled) for lane in values["lanes"])
        values["limits"] = wire.PeerLimits(values["limits"].payload, values["limits"].lanes)
    if "handled_ranges" in values:
        values["ranges"] = tuple((item.first, item.last) for item in values.pop("handled_ranges"))
    frame: wire.Frame = kind(**values)
    return frame


def fast(body: bytes) -> wire.Frame | None:
    """Return what the hand-written path alone makes of a body; None when it leaves it to the general one."""
    try:
        return codec.FAST_DECODERS[body[0]](body)
    except LookupError:
        return None


# Numbers around the steps of the varint's length as often as any others: that is where an encoder slips.
def _steps(low: int, bits: int) -> st.SearchStrategy[int]:
    top = (1 << bits) - 1
    edges = {min(top, max(low, (1 << shift) + offset)) for shift in range(0, 64, 7) for offset in (-1, 0, 1)} | {low, top}
    return st.one_of(st.sampled_from(sorted(edges)), st.integers(low, top))


UINT32 = _steps(0, 32)
UINT64 = _steps(0, 64)
SEQ = _steps(1, 64)
ENUM = st.one_of(st.integers(0, 9), st.integers(-(2**31), 2**31 - 1))
TIME = st.one_of(st.sampled_from([0, 1, -1, 1_700_000_000_000]), st.integers(-(2**63), 2**63 - 1))
DATA = st.one_of(st.binary(max_size=40), st.integers(100, 20_000).map(lambda size: b"\x08" * size))

MESSAGES = st.builds(
    wire.MessageFrame,
    seq=SEQ,
    id=st.binary(min_size=16, max_size=16),
    type=ENUM,
    payload=DATA,
    wants_ack=st.booleans(),
    timestamp=TIME,
    redeliver=st.booleans(),
    redelivered=st.booleans(),
)
ACKS = st.one_of(
    st.builds(wire.AckFrame, ack_seq=SEQ, seq=SEQ, status=ENUM, result=DATA, error=st.text(max_size=200)),
    st.builds(wire.AckFrame, ack_seq=SEQ, seq=SEQ, status=ENUM, more=UINT64),
)
RECEIPTS = st.builds(
    wire.ReceiptFrame,
    received=UINT64,
    handled=UINT64,
    ranges=st.lists(st.tuples(UINT64, UINT64), max_size=8).map(tuple),
)
_LANES = st.lists(st.builds(wire.LaneState, st.text(max_size=20), UINT64, UINT64), max_size=4).map(tuple)
_LIMITS = st.builds(wire.PeerLimits, UINT64, UINT32)
FRAMES: st.SearchStrategy[wire.Frame] = st.one_of(
    MESSAGES,
    ACKS,
    RECEIPTS,
    st.builds(wire.CancelFrame, SEQ),
    st.builds(wire.ConfirmFrame, UINT64),
    st.builds(wire.PingFrame, UINT64),
    st.builds(wire.PongFrame, UINT64),
    st.builds(wire.Hello, UINT32, st.text(max_size=20), DATA, DATA, _LANES, _LIMITS),
    st.builds(wire.Welcome, UINT32, DATA, DATA, st.booleans(), _LANES, UINT32, _LIMITS),
    st.builds(wire.Goodbye, UINT32, st.text(max_size=20), UINT32),
    st.builds(wire.Authentication, UINT64, DATA, UINT64, st.text(max_size=20)),
    st.builds(wire.LaneOpen, st.text(max_size=20), UINT64),
)


def varint(value: int) -> bytes:
    """Return ``value`` as a varint, by the book."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, value: int | bytes) -> bytes:
    """Return one serialised field: a number, or anything with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def contents(serialised: bytes) -> list[tuple[int, int | bytes]]:
    """Return the fields of a well-formed message that has only numbers and fields with a length."""

    def number_at(position: int) -> tuple[int, int]:
        end = next(index for index in range(position, len(serialised)) if serialised[index] < 0x80) + 1
        return sum((byte & 0x7F) << 7 * place for place, byte in enumerate(serialised[position:end])), end

    found: list[tuple[int, int | bytes]] = []
    position = 0
    while position < len(serialised):
        tag, position = number_at(position)
        value, position = number_at(position)
        if tag & 7 == 2:
            found.append((tag >> 3, serialised[position : position + value]))
            position += value
        else:
            found.append((tag >> 3, value))
    return found
