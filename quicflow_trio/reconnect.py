"""How long to wait before the next attempt. Pure: no clock, seeded jitter."""

from __future__ import annotations

import random

__all__ = ["Backoff"]


class Backoff:
    """Exponential backoff: ``initial``, twice that, ... up to ``maximum`` seconds, each shortened by a seeded share.

    Args:
        initial: first wait, seconds.
        maximum: longest wait, seconds.
        jitter: largest share of a wait that is taken off, 0 to 1, so that clients that lost one server do not return as one.
        seed: seed of that share; None takes one from the operating system.
    """

    def __init__(self, initial: float, maximum: float, jitter: float, seed: int | None = None) -> None:
        self._initial = initial
        self._maximum = maximum
        self._jitter = jitter
        self._random = random.Random(seed)
        self._next = initial

    def next_delay(self, spent: float = 0.0) -> float:
        """Return the seconds to wait before the next attempt, after one that failed and took ``spent`` seconds.

        Two attempts start at most ``maximum`` apart, or ``initial`` after the end of a long one: an attempt under way when the network
        comes back can fail all the same, and the wait after it must not come on top of what it took.
        """
        delay = min(self._next, max(self._initial, self._maximum - spent))
        self._next = min(self._next * 2, self._maximum)
        return delay * (1 - self._jitter * self._random.random())

    def reset(self) -> None:
        """Start over: a connection stood."""
        self._next = self._initial
