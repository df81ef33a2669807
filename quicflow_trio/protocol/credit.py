"""The process-wide budget of bytes that wait for handlers, and the flow-control windows that follow from the limits."""

from __future__ import annotations

from ..config import Limits
from .lane_receiver import FRAME_OVERHEAD, LaneReceiver

__all__ = ["RETURN_WINDOW", "CreditBudget", "connection_window"]

RETURN_WINDOW = 256 * 1024
"""Credit ahead on control streams and return halves, bytes: it is given back on arrival, so only the round trip has to fit."""
SMALLEST_WINDOW = 16 * 1024
"""What a lane may always have ahead, bytes, however much the process holds."""


class CreditBudget:
    """Bytes received that wait for handlers, over all sessions of a process.

    Up to half of the total every lane has its full window; from there the windows shrink in proportion, so that many slow sessions
    together stay within the budget instead of each using its own.

    Attributes:
        held: bytes held now.
    """

    __slots__ = ("_total", "held")

    def __init__(self, total: int) -> None:
        self._total = total
        self.held: int = 0

    def window(self, lane_window: int) -> int:
        """Return the window that a lane may have at the moment."""
        free = self._total - self.held
        half = self._total // 2
        if free >= half:
            return lane_window
        return max(SMALLEST_WINDOW, lane_window * max(free, 0) // half)

    def account(self, lane: LaneReceiver) -> int:
        """Bring a lane's share up to date and return by how much it changed."""
        change = lane.held_bytes - lane.counted
        lane.counted += change
        self.held += change
        return change


def connection_window(limits: Limits) -> int:
    """Return the connection-level credit ahead, bytes: so much that only the streams' own limits ever stop a peer.

    One stopped lane must stop no other, no ack and no heartbeat.
    """
    frame = limits.payload + FRAME_OVERHEAD
    return limits.lanes * (limits.lane_window + frame) + limits.lanes * (RETURN_WINDOW + frame) + 65_536
