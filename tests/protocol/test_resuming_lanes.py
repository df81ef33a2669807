"""One lane from one connection to the next, by hand: what goes out again, under which number, and what is said of it."""

from __future__ import annotations

import pytest

from quicflow_trio.errors import RemoteProtocolError
from quicflow_trio.message import AckStatus, Delivery, Message
from quicflow_trio.protocol.kept_acks import KeptAcks
from quicflow_trio.protocol.lane_receiver import LaneReceiver
from quicflow_trio.protocol.lane_sender import CANCELS_KEPT, CONFIRM_ACKS, LaneSender
from quicflow_trio.protocol.outgoing import Outgoing, OutgoingRequest, OutgoingState
from quicflow_trio.protocol.waiting import WaitingShare, WaitingTable
from quicflow_trio.wire import (
    AckFrame,
    CancelFrame,
    ConfirmFrame,
    LaneOpen,
    LaneState,
    MessageFrame,
    ReceiptFrame,
    encode,
    encode_ack,
    encode_cancel,
    encode_confirm,
    encode_receipt,
)
from tests.protocol.test_lane_receiver import acks, arrive, end, message, said
from tests.protocol.test_lane_sender import LOST, PLENTY, NoDeadlines, frames_of, payloads

SHARE = WaitingShare(WaitingTable(10_000, 10_000))


def make_sender(limit: int = 10_000) -> LaneSender:
    lane = LaneSender("blue", limit)
    lane.confirms = True
    lane.open_return(1 << 20)
    return lane


def send(lane: LaneSender, *payloads: bytes, delivery: Delivery = Delivery.AT_MOST_ONCE) -> list[Outgoing]:
    sent = [Outgoing(lane, Message.event(payload, delivery=delivery)) for payload in payloads]
    for outgoing in sent:
        lane.offer(outgoing)
    return sent


def ask(lane: LaneSender, payload: bytes, delivery: Delivery = Delivery.AT_MOST_ONCE) -> OutgoingRequest:
    request = OutgoingRequest(lane, Message.query(payload, delivery=delivery), SHARE, NoDeadlines()).__enter__()
    lane.offer(request)
    return request


def lose(lane: LaneSender, received: int, handled: int = 0) -> None:
    """Go on on another connection, whose peer has received so much."""
    lane.pause()
    state = LaneState("blue", received, handled)
    assert lane.can_resume(state)
    lane.resume(state)
    lane.open_return(1 << 20)


def kept_sender(lane: LaneSender) -> int:
    return lane._kept_bytes


# -- the sender --------------------------------------------------------------------------------------------------------
def test_what_was_not_received_goes_out_again_under_its_number_before_what_is_new() -> None:
    lane = make_sender()
    one, two, three = send(lane, b"1", b"2", b"3")
    lane.next_batch(PLENTY)
    lose(lane, 1)
    assert (one.state, two.state) == (OutgoingState.RECEIVED, OutgoingState.WRITTEN)
    (four,) = send(lane, b"4")
    opening, *frames = frames_of(lane.next_batch(PLENTY))
    assert opening == LaneOpen("blue")
    assert [(frame.seq, frame.payload) for frame in frames if isinstance(frame, MessageFrame)] == [
        (2, b"2"),
        (3, b"3"),
        (4, b"4"),
    ]
    assert (lane.written, lane.resent, three.seq, four.seq) == (4, 2, 3, 4)
    lane.handle_return(encode_receipt(4, 4, ()), 0.0)
    assert (lane.unreceipted, kept_sender(lane)) == (0, 0)


def test_new_messages_wait_until_all_the_old_ones_are_out_again() -> None:
    lane = make_sender()
    send(lane, bytes(3000), bytes(3000))
    lane.next_batch(PLENTY)
    lose(lane, 0)
    send(lane, b"new")
    assert [len(payload) for payload in payloads(lane.next_batch(2000))] == [3000]
    assert lane.next_batch(0) == b""
    with pytest.raises(RemoteProtocolError, match="receipt for message 2, but the last one sent was 1"):
        lane.handle_return(encode_receipt(2, 0, ()), 0.0)
    assert [len(payload) for payload in payloads(lane.next_batch(PLENTY))] == [3000, 3]


def test_after_a_goodbye_old_messages_go_out_again_and_new_ones_do_not() -> None:
    lane = make_sender()
    send(lane, b"old")
    lane.next_batch(PLENTY)
    lose(lane, 0)
    send(lane, b"new")
    assert payloads(lane.next_batch(PLENTY, start=False)) == [b"old"]
    assert payloads(lane.next_batch(PLENTY, start=False)) == []


