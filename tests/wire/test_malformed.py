"""What a broken or hostile peer sends: DecodeError and nothing else, and never more work than the bytes are worth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.message import DecodeError as GoogleDecodeError
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio import errors, wire
from quicflow_trio.wire import fields, flow2
from tests.wire.reference import FRAMES, fast, field, read_by_google, varint

ID = bytes(range(16))
MESSAGE = field(1, 1) + field(2, ID)
GROUP, END_GROUP = varint(20 << 3 | 3), varint(20 << 3 | 4)

# Bytes that mean something here come up often: tags, wire types, lengths, continuation bits.
NOISE = st.lists(st.sampled_from([*range(0x63), 0x80, 0x81, 0xFF, 0xA3, 0x01]), max_size=60).map(bytes)


def check(body: bytes) -> None:
    """Any bytes: DecodeError, or what google's protobuf reads; and the fast path says nothing that the general one does not."""
    try:
        frame = wire.decode(body)
    except wire.DecodeError:
        assert fast(body) is None
        return
    assert frame == read_by_google(body)
    assert frame == flow2._decode_any(body)


@given(st.one_of(st.binary(max_size=200), NOISE, st.builds(field, st.integers(1, 12), NOISE)))
def test_garbage(body: bytes) -> None:
    check(body)


@given(frame=FRAMES, data=st.data())
def test_a_frame_with_some_bytes_changed(frame: wire.Frame, data: st.DataObject) -> None:
    body = bytearray(wire.encode(frame)[4:])
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, min(len(body), 60)))
        body[where : where + data.draw(st.integers(0, 2))] = data.draw(st.one_of(NOISE, st.binary(max_size=2)))
    check(bytes(body))


@given(frame=FRAMES, cut=st.integers(1, 1_000_000))
def test_a_frame_cut_off_anywhere_is_refused(frame: wire.Frame, cut: int) -> None:
    body = wire.encode(frame)[4:]
    # One byte is at least the tag of the inner message.
    part = body[: 1 + cut % (len(body) - 1)]
    with pytest.raises(wire.DecodeError):
        wire.decode(part)
    assert fast(part) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (field(8, 1), "message has wire type 0"),
        (field(8, field(1, b"1") + field(2, ID)), "seq has wire type 2"),
        (field(8, field(1, 1) + field(2, 5)), "id has wire type 0"),
        (field(8, field(1, 1) + varint(4 << 3 | 5) + bytes(4)), "payload has wire type 5"),
        (field(8, field(2, ID)), "without a sequence number"),
        (field(8, field(1, 0) + field(2, ID)), "without a sequence number"),
        (field(8, field(1, 1)), "message id of 0 bytes"),
        (field(8, field(1, 1) + field(2, ID + b"1")), "message id of 17 bytes"),
        (field(9, b""), "without a sequence number"),
        (field(9, field(1, 0)), "without a sequence number"),
        (field(10, field(1, 1) + field(3, 1)), "without its sequence numbers"),
        (field(10, field(2, 1) + field(3, 1)), "without its sequence numbers"),
        (field(10, field(1, 1) + field(2, 1) + field(5, b"\xff")), "not UTF-8"),
        (field(7, field(1, b"\xed\xa0\x80")), "not UTF-8"),
        (field(1, field(5, 1)), "lanes has wire type 0"),
        (field(1, field(5, field(1, b"\xc0\x80"))), "not UTF-8"),
        (field(3, b"\x08" + b"\xff" * 10 + b"\x01"), "more than 10 bytes"),
        (field(20, 1)[:-1] + b"\xff" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x1a" + b"\x80" * 5 + b"\x00", "more than 5 bytes"),
        (b"\x80" * 5 + b"\x01", "more than 5 bytes"),
        (b"\x1a\x02\x08\x80\x01", "cut off"),
        (b"\x42", "cut off"),
        (b"\x42\x05\x08\x01", "field message is cut off"),
        (field(8, field(1, 1) + b"\x22\x09abc"), "field payload is cut off"),
        (varint(20 << 3 | 2) + b"\x05abc", "unknown field 20 is cut off"),
        (varint(20 << 3 | 1) + b"1234567", "unknown field 20 is cut off"),
        (varint(20 << 3 | 5) + b"123", "unknown field 20 is cut off"),
        (varint(20 << 3 | 6), "field 20 has wire type 6"),
        (b"\x00", "field number 0"),
        (b"\x02\x00", "field number 0"),
        (varint(1 << 32) + b"\x00", "does not exist"),
        (END_GROUP, "field 20 has wire type 4"),
        (GROUP + varint(21 << 3 | 4), "field 21 has wire type 4"),
        (GROUP, "cut off"),
        (GROUP * 65 + END_GROUP * 65, "field 20 has wire type 3"),
    ],
)
def test_each_rule(body: bytes, reason: str) -> None:
    with pytest.raises(wire.DecodeError, match=reason) as caught:
        wire.decode(body)
    assert type(caught.value) is wire.DecodeError
    assert isinstance(caught.value, errors.RemoteProtocolError)


