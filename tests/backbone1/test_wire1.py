"""The bytes of quic-backbone-v1: the vectors that the original was seen to send, and frames cut at every byte."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.errors import RemoteProtocolError
from quicflow_trio.protocol.backbone1 import (
    FrameIntake,
    Oversized,
    ack_of,
    answer_of,
    close_of,
    id_from_text,
    id_to_text,
    json_result,
    meaning_of,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.wire import (
    MAX_FRAME,
    AckFrame,
    BackboneAck,
    BackboneData,
    BackboneFrame,
    BackbonePing,
    BackbonePong,
    DecodeError,
    EmptyFrame,
    FrameTooLarge,
    decode_backbone,
    encode_backbone,
)
from quicflow_trio.wire.proto.quic.backbone import v1 as proto

STAMP = 1_700_000_000_000
DATA = BackboneData("m1", "server", "c1", 1, b"hi", True, STAMP)
VECTORS: list[tuple[BackboneFrame, str]] = [
    (BackbonePing("c1"), "0000000f080112040a0263311880d095ffbc31"),
    (BackbonePong(STAMP), "00000012080212070880d095ffbc311880d095ffbc31"),
    (
        DATA,
        "0000002a0803121f0a026d3112067365727665721a02633120012a02686930013880d095ffbc311880d095ffbc31",
    ),
    (BackboneAck("m1", 1, b"ok"), "000000150804120a0a026d3110011a026f6b1880d095ffbc31"),
]


@pytest.mark.parametrize(("frame", "vector"), VECTORS)
def test_the_vectors(frame: BackboneFrame, vector: str) -> None:
    assert encode_backbone(frame, STAMP).hex() == vector
    assert decode_backbone(bytes.fromhex(vector)[4:]) == frame


texts = st.text(max_size=40)
numbers = st.integers(-(2**63), 2**63 - 1)
frames = st.one_of(
    st.builds(BackbonePing, texts),
    st.builds(BackbonePong, numbers),
    st.builds(BackboneData, texts, texts, texts, st.integers(0, 9), st.binary(max_size=300), st.booleans(), numbers),
    st.builds(BackboneAck, texts, st.integers(0, 9), st.binary(max_size=300), texts),
)


@given(frames, numbers)
def test_frames_are_as_the_protobuf_library_writes_and_reads_them(frame: BackboneFrame, stamp: int) -> None:
    data = encode_backbone(frame, stamp)
    envelope = proto.Frame.parse(data[4:])
    assert bytes(envelope) == data[4:]
    assert envelope.timestamp == stamp
    assert decode_backbone(data[4:]) == frame


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_frame_or_a_decode_error(data: bytes) -> None:
    for feed in (decode_backbone, lambda body: FrameIntake(50).feed(body)):
        with contextlib.suppress(DecodeError, EmptyFrame, FrameTooLarge):
            feed(data)


@given(st.binary(min_size=40, max_size=80), st.integers(1100, 3000), st.integers(1, 700), st.data())
def test_damage_to_a_frame_over_the_limit_is_a_decode_error(noise: bytes, size: int, piece: int, draw: st.DataObject) -> None:
    whole = bytearray(encode_backbone(BackboneData("m1", "me", "you", 2, bytes(size), True, STAMP), STAMP))
    at = draw.draw(st.integers(4, 30))
    whole[at : at + draw.draw(st.integers(0, 20))] = noise[: draw.draw(st.integers(0, 20))]
    intake = FrameIntake(20)
    with contextlib.suppress(DecodeError, EmptyFrame, FrameTooLarge):
        for start in range(0, len(whole), piece):
            found = intake.feed(bytes(whole[start : start + piece]))
            assert intake.held <= 4096 + 1024 + piece
            if found is not None:
                assert isinstance(found, Oversized)
                assert found.size <= len(whole)
                break


def test_a_payload_longer_than_its_frame_is_refused() -> None:
    whole = bytearray(encode_backbone(BackboneData("m1", payload=bytes(3000)), STAMP))
    whole[0:4] = (len(whole) - 4 - 1000).to_bytes(4, "big")
    with pytest.raises(DecodeError, match="cut off"):
        FrameIntake(20).feed(bytes(whole))


@pytest.mark.parametrize(("frame", "vector"), VECTORS)
def test_a_frame_can_be_cut_anywhere(frame: BackboneFrame, vector: str) -> None:
    data = bytes.fromhex(vector)
    for cut in range(len(data) + 1):
        intake = FrameIntake(100)
        found = [intake.feed(part) for part in (data[:cut], data[cut:]) if part]
        assert [one for one in found if one is not None] == [frame]
    intake = FrameIntake(100)
    assert [intake.feed(data[at : at + 1]) for at in range(len(data))] == [None] * (len(data) - 1) + [frame]
    # What stands behind it belongs to nothing.
    assert FrameIntake(100).feed(data + b"more") == frame


@pytest.mark.parametrize("piece", [1, 7, 1000, 4096, 5000, 10**6])
def test_a_payload_over_the_limit_is_thrown_away_as_it_comes(piece: int) -> None:
    message = BackboneData("m1", "me", "you", 2, bytes(20_000), True, STAMP)
    data = encode_backbone(message, STAMP)
    intake = FrameIntake(1000)
    held = 0
    found: list[object] = []
    for at in range(0, len(data), piece):
        found.append(intake.feed(data[at : at + piece]))
        held = max(held, intake.held)
    last = found.pop()
    assert set(found) <= {None}
    assert isinstance(last, Oversized)
    assert (last.data, last.size) == (BackboneData("m1", "me", "you", 2, b"", True, STAMP), 20_000)
    assert held < 6000


def test_a_frame_over_the_limit_must_be_data_that_says_so_soon() -> None:
    for frame in (BackboneAck("m1", 1, bytes(9000)), BackboneData("m" * 5000, payload=bytes(9000)), BackbonePing("p" * 9000)):
        with pytest.raises((DecodeError, FrameTooLarge)):
            FrameIntake(1000).feed(encode_backbone(frame, STAMP))


@pytest.mark.parametrize(("size", "error"), [(0, EmptyFrame), (MAX_FRAME + 1, FrameTooLarge), (2**32 - 1, FrameTooLarge)])
def test_lengths_that_make_no_sense(size: int, error: type[RemoteProtocolError]) -> None:
    with pytest.raises(error):
        FrameIntake(100).feed(size.to_bytes(4, "big"))


def test_the_longest_frame_is_read() -> None:
    overhead = len(encode_backbone(BackboneData("m1", payload=bytes(MAX_FRAME)), STAMP)) - 4 - MAX_FRAME
    data = encode_backbone(BackboneData("m1", payload=bytes(MAX_FRAME - overhead)), STAMP)
    assert int.from_bytes(data[:4], "big") == MAX_FRAME
    assert isinstance(FrameIntake(MAX_FRAME).feed(data), BackboneData)


def test_ids_are_uuids_and_other_texts_have_a_stable_one() -> None:
    id = bytes(range(16))
    assert id_to_text(id) == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert id_from_text(id_to_text(id)) == id
    assert len(id_from_text("m1")) == 16
    assert id_from_text("m1") == id_from_text("m1") != id_from_text("m2")


@pytest.mark.parametrize("status", [1, 2, 3])
def test_results_as_json_are_read_back(status: int) -> None:
    found = answer_of(BackboneAck("m1", 1, json_result("m1", status, b"\0ok")), "m1", 7)
    assert (found.seq, found.status, found.result) == (7, status, b"\0ok")


@pytest.mark.parametrize(
    "result",
    [
        b"{",
        b'{"msg_id": "m1"',
        b'{"msg_id": "m2", "result": ""}',
        b'{"msg_id": "m1", "mine": 1}',
        b'["m1"]',
        b'{"msg_id": "m1", "result": "?"}',
    ],
)
def test_other_json_is_a_result_as_it_stands(result: bytes) -> None:
    assert answer_of(BackboneAck("m1", 1, result), "m1", 7).result == result


def test_failures_that_it_has_no_word_for() -> None:
    assert ack_of(AckFrame(1, 1, 5, b"hint", "too fast"), "m1", as_json=False) == BackboneAck("m1", 2, b"", "too fast")
    assert answer_of(BackboneAck("m1", 9), "m1", 7).status == 2
    assert answer_of(BackboneData("m1", type=1), "m1", 7).status == 2


@pytest.mark.parametrize("code", CloseCode)
def test_every_close_has_a_code_of_the_protocol(code: CloseCode) -> None:
    number, reason = close_of(code, "why")
    assert number in (0, 1)
    assert (number == 0) == (code in (CloseCode.NORMAL, CloseCode.SHUTDOWN, CloseCode.HEARTBEAT_TIMEOUT))
    assert meaning_of(number, reason) in (code, CloseCode.PROTOCOL_ERROR)
    assert close_of(CloseCode.SHUTDOWN, "x") == (0, "server shutdown")
