"""The state table: which control frame may come from which side, and when."""

from __future__ import annotations

import pytest

from quicflow_trio.errors import RemoteProtocolError
from quicflow_trio.protocol.pings import PINGS_AHEAD, PINGS_OVER, PINGS_PER_SECOND, PingBudget
from quicflow_trio.protocol.state import CloseCode, ConnectionState, check_control_frame
from quicflow_trio.wire import (
    AckFrame,
    Authentication,
    CancelFrame,
    Goodbye,
    Hello,
    LaneOpen,
    PingFrame,
    PongFrame,
    ReceiptFrame,
    Welcome,
)

S = ConnectionState
FRAMES = [
    Hello(),
    Welcome(),
    PingFrame(1),
    PongFrame(1),
    Goodbye(),
    Authentication(),
    LaneOpen(),
    AckFrame(1, 1, 1),
    ReceiptFrame(0, 0),
    CancelFrame(1),
]
# Written out once more and not derived: a slip in the table must not be repeated by its test.
ALLOWED: dict[tuple[ConnectionState, bool], set[type]] = {
    (S.HELLO, True): {Hello},
    (S.HELLO, False): {Welcome, Goodbye},
    (S.OPEN, True): {PingFrame, Goodbye, Authentication},
    (S.OPEN, False): {PongFrame, Goodbye, Authentication},
    (S.DRAINING, True): {PingFrame, Goodbye, Authentication},
    (S.DRAINING, False): {PongFrame, Goodbye, Authentication},
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_every_frame_in_every_state(state: ConnectionState, from_client: bool, frame: object) -> None:
    if type(frame) in ALLOWED.get((state, from_client), set()):
        check_control_frame(frame, state, from_client=from_client)
        return
    with pytest.raises(RemoteProtocolError) as caught:
        check_control_frame(frame, state, from_client=from_client)
    assert type(frame).__name__ in str(caught.value)
    assert ("client" if from_client else "server") in str(caught.value)


def test_the_reason_names_what_was_due() -> None:
    with pytest.raises(RemoteProtocolError, match="must be a hello, not PingFrame"):
        check_control_frame(PingFrame(1), S.HELLO, from_client=True)
    with pytest.raises(RemoteProtocolError, match="must be a welcome, not PongFrame"):
        check_control_frame(PongFrame(1), S.HELLO, from_client=False)


def test_states_only_move_down() -> None:
    assert list(S) == sorted(S) == [S.HANDSHAKE, S.HELLO, S.OPEN, S.DRAINING, S.CLOSED]


def test_close_codes_never_change_their_number() -> None:
    # They are on the wire: an older peer reads them by number.
    assert {code.name: int(code) for code in CloseCode} == {
        "NORMAL": 0,
        "PROTOCOL_ERROR": 1,
        "FRAME_TOO_LARGE": 2,
        "HELLO_TIMEOUT": 3,
        "HEARTBEAT_TIMEOUT": 4,
        "SESSION_REPLACED": 5,
        "REJECTED": 6,
        "AUTHENTICATION_FAILED": 7,
        "SHUTDOWN": 8,
        "OVERLOADED": 9,
        "SLOW_CONSUMER": 10,
        "INTERNAL_ERROR": 11,
        "CREDENTIALS_EXPIRED": 12,
        "AUTHENTICATION_UNAVAILABLE": 13,
    }


# -- the ping budget ---------------------------------------------------------------------------------------------------
def test_pings_at_the_shortest_interval_are_all_answered() -> None:
    budget = PingBudget(0)
    assert all(budget.take(beat * 0.01) for beat in range(5_000))


def test_a_burst_is_answered_then_throttled_then_ends() -> None:
    budget = PingBudget(5.0)
    answered = [budget.take(5.0) for _ in range(int(PINGS_AHEAD + PINGS_OVER))]
    assert answered.count(True) == PINGS_AHEAD
    assert answered[: int(PINGS_AHEAD)] == [True] * int(PINGS_AHEAD)
    with pytest.raises(RemoteProtocolError, match="too many pings"):
        budget.take(5.0)


def test_a_thousand_pings_a_second_end_within_the_first_second() -> None:
    budget = PingBudget(0)
    with pytest.raises(RemoteProtocolError, match="too many pings"):
        [budget.take(number / 1000) for number in range(1000)]


def test_silence_earns_the_burst_again_and_no_more() -> None:
    budget = PingBudget(0)
    for _ in range(int(PINGS_AHEAD)):
        assert budget.take(0)
    assert not budget.take(0)
    later = 10 * PINGS_AHEAD / PINGS_PER_SECOND
    assert [budget.take(later) for _ in range(int(PINGS_AHEAD) + 1)].count(True) == PINGS_AHEAD
