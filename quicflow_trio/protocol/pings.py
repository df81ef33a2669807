"""How many pings a peer may send. Pure: ``now`` comes in."""

from __future__ import annotations

from ..errors import RemoteProtocolError

__all__ = ["PingBudget"]

PINGS_PER_SECOND = 200.0
"""Pings answered per second: twice what the shortest heartbeat interval that can be configured makes."""
PINGS_AHEAD = 200.0
"""Pings answered at once after a silence: a network that was away delivers what it held."""
PINGS_OVER = 400.0
"""Pings left unanswered before the connection is closed."""


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
