"""Stateless resets (RFC 9000 section 10.3): how a server that has lost its connections, by a crash for one, tells their clients at once.

The token that belongs to a connection id is a keyed hash of the id: whoever has the key can say it without remembering anything. So a
server with the same key as before its restart answers packets of connections it knows nothing of, and a client that reads the token at
the end of such an answer knows that it need not wait for its heartbeat time-out.
"""

from __future__ import annotations

import hmac
from collections.abc import Hashable
from hashlib import blake2b
from typing import Final, Generic, TypeVar

__all__ = ["KEY_BYTES", "MIN_RESET_SIZE", "TOKEN_BYTES", "ResetKey", "ResetTable", "carries_token"]

Owner = TypeVar("Owner", bound=Hashable)

KEY_BYTES: Final = 32
TOKEN_BYTES: Final = 16

MIN_RESET_SIZE: Final = 21
"""Bytes of the smallest stateless reset: 38 unpredictable bits and the token."""

_LARGEST: Final = 43
"""Bytes of the largest one sent: as a packet with a short payload, and no larger."""

_TOKENS_EACH: Final = 8
"""Tokens known of one owner: a peer may change its connection id any number of times."""


class ResetKey:
    """Makes the tokens of one server.

    Args:
        secret: `KEY_BYTES` that nobody else knows.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"expected {KEY_BYTES} bytes, got {len(secret)}")
        self._secret = secret

    def token(self, connection_id: bytes) -> bytes:
        """Return the token of a connection id."""
        return hmac.digest(self._secret, b"reset" + connection_id, "sha256")[:TOKEN_BYTES]

    @staticmethod
    def size_for(trigger: int) -> int:
        """Return the length of the reset that answers a datagram of ``trigger`` bytes, 0 for none.

        Always smaller: of two servers that took each other for clients, one would soon have nothing to say any more.
        """
        size = min(trigger - 1, _LARGEST)
        return size if size >= MIN_RESET_SIZE else 0

    def packet(self, connection_id: bytes, noise: bytes) -> bytes:
        """Return a stateless reset for a packet to this id; ``noise`` are random bytes, and with the token make its length."""
        return bytes((noise[0] & 0x3F | 0x40,)) + noise[1:] + self.token(connection_id)


def carries_token(data: bytes, token: bytes | None) -> bool:
    """Tell whether a datagram ends in this token. Takes as long whatever the difference is: the time must not tell the token."""
    return token is not None and len(data) >= MIN_RESET_SIZE and hmac.compare_digest(data[-TOKEN_BYTES:], token)


class ResetTable(Generic[Owner]):
    """Whose peer says which token. It keeps a keyed hash of each, so that the time a look-up takes tells nothing about them.

    Args:
        secret: random bytes, at most 64.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._owners: dict[bytes, Owner] = {}
        self._marks: dict[Owner, list[bytes]] = {}

    def __len__(self) -> int:
        """Return how many tokens are known."""
        return len(self._owners)

    def _mark(self, token: bytes) -> bytes:
        return blake2b(token, digest_size=TOKEN_BYTES, key=self._secret).digest()

    def add(self, token: bytes, owner: Owner) -> None:
        """Enter a token; the oldest one of an owner that has too many goes."""
        mark = self._mark(token)
        marks = self._marks.setdefault(owner, [])
        if mark not in self._owners:
            self._owners[mark] = owner
            marks.append(mark)
        if len(marks) > _TOKENS_EACH:
            del self._owners[marks.pop(0)]

    def remove_owner(self, owner: Owner) -> None:
        """Take all tokens of an owner out; no effect when it has none."""
        for mark in self._marks.pop(owner, ()):
            del self._owners[mark]

    def lookup(self, data: bytes) -> Owner | None:
        """Return whose peer says the token at the end of a datagram, None when it is no token known here."""
        if not self._owners or len(data) < MIN_RESET_SIZE:
            return None
        return self._owners.get(self._mark(data[-TOKEN_BYTES:]))
