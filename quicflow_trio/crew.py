"""Who works for a dispatcher: one `Worker` per handler under way, counted by the `Crew` of the client, timed by the `Watch`."""

from __future__ import annotations

import math
from typing import Protocol

import trio

from .deadlines import Deadlines
from .protocol.lane_receiver import Incoming

__all__ = ["Crew", "Watch", "Worker"]


class Follower(Protocol):
    """What a crew knows of a dispatcher."""

    def follow(self) -> None:
        """Start one more worker if there is something that it could start."""


class Crew:
    """How many handlers run for one client id, over the sessions that it has had: old ones may still be finishing theirs.

    Attributes:
        running: handlers that run now.
        blocked: dispatchers that could start one if there were fewer.
    """

    __slots__ = ("blocked", "running")

    def __init__(self) -> None:
        self.running: int = 0
        self.blocked: dict[Follower, None] = {}


class Worker:
    """What one worker is doing: read by the `Watch` and by remote cancellation.

    Attributes:
        incoming: the message whose handler runs, None between two.
        started: when that began (Trio clock), infinity between two.
        cancelled: true once `cancel` was called, until `renew` is. (To ask the scope takes three looks at the clock.)
    """

    __slots__ = ("_scope", "cancelled", "incoming", "started")

    def __init__(self) -> None:
        self.incoming: Incoming | None = None
        self.started: float = math.inf
        self.cancelled: bool = False
        self._scope = trio.CancelScope()

    def renew(self) -> trio.CancelScope:
        """Return a fresh scope to run handlers in: for many messages, until one of them is cancelled."""
        self.cancelled = False
        self._scope = trio.CancelScope()
        return self._scope

    def cancel(self) -> None:
        """Stop the handler that runs now."""
        self.cancelled = True
        self._scope.cancel()


class Watch:
    """The deadline of handlers: one entry among the timers for all workers, so that a message costs no more than a time stamp.

    Args:
        workers: whose handlers it watches, a live set.
        timeout: seconds that a handler may run; infinity lets it.
        deadlines: where the watch stands.

    Attributes:
        live: true while it stands there (`Deadlines` asks).
    """

    __slots__ = ("_deadlines", "_timeout", "_workers", "live")

    def __init__(self, workers: set[Worker], timeout: float, deadlines: Deadlines) -> None:
        self._workers = workers
        self._timeout = timeout
        self._deadlines = deadlines
        self.live: bool = False

    def begin(self, now: float) -> None:
        """Watch a handler that begins now; not to be called while it is live: it stands for an earlier one then."""
        if self._timeout != math.inf:
            self.live = True
            self._deadlines.add(now + self._timeout, self)

    def expire(self, now: float) -> None:
        """Cancel handlers past their deadline and look again when the next one is due."""
        oldest = math.inf
        for worker in self._workers:
            if worker.started + self._timeout <= now:
                worker.cancel()
            elif worker.started < oldest:
                oldest = worker.started
        self.live = False
        if oldest != math.inf:
            self.begin(oldest)

    def stop(self) -> None:
        """Leave the timers: there it would hold the whole session for as long as a handler may run."""
        if self.live:
            self.live = False
            self._deadlines.ended_early()
