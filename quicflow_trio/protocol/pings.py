"""Pings: those sent and not answered yet, and how many a peer may send. Pure: ``now`` comes in."""

from __future__ import annotations

from ..errors import RemoteProtocolError

__all__ = ["PingBudget", "PingsSent"]

PINGS_PER_SECOND = 200.0
"""Pings answered per second: twice what the shortest heartbeat interval that can be configured makes."""
PINGS_AHEAD = 200.0
"""Pings answered at once after a silence: a network that was away delivers what it held."""
PINGS_OVER = 400.0
"""Pings left unanswered before the connection is closed."""

PINGS_KEPT = 16
"""Pings whose time is remembered for their pong; the oldest goes first."""


class PingsSent:
    """Numbers the pings of one side, and tells how long their answers took."""

    __slots__ = ("_last", "_times")

    def __init__(self) -> None:
        self._last = 0
        self._times: dict[int, float] = {}

    def next(self, now: float) -> int:
        """Return the number of a ping that is sent now."""
        self._last += 1
        self._times[self._last] = now
        if len(self._times) > PINGS_KEPT:
            del self._times[next(iter(self._times))]
        return self._last

    def answered(self, number: int, now: float) -> float | None:
        """Return the seconds since a ping was sent; None for one that was answered before, or never sent, or long ago."""
        sent = self._times.pop(number, None)
        return None if sent is None else now - sent


class PingBudget:
    """A token bucket: over it pings are not answered, far over it the peer breaks the protocol."""

    __slots__ = ("_left", "_since")

    def __init__(self, now: float) -> None:
        self._left = PINGS_AHEAD
        self._since = now

    def take(self, now: float) -> bool:
        """Count one ping; return whether to answer it.

        Raises:
            RemoteProtocolError: far too many came.
        """
        self._left = min(self._left + (now - self._since) * PINGS_PER_SECOND, PINGS_AHEAD) - 1
        self._since = now
        if self._left < -PINGS_OVER:
            raise RemoteProtocolError("too many pings")
        return self._left >= 0
