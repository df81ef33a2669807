"""The sending end of a lane without IO: a model runs beside it and random interleavings must agree with it to the byte."""

from __future__ import annotations

import sys
from collections import deque
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quicflow_trio.errors import ConnectionLost, PayloadTooLarge, QuicFlowError, RemoteProtocolError, WaitingTableFull
from quicflow_trio.message import AckStatus, Delivery, Message
from quicflow_trio.protocol.lane_sender import CREDIT_RESERVE, LaneSender
from quicflow_trio.protocol.outgoing import MESSAGE_OVERHEAD, SWEEP_BYTES, Outgoing, OutgoingRequest, OutgoingState
from quicflow_trio.protocol.waiting import Expiring, WaitingShare, WaitingTable
from quicflow_trio.wire import (
    CancelFrame,
    Frame,
    FrameReader,
    LaneOpen,
    MessageFrame,
    PingFrame,
    decode,
    encode,
    encode_ack,
    encode_receipt,
)

PLENTY = 1 << 30
LOST = partial(ConnectionLost, "lost in a test")


class NoDeadlines:
    """Deadlines that nobody keeps."""

    def __init__(self) -> None:
        self.ended = 0
        self.added: list[tuple[float, Expiring]] = []

    def add(self, deadline: float, entry: Expiring) -> None:
        self.added.append((deadline, entry))

    def ended_early(self) -> None:
        self.ended += 1


