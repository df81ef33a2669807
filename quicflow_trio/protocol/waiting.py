"""Waiting for acks: the capped table and the one heap of deadlines. No IO, no clock: ``now`` comes in."""

from __future__ import annotations

import heapq
import math
from typing import Protocol

from ..errors import WaitingTableFull

__all__ = ["DeadlineHeap", "Expiring", "WaitingShare", "WaitingTable"]


class WaitingTable:
    """How many requests wait for an ack, over all sessions of one server or in one client.

    The waiters themselves stand in their lane, by sequence number: an ack can then never reach a request of another session.

    Attributes:
        limit: most waiters at once.
        share: most waiters of one session.
        active: waiters now.
        created: waiters since the start.
        refused: requests refused because the table or the share was full.
        timed_out: waiters that left because their time was over.
        abandoned: waiters that left with neither an ack nor a time-out.
    """

    __slots__ = ("abandoned", "active", "created", "limit", "refused", "share", "timed_out")

    def __init__(self, limit: int, share: int) -> None:
        self.limit: int = limit
        self.share: int = share
        self.active: int = 0
        self.created: int = 0
        self.refused: int = 0
        self.timed_out: int = 0
        self.abandoned: int = 0

    @property
    def acked(self) -> int:
        """Return how many waiters left with their ack: one whose ack came and that has not run since is still active."""
        return self.created - self.active - self.timed_out - self.abandoned


class WaitingShare:
    """One session's part of a `WaitingTable`.

    Attributes:
        active: waiters of this session now.
    """

    __slots__ = ("_table", "active")

    def __init__(self, table: WaitingTable) -> None:
        self._table = table
        self.active: int = 0

    def enter(self) -> None:
        """Count one more waiter.

        Raises:
            WaitingTableFull: nothing was counted.
        """
        table = self._table
        if table.active >= table.limit:
            table.refused += 1
            raise WaitingTableFull(f"{table.active:,} requests wait for an ack already, the limit is {table.limit:,}")
        if self.active >= table.share:
            table.refused += 1
            raise WaitingTableFull(
                f"{self.active:,} requests of this session wait for an ack already, its share is {table.share:,}"
            )
        table.active += 1
        table.created += 1
        self.active += 1

    def leave(self, *, acked: bool = True, timed_out: bool = False) -> None:
        """Count one waiter less, and how it ended."""
        table = self._table
        table.active -= 1
        self.active -= 1
        if not acked:
            if timed_out:
                table.timed_out += 1
            else:
                table.abandoned += 1


class Expiring(Protocol):
    """What stands in a `DeadlineHeap`."""

    @property
    def live(self) -> bool:
        """False once the deadline no longer matters."""

    def expire(self, now: float) -> None:
        """Act on the deadline; called once, when it has passed, if still live."""


class DeadlineHeap:
    """Deadlines in one heap. Entries that ended early stay until they come up or make up more than half of the heap.

    So adding costs a push, ending early costs one subtraction, and memory stays within twice the live entries. A Trio scope per
    request would cost 4-5 us each.

    Attributes:
        due: when `expire` is to be called; infinity when nothing waits. It may be too early, never too late.
    """

    __slots__ = ("_entries", "_order", "_stale", "due")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Expiring]] = []
        self._order = 0
        self._stale = 0
        self.due: float = math.inf

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, deadline: float, entry: Expiring) -> None:
        """Let ``entry.expire`` be called at ``deadline``; an infinite one is not kept."""
        if deadline == math.inf:
            return
        self._order = order = self._order + 1
        heapq.heappush(self._entries, (deadline, order, entry))
        if deadline < self.due:
            self.due = deadline
            self._due_sooner()

    def _due_sooner(self) -> None:
        """Act on a `due` that has become earlier; for whoever sleeps until then."""

    def ended_early(self) -> None:
        """Say that an entry with a finite deadline is no longer live."""
        self._stale += 1
        if self._stale > 64 and self._stale * 2 > len(self._entries):
            self._entries = [item for item in self._entries if item[2].live]
            heapq.heapify(self._entries)
            self._stale = 0

    def next_deadline(self) -> float:
        """Return the earliest deadline that matters still; infinity when there is none."""
        entries = self._entries
        while entries and not entries[0][2].live:
            heapq.heappop(entries)
            self._stale = max(0, self._stale - 1)
        return entries[0][0] if entries else math.inf

    def expire(self, now: float) -> None:
        """Call ``expire`` of every live entry whose deadline has come."""
        while self.next_deadline() <= now:
            _, _, entry = heapq.heappop(self._entries)
            entry.expire(now)
        self.due = self.next_deadline()
