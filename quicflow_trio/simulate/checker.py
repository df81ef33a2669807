"""Hold a history against the promise: `check` returns every breach. It sees records only, never the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

from .history import Happened, History, Record
from .rules import PROMISE, Promise
from .schedule import SERVER

__all__ = ["Violation", "check"]

_BEGINNINGS = frozenset({Happened.ASKED, Happened.SENT})
_ENDS = frozenset({Happened.ACKED, Happened.MIXED_UP, Happened.DELIVERED, Happened.FAILED, Happened.CANCELLED})


class Violation(NamedTuple):
    """One breach of the promise.

    Attributes:
        rule: its name, always the same for the same kind of breach.
        at: when it showed, virtual seconds.
        text: what happened.
    """

    rule: str
    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text} (at {self.at:.3f} s)"


def check(history: History, promise: Promise = PROMISE) -> list[Violation]:
    """Return every breach of the promise, by the time at which it showed."""
    index = _Index(history, promise)
    found = [violation for rule in _RULES for violation in rule(index)]
    return sorted(found, key=lambda violation: violation.at)


@final
class _Index:
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

    def disconnected(self, process: str, peer: str, start: float, end: float) -> bool:
        """Return whether a process saw its connection with a peer end between these times."""
        records = self.partings.get((process, peer), ())
        return any(record.what is Happened.DISCONNECTED and start <= record.at <= end for record in records)

    def apart(self, host: str, peer: str, end: float) -> float:
        """Return for how long, at most, a client and the server were without a connection before ``end``; both views count."""
        longest = since = 0.0
        for record in self.all:
            if record.at > end:
                break
            if record.what is Happened.CONNECTED and {record.host, record.peer} == {host, peer}:
                longest, since = max(longest, record.at - since if since < math.inf else 0.0), math.inf
            elif record.what is Happened.DISCONNECTED and {record.host, record.peer} == {host, peer}:
                since = min(since, record.at)
        return max(longest, end - since)


# -- the rules ---------------------------------------------------------------------------------------------------------
def _acked_was_handled(index: _Index) -> Iterator[Violation]:
    for message, ends in index.ends.items():
        for end in ends:
            if end.what is Happened.MIXED_UP:
                yield Violation("wrong answer", end.at, f"message {message} of {end.process} was answered with {end.detail}")
            if end.what is Happened.ACKED:
                handled = index.handled.get((message, end.peer), ())
                if not any(record.detail == "ok" and record.at <= end.at for record in handled):
                    text = f"message {message} of {end.process} was acked, and no handler of {end.peer} had ended well"
                    yield Violation("acked, not handled", end.at, text)


def _handled_once(index: _Index) -> Iterator[Violation]:
    for (message, _host), starts in index.started.items():
        lives: dict[str, int] = {}
        for start in starts:
            lives[start.process] = lives.get(start.process, 0) + 1
            if lives[start.process] == index.promise.starts_per_process + 1:
                yield Violation("handled twice", start.at, f"message {message} in one life, {start.process}")
        unasked = [start for start in starts[index.promise.starts_over_lives :] if start.detail != "redelivered"]
        if len(lives) > 1 and unasked:
            yield Violation("handled twice", unasked[0].at, f"message {message} in lives {', '.join(lives)}, and nobody was told")


def _sent_to_here(index: _Index) -> Iterator[Violation]:
    for start in index.starts:
        beginning = index.beginnings.get(start.message)
        if beginning is None or beginning.peer not in (start.host, "*") or beginning.host != start.peer:
            yield Violation(
                "from nowhere", start.at, f"{start.process} handles message {start.message} from {start.peer}: {beginning}"
            )


def _order_in_lanes(index: _Index) -> Iterator[Violation]:
    # Message numbers count up in the order of sending.
    latest: dict[tuple[str, str, str], int] = {}
    for start in index.starts:
        beginning = index.beginnings.get(start.message)
        if beginning is None:
            continue
        key = (beginning.host, start.process, beginning.lane)
        before = latest.get(key, 0)
        if start.message < before:
            text = f"{start.process} starts message {start.message} after {before}, lane {beginning.lane!r} of {beginning.host}"
            yield Violation("out of order", start.at, text)
        latest[key] = max(before, start.message)


def _every_call_ended(index: _Index) -> Iterator[Violation]:
    for message, beginning in index.beginnings.items():
        if beginning.peer == "*":
            continue  # its ends are one for each client that was there
        ends = index.ends.get(message, ())
        death = index.deaths.get(beginning.process)
        if not ends and not (death is not None and death.detail == "killed"):
            yield Violation(
                "never ended", beginning.at, f"{beginning.what} message {message} of {beginning.process} to {beginning.peer}"
            )
        if ends and beginning.what is Happened.ASKED:
            took = ends[-1].at - beginning.at
            limit = float(beginning.detail) + index.lateness(beginning.at, ends[-1].at)
            if took > limit:
                text = f"request {message} of {beginning.process} ended {took:.3f} s after it began, its time was {beginning.detail} s"
                yield Violation("ended late", ends[-1].at, text)


def _every_handler_ended(index: _Index) -> Iterator[Violation]:
    for (message, host), starts in index.started.items():
        ends = {record.process: record for record in index.handled.get((message, host), ())}
        for start in starts:
            end = ends.get(start.process)
            if end is None:
                if start.process not in index.deaths:
                    yield Violation("handler never ended", start.at, f"message {message} in {start.process}")
            elif end.at - start.at > index.promise.handler_timeout + index.lateness(start.at, end.at):
                text = f"message {message} in {start.process} was handled for {end.at - start.at:.3f} s"
                yield Violation("handler overran", end.at, text)


def _errors_have_reasons(index: _Index) -> Iterator[Violation]:
    for message, ends in index.ends.items():
        beginning = index.beginnings[message]
        asked = beginning.what is Happened.ASKED
        for end in ends:
            if end.what is not Happened.FAILED:
                continue
            allowed = index.promise.request_errors if asked else index.promise.send_errors
            reason = _REASONS.get(end.detail)
            if end.detail not in allowed or (reason is not None and not reason(index, beginning, end)):
                text = f"{end.detail} for message {message} of {end.process} to {end.peer}, begun at {beginning.at:.3f} s"
                yield Violation("error without a reason", end.at, text)


def _lost(index: _Index, beginning: Record, end: Record) -> bool:
    promise = index.promise
    ended = index.disconnected(end.process, end.peer, beginning.at - promise.slack, end.at + promise.slack)
    if not promise.survives_reconnect:
        return ended
    restarted = index.died(end.peer, beginning.at - promise.session_ttl, end.at)
    return ended and (restarted or index.apart(beginning.host, end.peer, end.at) >= promise.session_ttl - promise.slack)


def _timed_out(index: _Index, beginning: Record, end: Record) -> bool:
    if end.at - beginning.at < float(beginning.detail or 0) - 1e-6:
        return False
    # It had its time. Was there an answer, or no handler at all, and nothing that could have kept it?
    handled = index.handled.get((beginning.message, end.peer), ())
    if not handled and (beginning.message, end.peer) in index.started:
        return True
    since = (handled[0].at if handled else beginning.at) - index.promise.slack
    moved = any(since <= record.at <= end.at for record in index.partings.get((end.process, end.peer), ()))
    if moved or index.died(end.peer, since, end.at) or since > end.at - 10 * index.promise.slack:
        return True
    return not index.calm(since - index.promise.calm_seconds, end.at)


def _handler_failed(index: _Index, beginning: Record, end: Record) -> bool:
    handled = index.handled.get((beginning.message, end.peer), ())
    return any(record.detail != "ok" for record in handled) or index.died(end.peer, beginning.at, end.at)


def _closed_by_itself(index: _Index, _beginning: Record, end: Record) -> bool:
    death = index.deaths.get(end.process)
    return death is not None and death.detail == "stopped"


def _from_server(_index: _Index, beginning: Record, _end: Record) -> bool:
    return beginning.host == SERVER


_REASONS: dict[str, Callable[[_Index, Record, Record], bool]] = {
    "ConnectionLost": _lost,
    "AckTimeout": _timed_out,
    "HandlerFailed": _handler_failed,
    "ConnectionClosed": _closed_by_itself,
    "ClientNotConnected": _from_server,
}


def _delivered_is_handled(index: _Index) -> Iterator[Violation]:
    for message, ends in index.ends.items():
        beginning = index.beginnings[message]
        for end in ends:
            if end.what is not Happened.DELIVERED or (message, end.peer) in index.started:
                continue
            if not _died_waiting(index, beginning, end):
                yield Violation("delivered, not handled", end.at, f"message {message} of {end.process} on {end.peer}")


def _died_waiting(index: _Index, beginning: Record, end: Record) -> bool:
    """Return whether the receiver, or its session, may have ended with the message still waiting, its lane busy to the last."""
    ends = [(death.process, death.at) for death in index.deaths.values() if death.host == end.peer]
    for (process, peer), records in index.partings.items():
        if process.partition("#")[0] == end.peer and peer == beginning.host:
            kept = index.promise.session_ttl
            ends += [(process, record.at + kept) for record in records if record.what is Happened.DISCONNECTED]
    return any(
        beginning.at <= at and (at <= end.at + index.promise.slack or _lane_was_busy(index, beginning, process, at))
        for process, at in ends
    )


def _lane_was_busy(index: _Index, beginning: Record, process: str, at: float) -> bool:
    patience = index.promise.handler_timeout + index.promise.slack
    for start in index.starts:
        other = index.beginnings.get(start.message)
        here = other is not None and (start.process, other.host, other.lane) == (process, beginning.host, beginning.lane)
        if here and at - patience <= start.at <= at + patience:
            return True
    return False


def _clients_come_back(index: _Index) -> Iterator[Violation]:
    servers = [process for process in index.births if process.partition("#")[0] == SERVER]
    for process, birth in index.births.items():
        if process in servers:
            continue
        end = index.deaths[process].at if process in index.deaths else math.inf
        away: float | None = birth.at
        spans = []
        for record in index.partings.get((process, SERVER), ()):
            if record.what is Happened.DISCONNECTED:
                away = record.at
            elif away is not None:
                spans.append((away, record.at))
                away = None
        spans += [] if away is None else [(away, end)]
        for server in servers:
            up = index.births[server].at, index.deaths[server].at if server in index.deaths else math.inf
            for start, until in spans:
                for since, to in index.calm_spans(max(start, up[0]), min(until, up[1])):
                    if to - since > index.promise.back_within and to < math.inf:
                        text = f"{process} was not connected to {server} for {to - since:.1f} s in which nothing was wrong"
                        yield Violation("away too long", to, text)


def _endings_are_known(index: _Index) -> Iterator[Violation]:
    for records in index.partings.values():
        for record in records:
            reason, _, detail = record.detail.partition(" ")
            if record.what is Happened.DISCONNECTED and reason not in index.promise.endings:
                yield Violation("wrong ending", record.at, f"{record.process} and {record.peer}: {reason} {detail}")


def _nothing_left(index: _Index) -> Iterator[Violation]:
    for record in index.all:
        if record.what is Happened.LEFT:
            yield Violation("left over", record.at, f"{record.process}: {record.detail}")


_RULES: tuple[Callable[[_Index], Iterator[Violation]], ...] = (
    _acked_was_handled,
    _handled_once,
    _sent_to_here,
    _order_in_lanes,
    _every_call_ended,
    _every_handler_ended,
    _errors_have_reasons,
    _delivered_is_handled,
    _clients_come_back,
    _endings_are_known,
    _nothing_left,
)