def test_what_was_taken_back_meanwhile_only_fills_its_number() -> None:
    lane = make_sender()
    send(lane, b"1")
    request = ask(lane, b"taken back")
    send(lane, b"3")
    lane.next_batch(PLENTY)
    lane.pause()
    request.__exit__()
    lane.resume(LaneState("blue", 0, 0))
    _, one, cancel, empty, three = frames_of(lane.next_batch(PLENTY))
    assert cancel == CancelFrame(2)
    assert isinstance(empty, MessageFrame)
    assert (empty.seq, empty.payload, empty.wants_ack, empty.id) == (2, b"", False, request.message.id)
    assert [frame.seq for frame in (one, three) if isinstance(frame, MessageFrame)] == [1, 3]


@pytest.mark.parametrize("when", ["connected", "paused", "before it is out again"])
def test_a_cancellation_is_repeated_unless_its_message_is_not_there(when: str) -> None:
    lane = make_sender()
    request = ask(lane, b"x")
    lane.next_batch(PLENTY)
    if when == "connected":
        request.__exit__()
        assert frames_of(lane.next_batch(PLENTY)) == [CancelFrame(1)]
        lane.pause()
    else:
        lane.pause()
        if when == "paused":
            request.__exit__()
    lane.resume(LaneState("blue", 1, 0))
    if when == "before it is out again":
        request.__exit__()
    assert frames_of(lane.next_batch(PLENTY)) == [LaneOpen("blue"), CancelFrame(1)]
    # Handled by now: no further connection hears of it.
    lose(lane, 1, 1)
    assert frames_of(lane.next_batch(PLENTY)) == [LaneOpen("blue")]
    assert lane._cancelled == {}


def test_cancellations_that_are_kept_are_bounded() -> None:
    lane = make_sender(1 << 20)
    requests = [ask(lane, b"") for _ in range(CANCELS_KEPT + 10)]
    lane.next_batch(PLENTY)
    for request in requests:
        request.__exit__()
    assert (len(lane._cancelled), min(lane._cancelled)) == (CANCELS_KEPT, 11)


def test_acks_are_confirmed_by_number_or_by_bytes_and_with_each_connection() -> None:
    lane = make_sender()
    requests = [ask(lane, b"") for _ in range(CONFIRM_ACKS + 10)]
    lane.next_batch(PLENTY)
    for seq in range(1, CONFIRM_ACKS):
        lane.handle_return(encode_ack(seq, seq, AckStatus.SUCCESS, b""), 0.0)
    assert lane.next_batch(PLENTY) == b""
    lane.handle_return(encode_ack(CONFIRM_ACKS, CONFIRM_ACKS, AckStatus.SUCCESS, b""), 0.0)
    assert lane.pending
    assert frames_of(lane.next_batch(0)) == [ConfirmFrame(CONFIRM_ACKS)]
    number = CONFIRM_ACKS + 1
    lane.handle_return(encode_ack(number, number, AckStatus.SUCCESS, bytes(3072)), 0.0)
    assert frames_of(lane.next_batch(0)) == [ConfirmFrame(number)]
    lane.handle_return(encode_ack(number + 1, number + 1, AckStatus.SUCCESS, b"last"), 0.0)
    lose(lane, len(requests), number + 1)
    assert frames_of(lane.next_batch(PLENTY)) == [LaneOpen("blue", number + 1)]
    assert lane.next_batch(PLENTY) == b""


def test_a_gap_in_the_numbers_of_acks_is_an_error() -> None:
    lane = make_sender()
    requests = [ask(lane, b""), ask(lane, b"")]
    lane.next_batch(PLENTY)
    with pytest.raises(RemoteProtocolError, match="ack number 2 follows 0"):
        lane.handle_return(encode_ack(2, 2, AckStatus.SUCCESS, b""), 0.0)
    assert [request.ack for request in requests] == [None, None]


@pytest.mark.parametrize("state", [LaneState("blue", 4, 0), LaneState("blue", 0, 0), LaneState("blue", 2, 3)])
def test_a_peer_cannot_have_received_more_than_was_sent_nor_less_than_it_said(state: LaneState) -> None:
    lane = make_sender()
    send(lane, b"1", b"2", b"3")
    lane.next_batch(PLENTY)
    lane.handle_return(encode_receipt(1, 0, ()), 0.0)
    lane.pause()
    assert not lane.can_resume(state)
    assert lane.can_resume(LaneState("blue", 1, 1))


