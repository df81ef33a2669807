"""What a qh3 connection takes from a peer before it is too much: handshake data and key updates. The core counts neither."""

from __future__ import annotations

from typing import Final

from .limits import KEY_UPDATE_BURST, KEY_UPDATES_PER_SECOND, MAX_CRYPTO_BYTES, MAX_CRYPTO_FRAMES

__all__ = ["MAX_HANDSHAKE_BYTES", "HandshakeBudget", "KeyUpdates"]

MAX_HANDSHAKE_BYTES: Final = 2 * MAX_CRYPTO_BYTES
"""Bytes of datagrams with long headers taken before the handshake is done: the core keeps what is out of order byte by byte."""


class HandshakeBudget:
    """Counts handshake data; a method returns false when it is too much."""

    __slots__ = ("_crypto_bytes", "_crypto_pieces", "_datagram_bytes")

    def __init__(self) -> None:
        self._datagram_bytes = 0
        self._crypto_bytes = 0
        self._crypto_pieces = 0

    def take_datagram(self, size: int) -> bool:
        """Count a datagram of the handshake."""
        self._datagram_bytes += size
        return self._datagram_bytes <= MAX_HANDSHAKE_BYTES

    def take_crypto(self, size: int) -> bool:
        """Count a piece of handshake data, at any time of the connection's life: TLS copies what it holds on each one."""
        self._crypto_bytes += size
        self._crypto_pieces += 1
        return self._crypto_bytes <= MAX_CRYPTO_BYTES and self._crypto_pieces <= MAX_CRYPTO_FRAMES


class KeyUpdates:
    """Counts a peer's key updates. The core takes one with every packet, each at four key derivations."""

    __slots__ = ("_phase", "_since", "_tokens")

    def __init__(self) -> None:
        self._phase: int | None = None
        self._tokens = float(KEY_UPDATE_BURST)
        self._since = 0.0

    def bearable(self, phase: int | None, now: float) -> bool:
        """Note the phase of the receiving key after a packet; false when it has changed too often."""
        if phase == self._phase:
            return True
        before, self._phase = self._phase, phase
        if before is None:
            return True
        earned = (now - self._since) * KEY_UPDATES_PER_SECOND
        self._tokens = min(self._tokens + earned, float(KEY_UPDATE_BURST)) - 1
        self._since = now
        return self._tokens >= 0
