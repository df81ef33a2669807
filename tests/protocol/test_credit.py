"""The byte budget of a process and the windows that follow from the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quicflow_trio.config import Limits
from quicflow_trio.protocol.credit import RETURN_WINDOW, SMALLEST_WINDOW, CreditBudget, connection_window
from quicflow_trio.protocol.lane_receiver import FRAME_OVERHEAD, LaneReceiver
from quicflow_trio.protocol.lane_sender import CREDIT_RESERVE
from quicflow_trio.quic.limits import STANDSTILL
from quicflow_trio.wire import LaneOpen, encode

MIB = 1 << 20


def test_windows_stay_whole_up_to_half_of_the_budget_and_shrink_from_there() -> None:
    budget = CreditBudget(1000 * MIB)
    window = 512 * 1024
    assert budget.window(window) == window
    budget.held = 500 * MIB
    assert budget.window(window) == window
    budget.held = 750 * MIB
    assert budget.window(window) == window // 2
    budget.held = 950 * MIB
    assert budget.window(window) == window // 10
    budget.held = 1000 * MIB
    assert budget.window(window) == SMALLEST_WINDOW
    budget.held = 2000 * MIB
    assert budget.window(window) == SMALLEST_WINDOW, "over the budget, a lane can still move on"


@given(total=st.integers(MIB, 1 << 40), held=st.integers(0, 1 << 41), window=st.integers(16 * 1024, 1 << 30))
def test_a_window_is_never_more_than_configured_nor_less_than_the_smallest(total: int, held: int, window: int) -> None:
    budget = CreditBudget(total)
    budget.held = held
    before = budget.window(window)
    assert SMALLEST_WINDOW <= before <= window
    budget.held = held + 1000
    assert budget.window(window) <= before


def test_accounting_follows_a_lane() -> None:
    budget = CreditBudget(MIB)
    lane = LaneReceiver(0, 1000, 1 << 20)
    opening = encode(LaneOpen("a"))
    lane.feed(opening)
    assert (budget.account(lane), budget.held, lane.counted) == (len(opening), len(opening), len(opening))
    assert budget.account(lane) == 0
    lane.decode(1)
    assert (budget.account(lane), budget.held, lane.counted) == (-len(opening), 0, 0)


def test_a_connection_has_credit_for_every_stopped_lane_and_the_rest() -> None:
    """Otherwise one stopped lane would stop another, an ack or a heartbeat."""
    limits = Limits(lanes=3, lane_window=20_000, payload=50_000)
    frame = limits.payload + FRAME_OVERHEAD
    lanes = limits.lanes * (limits.lane_window + frame)
    returns = limits.lanes * (RETURN_WINDOW + frame)
    assert connection_window(limits) >= lanes + returns + 64 * 1024


def test_even_the_smallest_window_lets_a_message_pass() -> None:
    """Senders keep a reserve for cancellations: a window no larger than that would stop a lane for good."""
    assert SMALLEST_WINDOW > 2 * CREDIT_RESERVE


def test_the_transport_knows_how_much_a_sender_leaves() -> None:
    assert STANDSTILL == CREDIT_RESERVE
    assert Limits(lane_window=SMALLEST_WINDOW).lane_window == SMALLEST_WINDOW
