"""The clocks of a simulation: virtual time that is cheap to tell and to advance, and a wall clock that follows it, or is led astray."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import trio

__all__ = ["VirtualClock", "WallClock", "simulated_wall_clock"]

_START = 1_700_000_000
_FOR_EVER = 86_400.0


@final
class VirtualClock(trio.abc.Clock):
    """Trio's time, which stands still while anything is left to do, and then is that of the next deadline.

    `trio.testing.MockClock` does the same for programs that touch the real world as well, in three passes of the scheduler where this
    takes one: an hour of thin traffic is made of such jumps.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        """Begin with a run."""

    def current_time(self) -> float:
        """Return virtual seconds."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Be at the deadline: Trio asks when no task can run."""
        if deadline == math.inf:
            return _FOR_EVER
        self._now = max(self._now, deadline)
        return 0.0

    def jump(self, seconds: float) -> None:
        """Let it be later."""
        self._now += seconds


@final
class WallClock:
    """What `time.time` and `time.time_ns` read.

    Attributes:
        offset: seconds by which it is wrong.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.offset: float = 0.0

    def time(self) -> float:
        """Return Unix seconds."""
        return _START + self.offset + self._clock.current_time()

    def time_ns(self) -> int:
        """Return Unix nanoseconds."""
        return int(self.time() * 1e9)


@contextmanager
def simulated_wall_clock(clock: VirtualClock) -> Iterator[WallClock]:
    """Let the whole process read a wall clock that follows ``clock``: message ids and timestamps repeat, and can be led astray."""
    wall = WallClock(clock)
    real = time.time, time.time_ns
    time.time, time.time_ns = wall.time, wall.time_ns
    try:
        yield wall
    finally:
        time.time, time.time_ns = real
