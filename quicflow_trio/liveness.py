"""Frames that have begun go on: how a peer is found that sends a byte now and then. Pure: ``now`` comes in.

Each byte is a sign of life, or a line that is gone for most of a heartbeat time-out in the middle of a long message would be given up. But a
frame that has begun must end or go on: else a byte every ten seconds keeps a connection, and a few on other streams what it holds here. So a
connection looks at its incomplete frames once a second or so, when something has come; who sends nothing at all is found by its silence.
Nothing is noted for a message, and nothing has a timer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["BeginningFrame", "FrameWatch"]

SLOWEST = 128.0
"""Bytes per second that a frame must bring on average, over any heartbeat time-out, until it is complete.

So few that sixteen lanes on a line of 2 KiB/s pass, and that a partition shorter than the time-out leaves time enough."""

LOOKS = 45.0
"""Looks in one heartbeat time-out, at most."""


class BeginningFrame(NamedTuple):
    """A frame of which the first bytes have come.

    Attributes:
        stream_id: where.
        start: how many bytes of the stream came before it.
        size: bytes of it that have come.
    """

    stream_id: int
    start: int
    size: int


class FrameWatch:
    """Tells when a frame has stopped to go on.

    Args:
        patience: seconds in which it must bring `SLOWEST` bytes per second, or its end: the heartbeat time-out.

    Attributes:
        due: when the next look is worth while.
    """

    __slots__ = ("_marks", "_patience", "due")

    def __init__(self, patience: float) -> None:
        self._patience = patience
        # How far each frame was at a time, by stream.
        self._marks: dict[int, tuple[BeginningFrame, float]] = {}
        self.due: float = 0.0

    def look(self, now: float, frames: Iterable[BeginningFrame]) -> BeginningFrame | None:
        """Return a frame that did not go on; ``frames`` are all that have begun, but for those that this side holds back."""
        marks = {}
        enough = SLOWEST * self._patience
        for frame in frames:
            mark = self._marks.get(frame.stream_id)
            if mark is None or mark[0].start != frame.start or frame.size - mark[0].size >= enough:
                mark = frame, now
            elif now - mark[1] >= self._patience:
                return frame
            marks[frame.stream_id] = mark
        self._marks = marks
        self.due = now + self._patience / LOOKS
        return None
