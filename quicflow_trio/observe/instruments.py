"""What one server, or one client, is observed by: its counters and its events, carried to wherever something happens."""

from __future__ import annotations

import time

import trio

from .events import ConnectEvent, ErrorEvent, EventHub, ReconnectEvent
from .logs import printable
from .metrics import Counters, count

__all__ = ["Instruments"]


class Instruments:
    """Counters and events of one server or client.

    Attributes:
        counters: plain numbers; whoever does something counts it.
        events: who listens, if anybody.
        started: when it was made, on Trio's clock.
        epoch: Unix time minus Trio's clock. Fixed at the start: a wall clock that jumps must not move what was measured.
    """

    __slots__ = ("counters", "epoch", "events", "started")

    def __init__(self) -> None:
        now = trio.current_time()
        self.started: float = now
        self.epoch: float = time.time() - now
        self.counters: Counters = Counters(now)
        self.events: EventHub = EventHub(self.epoch)

    def hook_failed(self) -> None:
        """Count a hook that raised."""
        self.counters.hook_failures += 1

    def report_error(self, client_id: str, error: str, detail: str) -> None:
        """Report that something went wrong; see `ErrorEvent`."""
        events = self.events
        if events.active:
            events.emit(ErrorEvent(at=events.now(), client_id=client_id, error=error, detail=printable(detail)))

    def report_connect(
        self, client_id: str, address: tuple[str, int], protocol: str, *, away: float | None, attempts: int, resumed: bool = False
    ) -> None:
        """Count and report that a connection stands; ``away`` is None the first time, see `ReconnectEvent`."""
        self.counters.connections += 1
        count(self.counters.connections_by_protocol, protocol)
        events = self.events
        if events.active:
            now = events.now()
            events.emit(ConnectEvent(at=now, client_id=client_id, remote_address=address, protocol=protocol))
            if away is not None:
                events.emit(ReconnectEvent(at=now, client_id=client_id, away=away, attempts=attempts, resumed=resumed))
