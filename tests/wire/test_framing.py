"""`FrameReader`: whatever the split, the same frames; refused early; nothing kept that should not be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio import errors
from quicflow_trio.wire import EmptyFrame, FrameReader, FrameTooLarge, prefix

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=30)


def test_prefix_is_the_length_in_network_order() -> None:
    assert prefix(b"abc") == b"\x00\x00\x00\x03abc"
    assert prefix(bytes(70_000))[:4] == b"\x00\x01\x11\x70"


@given(bodies=BODIES, cuts=st.lists(st.integers(0, 10_000)), takes=st.lists(st.none() | st.integers(0, 5)))
def test_any_split_and_any_way_of_taking_give_the_same_frames(
    bodies: list[bytes], cuts: list[int], takes: list[int | None]
) -> None:
    stream = b"".join(prefix(body) for body in bodies)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader = FrameReader(300)
    taken: list[bytes] = []
    plan = iter(takes)
    for start, end in pairwise(edges):
        reader.feed(stream[start:end])
        taken += reader.frames(next(plan, 2))
        # What is held is exactly what was fed and not taken, and it is accounted for.
        used = sum(len(body) + 4 for body in taken)
        assert reader.buffered == end - used
        whole = 0
        for body in bodies[len(taken) : len(taken) + reader.pending]:
            whole += len(body) + 4
        assert reader.partial == reader.buffered - whole
    taken += reader.frames()
    assert taken == bodies
    assert (reader.buffered, reader.partial, reader.pending) == (0, 0, 0)


def test_every_single_split_and_byte_by_byte() -> None:
    bodies = [b"a", b"bc" * 100, b"d"]
    stream = b"".join(prefix(body) for body in bodies)
    for cut in range(len(stream) + 1):
        reader = FrameReader(1000)
        reader.feed(stream[:cut])
        before = reader.frames()
        reader.feed(stream[cut:])
        assert before + reader.frames() == bodies
    reader = FrameReader(1000)
    taken = []
    for index in range(len(stream)):
        reader.feed(stream[index : index + 1])
        taken += reader.frames()
    assert taken == bodies


def test_frames_are_bytes_of_their_own() -> None:
    reader = FrameReader(100)
    reader.feed(prefix(b"one"))
    (first,) = reader.frames()
    reader.feed(prefix(b"two") + prefix(b"six"))
    assert [type(body) for body in [first, *reader.frames()]] == [bytes, bytes, bytes]
    assert first == b"one"


def test_a_limit_leaves_the_rest_and_asking_for_none_takes_none() -> None:
    reader = FrameReader(100)
    reader.feed(b"".join(prefix(bytes((n,))) for n in range(5)) + b"\x00")
    assert reader.frames(0) == []
    assert reader.frames(-1) == []
    assert (reader.pending, reader.buffered, reader.partial) == (5, 26, 1)
    assert reader.frames(1) == [b"\x00"]
    assert reader.frames(2) == [b"\x01", b"\x02"]
    assert (reader.pending, reader.buffered, reader.partial) == (2, 11, 1)
    assert reader.frames(9) == [b"\x03", b"\x04"]
    assert reader.frames() == []
    assert (reader.pending, reader.buffered, reader.partial) == (0, 1, 1)


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    reader = FrameReader(10)
    reader.feed(prefix(bytes(10)))
    assert reader.frames() == [bytes(10)]
    with pytest.raises(FrameTooLarge) as caught:
        reader.feed(prefix(bytes(11)))
    assert (caught.value.size, caught.value.limit) == (11, 10)
    assert isinstance(caught.value, errors.RemoteProtocolError)
    assert "11 bytes" in str(caught.value)


def test_too_long_is_refused_at_the_fourth_byte_of_the_prefix() -> None:
    reader = FrameReader(10)
    reader.feed(b"\xff\xff\xff")
    with pytest.raises(FrameTooLarge):
        reader.feed(b"\xff")


def test_nothing_of_a_refused_body_is_kept_and_the_refusal_stays() -> None:
    reader = FrameReader(10)
    for _ in range(3):
        with pytest.raises(FrameTooLarge):
            reader.feed(b"\x00\x00\x00\x0b" + bytes(1000))
        assert (reader.buffered, reader.partial) == (4, 4)
    assert reader.frames() == []


def test_a_frame_of_nothing_is_refused() -> None:
    reader = FrameReader(10)
    with pytest.raises(EmptyFrame):
        reader.feed(bytes(4) + b"rest")
    assert reader.buffered == 4
    assert issubclass(EmptyFrame, errors.RemoteProtocolError)


@pytest.mark.parametrize("bad", [b"\x00\x00\x00\x00", b"\x00\x00\x00\x0b"])
def test_a_bad_prefix_behind_untaken_frames_is_seen_at_once_and_they_survive(bad: bytes) -> None:
    reader = FrameReader(10)
    reader.feed(prefix(b"one"))
    with pytest.raises(errors.RemoteProtocolError):
        reader.feed(prefix(b"two") + bad + b"junk")
    assert (reader.pending, reader.partial) == (2, 4)
    assert reader.frames(1) == [b"one"]
    # Still refused, by a new exception each time, and the other frame still there.
    with pytest.raises(errors.RemoteProtocolError):
        reader.feed(b"more")
    assert reader.frames() == [b"two"]


def test_the_limit_may_be_raised_later() -> None:
    # The control stream's, for instance, once the peer has said who it is.
    reader = FrameReader(3)
    reader.feed(prefix(b"abc") + b"\x00")
    reader.max_frame = 4
    reader.feed(b"\x00\x00\x04abcd")
    assert reader.frames() == [b"abc", b"abcd"]


def test_many_pieces_of_a_large_frame_are_held_once() -> None:
    reader = FrameReader(1 << 20)
    body = bytes(range(256)) * 4096
    stream = prefix(body)
    for start in range(0, len(stream), 1200):
        assert not reader.pending
        reader.feed(stream[start : start + 1200])
    assert reader.partial == 0
    assert reader.frames() == [body]
