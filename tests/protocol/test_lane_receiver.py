"""The receiving end of a lane without IO: order, credit, receipts and acks, and nonsense from the peer."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quicflow_trio.errors import RemoteProtocolError
from quicflow_trio.message import AckStatus
from quicflow_trio.protocol.lane_receiver import FRAME_OVERHEAD, RECEIPT_RANGES, Incoming, LaneReceiver
from quicflow_trio.protocol.lane_sender import CREDIT_RESERVE
from quicflow_trio.wire import (
    AckFrame,
    FrameReader,
    FrameTooLarge,
    LaneOpen,
    PingFrame,
    ReceiptFrame,
    decode,
    encode,
    encode_cancel,
    encode_message,
)

LIMIT = 10_000
OPENING = encode(LaneOpen("lane"))


def message(seq: int, payload: bytes = b"", *, wants_ack: bool = False) -> bytes:
    return encode_message(seq, seq.to_bytes(16, "big"), 1, payload, wants_ack, 0)


def make_lane(*, named: bool = True) -> LaneReceiver:
    lane = LaneReceiver(4, LIMIT, 1 << 20)
    if named:
        lane.feed(OPENING)
        assert lane.decode(10) == 0
    return lane


def arrive(lane: LaneReceiver, *frames: bytes, limit: int = 1000) -> list[Incoming]:
    lane.feed(b"".join(frames))
    before = len(lane.queue)
    queued = lane.decode(limit)
    assert len(lane.queue) == before + queued
    return list(lane.queue)[before:]


def said(lane: LaneReceiver) -> list[Any]:
    reader = FrameReader(1 << 24)
    reader.feed(lane.next_batch())
    return [decode(body) for body in reader.frames()]


def end(lane: LaneReceiver, *seqs: int, status: int = AckStatus.SUCCESS, result: bytes = b"") -> None:
    for seq in seqs:
        incoming = next(one for one in lane.queue if one.frame.seq == seq)
        lane.queue.remove(incoming)
        lane.finish(incoming, status, result)


def acks(lane: LaneReceiver) -> list[tuple[int, int, int, int]]:
    return [(ack.ack_seq, ack.seq, ack.status, ack.more) for ack in said(lane) if isinstance(ack, AckFrame)]


# -- in ----------------------------------------------------------------------------------------------------------------
def test_messages_come_out_in_order_and_no_more_than_asked_for() -> None:
    lane = make_lane(named=False)
    lane.feed(OPENING + b"".join(message(seq, b"%d" % seq) for seq in range(1, 6)))
    assert lane.decode(2) == 2
    assert (lane.name, [one.frame.payload for one in lane.queue], lane.undecoded) == ("lane", [b"1", b"2"], True)
    assert lane.decode(100) == 3
    assert (len(lane.queue), lane.undecoded, lane.active) == (5, False, 5)


def test_a_cancellation_does_not_wait_behind_messages_that_are_not_decoded() -> None:
    """The handler that it is to end may be what they all wait for."""
    lane = make_lane()
    cancelled = []
    arrive(lane, *(message(seq) for seq in range(1, 6)), limit=2)
    lane.queue[0].cancel = lambda: cancelled.append(1)
    lane.feed(encode_cancel(1) + encode_cancel(4) + encode_cancel(4) + message(6))
    assert lane.decode(0) == 0
    assert cancelled == [1]
    assert lane.decode(100) == 4
    assert [one.frame.seq for one in lane.queue if one.cancelled] == [1, 4]
    assert not lane._cancelled_later
    with pytest.raises(RemoteProtocolError, match="cancellation of message 8"):
        arrive(lane, encode_cancel(8))


@given(st.data())
@settings(max_examples=40)
def test_any_split_of_the_bytes_gives_the_same_messages(data: st.DataObject) -> None:
    stream = OPENING + b"".join(message(seq, bytes(seq)) for seq in range(1, 8))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    lane = LaneReceiver(4, LIMIT, 1 << 20)
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        lane.feed(stream[start:stop])
        lane.decode(3)
        assert lane.arrived == stop
    lane.decode(100)
    assert [len(one.frame.payload) for one in lane.queue] == list(range(1, 8))


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([OPENING], "named twice"),
        ([message(2)], "message 2 follows 0"),
        ([message(1), message(1)], "message 1 follows 1"),
        ([encode_cancel(2)], "cancellation of message 2"),
        ([encode(PingFrame(1))], "PingFrame is not allowed"),
        ([b"\x00\x00\x00\x00"], "0 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused(frames: list[bytes], match: str) -> None:
    lane = make_lane()
    with pytest.raises(RemoteProtocolError, match=match):
        arrive(lane, *frames)


def test_a_lane_is_named_before_anything_else() -> None:
    with pytest.raises(RemoteProtocolError, match="must name it"):
        arrive(make_lane(named=False), message(1))


@pytest.mark.parametrize("name", ["a\nb", " a", "x" * 129])
def test_a_name_that_would_spoil_a_log_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match="lane name"):
        arrive(make_lane(named=False), encode(LaneOpen(name)))


def test_a_frame_over_the_limit_is_refused_before_its_body() -> None:
    lane = make_lane()
    with pytest.raises(FrameTooLarge):
        lane.feed((LIMIT + FRAME_OVERHEAD + 1).to_bytes(4, "big"))
    arrive(make_lane(), message(1, bytes(LIMIT)))
    with pytest.raises(RemoteProtocolError, match="payload of 10,001 bytes"):
        arrive(make_lane(), message(1, bytes(LIMIT + 1)))


def test_unknown_frames_are_skipped_and_cost_no_credit() -> None:
    lane = make_lane()
    unknown = b"\x00\x00\x00\x03\xd2\x05\x00"
    assert [one.frame.seq for one in arrive(lane, unknown, message(1), unknown)] == [1]
    end(lane, 1)
    assert lane.held_bytes == 0


# -- credit ------------------------------------------------------------------------------------------------------------
def test_a_message_holds_its_credit_until_its_handler_has_ended() -> None:
    lane = make_lane()
    base = lane.credit_limit(10_000)
    first, second = message(1, bytes(500)), message(2, bytes(300))
    arrive(lane, first, second)
    assert (lane.held_bytes, lane.credit_limit(10_000)) == (len(first) + len(second), base)
    end(lane, 2)
    assert (lane.held_bytes, lane.credit_limit(10_000)) == (len(first), base + len(second))
    end(lane, 1)
    assert (lane.held_bytes, lane.credit_limit(10_000)) == (0, base + len(first) + len(second))


def test_a_message_longer_than_the_window_arrives_piece_by_piece() -> None:
    lane = make_lane()
    frame = message(1, bytes(9000))
    position = 0
    window = 1000
    start = lane.arrived
    while position < len(frame):
        allowed = lane.credit_limit(window) - start
        assert allowed >= min(position + window, len(frame)), "the sender is stuck in the middle of a frame"
        lane.feed(frame[position:allowed])
        position = allowed
    assert lane.decode(1) == 1
    assert lane.held_bytes == len(frame)


def test_behind_the_last_message_of_a_full_window_there_is_room_for_cancellations() -> None:
    lane = make_lane()
    start, window = lane.arrived, 1500
    first, second = message(1, bytes(1000)), message(2, bytes(1000))
    arrive(lane, first + second[:10])
    end = start + len(first) + len(second)
    assert lane.credit_limit(window) == end + CREDIT_RESERVE, "it began within the window, and may come to its end"
    arrive(lane, second[10:])
    assert lane.credit_limit(window) == end + CREDIT_RESERVE
    cancellation = encode_cancel(2)
    arrive(lane, cancellation)
    assert lane.credit_limit(window) == end + len(cancellation) + CREDIT_RESERVE, "as many as there are"
    arrive(lane, message(3, bytes(900)))
    assert lane.credit_limit(window) < lane.arrived, "what has begun in that room opens no more of it"


# -- receipts and acks -------------------------------------------------------------------------------------------------
def test_a_receipt_is_said_once() -> None:
    lane = make_lane()
    assert said(lane) == []
    arrive(lane, message(1), message(2), message(3))
    assert said(lane) == [ReceiptFrame(3, 0, ())]
    assert said(lane) == []
    end(lane, 1, 3)
    assert said(lane) == [], "not worth a packet, and another that acknowledges it"
    arrive(lane, message(4))
    assert said(lane) == [ReceiptFrame(4, 1, ((3, 3),))]
    end(lane, 2)
    assert said(lane) == []
    arrive(lane, message(5, wants_ack=True))
    end(lane, 5)
    receipt = said(lane)[-1]
    assert receipt == ReceiptFrame(5, 3, ((5, 5),))


def test_what_is_handled_ahead_of_a_gap_is_said_too() -> None:
    """A gap can stay for as long as a handler runs: a peer that resumes must know what it need not send again."""
    lane = make_lane()
    arrive(lane, message(1), message(2))
    assert said(lane) == [ReceiptFrame(2, 0, ())]
    end(lane, 2)
    arrive(lane, message(3))
    assert said(lane) == [ReceiptFrame(3, 0, ((2, 2),))]


def test_acks_are_numbered_and_go_with_the_receipt() -> None:
    lane = make_lane()
    one, two = message(1, wants_ack=True), message(2)
    arrive(lane, one, two, message(3, wants_ack=True))
    end(lane, 3, result=b"three")
    end(lane, 2, 1, status=AckStatus.FAILURE)
    assert lane.ack_bytes > 0
    assert said(lane) == [
        AckFrame(1, 3, AckStatus.SUCCESS, b"three", ""),
        AckFrame(2, 1, AckStatus.FAILURE, b"", ""),
        ReceiptFrame(3, 3, ()),
    ]
    assert (lane.ack_bytes, lane.active) == (0, 0)


def test_nobody_waits_for_the_ack_of_a_message_taken_back() -> None:
    lane = make_lane()
    [incoming] = arrive(lane, message(1, wants_ack=True))
    stopped: list[bool] = []
    incoming.cancel = lambda: stopped.append(True)
    arrive(lane, encode_cancel(1), encode_cancel(1))
    assert (incoming.cancelled, stopped) == (True, [True]), "a repeated cancellation has no effect"
    end(lane, 1)
    assert said(lane) == [ReceiptFrame(1, 1, ())]
    # The handler has ended: its ack and the cancellation crossed.
    arrive(lane, encode_cancel(1))
    assert lane.held_bytes == 0


def test_after_the_connection_acks_have_nowhere_to_go() -> None:
    lane = make_lane()
    arrive(lane, message(1, wants_ack=True), message(2, wants_ack=True))
    end(lane, 1)
    lane.detach()
    end(lane, 2)
    assert (lane.attached, lane.ack_bytes, lane.held_bytes) == (False, 0, 0)


def test_half_a_frame_is_given_up_with_the_connection() -> None:
    """The rest of it will never come; held on, it would stand in the process-wide budget for ever."""
    lane = make_lane()
    whole = message(1, bytes(100))
    arrive(lane, whole, message(2, bytes(5000))[:4000])
    assert lane.held_bytes == len(whole) + 4000
    lane.detach()
    assert lane.held_bytes == len(whole), "the complete one is still handled"
    end(lane, 1)
    assert lane.held_bytes == 0


def test_ranges_are_bounded() -> None:
    lane = make_lane()
    arrive(lane, *(message(seq) for seq in range(1, 1000)), limit=1 << 20)
    end(lane, *range(2, 2 * (RECEIPT_RANGES + 3), 2))
    [receipt] = said(lane)
    assert isinstance(receipt, ReceiptFrame)
    assert receipt.handled == 0
    assert receipt.ranges == tuple((seq, seq) for seq in range(2, 2 + 2 * RECEIPT_RANGES, 2))


def test_one_handler_that_stands_still_costs_no_memory_per_message_behind_it() -> None:
    lane = make_lane()
    arrive(lane, *(message(seq) for seq in range(1, 1001)), limit=1 << 20)
    end(lane, *range(1000, 1, -1))
    assert said(lane) == [ReceiptFrame(1000, 0, ((2, 1000),))]
    assert len(lane._ahead) == 1
    end(lane, 1)
    assert lane._ahead == []
    arrive(lane, message(1001))
    assert said(lane) == [ReceiptFrame(1001, 1000, ())]


# -- a model beside it -------------------------------------------------------------------------------------------------
class Model(RuleBasedStateMachine):
    """Messages, cancellations and ends of handlers in any order; the books must agree with a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.lane = make_lane()
        self.next_seq = 1
        self.sizes: dict[int, int] = {}
        self.wanting: set[int] = set()
        self.cancelled: set[int] = set()
        self.ended: set[int] = set()
        self.acked: list[int] = []
        self.expected: list[int] = []
        self.rest = b""
        self.random = random.Random(1)

    @rule(count=st.integers(1, 4), size=st.integers(0, 200), wants_ack=st.booleans(), cut=st.integers(0, 50))
    def arrive(self, count: int, size: int, wants_ack: bool, cut: int) -> None:
        data = self.rest
        for _ in range(count):
            frame = message(self.next_seq, bytes(size), wants_ack=wants_ack)
            self.sizes[self.next_seq] = len(frame)
            if wants_ack:
                self.wanting.add(self.next_seq)
            self.next_seq += 1
            data += frame
        stop = max(len(data) - cut, 0)
        self.lane.feed(data[:stop])
        self.rest = data[stop:]

    @rule(limit=st.integers(0, 3))
    def decode(self, limit: int) -> None:
        self.lane.decode(limit)

    @precondition(lambda self: self.lane.queue)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        lane = self.lane
        incoming = lane.queue[data.draw(st.integers(0, len(lane.queue) - 1))]
        lane.queue.remove(incoming)
        seq = incoming.frame.seq
        lane.finish(incoming, AckStatus.SUCCESS, b"%d" % seq)
        self.ended.add(seq)
        if seq in self.wanting and seq not in self.cancelled:
            self.expected.append(seq)

    @precondition(lambda self: self.lane._received and not self.rest and not self.lane.undecoded)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(1, self.lane._received))
        frame = encode_cancel(seq)
        self.lane.feed(frame)
        assert self.lane.decode(1) == 0
        if seq not in self.ended:
            self.cancelled.add(seq)

    @rule()
    def say(self) -> None:
        for frame in said(self.lane):
            if isinstance(frame, AckFrame):
                self.acked.append(frame.seq)
                assert (frame.ack_seq, frame.result) == (len(self.acked), b"%d" % frame.seq)
            else:
                assert isinstance(frame, ReceiptFrame)
                known = set(range(1, frame.handled + 1))
                for first, last in frame.ranges:
                    known |= set(range(first, last + 1))
                assert (frame.received, known) == (self.lane._received, self.ended)
        assert self.acked == self.expected

    @invariant()
    def books_balance(self) -> None:
        lane = self.lane
        decoded = set(range(1, lane._received + 1))
        active = decoded - self.ended
        assert [one.frame.seq for one in lane.queue] == sorted(active)
        assert lane.active == len(active)
        raw = lane._reader.buffered + sum(len(body) + 4 for body in lane._later)
        assert lane.held_bytes == raw + sum(self.sizes[seq] for seq in active)
        least = lane.arrived - lane.held_bytes + 100
        assert least <= lane.credit_limit(100) <= max(least, lane.arrived + lane._reader.missing + CREDIT_RESERVE)
        assert lane.ack_bytes >= 0


