"""quicflow/2 encoded and decoded: byte for byte what two other implementations do, both ways."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio import errors, wire
from quicflow_trio.wire import codec, flow2
from quicflow_trio.wire.proto.quicflow import v2 as generated
from tests.wire.reference import (
    ACKS,
    FRAMES,
    MESSAGES,
    RECEIPTS,
    by_generated,
    by_google,
    contents,
    fast,
    field,
    read_by_google,
    varint,
)

ID = bytes(range(16))


def body_of(frame: wire.Frame) -> bytes:
    data = wire.encode(frame)
    assert data[:4] == (len(data) - 4).to_bytes(4, "big")
    return data[4:]


@given(FRAMES)
def test_same_bytes_as_the_others_and_back(frame: wire.Frame) -> None:
    body = body_of(frame)
    assert body == by_google(frame)
    assert body == by_generated(frame)
    assert wire.decode(body) == frame
    assert read_by_google(body) == frame


@given(FRAMES)
def test_the_generated_classes_read_what_we_write(frame: wire.Frame) -> None:
    # Their reading back of what they have read says the same as ours, defaults included.
    envelope = generated.Frame.parse(body_of(frame))
    assert bytes(envelope) == by_google(frame)


@given(st.one_of(MESSAGES, ACKS, RECEIPTS))
def test_the_hand_written_path_and_the_general_one_agree(frame: wire.Frame) -> None:
    body = body_of(frame)
    assert flow2._decode_any(body) == frame
    # A timestamp before 1970, for one, is not what the fast path reads.
    assert fast(body) in (frame, None)


@pytest.mark.parametrize(
    "frame",
    [
        wire.MessageFrame(1, ID, 1, b"x" * 200, True, 1_700_000_000_000),
        wire.MessageFrame(300, ID, 2, b"", False, 1_700_000_000_000, True, True),
        wire.MessageFrame(1 << 40, ID, 4, b"x" * 100_000, True, 1),
        wire.AckFrame(1, 1, 1),
        wire.AckFrame(1000, 2000, 2, b"r" * 500),
        wire.AckFrame(1000, 2000, 1, more=63),
        wire.ReceiptFrame(0, 0),
        wire.ReceiptFrame(9000, 8000, ((8002, 8100), (0, 9))),
        wire.CancelFrame(7),
        wire.PingFrame(0),
        wire.PongFrame(1 << 33),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_usual_frames_take_the_fast_path(frame: wire.Frame) -> None:
    assert fast(body_of(frame)) == frame


def test_a_message_byte_by_byte() -> None:
    data = wire.encode_message(1, ID, wire.MessageType.COMMAND, b"hi", True, 1_700_000_000_000)
    expected = "00000025" + "4223" + "0801" + "1210" + ID.hex() + "1801" + "22026869" + "2801" + "3080d095ffbc31"
    assert data.hex() == expected


def test_the_default_lane_and_a_ping_of_zero_are_frames_too() -> None:
    assert wire.encode(wire.LaneOpen()) == b"\x00\x00\x00\x02\x3a\x00"
    assert wire.encode_ping(0) == b"\x00\x00\x00\x02\x1a\x00"


def test_timestamps_do_not_stick() -> None:
    # The encoder remembers the last one.
    for timestamp in (5, 5, 0, 0, -1, 5, 1_700_000_000_000):
        frame = wire.decode(wire.encode_message(1, ID, 1, b"", False, timestamp)[4:])
        assert isinstance(frame, wire.MessageFrame)
        assert frame.timestamp == timestamp


def test_many_different_timestamps_are_not_all_remembered() -> None:
    for timestamp in range(1_000):
        frame = wire.decode(wire.encode_message(1, ID, 1, b"", True, timestamp)[4:])
        assert isinstance(frame, wire.MessageFrame)
        assert frame.timestamp == timestamp
    assert len(codec._tails) <= 256


UNKNOWN = st.one_of(
    st.builds(field, st.integers(20, 2**29 - 1), st.integers(0, 2**64 - 1)),
    st.builds(field, st.integers(20, 2**29 - 1), st.binary(max_size=40)),
    st.builds(lambda number, value: varint(number << 3 | 1) + value, st.integers(20, 99), st.binary(min_size=8, max_size=8)),
    st.builds(lambda number, value: varint(number << 3 | 5) + value, st.integers(20, 99), st.binary(min_size=4, max_size=4)),
    st.just(varint(20 << 3 | 3) + field(1, 1) + varint(21 << 3 | 3) + varint(21 << 3 | 4) + varint(20 << 3 | 4)),
)


# The repeated fields, whose order among themselves counts.
REPEATED = {wire.Hello: 5, wire.Welcome: 5, wire.ReceiptFrame: 3}


@given(frame=FRAMES, data=st.data())
def test_unknown_fields_are_skipped_and_the_order_of_fields_does_not_matter(frame: wire.Frame, data: Any) -> None:
    ((number, inner),) = contents(body_of(frame))
    assert isinstance(inner, bytes)
    ordered = [field(*item) for item in contents(inner) if item[0] == REPEATED.get(type(frame))]
    free = [field(*item) for item in contents(inner) if item[0] != REPEATED.get(type(frame))]
    mixed = data.draw(st.permutations(free + data.draw(st.lists(UNKNOWN, max_size=3)))) + ordered
    envelope = [field(number, b"".join(mixed)), *data.draw(st.lists(UNKNOWN, max_size=3))]
    body = b"".join(data.draw(st.permutations(envelope)))
    assert wire.decode(body) == frame
    assert read_by_google(body) == frame


@given(frames=st.lists(FRAMES, min_size=2, max_size=4))
def test_the_last_of_a_oneof_wins_and_the_same_one_twice_is_merged(frames: list[wire.Frame]) -> None:
    body = b"".join(body_of(frame) for frame in frames)
    assert wire.decode(body) == read_by_google(body)


def test_scalars_given_twice_count_once_and_nested_messages_merge() -> None:
    message = field(1, 9) + field(1, 2) + field(2, b"short") + field(2, ID) + field(5, 1) + field(5, 0)
    assert wire.decode(field(8, message)) == wire.MessageFrame(2, ID, 0, b"", False, 0)
    limits = field(6, field(1, 5) + field(2, 6)) + field(6, field(2, 7))
    assert wire.decode(field(1, limits)) == wire.Hello(limits=wire.PeerLimits(5, 7))


def test_numbers_are_cut_to_their_type() -> None:
    # As every implementation does with a varint that is longer than its field.
    assert wire.decode(field(5, field(1, (1 << 40) + 3))) == wire.Goodbye(3)
    assert wire.decode(field(2, field(4, 2))) == wire.Welcome(resumed=True)
    ack = wire.decode(field(10, field(1, 1) + field(2, 1) + field(3, (1 << 32) + 2)))
    assert ack == wire.AckFrame(1, 1, wire.AckStatus.FAILURE)
    assert wire.decode(b"\x1a\x0b\x08" + b"\xff" * 9 + b"\x7f") == wire.PingFrame((1 << 64) - 1)


@pytest.mark.parametrize("body", [b"", field(13, b"again"), field(13, 1), field(15, b"new"), field(15, b"") * 3, field(900, 1)])
def test_a_frame_of_a_later_revision_is_none(body: bytes) -> None:
    assert wire.decode(body) is None


def test_the_enums_are_those_of_the_schema() -> None:
    for ours, theirs in ((wire.MessageType, generated.MessageType), (wire.AckStatus, generated.AckStatus)):
        assert {"UNSPECIFIED": 0, **{item.name: item.value for item in ours}} == {item.name: item.value for item in theirs}


def test_enum_members_encode_as_their_numbers() -> None:
    assert wire.encode_message(1, ID, wire.MessageType.QUERY, b"x", True, 5) == wire.encode_message(1, ID, 3, b"x", True, 5)
    assert wire.encode_ack(1, 1, wire.AckStatus.TIMEOUT, b"") == wire.encode_ack(1, 1, 3, b"")


@pytest.mark.parametrize(
    "frame",
    [
        wire.MessageFrame(0, ID, 1, b"", False, 0),
        wire.MessageFrame(-1, ID, 1, b"", False, 0),
        wire.MessageFrame(1 << 64, ID, 1, b"", False, 0),
        wire.MessageFrame(1, ID[:15], 1, b"", False, 0),
        wire.AckFrame(0, 1, 1),
        wire.AckFrame(1, 0, 1),
        wire.AckFrame(1, 1, 1, b"result", more=1),
        wire.AckFrame(1, 1, 2, error="error", more=1),
        wire.CancelFrame(0),
        wire.PingFrame(-1),
        wire.ReceiptFrame(1, -1),
        wire.ReceiptFrame(1, 1, ((1, 1),) * (wire.MAX_RANGES + 1)),
        wire.LaneOpen("\udc80"),
        wire.Hello(client_id="\udc80"),
    ],
    ids=repr,
)
def test_what_may_not_be_sent_is_refused_here(frame: wire.Frame) -> None:
    with pytest.raises(errors.LocalProtocolError):
        wire.encode(frame)


def test_an_error_text_that_is_not_unicode_still_reaches_the_peer() -> None:
    ack = wire.decode(wire.encode_ack(1, 1, 2, b"", "no such file: \udcff")[4:])
    assert ack == wire.AckFrame(1, 1, 2, b"", "no such file: ?")


@pytest.mark.parametrize(("seconds", "read"), [(1.5, 1.5), (0.0001, 0.001), (0.0, 0.001), (1e9, 4294967.295), (-1.0, 0.001)])
def test_a_hint_when_to_try_again(seconds: float, read: float) -> None:
    # Rounded up: who comes back a little early is refused again.
    assert wire.retry_hint(wire.encode_retry_hint(seconds)) == pytest.approx(read)


@pytest.mark.parametrize("result", [b"", b"\x08", b"\xff" * 20, field(2, b"new")])
def test_a_hint_that_makes_no_sense_is_none(result: bytes) -> None:
    assert wire.retry_hint(result) == 0.0


def test_the_largest_receipt_is_read_again() -> None:
    ranges = tuple((2 * n, 2 * n) for n in range(1, wire.MAX_RANGES + 1))
    frame = wire.ReceiptFrame(1 << 20, 1, ranges)
    body = body_of(frame)
    assert wire.decode(body) == flow2._decode_any(body) == frame


def test_secrets_stay_out_of_repr() -> None:
    text = repr(wire.Hello(20, "me", b"password", b"token-1")) + repr(wire.Welcome(20, b"id", b"token-2"))
    text += repr(wire.Authentication(1, b"password-2"))
    assert "password" not in text
    assert "token-" not in text
