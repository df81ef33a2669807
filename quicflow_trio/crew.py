"""Who works for a dispatcher: one `Worker` per handler under way, counted by the `Crew` of the client."""

from __future__ import annotations

import math
from typing import Protocol

import trio

from .protocol.lane_receiver import Incoming

__all__ = ["Crew", "Worker"]


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
    """What one worker is doing: read by the deadline watch and by remote cancellation.

    Attributes:
        incoming: the message whose handler runs, None between two.
        started: when that began (Trio clock), infinity between two.
        scope: what its handlers run in; kept over many messages, renewed when it was cancelled.
    """

    __slots__ = ("incoming", "scope", "started")

    def __init__(self) -> None:
        self.incoming: Incoming | None = None
        self.started: float = math.inf
        self.scope: trio.CancelScope = trio.CancelScope()

    def cancel(self) -> None:
        """Stop the handler that runs now."""
        self.scope.cancel()
