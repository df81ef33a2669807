"""Retry (RFC 9000 section 8.1.2): a server under load asks clients to show that they receive at the address they send from.

Nothing is remembered for it. The token in a Retry holds what the server needs to know when it comes back, under a keyed hash over that,
the client's address and the connection id that the client must use. To make one costs a hundredth of what a handshake costs.
"""

from __future__ import annotations

import hmac
from typing import Final

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType, encode_quic_retry
from aioquic.quic.packet_builder import QuicPacketBuilder

from .engine import Address
from .routing import CONNECTION_ID_LENGTH, MIN_INITIAL_SIZE, Header

__all__ = ["InitialRate", "RetryTokens", "initial_token", "refusal"]

LIFETIME: Final = 10.0
"""Seconds that a token is good for: a client sends it back at once, and again while its packets are lost."""

_HASH_BYTES: Final = 16
_MILLISECONDS: Final = 8
_REASON: Final = "the token of a Retry is forged, expired or from another address"


def initial_token(data: bytes) -> bytes:
    """Return the token in a client's Initial whose header was parsed; empty when there is none, or it is cut off."""
    buf = Buffer(data=data)
    try:
        buf.seek(5)
        for _ in range(2):
            buf.pull_bytes(buf.pull_uint8())
        token: bytes = buf.pull_bytes(buf.pull_uint_var())
    except ValueError:
        return b""
    return token


class RetryTokens:
    """Makes and checks Retry tokens.

    Args:
        secret: random bytes that nobody else knows.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _hash(self, *parts: bytes) -> bytes:
        # Each part with its length, so that no two lists of parts are the same bytes.
        text = b"".join(len(part).to_bytes(2, "big") + part for part in parts)
        return hmac.digest(self._secret, text, "sha256")[:_HASH_BYTES]

    def retry(self, header: Header, address: Address, now: float) -> bytes:
        """Return the Retry packet that answers a client's first Initial. ``now`` is the clock that `original_id` is given too."""
        where = _encode(address)
        # The same for each repetition of the Initial: a client takes the first Retry only, and may use any of its tokens.
        source = self._hash(b"id", where, header.destination)[:CONNECTION_ID_LENGTH]
        issued = round(now * 1000).to_bytes(_MILLISECONDS, "big")
        token = self._hash(b"token", where, source, issued, header.destination) + issued + header.destination
        return encode_quic_retry(
            version=header.version,
            source_cid=source,
            destination_cid=header.source,
            original_destination_cid=header.destination,
            retry_token=token,
        )

    def original_id(self, token: bytes, header: Header, address: Address, now: float) -> bytes | None:
        """Return the destination id of the client's first Initial; None when the token was not made here, for this client, of late."""
        said, rest = token[:_HASH_BYTES], token[_HASH_BYTES:]
        issued, original = rest[:_MILLISECONDS], rest[_MILLISECONDS:]
        if not hmac.compare_digest(said, self._hash(b"token", _encode(address), header.destination, issued, original)):
            return None
        age = now - int.from_bytes(issued, "big") / 1000
        return original if -1.0 <= age <= LIFETIME else None


def refusal(header: Header) -> bytes:
    """Return an Initial that closes with INVALID_TOKEN, for a client whose token is none. Costs two key derivations: bound the rate."""
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination,
        peer_cid=header.source,
        version=header.version,
        is_client=False,
        max_datagram_size=MIN_INITIAL_SIZE,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    reason = _REASON.encode()
    buf = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=len(reason) + 24)
    buf.push_uint_var(QuicErrorCode.INVALID_TOKEN)
    buf.push_uint_var(QuicFrameType.PADDING)
    buf.push_uint_var(len(reason))
    buf.push_bytes(reason)
    datagrams, _ = builder.flush()
    return datagrams[0]


def _encode(address: Address) -> bytes:
    return f"{address[0]} {address[1]}".encode()


class InitialRate:
    """Tells when first packets come faster than a server should answer in full.

    Args:
        per_second: how many may come in a second; more than that in this second, or the one before, is too fast.
    """

    __slots__ = ("_before", "_count", "_per_second", "_second")

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._count = 0
        self._before = 0

    def too_fast(self, now: float) -> bool:
        """Count a first packet; return whether it is one of too many. Stays true for a second after the rate has fallen."""
        second = int(now)
        if second != self._second:
            self._before = self._count if second == self._second + 1 else 0
            self._second = second
            self._count = 0
        self._count += 1
        return max(self._count, self._before) > self._per_second
