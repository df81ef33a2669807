"""A wall clock for a simulation: it follows virtual time, and jumps when told to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from trio.testing import MockClock

__all__ = ["WallClock", "simulated_wall_clock"]

_START = 1_700_000_000


@final
class WallClock:
    """What `time.time` and `time.time_ns` read.

    Attributes:
        offset: seconds by which it is wrong.
    """

    def __init__(self, clock: MockClock) -> None:
        self._clock = clock
        self.offset: float = 0.0

    def time(self) -> float:
        """Return Unix seconds."""
        return _START + self.offset + self._clock.current_time()

    def time_ns(self) -> int:
        """Return Unix nanoseconds."""
        return int(self.time() * 1e9)


@contextmanager
def simulated_wall_clock(clock: MockClock) -> Iterator[WallClock]:
    """Let the whole process read a wall clock that follows ``clock``: message ids and timestamps repeat, and can be led astray."""
    wall = WallClock(clock)
    real = time.time, time.time_ns
    time.time, time.time_ns = wall.time, wall.time_ns
    try:
        yield wall
    finally:
        time.time, time.time_ns = real
