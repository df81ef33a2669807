"""Read serialised protobuf messages strictly, by the schema of the generated classes.

The generated classes' own parser is not used for what a peer sends: it takes a field that is cut off for a shorter one,
takes any wire type for any field, keeps both of a oneof, and is quadratic in unknown fields. This one refuses what is
malformed with `DecodeError` and nothing else, and its time is bounded: by `MAX_FIELDS`, and by the size of the input
for the rest. It is the general path; `codec` reads the frames that matter for speed as they usually look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, get_args, get_type_hints

import betterproto2

from ..errors import RemoteProtocolError

__all__ = ["MAX_FIELDS", "DecodeError", "Schema", "parse", "schema_of"]

#: Fields in one serialised message, nested and unknown ones included. Two bytes are enough for a field, so without a limit
#: a frame of the maximum size could hold the event loop for a second.
MAX_FIELDS = 16_384

_MASK_64 = (1 << 64) - 1
_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)

# Longest varints, bytes: of values, and of tags and lengths, which have 32 bits. Other parsers refuse longer ones too.
_LONGEST = 10
_LONGEST_32 = 5
# Groups within groups in an unknown field; other parsers go as far as 100, from the outermost message on.
_GROUP_DEPTH = 64


class DecodeError(RemoteProtocolError):
    """The peer sent a frame that its schema cannot have produced."""


class Scalar(NamedTuple):
    """How to read a number, a string or bytes: ``convert`` takes the varint or the content."""

    name: str
    wire: int
    convert: Callable[[Any], object]


class Nested(NamedTuple):
    """How to read a message inside a message."""

    name: str
    wire: int
    schema: Schema
    repeated: bool


#: The known fields of a message, by number.
Schema: TypeAlias = "Mapping[int, Scalar | Nested]"


def _signed(bits: int) -> Callable[[int], int]:
    mask, sign = (1 << bits) - 1, 1 << (bits - 1)
    return lambda value: ((value & mask) ^ sign) - sign


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        raise DecodeError("a string is not UTF-8") from exc


# An enum is an int32 on the wire, however long its varint. These are the scalar types that the schemas use: a new one fails
# when the schema is built, at import.
_SCALARS: dict[str, tuple[int, Callable[[Any], object]]] = {
    betterproto2.TYPE_UINT32: (_VARINT, lambda value: value & 0xFFFF_FFFF),
    betterproto2.TYPE_UINT64: (_VARINT, int),
    betterproto2.TYPE_INT64: (_VARINT, _signed(64)),
    betterproto2.TYPE_ENUM: (_VARINT, _signed(32)),
    betterproto2.TYPE_BOOL: (_VARINT, bool),
    betterproto2.TYPE_BYTES: (_LENGTH, bytes),
    betterproto2.TYPE_STRING: (_LENGTH, _text),
}


def schema_of(message: type[Any]) -> Schema:
    """Derive the schema of a generated class, and of those it refers to (not of one that refers to itself)."""
    hints = get_type_hints(message)
    schema: dict[int, Scalar | Nested] = {}
    for item in dataclasses.fields(message):
        meta = betterproto2.FieldMetadata.get(item)
        if meta.proto_type == betterproto2.TYPE_MESSAGE:
            # The hint is `list[T]` or `T | None`.
            nested = schema_of(get_args(hints[item.name])[0])
            schema[meta.number] = Nested(item.name, _LENGTH, nested, bool(meta.repeated))
        else:
            wire, convert = _SCALARS[meta.proto_type]
            schema[meta.number] = Scalar(item.name, wire, convert)
    return schema


def parse(schema: Schema, data: bytes, *, oneof: bool = False) -> dict[str, Any]:
    """Read a serialised message.

    Args:
        schema: of the message.
        data: all of it.
        oneof: the fields of the message (not of those inside it) exclude each other: the last one wins.

    Returns:
        What was set, by field name: scalars converted, messages as such dictionaries, repeated messages as lists of them.

    Raises:
        DecodeError: malformed in any way, or more than `MAX_FIELDS` fields.
    """
    values: dict[str, Any] = {}
    _parse(schema, data, 0, len(data), values, MAX_FIELDS, oneof)
    return values


def _parse(schema: Schema, data: bytes, position: int, end: int, values: dict[str, Any], budget: int, oneof: bool = False) -> int:
    """Read ``data[position:end]`` into ``values`` and return what is left of the budget.

    It calls itself for messages inside messages that the schema knows, so as deep as the schema goes, never as deep as the
    input would like.
    """
    while position < end:
        tag, position, budget = _read_tag(data, position, end, budget)
        item = schema.get(tag >> 3)
        if item is None:
            position, budget = _skip(data, position, end, tag, budget)
            continue
        if tag & 7 != item.wire:
            raise DecodeError(f"field {item.name} has wire type {tag & 7}, not {item.wire}")
        if oneof and item.name not in values:
            values.clear()
        value, position = _read_varint(data, position, end, _LONGEST if item.wire == _VARINT else _LONGEST_32)
        if isinstance(item, Scalar) and item.wire == _VARINT:
            values[item.name] = item.convert(value)
            continue
        start, position = position, position + value
        if position > end:
            raise DecodeError(f"field {item.name} is cut off")
        if isinstance(item, Scalar):
            values[item.name] = item.convert(data[start:position])
        elif item.repeated:
            inner: dict[str, Any] = {}
            values.setdefault(item.name, []).append(inner)
            budget = _parse(item.schema, data, start, position, inner, budget)
        else:
            # A message that comes twice is merged, as the encoding asks.
            budget = _parse(item.schema, data, start, position, values.setdefault(item.name, {}), budget)
    return budget


def _read_tag(data: bytes, position: int, end: int, budget: int) -> tuple[int, int, int]:
    if not budget:
        raise DecodeError(f"more than {MAX_FIELDS:,} fields")
    tag, position = _read_varint(data, position, end, _LONGEST_32)
    if not 8 <= tag < 1 << 32:
        raise DecodeError(f"field number {tag >> 3:,} does not exist")
    return tag, position, budget - 1


def _read_varint(data: bytes, position: int, end: int, longest: int) -> tuple[int, int]:
    """Return the varint at ``position``, its lower 64 bits, and where it ends."""
    value = 0
    for shift in range(0, 7 * longest, 7):
        if position >= end:
            raise DecodeError("a varint is cut off")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK_64, position
    raise DecodeError(f"a varint has more than {longest} bytes where no longer one can be")


def _skip(data: bytes, position: int, end: int, tag: int, budget: int) -> tuple[int, int]:
    """Pass over the value of an unknown field; return where it ends and what is left of the budget.

    Groups (from before proto3) may nest: hence a list of those that are open, and no recursion.
    """
    groups: list[int] = []
    while True:
        wire = tag & 7
        if wire == _VARINT:
            _, position = _read_varint(data, position, end, _LONGEST)
        elif wire == _LENGTH:
            length, position = _read_varint(data, position, end, _LONGEST_32)
            position += length
        elif wire == _FIXED64:
            position += 8
        elif wire == _FIXED32:
            position += 4
        elif wire == _GROUP and len(groups) < _GROUP_DEPTH:
            groups.append(tag >> 3)
        elif wire != _END_GROUP or not groups or groups.pop() != tag >> 3:
            raise DecodeError(f"field {tag >> 3} has wire type {wire} where none such can be")
        if position > end:
            raise DecodeError(f"unknown field {tag >> 3} is cut off")
        if not groups:
            return position, budget
        tag, position, budget = _read_tag(data, position, end, budget)
