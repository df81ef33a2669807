"""Every bound the engine puts on a peer, in one place: constants, and the credit that an endpoint chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "ACK_DELAY",
    "CONNECTION_IDS",
    "KEY_UPDATES_PER_SECOND",
    "KEY_UPDATE_BURST",
    "KEY_UPDATE_INTERVAL",
    "MAX_CRYPTO_BYTES",
    "LOSSY_PROBE_INTERVAL",
    "LOSSY_PTO_DOUBLINGS",
    "MAX_CRYPTO_FRAMES",
    "MAX_PENDING_RANGES",
    "MAX_PROBE_INTERVAL",
    "MAX_PTO_DOUBLINGS",
    "MAX_REASON_BYTES",
    "STANDSTILL",
    "Windows",
]

MAX_PENDING_RANGES: Final = 512
"""Fragments with holes between them that one stream may hold: inserting into aioquic's list of ranges costs time in its length."""

MAX_CRYPTO_BYTES: Final = 64 * 1024
"""Handshake bytes taken from a peer in Initial and Handshake packets together; a certificate chain takes 2 to 6 KiB."""

MAX_CRYPTO_FRAMES: Final = 1024
"""CRYPTO frames taken from a peer, over the connection's life: TLS copies what it holds on each one."""

MAX_REASON_BYTES: Final = 256
"""Longest reason beside a close code: it is written up to three times into one datagram of 1,200 bytes."""

STANDSTILL: Final = 1024
"""Bytes of a stream's credit that a sender may leave unused though it has more to send: ours keep as many for cancellations."""

MAX_PROBE_INTERVAL: Final = 4.0
"""Seconds between probes up to which their interval doubles (RFC 9002 section 6.2 has no ceiling); the round trip must be shorter."""

MAX_PTO_DOUBLINGS: Final = 3
"""Doublings that are allowed at any rate, however long the probe time-out is."""

LOSSY_PROBE_INTERVAL: Final = 1.0
"""The same two for the ``lossy`` congestion control: where most of the probes are lost, they must not become rare."""

LOSSY_PTO_DOUBLINGS: Final = 1

ACK_DELAY: Final = 0.01
"""Seconds that the ACK of a single packet waits for something to go with it. We announce 25 ms (RFC 9000 section 13.2.1)."""

CONNECTION_IDS: Final = 4
"""Connection ids that either side may use for the other at one time."""

KEY_UPDATE_INTERVAL: Final = 2**20
"""Packets after which the keys change, below AES-GCM's confidentiality limit of 2**23 (RFC 9001 section 6.6)."""

KEY_UPDATE_BURST: Final = 16
KEY_UPDATES_PER_SECOND: Final = 4.0
"""Key updates taken from a peer: a burst, then so many per second. Each costs four key derivations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Receive credit that a peer starts with. Stream windows grow by `Engine.grant` only.

    Attributes:
        stream_in: bytes on each stream that the peer opens.
        stream_out: bytes on the return half of each stream that this side opens.
        connection: bytes over all streams ahead of what has arrived; more than the streams' windows together, so that no stopped
            stream stops another.
        streams: bidirectional streams the peer may have open at once; unidirectional ones are refused.
    """

    stream_in: int
    stream_out: int
    connection: int
    streams: int
