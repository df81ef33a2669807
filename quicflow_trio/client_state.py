"""What a client shows of itself: its state, how it changed, its figures."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .peer import PeerStatistics

__all__ = ["ClientState", "ClientStatistics", "StateChange"]


class ClientState(enum.Enum):
    """Where a client stands. It goes round: idle, connecting, connected, idle ..."""

    IDLE = "idle"
    """Not connected: before the first attempt, between attempts, after the end."""
    CONNECTING = "connecting"
    """An attempt is under way: QUIC handshake, then hello and welcome."""
    CONNECTED = "connected"
    """Messages flow."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """One change of a client's state.

    Attributes:
        at: when, on Trio's clock, seconds.
        state: the new state.
        reason: why, as text; empty where the state says it all.
    """

    at: float
    state: ClientState
    reason: str


@dataclass(frozen=True, slots=True)
class ClientStatistics(PeerStatistics):
    """A client in figures: those of its session, and those of its connections.

    Attributes:
        state: the state now.
        attempts: connection attempts so far.
        connects: attempts that led to a connection.
        rtt: round trip of the last heartbeat, seconds; None before the first.
        history: the last 100 changes of state, oldest first.
    """

    state: ClientState
    attempts: int
    connects: int
    rtt: float | None
    history: tuple[StateChange, ...]
