"""What became of each client: the last changes in its life on this server, also after it has left."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["CHANGES", "CLIENTS", "History", "HistoryBook", "SessionChange"]

CHANGES = 100
"""Changes kept for each client."""
CLIENTS = 10_000
"""Clients that have left whose changes are kept; the one that left first goes first."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change in a client's life on this server.

    Attributes:
        at: when, Unix seconds.
        change: ``connected``, ``replaced``, ``disconnected`` or ``closed``.
        detail: the remote address or the reason, as text.
    """

    at: float
    change: str
    detail: str


class History(list[SessionChange]):
    """The last changes of one client. A list: an empty deque holds 0.7 KB, and most clients connect once."""

    __slots__ = ()

    def append(self, change: SessionChange) -> None:
        """Add a change; the oldest goes when there are 100."""
        if len(self) >= CHANGES:
            del self[0]
        super().append(change)


class HistoryBook:
    """The histories of all clients by id: of those here, and of the last 10,000 that left."""

    def __init__(self, clients: int = CLIENTS) -> None:
        self._limit = clients
        self._here: dict[str, History] = {}
        # In the order of leaving.
        self._gone: OrderedDict[str, History] = OrderedDict()

    def of(self, client_id: str) -> tuple[SessionChange, ...]:
        """Return the changes of a client, oldest first; empty when nothing is known of it."""
        changes = self._here.get(client_id) or self._gone.get(client_id)
        return () if changes is None else tuple(changes)

    def gone(self) -> list[str]:
        """Return the ids of clients that have left, the latest first."""
        return [*reversed(self._gone)]

    def enter(self, client_id: str) -> History:
        """Return the history to write for a client that is here from now on."""
        changes = self._here.get(client_id)
        if changes is None:
            changes = self._gone.pop(client_id, None) or History()
            self._here[client_id] = changes
        return changes

    def leave(self, client_id: str) -> None:
        """Note that a client has left: its history is kept until 10,000 others have left after it."""
        changes = self._here.pop(client_id, None)
        if changes is not None:
            self._gone[client_id] = changes
            if len(self._gone) > self._limit:
                self._gone.popitem(last=False)
