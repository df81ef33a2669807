"""Congestion control for paths that lose packets for other reasons than congestion: the ``lossy`` choice of a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aioquic.quic.congestion.base import register_congestion_control
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.packet_builder import QuicSentPacket

__all__ = ["LOSSY", "RENO", "LossyCongestionControl"]

RENO: Final = "reno"
"""What aioquic does by itself (RFC 9002 section 7)."""
LOSSY: Final = "lossy"

FLOOR_PACKETS = 32
"""Packets that may always be in flight."""


class LossyCongestionControl(RenoCongestionControl):
    """Reno, with a floor under its window.

    Where a third of all packets is lost whatever one sends, Reno ends at two packets in flight and stays there: most round trips pass
    with nothing but a probe. The floor is not fair to others on a link that is full, so nobody gets it who has not asked for it.
    """

    congestion_window: int

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._floor = FLOOR_PACKETS * max_datagram_size
        self._lift()

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Halve the window, down to the floor."""
        super().on_packets_lost(now=now, packets=packets)
        self._lift()

    def on_persistent_congestion(self) -> None:
        """Go back to the floor."""
        super().on_persistent_congestion()
        self._lift()

    def _lift(self) -> None:
        self.congestion_window = max(self.congestion_window, self._floor)


register_congestion_control(LOSSY, LossyCongestionControl)
