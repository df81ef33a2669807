"""A history by what the rules ask of it: `Index`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

from .history import Happened, History, Record
from .rules import Promise

__all__ = ["Index"]

_BEGINNINGS = frozenset({Happened.ASKED, Happened.SENT})
_ENDS = frozenset({Happened.ACKED, Happened.MIXED_UP, Happened.DELIVERED, Happened.FAILED, Happened.CANCELLED})


@final
class Index:
    """A history by what the rules ask for."""

    def __init__(self, history: History, promise: Promise) -> None:
        self.promise = promise
        self.all: list[Record] = list(history)
        self.beginnings: dict[int, Record] = {}
        self.ends: dict[int, list[Record]] = {}
        self.starts: list[Record] = []
        self.started: dict[tuple[int, str], list[Record]] = {}
        self.handled: dict[tuple[int, str], list[Record]] = {}
        self.births: dict[str, Record] = {}
        self.deaths: dict[str, Record] = {}
        self.partings: dict[tuple[str, str], list[Record]] = {}
        self._between: dict[frozenset[str], list[Record]] = {}
        self.jumps: list[Record] = []
        self._calm: list[tuple[float, float]] = []
        self._calm_since = 0.0
        for record in self.all:
            self._enter(record)

    def _enter(self, record: Record) -> None:
        what, message = record.what, record.message
        if what in _BEGINNINGS:
            self.beginnings[message] = record
        elif what in _ENDS:
            self.ends.setdefault(message, []).append(record)
        elif what is Happened.STARTED:
            self.starts.append(record)
            self.started.setdefault((message, record.host), []).append(record)
        elif what is Happened.ENDED:
            self.handled.setdefault((message, record.host), []).append(record)
        elif what is Happened.BORN:
            self.births[record.process] = record
        elif what is Happened.DIED:
            self.deaths[record.process] = record
        elif what in (Happened.CONNECTED, Happened.DISCONNECTED):
            self.partings.setdefault((record.process, record.peer), []).append(record)
            self._between.setdefault(frozenset((record.host, record.peer)), []).append(record)
        elif what is Happened.JUMPED:
            self.jumps.append(record)
        elif what is Happened.FAULT:
            if self._calm_since < math.inf:
                self._calm.append((self._calm_since, record.at))
            self._calm_since = math.inf
        elif what is Happened.CALM:
            self._calm_since = record.at

    def lateness(self, start: float, end: float) -> float:
        """Return how late something may be that a time-out was to end between these times."""
        # A jump carries both ends with it: it counts if any part of it lies in between.
        return self.promise.slack + sum(float(jump.detail) for jump in self.jumps if start <= jump.at + 1e-6 and jump.at <= end)

    def calm_spans(self, start: float, end: float) -> Iterator[tuple[float, float]]:
        """Yield the parts of a time without a fault."""
        for since, until in (*self._calm, (self._calm_since, math.inf)):
            if max(since, start) < min(until, end):
                yield max(since, start), min(until, end)

    def calm(self, start: float, end: float) -> bool:
        """Return whether there was no fault between these times."""
        return any(since <= start and end <= until for since, until in (*self._calm, (self._calm_since, math.inf)))

    def died(self, host: str, start: float, end: float) -> bool:
        """Return whether a process of a host ended between these times."""
        return any(death.host == host and start <= death.at <= end for death in self.deaths.values())

    def disconnects(self, host: str, peer: str, start: float, end: float) -> Iterator[Record]:
        """Yield what the processes of two hosts, either of them, saw of the ends of their connections between these times."""
        for record in self.partings_of(host, peer):
            if record.what is Happened.DISCONNECTED and start <= record.at <= end:
                yield record

    def partings_of(self, host: str, peer: str) -> list[Record]:
        """Return the beginnings and ends of connections between two hosts, as both of them saw them, in order."""
        return self._between.get(frozenset((host, peer)), [])

    def parted(self, host: str, peer: str, start: float, end: float) -> bool:
        """Return whether the session of two hosts may have ended between these times although their processes did not.

        One of them closed it, or they were without a connection for as long as a session is kept.
        """
        slack = self.promise.slack
        ends = self.promise.session_ends
        if any(_reason(record) in ends for record in self.disconnects(host, peer, start - slack, end + slack)):
            return True
        return self._apart(host, peer, start, end) >= self.promise.session_ttl - slack

    def _apart(self, host: str, peer: str, start: float, end: float) -> float:
        """Return the longest time, at most, that two hosts were without a connection and that ended in these times; both views count."""
        longest = since = 0.0
        for record in self.partings_of(host, peer):
            if record.at > end:
                break
            if record.what is Happened.CONNECTED:
                if since < math.inf and record.at >= start:
                    longest = max(longest, record.at - since)
                since = math.inf
            else:
                since = min(since, record.at)
        return max(longest, end - since)


def _reason(record: Record) -> str:
    return record.detail.partition(" ")[0]
