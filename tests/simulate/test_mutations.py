"""Is the simulation worth its time? Each test breaks the library on purpose, and the checker must name what is broken."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from quicflow_trio.dispatch import Dispatcher
from quicflow_trio.gate import Gate
from quicflow_trio.message import AckStatus, Message, MessageType
from quicflow_trio.net.endpoint import Endpoint
from quicflow_trio.protocol.kept_acks import KeptAcks
from quicflow_trio.protocol.lane_receiver import LaneReceiver
from quicflow_trio.protocol.lane_sender import LaneSender
from quicflow_trio.protocol.waiting import WaitingShare
from quicflow_trio.router import Request
from quicflow_trio.sessions import Session, SessionRegistry
from quicflow_trio.simulate import Scenario, Verdict, simulate
from quicflow_trio.simulate.history import Happened
from quicflow_trio.simulate.schedule import Fault
from quicflow_trio.wire import LaneState

SCENARIO = Scenario(seed=3, hours=0.4, clients=2, faults="normal")
SHORT = Scenario(seed=3, hours=0.1, clients=2, faults="none")
GUARDED = Scenario(seed=4, hours=0.5, clients=2, faults="none")
CALM = Scenario(seed=3, hours=0.5, clients=2, faults="none")


def rules(verdict: Verdict) -> set[str]:
    return {violation.rule for violation in verdict.violations}


def texts(verdict: Verdict, rule: str) -> str:
    return "\n".join(violation.text for violation in verdict.violations if violation.rule == rule)


@pytest.mark.parametrize("scenario", [SCENARIO, CALM, GUARDED])
def test_unbroken_it_holds(scenario: Scenario) -> None:
    verdict = simulate(scenario)
    assert verdict.violations == ()
    assert min(verdict.figures.acked, verdict.figures.delivered) > 30


def test_an_ack_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneReceiver.finish
    numbers = itertools.count()

    def finish(lane: LaneReceiver, incoming: Any, status: int, result: bytes, error: str) -> None:
        if next(numbers) % 10 == 5:
            incoming.frame = replace(incoming.frame, wants_ack=False)
        real(lane, incoming, status, result, error)

    monkeypatch.setattr(LaneReceiver, "finish", finish)
    verdict = simulate(CALM)
    # Cancellations of what was handled long ago may be left, too.
    assert "error without a reason" in rules(verdict)
    assert "AckTimeout" in texts(verdict, "error without a reason")


def test_a_handler_that_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._handle
    numbers = itertools.count()

    async def handle(dispatcher: Dispatcher, worker: Any, incoming: Any) -> None:
        if next(numbers) % 20 == 10:
            frame = incoming.frame
            route = dispatcher._router.route(frame.type)
            assert route is not None
            message = Message(MessageType(frame.type), frame.payload, sender=dispatcher._sender)
            try:
                await route.handler(Request(message, dispatcher._peer, False))
            except Exception:  # noqa: BLE001  the simulation's own failing handler
                return
        await real(dispatcher, worker, incoming)

    monkeypatch.setattr(Dispatcher, "_handle", handle)
    assert "handled twice" in rules(simulate(CALM))


def test_a_lane_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneSender.next_batch

    def next_batch(lane: LaneSender, credit: int, *, start: bool = True) -> bytes:
        if len(lane._outbox) > 1:
            lane._outbox.append(lane._outbox.popleft())
        return real(lane, credit, start=start)

    monkeypatch.setattr(LaneSender, "next_batch", next_batch)
    assert rules(simulate(CALM)) == {"out of order"}


def test_a_waiter_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    real = WaitingShare.leave

    def leave(share: WaitingShare, *, acked: bool = True, timed_out: bool = False) -> None:
        if acked or timed_out:
            real(share, acked=acked, timed_out=timed_out)

    monkeypatch.setattr(WaitingShare, "leave", leave)
    verdict = simulate(SCENARIO)
    assert rules(verdict) == {"left over"}
    assert "requests_waiting=" in texts(verdict, "left over")


def test_an_ack_for_what_was_not_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._finish

    def finish(dispatcher: Dispatcher, worker: Any, status: int, result: bytes, error: str = "") -> None:
        # A handler that failed on purpose: say that it did well.
        if status is AckStatus.FAILURE:
            status, error = AckStatus.SUCCESS, ""
        real(dispatcher, worker, status, result, error)

    monkeypatch.setattr(Dispatcher, "_finish", finish)
    assert rules(simulate(CALM)) == {"wrong answer"}


def test_a_message_that_is_received_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Dispatcher._next
    numbers = itertools.count()

    def next_one(dispatcher: Dispatcher) -> Any:
        incoming = real(dispatcher)
        if incoming is not None and next(numbers) % 15 == 7:
            incoming.cancelled = True
        return incoming

    monkeypatch.setattr(Dispatcher, "_next", next_one)
    assert "delivered, not handled" in rules(simulate(CALM))


def test_a_session_that_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    # A client that is stopped and does not come back before the end.
    monkeypatch.setattr(
        SessionRegistry, "enter", lambda registry, session: registry._kept.setdefault(session.id.hex(), session) and None
    )
    assert "left over" in rules(simulate(SCENARIO))


def test_connection_ids_that_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "remove_pump", lambda endpoint, pump, last_word=(), keep=0.0: None)
    verdict = simulate(SCENARIO)
    assert "connection_ids=" in texts(verdict, "left over")


def test_a_defect_that_closes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneReceiver.feed
    numbers = itertools.count()

    def feed(lane: LaneReceiver, data: bytes) -> None:
        if next(numbers) == 60:
            raise ZeroDivisionError
        real(lane, data)

    monkeypatch.setattr(LaneReceiver, "feed", feed)
    verdict = simulate(CALM)
    assert "wrong ending" in rules(verdict)
    assert "1 internal errors" in texts(verdict, "left over")


# -- sessions that resume ------------------------------------------------------------------------------------------------
def simulate_faults(monkeypatch: pytest.MonkeyPatch, *faults: tuple[float, float, str, str, float]) -> Verdict:
    """Simulate faults of our choice, each of them when and for how long, what and where, and how bad."""
    schedule = tuple(Fault(number, *fault) for number, fault in enumerate(faults))
    monkeypatch.setattr("quicflow_trio.simulate.world.make_schedule", lambda _: schedule)
    # A seed whose sessions are kept for longer than the cuts: 120 s.
    return simulate(Scenario(seed=7, hours=(schedule[-1].start + 200) / 3600, clients=2, faults="none"))


def resuming(monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Let messages arrive and their acks not, until the clients give their connections up."""
    faults = [(60.0 + 150 * number, 100.0, "loss to the client", f"client-{number % 2}", 1.0) for number in range(6)]
    return simulate_faults(monkeypatch, *faults)


