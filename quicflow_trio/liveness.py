"""Frames that have begun go on: how a peer is found that sends a byte now and then. Pure: ``now`` comes in.

Each byte is a sign of life, or a line that is gone for most of a heartbeat time-out in the middle of a long message would be given up. But
a peer that has begun a frame must bring its end, or go on bringing something: else a byte every ten seconds keeps a connection, and what it
holds here, for ever. So a connection looks for incomplete frames once a second or so, when something has come; who sends nothing at all is
found by its silence. Nothing is noted for a message, and nothing has a timer.

What counts is what the connection brings, not each frame: of sixteen lanes on a line that loses two packets of five, one brings nothing for
minutes at times, with no fault of its own.
"""

from __future__ import annotations

__all__ = ["FrameWatch"]

SLOWEST = 8.0
"""Bytes per second that a connection brings, on average over a heartbeat time-out, while a frame is incomplete: less than a packet in 45 s.

With more than one packet, honest clients were cut off now and then on a line that loses two of five."""

LOOKS = 45.0
"""Looks in one heartbeat time-out, at most."""


class FrameWatch:
    """Tells when a peer has begun a frame and does not go on.

    Args:
        patience: seconds in which it must end every frame, or bring `SLOWEST` bytes per second: the heartbeat time-out.

    Attributes:
        due: when the next look is worth while.
    """

    __slots__ = ("_arrived", "_patience", "_since", "due")

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # When there was enough progress the last time, and what had come by then; None while no frame is incomplete.
        self._since: float | None = None
        self._arrived = 0
        self.due: float = 0.0

    def look(self, now: float, arrived: int, *, begun: bool) -> bool:
        """Return True when it does not go on.

        Args:
            now: the time.
            arrived: bytes that the connection has brought on all its streams.
            begun: whether any frame has begun that this side does not hold back itself.
        """
        self.due = now + self._patience / LOOKS
        if not begun:
            self._since = None
        elif self._since is None or arrived - self._arrived >= SLOWEST * self._patience:
            self._since, self._arrived = now, arrived
        else:
            return now - self._since >= self._patience
        return False
