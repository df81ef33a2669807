"""The rules, on histories made by hand: what each catches, and what it lets pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quicflow_trio.simulate import PROMISE, History, Promise, Record, check
from quicflow_trio.simulate.history import Happened as H  # noqa: N817  the tables below would be all name otherwise
from quicflow_trio.simulate.rules import FORBIDDEN_LANE

Line = Record


def line(
    at: float,
    what: H,
    process: str,
    message: int = 0,
    peer: str = "",
    detail: str = "",
    lane: str = "",
    *,
    redeliver: bool = False,
) -> Line:
    return Record(at, what, process, message, peer, lane, detail, redeliver)


CONNECTED = [line(0, H.CONNECTED, "client-0#1", peer="server"), line(0, H.CONNECTED, "server#1", peer="client-0")]
ASKED = line(1, H.ASKED, "client-0#1", 7, "server", "30.0")
SENT = line(1, H.SENT, "client-0#1", 7, "server")
STARTED = line(2, H.STARTED, "server#1", 7, "client-0")
ENDED = line(3, H.ENDED, "server#1", 7, detail="ok")
ACKED = line(4, H.ACKED, "client-0#1", 7, "server")
DELIVERED = line(4, H.DELIVERED, "client-0#1", 7, "server")


def lost(at: float) -> Line:
    return line(at, H.FAILED, "client-0#1", 7, "server", "ConnectionLost")


def parted(at: float) -> Line:
    return line(at, H.DISCONNECTED, "client-0#1", 0, "server", "heartbeat_timeout nothing heard")


TIDIED = [
    line(1, H.SENT, "server#1", 9, "client-0", redeliver=True),
    line(2, H.DELIVERED, "server#1", 9, "client-0"),
]


def rules(*lines: Line, promise: Promise = PROMISE) -> list[str]:
    history = History()
    for entry in [*CONNECTED, *lines]:
        history.add(entry)
    return [violation.rule for violation in check(history, promise)]


def test_a_request_that_is_handled_and_acked_is_well() -> None:
    assert rules(ASKED, STARTED, ENDED, ACKED) == []
    assert rules(SENT, DELIVERED, STARTED, ENDED) == []


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        ([ASKED, ACKED], "acked, not handled"),
        ([ASKED, STARTED, line(3, H.ENDED, "server#1", 7, detail="failed"), ACKED], "acked, not handled"),
        ([ASKED, STARTED, ENDED, line(4, H.MIXED_UP, "client-0#1", 7, "server", "ff")], "wrong answer"),
        ([ASKED, STARTED, ENDED, STARTED, ENDED, ACKED], "handled twice"),
        (
            [ASKED, STARTED, ENDED, line(9, H.STARTED, "server#2", 7, "client-0"), line(9, H.ENDED, "server#2", 7), ACKED],
            "handled twice",
        ),
        ([ASKED], "never ended"),
        ([ASKED, STARTED, ENDED, line(33, H.ACKED, "client-0#1", 7, "server")], "ended late"),
        ([SENT, STARTED, DELIVERED], "handler never ended"),
        ([SENT, STARTED, line(14, H.ENDED, "server#1", 7, detail="cancelled"), DELIVERED], "handler overran"),
        ([SENT, DELIVERED], "delivered, not handled"),
        ([ASKED, lost(5)], "error without a reason"),
        ([ASKED, line(5, H.FAILED, "client-0#1", 7, "server", "AckTimeout")], "error without a reason"),
        ([ASKED, STARTED, ENDED, line(5, H.FAILED, "client-0#1", 7, "server", "HandlerFailed")], "error without a reason"),
        ([ASKED, line(5, H.FAILED, "client-0#1", 7, "server", "ConnectionClosed")], "error without a reason"),
        ([ASKED, line(5, H.FAILED, "client-0#1", 7, "server", "ClientNotConnected")], "error without a reason"),
        ([ASKED, line(5, H.FAILED, "client-0#1", 7, "server", "RuntimeError")], "error without a reason"),
        ([STARTED, ENDED], "from nowhere"),
        ([line(5, H.DISCONNECTED, "server#1", 0, "client-0", "protocol_error out of sequence")], "wrong ending"),
        ([line(5, H.LEFT, "server#1", detail="a session")], "left over"),
    ],
)
def test_each_breach_is_named(lines: list[Line], rule: str) -> None:
    assert rules(*lines) == [rule]


def test_the_order_is_one_of_each_lane() -> None:
    def sent(number: int, lane: str) -> Line:
        return line(1, H.SENT, "client-0#1", number, "server", lane=lane)

    def handled(number: int) -> list[Line]:
        return [line(2, H.STARTED, "server#1", number, "client-0"), line(2, H.ENDED, "server#1", number, detail="ok")]

    def delivered(number: int) -> Line:
        return line(3, H.DELIVERED, "client-0#1", number, "server")

    ends = [delivered(7), delivered(8)]
    assert rules(sent(7, "a"), sent(8, "b"), *handled(8), *handled(7), *ends) == []
    assert rules(sent(7, "a"), sent(8, "a"), *handled(8), *handled(7), *ends) == ["out of order"]


def test_a_lost_request_needs_a_session_that_has_ended() -> None:
    assert rules(ASKED, parted(5), lost(5)) == ["error without a reason"]
    assert rules(ASKED, parted(5), lost(5), promise=replace(PROMISE, survives_reconnect=False)) == []
    died = line(5, H.DIED, "server#1", detail="killed")
    assert rules(ASKED, died, parted(6), lost(6)) == []
    assert rules(ASKED, line(5, H.DISCONNECTED, "client-0#1", 0, "server", "shutdown the server is draining"), lost(5)) == []
    long = line(1, H.ASKED, "client-0#1", 7, "server", "300.0")
    assert rules(long, parted(5), parted(130), lost(130)) == []
    assert rules(long, parted(5), line(100, H.CONNECTED, "server#1", peer="client-0"), parted(129), lost(130)) == [
        "error without a reason"
    ]


def test_what_may_be_redelivered_is_not_lost_with_the_server() -> None:
    again = replace_redeliver(ASKED)
    died = line(5, H.DIED, "server#1", detail="killed")
    assert rules(again, died, parted(6), lost(6)) == ["error without a reason"]


def replace_redeliver(record: Record) -> Record:
    return record._replace(redeliver=True)


def test_a_server_may_lose_the_session_of_a_client_that_never_heard_of_it() -> None:
    asked = line(10, H.ASKED, "server#1", 7, "client-0", "30.0")
    gone = line(12, H.DISCONNECTED, "server#1", 0, "client-0", "hello_timeout hello timeout")
    failed = line(12, H.FAILED, "server#1", 7, "client-0", "ConnectionLost")
    before = line(5, H.DISCONNECTED, "client-0#1", 0, "server", "heartbeat_timeout nothing heard")
    opened = line(9, H.CONNECTED, "server#1", peer="client-0")
    assert rules(before, opened, asked, gone, failed) == []
    assert rules(before, opened, line(9.1, H.CONNECTED, "client-0#1", peer="server"), asked, gone, failed) == [
        "error without a reason"
    ]


def test_a_message_may_be_handled_again_by_a_new_process_that_is_told() -> None:
    def again(detail: str) -> list[Line]:
        return [line(9, H.STARTED, "server#2", 7, "client-0", detail), line(9, H.ENDED, "server#2", 7, detail="ok")]

    asked_for = replace_redeliver(SENT)
    assert rules(asked_for, STARTED, ENDED, *again("redelivered"), DELIVERED) == []
    assert rules(asked_for, STARTED, ENDED, *again(""), DELIVERED) == ["handled twice"]
    assert rules(SENT, STARTED, ENDED, *again("redelivered"), DELIVERED) == ["redelivered unasked"]


def test_a_process_may_handle_a_message_again_only_in_another_session() -> None:
    asked_for = replace_redeliver(SENT)
    again = [line(140, H.STARTED, "server#1", 7, "client-0", "redelivered"), line(140, H.ENDED, "server#1", 7, detail="ok")]
    back = line(139, H.CONNECTED, "server#1", peer="client-0")
    assert rules(asked_for, STARTED, ENDED, parted(5), back, *again, DELIVERED) == []
    assert rules(asked_for, STARTED, ENDED, parted(50), back, *again, DELIVERED) == ["handled twice"]


def test_what_may_be_redelivered_finds_a_process_in_the_end() -> None:
    died = line(2.5, H.DIED, "client-0#1", detail="killed")
    assert rules(*TIDIED, died) == ["not redelivered"]
    handled = [line(9, H.STARTED, "client-0#2", 9, "server", "redelivered"), line(9, H.ENDED, "client-0#2", 9, detail="ok")]
    assert rules(*TIDIED, died, *handled) == []
    # A process that was killed in the midst of it does not count.
    assert rules(*TIDIED, line(2, H.STARTED, "client-0#1", 9, "server"), died) == ["not redelivered"]
    assert rules(*TIDIED, died, line(200, H.DIED, "server#1", detail="killed")) == []
    left = line(2.5, H.DISCONNECTED, "server#1", 0, "client-0", "normal client disconnect")
    assert rules(*TIDIED, line(2.5, H.DIED, "client-0#1", detail="stopped"), left) == []


def test_only_what_is_permitted_is_handled() -> None:
    guarded = replace(PROMISE, guarded=True)
    asked, started = ASKED._replace(lane=FORBIDDEN_LANE), STARTED
    denied = line(4, H.FAILED, "client-0#1", 7, "server", "PermissionDenied")
    assert rules(asked, denied, promise=guarded) == []
    assert rules(asked, denied) == ["error without a reason"]
    assert rules(ASKED, denied, promise=guarded) == ["error without a reason"]
    assert rules(asked, started, ENDED, ACKED, promise=guarded) == ["not permitted"]
    assert rules(SENT._replace(lane=FORBIDDEN_LANE), DELIVERED, promise=guarded) == []


def test_a_client_that_is_connected_is_not_away() -> None:
    asked = line(10, H.ASKED, "server#1", 7, "client-0", "30.0")
    failed = line(10, H.FAILED, "server#1", 7, "client-0", "ClientNotConnected")
    assert rules(asked, failed) == ["error without a reason"]
    assert rules(line(5, H.DISCONNECTED, "server#1", 0, "client-0", "idle_timeout"), asked, failed) == []
    assert rules(asked, line(12, H.DISCONNECTED, "server#1", 0, "client-0", "idle_timeout"), failed) == ["error without a reason"]


def test_a_killed_caller_owes_nothing_and_a_stopped_one_all() -> None:
    assert rules(ASKED, line(2, H.DIED, "client-0#1", detail="killed")) == []
    assert rules(ASKED, line(2, H.DIED, "client-0#1", detail="stopped")) == ["never ended"]


def test_a_message_may_die_with_its_receiver_unless_it_had_its_time() -> None:
    assert rules(SENT, DELIVERED, line(4.5, H.DIED, "server#1", detail="killed")) == []
    assert rules(SENT, DELIVERED, line(400, H.DIED, "server#1", detail="killed")) == ["delivered, not handled"]


@pytest.mark.parametrize(
    ("weather", "broken"),
    [
        ([], True),
        ([line(50, H.FAULT, "world", detail="loss"), line(60, H.CALM, "world")], True),
        ([line(50, H.FAULT, "world", detail="loss"), line(300, H.CALM, "world")], False),
        ([line(210, H.FAULT, "world", detail="loss"), line(212, H.CALM, "world")], False),
    ],
)
def test_a_time_out_needs_a_fault(weather: list[Line], broken: bool) -> None:
    asked = line(200, H.ASKED, "client-0#1", 7, "server", "30.0")
    failed = line(230, H.FAILED, "client-0#1", 7, "server", "AckTimeout")
    assert rules(*weather, asked, failed) == ["error without a reason"] * broken


def test_a_client_is_back_in_time_when_nothing_is_wrong() -> None:
    lives = [line(0, H.BORN, "client-0#1"), line(0, H.BORN, "server#1")]
    gone, back = parted(100), line(200, H.CONNECTED, "client-0#1", peer="server")
    assert rules(*lives, gone, back) == ["away too long"]
    assert rules(*lives, gone, line(170, H.CONNECTED, "client-0#1", peer="server")) == []
    assert rules(*lives, line(90, H.FAULT, "world"), gone, line(150, H.CALM, "world"), back) == []
    killed = [line(90, H.DIED, "server#1", detail="killed"), line(140, H.BORN, "server#2")]
    assert rules(*lives, *killed, gone, back) == []


def test_clocks_that_jump_carry_time_outs_with_them() -> None:
    jumped = line(40, H.JUMPED, "world", detail="39.0")
    failed = line(40, H.FAILED, "client-0#1", 7, "server", "AckTimeout")
    fault = line(0.5, H.FAULT, "world", detail="pause")
    assert rules(fault, ASKED, jumped, failed) == []
    assert rules(fault, ASKED, failed) == ["ended late"]
