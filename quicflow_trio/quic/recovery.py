"""aioquic's loss recovery (RFC 9002), which counts what it loses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery

__all__ = ["CountingRecovery"]


class CountingRecovery(QuicPacketRecovery):
    """Takes the place of the class that aioquic's connection makes by itself.

    Attributes:
        packets_lost: packets declared lost, and those whose content a probe repeated: what they held was sent again.
    """

    packets_lost: int = 0

    def _on_packets_lost(self, *, packets: Iterable[QuicSentPacket], **circumstances: Any) -> None:
        lost = [*packets]
        self.packets_lost += len(lost)
        super()._on_packets_lost(packets=lost, **circumstances)
