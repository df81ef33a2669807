"""Retry (RFC 9000 section 8.1.2): a server under load asks clients to show that they receive at the address they send from.

Nothing is remembered for it. The token in a Retry holds what the server needs to know when it comes back, under a keyed hash over that,
the client's address and the connection id that the client must use. To make one costs a hundredth of what a handshake costs.
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import Final

from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    RETRY_AEAD_KEY_VERSION_1,
    RETRY_AEAD_KEY_VERSION_2,
    RETRY_AEAD_NONCE_VERSION_1,
    RETRY_AEAD_NONCE_VERSION_2,
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .engine import Address
from .routing import CONNECTION_ID_LENGTH, MIN_INITIAL_SIZE, Header
from .tls import SUPPORTED_VERSIONS

__all__ = ["InitialRate", "RetryTokens", "initial_token", "refusal"]

LIFETIME: Final = 10.0
"""Seconds that a token is good for: a client sends it back at once, and again while its packets are lost."""

_HASH_BYTES: Final = 16
_MILLISECONDS: Final = 8
_V1, _V2 = SUPPORTED_VERSIONS
_HEAD: Final = {_V1: b"\xf0" + _V1.to_bytes(4, "big"), _V2: b"\xc0" + _V2.to_bytes(4, "big")}
"""The first five bytes of a Retry; QUIC v2 numbers the types differently (RFC 9369 section 3.2)."""
_SEAL: Final = {
    _V1: (AESGCM(RETRY_AEAD_KEY_VERSION_1), RETRY_AEAD_NONCE_VERSION_1),
    _V2: (AESGCM(RETRY_AEAD_KEY_VERSION_2), RETRY_AEAD_NONCE_VERSION_2),
}
"""The key and nonce that the RFCs give for the tag of a Retry (RFC 9001 section 5.8), ready to use: aioquic sets them up each time."""

_REASON: Final = "the token of a Retry is forged, expired or from another address"


def initial_token(data: bytes) -> bytes:
    """Return the token in a client's Initial whose header was parsed; empty when there is none, or it is cut off."""
    # By hand: a buffer to read it from costs as much as all else, and this runs for each packet of a flood.
    try:
        at = 6 + data[5]
        at += 1 + data[at]
        first = data[at]
    except IndexError:
        return b""
    size = 1 << (first >> 6)
    token_at = at + size
    end = token_at + (int.from_bytes(data[at:token_at], "big") & (1 << (8 * size - 2)) - 1)
    return data[token_at:end] if end <= len(data) else b""


class RetryTokens:
    """Makes and checks Retry tokens.

    Args:
        secret: random bytes that nobody else knows.
    """

    __slots__ = ("_ids", "_tokens")

    def __init__(self, secret: bytes) -> None:
        # Keyed once and copied for each use: that takes a sixth of what HMAC takes.
        self._ids = blake2b(key=secret, digest_size=CONNECTION_ID_LENGTH, person=b"id")
        self._tokens = blake2b(key=secret, digest_size=_HASH_BYTES, person=b"token")

    def _source(self, where: bytes, original: bytes) -> bytes:
        """Return the id that a client must use after a Retry."""
        mark = self._ids.copy()
        # Nothing in an address is a zero byte, so no other pair is the same text.
        mark.update(where + b"\0" + original)
        return mark.digest()

    def _seal(self, where: bytes, source: bytes, rest: bytes) -> bytes:
        """Return the part of a token that nobody else can make."""
        mark = self._tokens.copy()
        mark.update(where + b"\0" + bytes((len(source),)) + source + rest)
        return mark.digest()

    def retry(self, header: Header, address: Address, now: float) -> bytes:
        """Return the Retry packet that answers a client's first Initial. ``now`` is the clock that `original_id` is given too."""
        where = _encode(address)
        # The same for each repetition of the Initial: a client takes the first Retry only, and may use any of its tokens.
        original, client = header.destination, header.source
        source = self._source(where, original)
        rest = round(now * 1000).to_bytes(_MILLISECONDS, "big") + original
        packet = b"%b%c%b%c%b%b%b" % (
            *(_HEAD[header.version], len(client), client, len(source), source),
            *(self._seal(where, source, rest), rest),
        )
        cipher, nonce = _SEAL[header.version]
        return packet + cipher.encrypt(nonce, b"", b"%c%b%b" % (len(original), original, packet))

    def original_id(self, token: bytes, header: Header, address: Address, now: float) -> bytes | None:
        """Return the destination id of the client's first Initial; None when the token was not made here, for this client, of late."""
        said, rest = token[:_HASH_BYTES], token[_HASH_BYTES:]
        if not hmac.compare_digest(said, self._seal(_encode(address), header.destination, rest)):
            return None
        issued, original = rest[:_MILLISECONDS], rest[_MILLISECONDS:]
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