def restarting(monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Let messages arrive and their acks not, and kill the receiver meanwhile."""
    faults = []
    for number in range(6):
        at, killed = 60.0 + 150 * number, ("server", "client-0")[number % 2]
        faults.append((at, 20.0, "loss to the client" if killed == "server" else "loss to the server", "client-0", 1.0))
        faults.append((at + 15.0, 0.0, "kill", killed, 5.0))
    return simulate_faults(monkeypatch, *faults)


def test_unbroken_it_resumes_and_redelivers(monkeypatch: pytest.MonkeyPatch) -> None:
    resumed = resuming(monkeypatch)
    assert resumed.violations == ()
    assert resumed.figures.connects > 6
    restarted = restarting(monkeypatch)
    assert restarted.violations == ()
    assert any(record.what is Happened.STARTED and record.detail == "redelivered" for record in restarted.history)


def test_what_was_not_received_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneSender.resume

    def resume(lane: LaneSender, state: LaneState) -> None:
        real(lane, state)
        lane._resend.clear()

    monkeypatch.setattr(LaneSender, "resume", resume)
    assert "protocol_error message" in texts(resuming(monkeypatch), "wrong ending"), "its number is missing"


def test_a_stored_ack_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptAcks, "replay", lambda kept, taken: kept.clear() or [])
    assert "protocol_error ack number" in texts(resuming(monkeypatch), "wrong ending")


def test_a_message_that_was_received_and_is_handled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def state(lane: LaneReceiver) -> LaneState:
        # It forgets the last message, and so asks for it once more.
        if lane._received and lane._received not in lane._active:
            lane._received -= 1
            lane._handled = min(lane._handled, lane._received)
            lane._ahead.clear()
        return LaneState(lane.name or "", lane._received, lane._handled)

    monkeypatch.setattr(LaneReceiver, "state", property(state))
    monkeypatch.setattr(LaneSender, "can_resume", lambda lane, state: True)
    real = LaneSender._take_receipt

    def keep_last(lane: LaneSender, received: int, handled: int) -> None:
        real(lane, min(received, lane._last_seq - 1), handled)

    monkeypatch.setattr(LaneSender, "_take_receipt", keep_last)
    assert "handled twice" in rules(resuming(monkeypatch))


def test_a_session_that_ends_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "may_resume", lambda session, hello: False)
    verdict = resuming(monkeypatch)
    assert "error without a reason" in rules(verdict)
    assert "ConnectionLost" in texts(verdict, "error without a reason")


def test_a_restarted_process_that_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = LaneSender.redeliver

    def redeliver(lane: LaneSender, again: list[Any]) -> None:
        real(lane, again)
        for outgoing in again:
            outgoing.redelivered = False

    monkeypatch.setattr(LaneSender, "redeliver", redeliver)
    assert "handled twice" in rules(restarting(monkeypatch))


def test_what_may_be_redelivered_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LaneSender, "_redeliverable", lambda lane: [])
    assert rules(restarting(monkeypatch)) & {"not redelivered", "error without a reason"}


def test_resend_buffers_that_are_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LaneSender, "_handled", lambda lane, seq: lane._unhandled.pop(seq, None))
    assert "_kept_bytes" in texts(simulate(CALM), "left over")


def test_a_gate_that_stands_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "refusal", lambda gate, incoming, now: None)
    assert "not permitted" in rules(simulate(GUARDED))
