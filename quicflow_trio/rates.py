"""How much a client may send: `RateLimit` says it, a `Meter` measures it. Pure: ``now`` comes in."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from .errors import ConfigurationError

__all__ = ["Meter", "Meters", "RateLimit", "TokenBucket"]

METERS = 10_000
"""Clients whose meters are remembered: who comes back at once finds his as he left it."""
_SLACK = 1e-9
"""Seconds that are forgiven, as sums of floats are not exact: who waits as long as he was told is let through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """How much one client may send, over all its lanes and connections. Two token buckets: one of messages, one of payload bytes.

    Attributes:
        messages: messages per second.
        bytes: payload bytes per second.
        burst: seconds' worth of both that may come at once after a silence. A single message that is larger than that is taken when
            nothing else has been for as long, and paid for afterwards.
    """

    messages: float = math.inf
    bytes: float = math.inf
    burst: float = 1.0

    def __post_init__(self) -> None:
        for name in ("messages", "bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigurationError(f"RateLimit.{name} = {value!r}: expected more than 0 per second")
        if isinstance(self.burst, bool) or not isinstance(self.burst, int | float) or not 0 < self.burst <= 3600:
            raise ConfigurationError(f"RateLimit.burst = {self.burst!r}: expected more than 0 and at most 3,600 seconds")


class TokenBucket:
    """A token bucket as one number: when it will be full again (the virtual scheduling form of ITU-T I.371's GCRA).

    Args:
        rate: tokens per second; infinity never runs out.
        burst: seconds that an empty bucket takes to fill.
    """

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, rate: float, burst: float) -> None:
        self._interval = 1 / rate
        self._burst = burst
        self._full_at = -math.inf

    def wait(self, tokens: float, now: float) -> float:
        """Return the seconds until so many tokens are there; 0 when they are. More than the bucket holds need a full one."""
        missing = max(self._full_at - now, 0.0) + min(tokens * self._interval, self._burst) - self._burst
        return missing if missing > _SLACK else 0.0

    def take(self, tokens: float, now: float) -> None:
        """Take tokens, whether they are there or not: what is missing is paid for before the next ones."""
        self._full_at = max(self._full_at, now) + tokens * self._interval


class Meter:
    """Measures what one client sends.

    Args:
        limit: what it may.
    """

    __slots__ = ("_bytes", "_messages", "limit")

    def __init__(self, limit: RateLimit) -> None:
        self.limit: RateLimit = limit
        self._messages = TokenBucket(limit.messages, limit.burst)
        self._bytes = TokenBucket(limit.bytes, limit.burst)

    def take(self, size: int, now: float) -> float:
        """Count a message of ``size`` bytes and return 0, or return in how many seconds it may come again and count nothing."""
        wait = max(self._messages.wait(1, now), self._bytes.wait(size, now))
        if not wait:
            self._messages.take(1, now)
            self._bytes.take(size, now)
        return wait


class Meters:
    """The meters of a server's clients, by client id; those that were asked for least lately are forgotten first."""

    def __init__(self) -> None:
        self._meters: OrderedDict[str, Meter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._meters)

    def of(self, client_id: str, limit: RateLimit) -> Meter:
        """Return the meter of a client: a new connection finds the one of the last, unless the limit has changed."""
        meter = self._meters.get(client_id)
        if meter is None or meter.limit != limit:
            meter = self._meters[client_id] = Meter(limit)
        self._meters.move_to_end(client_id)
        if len(self._meters) > METERS:
            self._meters.popitem(last=False)
        return meter