class Wakes:
    """Stands in for the task that waits: remembers that it was woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def frames_of(batch: bytes) -> list[Frame | None]:
    reader = FrameReader(1 << 24)
    reader.feed(batch)
    assert not reader.partial
    return [decode(body) for body in reader.frames()]


def payloads(batch: bytes) -> list[bytes]:
    return [frame.payload for frame in frames_of(batch) if isinstance(frame, MessageFrame)]


def make_lane(limit: int = 10_000) -> LaneSender:
    lane = LaneSender("", limit)
    lane.open_return(1 << 20)
    return lane


def sent(lane: LaneSender, payload: bytes) -> Outgoing:
    outgoing = Outgoing(lane, Message.event(payload))
    lane.offer(outgoing)
    return outgoing


def watch(outgoing: Outgoing) -> Wakes:
    wakes = Wakes()
    outgoing.task = wakes
    outgoing.wake = Wakes.wake
    return wakes


def request_for(lane: LaneSender, payload: bytes, share: WaitingShare) -> OutgoingRequest:
    request = OutgoingRequest(lane, Message.command(payload), share, NoDeadlines())
    request.__enter__()
    lane.offer(request)
    return request


@pytest.fixture
def share() -> WaitingShare:
    return WaitingShare(WaitingTable(1000, 1000))


# -- a message's life --------------------------------------------------------------------------------------------------
def test_the_lane_names_itself_once_and_numbers_its_messages() -> None:
    lane = LaneSender("blue", 1000)
    first, second = sent(lane, b"a"), sent(lane, b"b")
    assert (first.state, lane.unwritten, lane.pending) == (OutgoingState.QUEUED, 2, True)
    opening, one, two = frames_of(lane.next_batch(PLENTY))
    assert opening == LaneOpen("blue")
    assert isinstance(one, MessageFrame)
    assert isinstance(two, MessageFrame)
    assert (one.seq, two.seq, one.payload, one.id, one.wants_ack) == (1, 2, b"a", first.message.id, False)
    assert (first.state, second.seq, lane.unreceipted, lane.written) == (OutgoingState.WRITTEN, 2, 2, 2)
    assert lane.next_batch(PLENTY) == b""
    assert not lane.pending


def test_the_choice_of_delivery_travels_with_the_message() -> None:
    lane = make_lane()
    lane.offer(Outgoing(lane, Message.event(b"", delivery=Delivery.REDELIVER)))
    lane.offer(Outgoing(lane, Message.event(b"")))
    _, first, second = frames_of(lane.next_batch(PLENTY))
    assert isinstance(first, MessageFrame)
    assert isinstance(second, MessageFrame)
    assert (first.redeliver, second.redeliver, first.redelivered) == (True, False, False)


def test_the_outbox_counts_bytes_and_senders_queue_up_behind_it() -> None:
    lane = make_lane(limit=200)
    messages = [sent(lane, bytes(100)) for _ in range(4)]
    states = [message.state for message in messages]
    # The one that reaches the limit is still taken: otherwise a message over the limit could never be sent.
    assert states == [OutgoingState.QUEUED, OutgoingState.QUEUED, OutgoingState.BLOCKED, OutgoingState.BLOCKED]
    assert (lane.outbox_bytes, lane.has_room, lane.unwritten) == (4 * (100 + MESSAGE_OVERHEAD), False, 4)
    wakes = [watch(message) for message in messages]
    notified: list[LaneSender] = []
    lane.notify = notified.append
    # Credit for a part of one message: one goes out, one of the blocked takes its place.
    assert len(payloads(lane.next_batch(CREDIT_RESERVE + 50))) == 1
    assert [w.woken for w in wakes] == [0, 0, 1, 0]
    assert notified == [lane]
    assert lane.outbox_bytes == 3 * (100 + MESSAGE_OVERHEAD)
    while lane.pending:
        lane.next_batch(PLENTY)
    assert (lane.outbox_bytes, lane.has_room, lane.unreceipted) == (0, True, 4)


def test_credit_stops_messages_but_not_cancellations(share: WaitingShare) -> None:
    lane = make_lane()
    request = request_for(lane, b"a", share)
    lane.next_batch(PLENTY)
    sent(lane, b"b")
    assert lane.next_batch(CREDIT_RESERVE) == b""
    request.__exit__()
    assert frames_of(lane.next_batch(0)) == [CancelFrame(1)]
    assert lane.pending, "the message waits for credit"
    assert payloads(lane.next_batch(CREDIT_RESERVE + 1)) == [b"b"]


def test_receipts_are_cumulative_and_wake_everyone_who_watches() -> None:
    lane = make_lane()
    messages = [sent(lane, b"%d" % number) for number in range(3)]
    calls: list[str] = []
    messages[0].watchers = [lambda: calls.append("one"), lambda: calls.append("another")]
    lane.next_batch(PLENTY)
    lane.handle_return(encode_receipt(2, 0, ()), 0.0)
    assert [message.state for message in messages] == [OutgoingState.RECEIVED] * 2 + [OutgoingState.WRITTEN]
    assert (calls, lane.unreceipted) == (["one", "another"], 1)
    assert not messages[0].watchers
    lane.handle_return(encode_receipt(2, 2, ()), 0.0)
    assert lane.unreceipted == 1
    lane.handle_return(encode_receipt(3, 3, ()), 0.0)
    assert lane.unreceipted == 0


def test_an_ack_ends_the_wait_and_one_that_comes_late_is_counted(share: WaitingShare) -> None:
    lane = make_lane()
    answered, cancelled = request_for(lane, b"a", share), request_for(lane, b"b", share)
    wakes = watch(answered)
    lane.next_batch(PLENTY)
    cancelled.__exit__()
    lane.handle_return(encode_ack(1, 1, AckStatus.SUCCESS, b"result") + encode_ack(2, 2, AckStatus.SUCCESS, b""), 0.0)
    assert answered.ack is not None
    assert (answered.ack.result, wakes.woken, lane.acks_ignored, lane.waiting) == (b"result", 1, 1, 0)
    # The same answer again, under the next number: nobody waits for it.
    lane.handle_return(encode_ack(3, 1, AckStatus.SUCCESS, b"again"), 0.0)
    assert (answered.ack.result, wakes.woken, lane.acks_ignored) == (b"result", 1, 2)
    answered.__exit__()
    assert share.active == 0
    assert not frames_of(lane.next_batch(PLENTY))[1:], "one cancellation, for the request that had no answer"


def test_one_ack_answers_a_run_of_requests(share: WaitingShare) -> None:
    lane = make_lane()
    requests = [request_for(lane, b"%d" % number, share) for number in range(5)]
    wakes = [watch(request) for request in requests]
    lane.next_batch(PLENTY)
    requests[1].__exit__()
    lane.handle_return(encode_ack(1, 1, AckStatus.SUCCESS, b"", more=3), 0.0)
    assert [wake.woken for wake in wakes] == [1, 0, 1, 1, 0]
    assert (lane.acks_ignored, lane.waiting) == (1, 1)
    lane.handle_return(encode_ack(5, 5, AckStatus.FAILURE, b"", "no"), 0.0)
    assert requests[4].ack is not None
    assert requests[4].ack.error == "no"


@pytest.mark.parametrize(("ack_seq", "seq", "more"), [(1, 1, 3), (1, 3, 1), (1, 1, 1 << 60)])
def test_a_run_past_the_last_message_is_refused_and_costs_nothing(share: WaitingShare, ack_seq: int, seq: int, more: int) -> None:
    lane = make_lane()
    for number in range(3):
        request_for(lane, b"%d" % number, share)
    lane.next_batch(PLENTY)
    with pytest.raises(RemoteProtocolError, match="the last one sent was 3"):
        lane.handle_return(encode_ack(ack_seq, seq, AckStatus.SUCCESS, b"", more=more), 0.0)


def test_runs_cannot_answer_more_messages_than_were_sent(share: WaitingShare) -> None:
    lane = make_lane()
    for number in range(3):
        request_for(lane, b"%d" % number, share)
    lane.next_batch(PLENTY)
    lane.handle_return(encode_ack(1, 1, AckStatus.SUCCESS, b"", more=2), 0.0)
    with pytest.raises(RemoteProtocolError, match="the last one sent was 3"):
        lane.handle_return(encode_ack(4, 1, AckStatus.SUCCESS, b"", more=2), 0.0)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (encode_receipt(2, 0, ()), "the last one sent was 1"),
        (encode_ack(2, 1, AckStatus.SUCCESS, b""), "ack number 2 follows 0"),
        (encode(PingFrame(1)), "PingFrame is not allowed"),
        (b"\x00\x00\x00\x00", "0 bytes"),
        (b"\xff\xff\xff\xff", "over the limit"),
    ],
)
def test_what_makes_no_sense_on_the_return_half_is_refused(data: bytes, match: str) -> None:
    lane = make_lane()
    sent(lane, b"")
    lane.next_batch(PLENTY)
    with pytest.raises(RemoteProtocolError, match=match):
        lane.handle_return(data, 0.0)


def test_unknown_frames_on_the_return_half_are_skipped() -> None:
    lane = make_lane()
    outgoing = sent(lane, b"")
    lane.next_batch(PLENTY)
    # Field 90 of the envelope's oneof does not exist in this revision.
    lane.handle_return(b"\x00\x00\x00\x03\xd2\x05\x00" + encode_receipt(1, 1, ()), 0.0)
    assert outgoing.state is OutgoingState.RECEIVED


# -- taking back -------------------------------------------------------------------------------------------------------
def test_what_is_not_written_is_taken_back_silently(share: WaitingShare) -> None:
    lane = make_lane(limit=100)
    queued, blocked, after = request_for(lane, bytes(100), share), request_for(lane, b"x", share), sent(lane, b"after")
    wakes = watch(after)
    blocked.__exit__()
    assert blocked.state is OutgoingState.WITHDRAWN
    queued.__exit__()
    assert (after.state, wakes.woken) == (OutgoingState.QUEUED, 1), "its place in the outbox was free"
    assert lane.outbox_bytes == after.size
    assert payloads(lane.next_batch(PLENTY)) == [b"after"]
    assert lane.outbox_bytes == lane.unwritten == 0


def test_a_request_that_was_never_offered_leaves_the_books_alone(share: WaitingShare) -> None:
    """It was refused for its size, between taking its place in the waiting table and the outbox."""
    lane = make_lane(limit=100)
    with OutgoingRequest(lane, Message.command(bytes(500)), share, NoDeadlines()):
        pass
    assert (lane.outbox_bytes, lane.unwritten, lane.has_room) == (0, 0, True)
    sent(lane, bytes(100))
    blocked = sent(lane, b"blocked")
    states = [blocked.state]
    assert payloads(lane.next_batch(PLENTY)) == [bytes(100)]
    states.append(blocked.state)
    assert states == [OutgoingState.BLOCKED, OutgoingState.QUEUED], "the sender behind the outbox moved up"


def test_withdrawn_messages_are_swept_out_before_they_pile_up() -> None:
    lane = make_lane(limit=1 << 20)
    kept = sent(lane, b"first")
    for _ in range(1000):
        lane.withdraw(sent(lane, b"x"))
    last = sent(lane, b"last")
    assert (lane.unwritten, lane.outbox_bytes) == (2, kept.size + last.size)
    assert len(lane._outbox._entries) < 200
    assert payloads(lane.next_batch(PLENTY)) == [b"first", b"last"]


def test_cancelling_a_message_that_is_settled_says_nothing(share: WaitingShare) -> None:
    lane = make_lane()
    event = sent(lane, b"")
    lane.next_batch(PLENTY)
    lane.withdraw(event)
    assert (event.state, lane.pending) == (OutgoingState.WRITTEN, False)


def test_a_full_table_refuses_before_anything_is_offered() -> None:
    share = WaitingShare(WaitingTable(1, 1))
    lane = make_lane()
    first = request_for(lane, b"", share)
    with pytest.raises(WaitingTableFull), OutgoingRequest(lane, Message.command(), share, NoDeadlines()):
        pytest.fail("there is no place")
    first.__exit__()
    assert share.active == 0


# -- the end of a connection -------------------------------------------------------------------------------------------
def test_a_lost_connection_settles_what_was_written_and_keeps_the_rest(share: WaitingShare) -> None:
    lane = make_lane()
    written, request = sent(lane, b"written"), request_for(lane, b"request", share)
    received = request_for(lane, b"received", share)
    lane.next_batch(PLENTY)
    queued = sent(lane, b"queued")
    wakes = watch(request)
    lane.fail_written(LOST)
    for one in (written, request, received):
        assert one.state is OutgoingState.FAILED
        assert one.error is LOST
    assert (request.ack_error, wakes.woken) == (LOST, 1)
    assert (lane.unreceipted, lane.waiting, lane.stream_id) == (0, 0, None)
    request.__exit__()
    received.__exit__()
    assert share.active == 0
    # On the next connection the lane begins again: name, number 1, no cancellation of what the old peer had.
    frames = frames_of(lane.next_batch(PLENTY))
    assert frames[0] == LaneOpen("")
    assert [frame.seq for frame in frames if isinstance(frame, MessageFrame)] == [1]
    assert (len(frames), queued.state, lane.written) == (2, OutgoingState.WRITTEN, 4)


def test_a_request_received_but_unanswered_ends_with_the_connection(share: WaitingShare) -> None:
    lane = make_lane()
    request = request_for(lane, b"", share)
    lane.next_batch(PLENTY)
    lane.handle_return(encode_receipt(1, 0, ()), 0.0)
    assert request.state is OutgoingState.RECEIVED
    wakes = watch(request)
    lane.fail_written(LOST)
    assert (request.ack_error, wakes.woken) == (LOST, 1)


def test_a_peer_that_accepts_less_refuses_only_what_is_too_large(share: WaitingShare) -> None:
    lane = make_lane(limit=1000)
    large, small, large_request = sent(lane, bytes(900)), sent(lane, b"small"), request_for(lane, bytes(500), share)
    blocked, small_blocked = sent(lane, bytes(400)), sent(lane, b"later")
    assert blocked.state is small_blocked.state is OutgoingState.BLOCKED
    wakes = watch(small_blocked)
    lane.refuse_larger(100)
    for one in (large, large_request, blocked):
        assert one.state is OutgoingState.FAILED
        assert one.error is not None
        assert isinstance(one.error(), PayloadTooLarge)
    assert wakes.woken == 1
    assert (lane.outbox_bytes, lane.unwritten) == (small.size + small_blocked.size, 2)
    assert payloads(lane.next_batch(PLENTY)) == [b"small", b"later"]
    assert (lane.outbox_bytes, lane.unwritten, lane.unreceipted) == (0, 0, 2)


def test_without_a_further_connection_everything_that_waits_fails(share: WaitingShare) -> None:
    lane = make_lane(limit=100)
    queued, blocked, request = sent(lane, bytes(100)), sent(lane, b""), request_for(lane, b"", share)
    lane.fail_queued(LOST)
    assert queued.state is blocked.state is request.state is OutgoingState.FAILED
    assert (request.ack_error, lane.outbox_bytes, lane.unwritten, lane.has_room) == (LOST, 0, 0, True)


def test_the_first_outcome_of_a_request_stays(share: WaitingShare) -> None:
    lane = make_lane()
    request = request_for(lane, b"", share)
    wakes = watch(request)
    request.fail(LOST)
    request.fail(partial(ConnectionLost, "another"))
    request.settle(OutgoingState.FAILED, partial(ConnectionLost, "a third"))
    assert (request.ack_error, wakes.woken) == (LOST, 1)


def test_an_expired_request_wakes_its_task_and_gives_its_deadline_up_only_once(share: WaitingShare) -> None:
    deadlines = NoDeadlines()
    lane = make_lane()
    late, early = (OutgoingRequest(lane, Message.command(), share, deadlines, timeout=1.0) for _ in range(2))
    for request in (late, early):
        request.__enter__()
    wakes = watch(late)
    (deadline, entry), (_, other) = deadlines.added
    entry.expire(deadline)
    assert (wakes.woken, late.expired) == (1, True)
    late.__exit__()
    assert deadlines.ended == 0, "the heap has dropped it by itself"
    early.__exit__()
    assert (deadlines.ended, other.live) == (1, False)
    other.expire(1.0)
    assert not early.expired


def test_a_deadline_that_no_longer_matters_holds_no_payload(share: WaitingShare) -> None:
    deadlines = NoDeadlines()
    payload = bytes(1000)
    alone = sys.getrefcount(payload)
    with OutgoingRequest(make_lane(), Message.command(payload), share, deadlines, timeout=1.0) as request:
        request.fail(LOST)
    del request
    assert len(deadlines.added) == 1
    assert sys.getrefcount(payload) == alone


# -- a model beside it -------------------------------------------------------------------------------------------------
class Model(RuleBasedStateMachine):
    """Random senders, withdrawals, credit, receipts, acks and lost connections against a list of what ought to happen."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 600
        self.lane = make_lane(self.limit)
        self.table = WaitingTable(8, 8)
        self.share = WaitingShare(self.table)
        self.queue: deque[Outgoing] = deque()
        self.on_wire: list[Outgoing] = []
        self.received = 0
        self.acks = 0
        self.cancelled: set[int] = set()
        self.answered: set[int] = set()
        self.open: list[OutgoingRequest] = []
        self.delivered: list[bytes] = []
        self.offered = 0
        self.finished = 0

    def _payload(self, size: int) -> bytes:
        self.offered += 1
        return self.offered.to_bytes(4, "big") + bytes(size)

    @rule(size=st.integers(0, 300))
    def send(self, size: int) -> None:
        self.queue.append(sent(self.lane, self._payload(size)))

    @rule(size=st.integers(0, 300))
    def request(self, size: int) -> None:
        request = OutgoingRequest(self.lane, Message.command(self._payload(size)), self.share, NoDeadlines())
        try:
            request.__enter__()
        except WaitingTableFull:
            assert len(self.open) == self.table.limit
            return
        self.lane.offer(request)
        self.queue.append(request)
        self.open.append(request)

    @rule()
    def refused_request(self) -> None:
        """One whose payload was refused before it was offered."""
        if len(self.open) < self.table.limit:
            with OutgoingRequest(self.lane, Message.command(bytes(50)), self.share, NoDeadlines()):
                pass

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def withdraw_send(self, data: st.DataObject) -> None:
        plain = [one for one in self.queue if not one.wants_ack]
        if plain:
            one = data.draw(st.sampled_from(plain))
            self.lane.withdraw(one)
            self.queue.remove(one)
            assert one.state is OutgoingState.WITHDRAWN

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.open))
        self.open.remove(request)
        waiting = request.ack is None and request.ack_error is None
        written = request in self.on_wire
        request.__exit__()
        if waiting and written:
            self.cancelled.add(request.seq)
        elif request in self.queue:
            self.queue.remove(request)

    @rule(credit=st.integers(0, CREDIT_RESERVE + 900))
    def write(self, credit: int) -> None:
        batch = self.lane.next_batch(credit)
        cancels = set()
        written = []
        for frame in frames_of(batch):
            if isinstance(frame, MessageFrame):
                expected = self.queue.popleft()
                assert (frame.payload, frame.seq) == (expected.message.payload, len(self.on_wire) + 1)
                self.on_wire.append(expected)
                written.append(frame)
            elif isinstance(frame, CancelFrame):
                cancels.add(frame.seq)
            else:
                assert frame == LaneOpen("")
        assert cancels == self.cancelled
        self.cancelled.clear()
        if credit <= CREDIT_RESERVE:
            assert not written

    @precondition(lambda self: self.received < len(self.on_wire))
    @rule(data=st.data())
    def receipt(self, data: st.DataObject) -> None:
        upto = data.draw(st.integers(self.received, len(self.on_wire)))
        self.lane.handle_return(encode_receipt(upto, 0, ()), 0.0)
        self.delivered += [one.message.payload for one in self.on_wire[self.received : upto]]
        self.received = upto

    @precondition(lambda self: self.received)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(1, self.received))
        ignored = self.lane.acks_ignored
        self.acks += 1
        self.lane.handle_return(encode_ack(self.acks, seq, AckStatus.SUCCESS, b"%d" % seq), 0.0)
        one = self.on_wire[seq - 1]
        if one in self.open and seq not in self.answered:
            assert isinstance(one, OutgoingRequest)
            assert one.ack is not None
            assert one.ack.result == b"%d" % seq
            self.answered.add(seq)
            assert self.lane.acks_ignored == ignored
        else:
            assert self.lane.acks_ignored == ignored + 1

    @rule()
    def lose(self) -> None:
        self.lane.fail_written(LOST)
        for one in self.on_wire[self.received :]:
            assert one.state is OutgoingState.FAILED
        self.lane.open_return(1 << 20)
        self.on_wire.clear()
        self.cancelled.clear()
        self.answered.clear()
        self.received = self.acks = 0

    @rule(limit=st.integers(50, 300))
    def shrink(self, limit: int) -> None:
        self.lane.refuse_larger(limit)
        for one in [one for one in self.queue if len(one.message.payload) > limit]:
            self.queue.remove(one)
            assert one.state is OutgoingState.FAILED

    @invariant()
    def books_balance(self) -> None:
        lane = self.lane
        assert lane.outbox_bytes == sum(one.size for one in self.queue)
        assert lane.unwritten == len(self.queue)
        assert lane.unreceipted == len(self.on_wire) - self.received
        assert self.share.active == self.table.active == len(self.open)
        inside = 0
        for index, one in enumerate(self.queue):
            if one.state is OutgoingState.BLOCKED:
                assert inside >= self.limit, "a sender waits although there is room"
                assert all(later.state is OutgoingState.BLOCKED for later in list(self.queue)[index:])
                break
            assert one.state is OutgoingState.QUEUED
            assert inside < self.limit, "the outbox took more than its limit and one message"
            inside += one.size
        assert lane.has_room is (inside < self.limit)
        assert self.delivered == sorted(self.delivered)
        assert len(set(self.delivered)) == len(self.delivered)

    def teardown(self) -> None:
        for request in self.open:
            request.__exit__()
        assert self.table.active == 0


TestModel: Any = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)


def test_errors_are_made_afresh_for_each_waiter() -> None:
    lane = make_lane()
    first, second = sent(lane, b""), sent(lane, b"")
    lane.next_batch(PLENTY)
    lane.fail_written(LOST)
    errors: list[QuicFlowError] = [one.error() for one in (first, second) if one.error is not None]
    assert len({id(error) for error in errors}) == 2


def test_withdrawn_messages_do_not_keep_their_payloads() -> None:
    """A lane that stands still, and a caller who tries again and again: a few large payloads must not stay behind each."""
    lane = make_lane(limit=1)
    first = sent(lane, b"first")
    for _ in range(20):
        lane.withdraw(sent(lane, bytes(100_000)))
    held = [entry for entry in [*lane._outbox._entries, *lane._blocked._entries] if entry is not first]
    assert sum(entry.size for entry in held) <= SWEEP_BYTES
