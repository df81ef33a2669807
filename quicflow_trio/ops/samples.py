"""Figures over time: one sample a second, the last fifteen minutes of them."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from itertools import islice

import trio

from ..observe.metrics import MetricsSnapshot
from .view import ServerView

__all__ = ["INTERVAL", "KEPT", "Sample", "Sampler"]

INTERVAL = 1.0
"""Seconds between two samples."""
KEPT = 900
"""Samples kept."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What happened within about a second.

    Attributes:
        at: its end, Unix seconds.
        connected_clients: clients connected then.
        sent_per_second: messages sent.
        received_per_second: messages received.
        bytes_per_second: bytes sent and received.
        p50_ms: half of the requests acked within this second took at most so long, milliseconds; None when there were none.
        p99_ms: the same of 99 % of them.
        promise_active: requests that waited for their ack then.
    """

    at: float
    connected_clients: int
    sent_per_second: float
    received_per_second: float
    bytes_per_second: float
    p50_ms: float | None
    p99_ms: float | None
    promise_active: int


class Sampler:
    """Takes the samples, and keeps the last."""

    def __init__(self, view: ServerView) -> None:
        self._view = view
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Take a sample each second, for ever."""
        earlier, then = self._view.metrics(), trio.current_time()
        due = then
        while True:
            # On a grid, so that 900 of them are fifteen minutes; what a busy process missed is not made up for.
            due = max(due + INTERVAL, trio.current_time())
            await trio.sleep_until(due)
            later, now = self._view.metrics(), trio.current_time()
            if now > then:
                self._samples.append(compare(earlier, later, now - then))
            earlier, then = later, now

    def recent(self, count: int) -> list[dict[str, object]]:
        """Return the last samples, oldest first, as plain values."""
        skipped = max(0, len(self._samples) - count)
        return [asdict(sample) for sample in islice(self._samples, skipped, None)]


def compare(earlier: MetricsSnapshot, later: MetricsSnapshot, seconds: float) -> Sample:
    """Return what happened between two snapshots that were taken so many seconds apart."""
    latency = later.latency.since(earlier.latency)
    measured = latency.count > 0
    moved = later.bytes_sent + later.bytes_received - earlier.bytes_sent - earlier.bytes_received
    return Sample(
        at=later.timestamp,
        connected_clients=later.connected_clients,
        sent_per_second=(later.messages_sent - earlier.messages_sent) / seconds,
        received_per_second=(later.messages_received - earlier.messages_received) / seconds,
        bytes_per_second=moved / seconds,
        p50_ms=latency.quantile(0.5) * 1000 if measured else None,
        p99_ms=latency.quantile(0.99) * 1000 if measured else None,
        promise_active=later.promise_active,
    )
