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

    def next_delay(self) -> float:
        """Return the seconds to wait before the next attempt."""
        delay = self._next
        self._next = min(delay * 2, self._maximum)
        return delay * (1 - self._jitter * self._random.random())

    def reset(self) -> None:
        """Start over: a connection stood."""
        self._next = self._initial
