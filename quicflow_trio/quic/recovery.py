"""aioquic's loss recovery (RFC 9002): it counts what it loses, its probes slow down until the round trip is known, and share a budget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace

from .probes import ProbeBudget

__all__ = ["Recovery"]

SPACED = 1.0
"""Seconds after a probe of a connection in which another one counts as repeated."""


class Recovery(QuicPacketRecovery):
    """Takes the place of the class that aioquic's connection makes by itself.

    Attributes:
        packets_lost: packets declared lost, and those whose content a probe repeated: what they held was sent again.
        probes: what the probes of all connections on the socket are taken from, None for no limit.
        denied: true when the last time-out sent nothing for that reason.
    """

    packets_lost: int = 0
    probes: ProbeBudget | None = None
    denied: bool = False
    _probed_at: float = -SPACED

    def on_loss_detection_timeout(self, *, now: float) -> None:
        """Declare packets lost, or send a probe; one that the budget denies is as good as lost, and the next is due after twice the time."""
        self.denied = self._get_loss_space() is None and self._is_denied(now)
        if self.denied:
            self._pto_count += 1
        else:
            super().on_loss_detection_timeout(now=now)

    def _is_denied(self, now: float) -> bool:
        # A handshake is bounded by other means: so many at a time, and each by what its peer has sent.
        if self.probes is None or not self.handshake_confirmed:
            return False
        # Nor may a peer have one probe after the other by confirming each: a few such would leave nothing for those who lose a packet.
        if not self.probes.take(now, repeated=self._pto_count > 0 or now < self._probed_at + SPACED):
            return True
        self._probed_at = now
        return False

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