def test_a_lane_that_is_full_goes_on_when_the_resume_says_that_there_is_room() -> None:
    lane = make_sender(500)
    send(lane, *[bytes(200)] * 3, delivery=Delivery.REDELIVER)
    lane.next_batch(PLENTY)
    assert lane.full
    lane.handle_return(encode_receipt(2, 0, ()), 0.0)
    assert lane.full, "received is not handled"
    lose(lane, 2, 2)
    assert (lane.full, kept_sender(lane)) == (False, 0)
    assert len(payloads(lane.next_batch(PLENTY))) == 1


def test_a_restart_sends_again_what_may_be_redelivered_and_fails_the_rest() -> None:
    lane = make_sender()
    received, again = send(lane, b"received", b"again", delivery=Delivery.REDELIVER)
    (lost,) = send(lane, b"lost")
    asked, asked_once = ask(lane, b"asked", Delivery.REDELIVER), ask(lane, b"asked once")
    taken_back = ask(lane, b"taken back", Delivery.REDELIVER)
    lane.next_batch(PLENTY)
    (queued,) = send(lane, b"queued")
    taken_back.__exit__()
    lane.handle_return(encode_receipt(1, 0, ()), 0.0)
    assert lane.restart(LOST) == (2 + 1, 3)
    assert (lost.state, queued.state) == (OutgoingState.FAILED, OutgoingState.QUEUED)
    assert (asked.ack_error, asked_once.ack_error) == (None, LOST)
    lane.open_return(1 << 20)
    _, *frames = frames_of(lane.next_batch(PLENTY))
    assert [(one.seq, one.payload, one.redelivered) for one in frames if isinstance(one, MessageFrame)] == [
        (1, b"received", True),
        (2, b"again", True),
        (3, b"asked", True),
        (4, b"queued", False),
    ]
    assert (received.state, again.state) == (OutgoingState.WRITTEN, OutgoingState.WRITTEN)
    lane.handle_return(encode_ack(1, 3, AckStatus.SUCCESS, b"yes"), 0.0)
    assert asked.ack is not None
    assert asked.ack.result == b"yes"


def test_a_request_that_was_handled_and_not_answered_is_asked_again() -> None:
    """Its result is in a memory that is gone."""
    lane = make_sender()
    request = ask(lane, b"x", Delivery.REDELIVER)
    lane.next_batch(PLENTY)
    lose(lane, 1, 1)
    assert kept_sender(lane) == 0
    assert lane.restart(LOST) == (0, 1)
    assert (request.ack_error, request.state) == (None, OutgoingState.QUEUED)


def test_an_answered_request_is_not_lost_although_its_receipt_is() -> None:
    lane = make_sender()
    request = ask(lane, b"x")
    lane.next_batch(PLENTY)
    lane.handle_return(encode_ack(1, 1, AckStatus.SUCCESS, b"y"), 0.0)
    assert lane.fail_written(LOST) == 0
    assert (request.state, request.ack_error) == (OutgoingState.RECEIVED, None)


# -- the receiver --------------------------------------------------------------------------------------------------------
def make_receiver(window: int = 1 << 20) -> LaneReceiver:
    lane = LaneReceiver(4, 10_000, window, keeps=True)
    arrive(lane, encode(LaneOpen("blue")))
    return lane


def reattach(lane: LaneReceiver, acked: int, window: int = 1 << 20) -> None:
    lane.detach()
    lane.attach(8, window)
    arrive(lane, encode(LaneOpen("blue", acked)))


def test_half_a_frame_and_what_is_not_decoded_come_again() -> None:
    lane = make_receiver()
    two = message(2, bytes(100))
    arrive(lane, message(1), two, message(3)[:10], limit=1)
    lane.detach()
    assert (lane.state, lane.undecoded, lane.held_bytes) == (LaneState("blue", 1, 0), False, len(message(1)))
    lane.attach(8, 1 << 20)
    arrive(lane, encode(LaneOpen("blue")), two, message(3))
    assert [one.frame.seq for one in lane.queue] == [1, 2, 3]
    assert lane.held_bytes == len(message(1)) + len(two) + len(message(3))


def test_what_handlers_hold_counts_against_the_new_stream() -> None:
    lane = make_receiver(1000)
    arrive(lane, message(1, bytes(300)))
    size = len(message(1, bytes(300)))
    for _ in range(5):
        reattach(lane, 0, 1000)
        assert lane.credit_limit(10_000) == lane.arrived - size + 10_000
    end(lane, 1)
    assert (lane.held_bytes, lane.credit_limit(10_000)) == (0, lane.arrived + 10_000)