def test_groups_nest_as_deep_as_allowed() -> None:
    assert wire.decode(GROUP * 64 + END_GROUP * 64) is None


@pytest.mark.parametrize(
    "body",
    [
        # The fast path leaves each of these to the general one, which reads it.
        field(8, field(2, ID) + field(1, 1)),
        field(8, field(1, 1) + field(2, ID) + field(4, b"x")),
        field(8, field(1, 1) + field(2, ID) + field(3, 300) + field(4, b"x") + field(6, 5)),
        field(8, MESSAGE + field(3, 1) + field(4, b"x") + field(9, 1)),
        field(8, MESSAGE + field(3, 1) + field(4, b"x") + field(5, 7)),
        field(8, MESSAGE + field(3, 1)),
        field(8, MESSAGE + field(3, 1) + field(4, b"")),
        field(8, MESSAGE) + field(14, b"later"),
        field(8, field(1, 1 << 63) + field(2, ID)),
        field(10, field(2, 1) + field(1, 1)),
        field(10, field(1, 1) + field(3, 1) + field(2, 1)),
        field(10, field(1, 1) + field(2, 1) + field(3, 300)),
        field(10, field(1, 1) + field(2, 1) + field(3, 2) + field(5, b"why")),
        field(10, field(1, 1) + field(2, 1) + field(3, 1) + field(4, b"r") + field(5, b"why")),
        field(11, field(2, 1) + field(1, 1)),
        field(11, field(1, 1) + field(3, field(2, 1) + field(1, 1))),
        field(11, field(1, 1) + field(3, field(1, 1) + field(3, b"x" * 200))),
        field(3, field(1, 1) + field(2, 1)),
        field(9, field(1, 1) + field(2, 1)),
        field(4, field(2, b"")),
    ],
)
def test_unusual_but_well_formed(body: bytes) -> None:
    assert fast(body) is None
    frame = wire.decode(body)
    assert frame is not None
    assert frame == read_by_google(body)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: field(12, 0) * (size // 2),
        lambda size: varint(12 << 3 | 3) * size,
        lambda size: field(11, field(3, b"") * (size // 2)),
        lambda size: field(1, field(5, b"") * (size // 2)),
        lambda size: field(8, field(1, 1) * (size // 2)),
        lambda size: field(7, b"") * (size // 2),
    ],
    ids=["unknown", "groups", "ranges", "lanes", "scalars", "frames"],
)
def test_the_fields_of_one_frame_are_counted(make: Callable[[int], bytes]) -> None:
    with pytest.raises(wire.DecodeError):
        wire.decode(make(1 << 20))


def test_the_count_has_the_documented_limit() -> None:
    assert wire.decode(field(15, 0) * fields.MAX_FIELDS) is None
    with pytest.raises(wire.DecodeError, match="more than 16,384 fields"):
        wire.decode(field(15, 0) * (fields.MAX_FIELDS + 1))


def test_a_receipt_of_too_many_ranges_is_refused() -> None:
    with pytest.raises(wire.DecodeError, match="over the limit of 4,096"):
        wire.decode(field(11, field(3, b"") * (wire.MAX_RANGES + 1)))


def test_google_refuses_what_we_refuse_as_malformed() -> None:
    # So that `check` compares with a parser that is strict itself.
    for body in (b"\x42", b"\x00", END_GROUP, b"\x80" * 5 + b"\x01"):
        with pytest.raises(GoogleDecodeError):
            read_by_google(body)