TestModel: Any = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40)


# -- runs of acks ------------------------------------------------------------------------------------------------------
def test_acks_of_messages_that_follow_each_other_are_one() -> None:
    lane = make_lane()
    arrive(lane, *(message(seq, wants_ack=seq != 8) for seq in range(1, 13)))
    assert lane.ack_bytes == 0
    end(lane, 1, 2, 3)
    assert lane.ack_bytes > 0
    end(lane, 5, 4)
    end(lane, 6, result=b"result")
    end(lane, 7, status=AckStatus.FAILURE)
    end(lane, 8, 9, 10)
    assert acks(lane) == [(1, 1, 1, 2), (4, 5, 1, 0), (5, 4, 1, 0), (6, 6, 1, 0), (7, 7, 2, 0), (8, 9, 1, 1)]
    assert lane.ack_bytes == 0
    end(lane, 11)
    assert acks(lane) == [(10, 11, 1, 0)], "what was written is not continued"
    end(lane, 12)
    lane.detach()
    assert acks(lane) == []


def test_a_peer_that_does_not_know_runs_gets_an_ack_each() -> None:
    lane = LaneReceiver(4, LIMIT, 1 << 20, runs=False)
    arrive(lane, OPENING, *(message(seq, wants_ack=True) for seq in range(1, 4)))
    end(lane, 1, 2, 3)
    assert acks(lane) == [(1, 1, 1, 0), (2, 2, 1, 0), (3, 3, 1, 0)]