def test_no_more_than_a_window_is_decoded_ahead_of_the_handlers() -> None:
    lane = make_receiver(1000)
    frames = [message(seq, bytes(400)) for seq in range(1, 6)]
    arrive(lane, *frames[:4])
    for _ in range(3):
        assert ([one.frame.seq for one in lane.queue], lane.undecoded) == ([1, 2, 3], True)
        assert lane.decode(100) == 0
        reattach(lane, 0, 1000)
        assert (lane.state.received, lane.held_bytes) == (3, sum(map(len, frames[:3])))
        arrive(lane, *frames[3:])
    end(lane, 2)
    assert lane.decode(100) == 1
    assert [one.frame.seq for one in lane.queue] == [1, 3, 4]


def test_acks_that_were_not_taken_are_said_again_and_those_that_came_meanwhile_after_them() -> None:
    lane = make_receiver()
    arrive(lane, *(message(seq, wants_ack=True) for seq in range(1, 7)))
    end(lane, 1, 2)
    assert acks(lane) == [(1, 1, 1, 1)]
    end(lane, 3, result=b"three")
    assert acks(lane) == [(3, 3, 1, 0)]
    lane.detach()
    end(lane, 4, status=AckStatus.FAILURE)
    lane.attach(8, 1 << 20)
    end(lane, 5)
    arrive(lane, encode(LaneOpen("blue", 2)))
    end(lane, 6)
    assert acks(lane) == [(3, 3, 1, 0), (4, 4, 2, 0), (5, 5, 1, 1)]
    assert lane.ack_bytes == 0
    arrive(lane, encode_confirm(6))
    assert (lane.kept_bytes, acks(lane)) == (0, [])


def test_a_resume_is_told_what_was_handled_after_the_hello() -> None:
    """The hello was on its way when the handler ended: a sender that is full for want of this news would wait for ever."""
    lane = make_receiver()
    arrive(lane, message(1), message(2), message(3))
    assert said(lane) == [ReceiptFrame(3, 0, ())]
    lane.detach()
    assert lane.state == LaneState("blue", 3, 0)
    end(lane, 1, 3)
    lane.attach(8, 1 << 20)
    arrive(lane, encode(LaneOpen("blue")))
    assert said(lane) == [ReceiptFrame(3, 1, ((3, 3),))]


def test_a_cancellation_in_front_of_its_message_is_forgotten_with_the_connection() -> None:
    lane = make_receiver()
    arrive(lane, encode_cancel(1))
    reattach(lane, 0)
    (incoming,) = arrive(lane, message(1))
    assert not incoming.cancelled


def test_more_acks_than_there_were_cannot_be_confirmed() -> None:
    lane = make_receiver()
    arrive(lane, message(1, wants_ack=True))
    end(lane, 1)
    with pytest.raises(RemoteProtocolError, match="2 acks confirmed, but the last one was 1"):
        arrive(lane, encode_confirm(2))


def test_after_the_end_of_the_session_nothing_is_kept() -> None:
    lane = make_receiver()
    arrive(lane, *(message(seq, wants_ack=True) for seq in (1, 2, 3)))
    end(lane, 1, result=b"x")
    said(lane)
    end(lane, 2, result=b"y")
    lane.detach()
    assert min(lane.kept_bytes, lane.ack_bytes) > 0
    lane.forget_acks()
    end(lane, 3, result=b"z")
    assert (lane.kept_bytes, lane.ack_bytes, lane.held_bytes) == (0, 0, 0)


# -- acks that are kept ----------------------------------------------------------------------------------------------------
def pieces(*numbers: range) -> KeptAcks:
    kept = KeptAcks()
    for piece in numbers:
        acks = [encode_ack(number, number, AckStatus.SUCCESS, b"%d" % number) for number in piece]
        kept.keep(piece[-1], acks, sum(map(len, acks)))
    return kept


def test_kept_acks_are_confirmed_piece_by_piece_and_within_one() -> None:
    kept = pieces(range(1, 4), range(4, 10))
    for taken in range(10):
        kept.confirm(taken)
        again = [
            frame.ack_seq
            for frame in frames_of(b"".join(ack for _, acks, _ in kept._pieces for ack in acks))
            if isinstance(frame, AckFrame)
        ]
        assert again == [*range(taken + 1, 10)]
        assert kept.size == sum(len(ack) for _, acks, _ in kept._pieces for ack in acks)
    assert kept.size == 0


def test_acks_that_were_let_go_are_missed_and_not_passed_over() -> None:
    kept = pieces(range(1, 4), range(4, 6), range(6, 8))
    whole = kept.size
    kept.trim(whole)
    assert kept.size == whole
    kept.trim(1)
    assert kept.size == pieces(range(6, 8)).size, "the last piece stays"
    with pytest.raises(RemoteProtocolError, match="acks up to 5 went unconfirmed for too long, and only 4 were taken"):
        kept.replay(4)
    assert len(kept.replay(5)) == 2
    assert kept.replay(5) == []
