"""aioquic's loss recovery (RFC 9002): it counts what it loses, and its probes slow down until the round trip is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

__all__ = ["Recovery"]


class Recovery(QuicPacketRecovery):
    """Takes the place of the class that aioquic's connection makes by itself.

    Attributes:
        packets_lost: packets declared lost, and those whose content a probe repeated: what they held was sent again.
    """

    packets_lost: int = 0

    def on_ack_received(self, *, space: QuicPacketSpace, **ack: Any) -> None:
        """Take in an ACK; the probe timer goes back to its shortest interval only when it confirms something that asked for it.

        Stock resets the timer for any newly acknowledged packet, one that held nothing but an ACK included, and forgets a packet once
        a probe has repeated it. On a path of two seconds the probes then never become slower than the round trip, no packet that
        would measure it is remembered long enough, and everything is sent again four times a second, for ever.
        """
        probes = self._pto_count
        if not probes:
            super().on_ack_received(space=space, **ack)
            return
        in_flight, lost = space.ack_eliciting_in_flight, self.packets_lost
        super().on_ack_received(space=space, **ack)
        if in_flight - space.ack_eliciting_in_flight <= self.packets_lost - lost:
            self._pto_count = probes

    def _on_packets_lost(self, *, packets: Iterable[QuicSentPacket], **circumstances: Any) -> None:
        lost = [*packets]
        self.packets_lost += len(lost)
        super()._on_packets_lost(packets=lost, **circumstances)
