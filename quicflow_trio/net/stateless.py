"""What a server answers without a connection, and remembering nothing: Retry, INVALID_TOKEN, stateless resets.

Whoever these go to may have forged the address, so each is smaller than what it answers, or all but, and the dear ones are bounded in
number. What the socket does not take is dropped: the sender repeats its packet, and to wait here would stop the reading for everyone.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from typing import NamedTuple

from ..quic.engine import Address
from ..quic.resets import KEY_BYTES, ResetKey
from ..quic.retry import RetryTokens, initial_token, refusal
from ..quic.routing import Header

__all__ = ["Answer", "AnswerKind", "Doorkeeper"]

RESETS_PER_SECOND = 2000.0
"""Stateless resets sent: a burst of as many, then so many per second. At 10 to 15 us each, sending included, that is a thirtieth of a core."""
RETRIES_PER_SECOND = 10_000.0
"""Retries sent, likewise: a flood of first packets takes a sixth of a core at most, and one client of a flood twice as fast gets its
Retry by the second try."""
REFUSALS_PER_SECOND = 100.0
"""Closes with INVALID_TOKEN sent, likewise. Each derives keys, which costs twenty times as much as a Retry."""


class _Bucket:
    """A token bucket that holds what one second brings."""

    __slots__ = ("_at", "_left", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._left = rate
        self._at = 0.0

    def take(self, now: float) -> bool:
        self._left = min(self._rate, self._left + max(0.0, now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class AnswerKind(enum.Enum):
    """What an answer is."""

    NEGOTIATION = "version negotiation"
    RETRY = "retry"
    REFUSAL = "invalid token"
    RESET = "stateless reset"


class Answer(NamedTuple):
    """An answer to a client that is not admitted.

    Attributes:
        kind: what it is.
        data: the datagram to send; None when there were too many of its kind.
    """

    kind: AnswerKind
    data: bytes | None


class Doorkeeper:
    """Decides which packets of unknown connections get an answer, and makes it. One for each server.

    Args:
        key: makes the tokens of stateless resets; None makes a random one, which is gone after a restart.
        must_retry: tells, for a first packet without a token at a time (Trio clock), whether its sender must show first that its
            address is its own.

    Attributes:
        key: as given, or made.
        tokens_refused: Initials whose Retry token was forged, expired or from another address, answered or not.
    """

    def __init__(self, key: ResetKey | None = None, must_retry: Callable[[float], bool] = lambda now: False) -> None:
        self.key: ResetKey = key or ResetKey(os.urandom(KEY_BYTES))
        self.tokens_refused: int = 0
        # Not of the key that outlives a restart: these tokens live for seconds, and are dated by a clock that starts anew.
        self._tokens = RetryTokens(os.urandom(KEY_BYTES))
        self._must_retry = must_retry
        self._resets = _Bucket(RESETS_PER_SECOND)
        self._retries = _Bucket(RETRIES_PER_SECOND)
        self._refusals = _Bucket(REFUSALS_PER_SECOND)

    def admit(self, header: Header, data: bytes, address: Address, now: float) -> Header | Answer:
        """Look at an Initial that belongs to no connection; return the header to make one of, or what to answer instead."""
        token = initial_token(data)
        if not token:
            if not self._must_retry(now):
                return header
            return Answer(AnswerKind.RETRY, self._tokens.retry(header, address, now) if self._retries.take(now) else None)
        original = self._tokens.original_id(token, header, address, now)
        if original is not None:
            return header._replace(original=original)
        # A client takes no second Retry, so it is told at once (RFC 9000 section 8.1.2).
        self.tokens_refused += 1
        return Answer(AnswerKind.REFUSAL, refusal(header) if self._refusals.take(now) else None)

    def reset(self, header: Header, now: float) -> bytes | None:
        """Return the stateless reset for a short header of an unknown connection, None when there were too many or it is too small."""
        size = self.key.size_for(header.size)
        if not size or not self._resets.take(now):
            return None
        return self.key.packet(header.destination, os.urandom(size - 16))
