"""How many probes the connections on one socket may send together."""

from __future__ import annotations

from typing import Final

__all__ = ["ProbeBudget"]

BURST: Final = 256.0
PER_SECOND: Final = 500.0
PER_PACKET: Final = 1 / 16
"""Probes that are allowed: a burst, so many per second on top, and one for every sixteen packets sent."""


class ProbeBudget:
    """Bounds what probe time-outs (RFC 9002 section 6.2) add to the work of peers that are slow together.

    A broadcast to ten thousand clients of one process takes them seconds to read, where a round trip used to take a millisecond. Each
    connection by itself concludes that its packet was lost, and again after twice the time, and so on: five or six packets for each
    client where one was too much already, until heartbeats time out. What is really lost is a share of what is sent, so probes get one.

    Attributes:
        denied: probes that were not sent.
    """

    __slots__ = ("_at", "_left", "denied")

    def __init__(self) -> None:
        self._at = 0.0
        self._left = BURST
        self.denied: int = 0

    def sent(self, packets: int) -> None:
        """Note packets that were sent, of any kind."""
        self._left = min(BURST, self._left + packets * PER_PACKET)

    def take(self, now: float, *, repeated: bool) -> bool:
        """Return whether a probe may be sent now (the engines' clock); if so, it is counted.

        One that is ``repeated`` leaves half of the burst alone: peers that never answer must not use up what those need who do.
        """
        left = min(BURST, self._left + max(0.0, now - self._at) * PER_SECOND)
        self._at = now
        if left < (BURST / 2 if repeated else 1.0):
            self._left = left
            self.denied += 1
            return False
        self._left = left - 1.0
        return True
