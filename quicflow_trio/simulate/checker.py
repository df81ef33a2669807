"""Hold a history against the promise: `check` returns every breach. It sees records only, never the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .history import Happened, History, Record
from .index import Index
from .rules import FORBIDDEN_LANE, PROMISE, Promise
from .schedule import SERVER

__all__ = ["Violation", "check"]


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
    index = Index(history, promise)
    found = [violation for rule in _RULES for violation in rule(index)]
    return sorted(found, key=lambda violation: violation.at)


# -- the rules ---------------------------------------------------------------------------------------------------------
def _acked_was_handled(index: Index) -> Iterator[Violation]:
    for message, ends in index.ends.items():
        for end in ends:
            if end.what is Happened.MIXED_UP:
                yield Violation("wrong answer", end.at, f"message {message} of {end.process} was answered with {end.detail}")
            if end.what is Happened.ACKED:
                handled = index.handled.get((message, end.peer), ())
                if not any(record.detail == "ok" and record.at <= end.at for record in handled):
                    text = f"message {message} of {end.process} was acked, and no handler of {end.peer} had ended well"
                    yield Violation("acked, not handled", end.at, text)


def _handled_once(index: Index) -> Iterator[Violation]:
    for (message, host), starts in index.started.items():
        beginning = index.beginnings.get(message)
        if beginning is None:
            continue  # see `_sent_to_here`
        counts: dict[str, int] = {}
        before: Record | None = None
        for start in starts:
            counts[start.process] = count = counts.get(start.process, 0) + 1
            again, told = before is not None, start.detail == "redelivered"
            if told and not beginning.redeliver:
                yield Violation("redelivered unasked", start.at, f"message {message} in {start.process}")
            elif again and not told:
                yield Violation("handled twice", start.at, f"message {message} in lives {', '.join(counts)}, and nobody was told")
            elif (
                before is not None
                and count > index.promise.starts_per_session
                and not index.parted(beginning.host, host, before.at, start.at)
            ):
                yield Violation("handled twice", start.at, f"message {message} in one life and session, {start.process}")
            before = start


def _redelivered(index: Index) -> Iterator[Violation]:
    """What may be redelivered, and was received, is handled in the end: by the next process if not by that one."""
    for message, ends in index.ends.items():
        beginning = index.beginnings[message]
        for end in ends:
            # Of requests the caller knows the outcome; and what was denied is not handled.
            if not beginning.redeliver or end.what is not Happened.DELIVERED or _denied(index, beginning):
                continue
            until = end.at + index.promise.redelivered_within
            gone = index.died(beginning.host, end.at, until) or (
                beginning.host == SERVER and index.parted(SERVER, end.peer, beginning.at, until)
            )
            if not gone and (message, end.peer) not in index.handled:
                yield Violation("not redelivered", end.at, f"message {message} of {end.process} on {end.peer}")


def _sent_to_here(index: Index) -> Iterator[Violation]:
    for start in index.starts:
        beginning = index.beginnings.get(start.message)
        if beginning is None or beginning.peer not in (start.host, "*") or beginning.host != start.peer:
            yield Violation(
                "from nowhere", start.at, f"{start.process} handles message {start.message} from {start.peer}: {beginning}"
            )
        elif _denied(index, beginning):
            yield Violation("not permitted", start.at, f"{start.process} handles message {start.message} of {start.peer}")


def _order_in_lanes(index: Index) -> Iterator[Violation]:
    # Message numbers count up in the order of sending.
    latest: dict[tuple[str, str, str], Record] = {}
    for start in index.starts:
        beginning = index.beginnings.get(start.message)
        if beginning is None:
            continue
        key = (beginning.host, start.process, beginning.lane)
        before = latest.get(key, start)
        latest[key] = start
        if start.message < before.message:
            # What is redelivered in the next session was sent before what was handled in the last.
            if start.detail == "redelivered" and index.parted(beginning.host, start.host, before.at, start.at):
                continue
            text = f"{start.process} starts message {start.message} after {before.message}, lane {beginning.lane!r} of {beginning.host}"
            yield Violation("out of order", start.at, text)
            latest[key] = before


def _every_call_ended(index: Index) -> Iterator[Violation]:
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


def _every_handler_ended(index: Index) -> Iterator[Violation]:
    for (message, host), starts in index.started.items():
        ends: dict[str, Iterator[Record]] = {
            process: iter([record for record in index.handled.get((message, host), ()) if record.process == process])
            for process in {start.process: None for start in starts}
        }
        for start in starts:
            end = next(ends[start.process], None)
            if end is None:
                if start.process not in index.deaths:
                    yield Violation("handler never ended", start.at, f"message {message} in {start.process}")
            elif end.at - start.at > index.promise.handler_timeout + index.lateness(start.at, end.at):
                text = f"message {message} in {start.process} was handled for {end.at - start.at:.3f} s"
                yield Violation("handler overran", end.at, text)


def _errors_have_reasons(index: Index) -> Iterator[Violation]:
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


def _lost(index: Index, beginning: Record, end: Record) -> bool:
    if beginning.redeliver and beginning.host != SERVER:
        return False  # The client keeps it until it is handled, or its own end.
    promise = index.promise
    since = beginning.at - promise.unnoticed_seconds
    if not any(index.disconnects(beginning.host, end.peer, since - promise.slack, end.at + promise.slack)):
        return False
    if not promise.survives_reconnect or index.parted(beginning.host, end.peer, beginning.at, end.at):
        return True
    if beginning.host == SERVER and _never_met(index, end):
        return True
    # What may be redelivered goes to the client's next life.
    return not beginning.redeliver and index.died(end.peer, since, end.at)


def _never_met(index: Index, end: Record) -> bool:
    """Return whether the client never heard of its last session with the server: the welcome did not come through."""
    last = ""
    for record in index.partings_of(end.host, end.peer):
        if record.what is Happened.CONNECTED and record.at <= end.at:
            last = record.host
    return last == end.host


def _timed_out(index: Index, beginning: Record, end: Record) -> bool:
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


def _handler_failed(index: Index, beginning: Record, end: Record) -> bool:
    handled = index.handled.get((beginning.message, end.peer), ())
    return any(record.detail != "ok" for record in handled) or index.died(end.peer, beginning.at, end.at)


def _closed_by_itself(index: Index, _beginning: Record, end: Record) -> bool:
    death = index.deaths.get(end.process)
    return death is not None and death.detail == "stopped"


def _was_away(index: Index, beginning: Record, end: Record) -> bool:
    if beginning.host != SERVER:
        return False
    last: Record | None = None
    for record in index.partings.get((end.process, end.peer), ()):
        if record.at <= end.at:
            last = record
        if record.what is Happened.DISCONNECTED and beginning.at <= record.at <= end.at:
            return True
    return last is None or last.what is Happened.DISCONNECTED or last.at >= beginning.at


def _denied(index: Index, beginning: Record) -> bool:
    return index.promise.guarded and beginning.host != SERVER and beginning.lane == FORBIDDEN_LANE


def _was_denied(index: Index, beginning: Record, _end: Record) -> bool:
    return _denied(index, beginning)


_REASONS: dict[str, Callable[[Index, Record, Record], bool]] = {
    "ConnectionLost": _lost,
    "AckTimeout": _timed_out,
    "HandlerFailed": _handler_failed,
    "ConnectionClosed": _closed_by_itself,
    "ClientNotConnected": _was_away,
    "PermissionDenied": _was_denied,
}


def _delivered_is_handled(index: Index) -> Iterator[Violation]:
    for message, ends in index.ends.items():
        beginning = index.beginnings[message]
        for end in ends:
            if end.what is not Happened.DELIVERED or (message, end.peer) in index.started or _denied(index, beginning):
                continue
            if not _died_waiting(index, beginning, end):
                yield Violation("delivered, not handled", end.at, f"message {message} of {end.process} on {end.peer}")


def _died_waiting(index: Index, beginning: Record, end: Record) -> bool:
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


def _lane_was_busy(index: Index, beginning: Record, process: str, at: float) -> bool:
    patience = index.promise.handler_timeout + index.promise.slack
    for start in index.starts:
        other = index.beginnings.get(start.message)
        here = other is not None and (start.process, other.host, other.lane) == (process, beginning.host, beginning.lane)
        if here and at - patience <= start.at <= at + patience:
            return True
    return False


def _clients_come_back(index: Index) -> Iterator[Violation]:
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


def _endings_are_known(index: Index) -> Iterator[Violation]:
    for records in index.partings.values():
        for record in records:
            reason, _, detail = record.detail.partition(" ")
            if record.what is Happened.DISCONNECTED and reason not in index.promise.endings:
                yield Violation("wrong ending", record.at, f"{record.process} and {record.peer}: {reason} {detail}")


def _nothing_left(index: Index) -> Iterator[Violation]:
    for record in index.all:
        if record.what is Happened.LEFT:
            yield Violation("left over", record.at, f"{record.process}: {record.detail}")


_RULES: tuple[Callable[[Index], Iterator[Violation]], ...] = (
    _acked_was_handled,
    _handled_once,
    _redelivered,
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
