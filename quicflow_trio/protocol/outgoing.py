"""Messages on their way to the peer: `Outgoing`, `OutgoingRequest` for one whose ack is waited for, and the `Outbox` they stand in.

Whoever waits is woken through ``outgoing.wake(outgoing.task)``.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from ..errors import AckTimeout, QuicFlowError
from ..message import Delivery, Message
from ..wire import AckFrame, encode_message
from .waiting import Expiring, WaitingShare

__all__ = ["MESSAGE_OVERHEAD", "SWEEP_BYTES", "ErrorFactory", "Outbox", "Outgoing", "OutgoingRequest", "OutgoingState"]

MESSAGE_OVERHEAD = 64
"""Bytes that a message counts for beside its payload: envelope, id and a part of its Python objects."""

SWEEP_BYTES = 256 * 1024
"""Bytes that withdrawn messages may keep alive in one queue while more than that waits in it anyway."""

ErrorFactory = Callable[[], QuicFlowError]
"""Makes a fresh exception for each waiter: one instance raised in two tasks would mix their tracebacks."""


class Lane(Protocol):
    """What a message knows of its lane."""

    def offer(self, outgoing: Outgoing) -> None:
        """Queue a message."""

    def withdraw(self, outgoing: Outgoing) -> None:
        """Take a message back."""


class OutgoingState(enum.IntEnum):
    """How far a message has come."""

    NEW = -1
    """Not offered yet."""
    BLOCKED = 0
    """Behind a full outbox."""
    QUEUED = 1
    """In the outbox."""
    WRITTEN = 2
    """Handed to QUIC, which repeats it until it arrives or the connection ends; kept for the session's next one until received."""
    RECEIVED = 3
    """Received and kept by the peer."""
    FAILED = 4
    """Will not be received, or may not have been; ``error`` says why."""
    WITHDRAWN = 5
    """Taken back by the caller before it was written."""


class Outgoing:
    """One message on its way to the peer."""

    __slots__ = ("error", "lane", "message", "redelivered", "seq", "size", "state", "task", "wake", "watchers")

    wants_ack = False

    def __init__(self, lane: Lane, message: Message) -> None:
        self.lane: Lane = lane
        self.message: Message = message
        self.size: int = len(message.payload) + MESSAGE_OVERHEAD
        self.state: OutgoingState = OutgoingState.NEW
        self.seq: int = 0
        # True when it goes out again in another session: an earlier life of the peer may have handled it.
        self.redelivered: bool = False
        self.error: ErrorFactory | None = None
        self.task: Any = None
        self.wake: Callable[[Any], None] | None = None
        self.watchers: list[Callable[[], None]] | None = None

    @property
    def answered(self) -> bool:
        """True once its ack came, which may be before its receipt."""
        return False

    def encode(self) -> bytes:
        """Return the message as it goes on the stream, under its number."""
        message = self.message
        redeliver = message.delivery is Delivery.REDELIVER
        return encode_message(
            self.seq, message.id, message.type, message.payload, self.wants_ack, message.timestamp, redeliver, self.redelivered
        )

    def admitted(self) -> None:
        """Note that the message has moved from behind the outbox into it."""
        self.state = OutgoingState.QUEUED
        self._wake()

    def settle(self, state: OutgoingState, error: ErrorFactory | None = None) -> None:
        """Note that the message has reached a final state, and tell everyone who watches."""
        self.state = state
        self.error = error
        self._wake()
        watchers = self.watchers
        if watchers is not None:
            self.watchers = None
            for watcher in watchers:
                watcher()

    def _wake(self) -> None:
        wake = self.wake
        if wake is not None:
            self.wake = None
            wake(self.task)


class Timers(Protocol):
    """Where deadlines stand that mostly never come: `deadlines.Deadlines`."""

    def add(self, deadline: float, entry: Expiring) -> None:
        """Have ``entry.expire`` called at ``deadline``."""

    def ended_early(self) -> None:
        """Say that one of them no longer matters."""


class _AckDeadline:
    """A request's place among the timers. When it is over it stays there for a while, without the request: that holds the payload."""

    __slots__ = ("live", "request")

    def __init__(self, request: OutgoingRequest) -> None:
        self.live: bool = True
        self.request: OutgoingRequest | None = request

    def expire(self, now: float) -> None:
        """End the wait."""
        if self.request is not None:
            self.request._expire()


class OutgoingRequest(Outgoing):
    """A message whose sender waits for its ack: for the length of one ``with`` block.

    Attributes:
        ack: the peer's answer, None until it came.
        expired: true when the ack deadline has passed.
        ack_error: why no ack will come, None while one may.
        started: when the wait began, on the clock that ``now`` of `LaneSender.handle_return` is of; it ends ``timeout`` seconds later.
    """

    __slots__ = ("_deadline", "_ends_at", "_share", "_timers", "ack", "ack_error", "expired", "started")

    wants_ack = True
    state: OutgoingState
    wake: Callable[[Any], None] | None

    def __init__(
        self, lane: Lane, message: Message, share: WaitingShare, timers: Timers, started: float = 0.0, timeout: float = math.inf
    ) -> None:
        super().__init__(lane, message)
        self.started: float = started
        self._ends_at = started + timeout
        self._share = share
        self._timers = timers
        self._deadline: _AckDeadline | None = None
        self.ack: AckFrame | None = None
        self.ack_error: ErrorFactory | None = None
        self.expired: bool = False

    @property
    def answered(self) -> bool:
        """True once its ack came, which may be before its receipt."""
        return self.ack is not None

    def __enter__(self) -> Self:
        """Take a place in the waiting table, and one among the timers unless the wait has no end.

        Raises:
            WaitingTableFull: nothing was changed.
        """
        self._share.enter()
        if self._ends_at != math.inf:
            self._deadline = entry = _AckDeadline(self)
            self._timers.add(self._ends_at, entry)
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *rest: object) -> None:
        """Give the place back; whatever is not finished by now is withdrawn.

        How the wait ended is decided here and once: its deadline can pass when its caller has been cancelled already.
        """
        entry = self._deadline
        if entry is not None:
            self._deadline = entry.request = None
            entry.live = False
            self._timers.ended_early()
        timed_out = self.expired and self.ack_error is None and (kind is None or issubclass(kind, AckTimeout))
        self._share.leave(acked=self.ack is not None, timed_out=timed_out)
        self.wake = None
        if self.ack is None and self.ack_error is None:
            self.lane.withdraw(self)

    def admitted(self) -> None:
        """Move on without waking: only the ack matters to the waiting task."""
        self.state = OutgoingState.QUEUED

    def settle(self, state: OutgoingState, error: ErrorFactory | None = None) -> None:
        """Note receipt or failure; only a failure ends the wait for the ack."""
        self.state = state
        self.error = error
        if error is not None and self.ack is None and self.ack_error is None:
            self.ack_error = error
            self._wake()

    def acknowledge(self, frame: AckFrame) -> None:
        """Take the peer's answer and wake the task that waits for it."""
        self.ack = frame
        self._wake()

    def fail(self, error: ErrorFactory) -> None:
        """End the wait without an answer."""
        if self.ack is None and self.ack_error is None:
            self.ack_error = error
            self._wake()

    def _expire(self) -> None:
        self._deadline = None
        self.expired = True
        self._wake()


class Outbox:
    """A FIFO whose entries can be withdrawn in constant time: they are marked, and swept out when they are the larger part."""

    __slots__ = ("_entries", "_withdrawn", "_withdrawn_size", "size")

    def __init__(self) -> None:
        self._entries: deque[Outgoing] = deque()
        self._withdrawn = 0
        self._withdrawn_size = 0
        self.size: int = 0

    def __len__(self) -> int:
        return len(self._entries) - self._withdrawn

    def append(self, outgoing: Outgoing) -> None:
        """Put a message at the end."""
        self._entries.append(outgoing)
        self.size += outgoing.size

    def prepend(self, again: list[Outgoing]) -> None:
        """Put messages in front of all others, in their order: they were sent before, and have to go out again."""
        self._entries.extendleft(reversed(again))
        self.size += sum(outgoing.size for outgoing in again)

    def popleft(self) -> Outgoing:
        """Take the first message out; only while ``size`` is not 0."""
        outgoing = self._entries.popleft()
        while outgoing.state is OutgoingState.WITHDRAWN:
            self._withdrawn_size -= outgoing.size
            self._withdrawn -= 1
            outgoing = self._entries.popleft()
        self.size -= outgoing.size
        return outgoing

    def withdraw(self, outgoing: Outgoing) -> None:
        """Mark a message that stands here as taken back."""
        outgoing.state = OutgoingState.WITHDRAWN
        self.size -= outgoing.size
        self._withdrawn += 1
        self._withdrawn_size += outgoing.size
        # By number, since each costs a look; and by size, since they keep their payloads alive.
        many = self._withdrawn > 64 and self._withdrawn * 2 > len(self._entries)
        if many or self._withdrawn_size > max(self.size, SWEEP_BYTES):
            self._entries = deque(entry for entry in self._entries if entry.state is not OutgoingState.WITHDRAWN)
            self._withdrawn = self._withdrawn_size = 0

    def take_larger(self, limit: int) -> list[Outgoing]:
        """Take out what has a payload over ``limit`` bytes."""
        return self._take(lambda outgoing: len(outgoing.message.payload) > limit)

    def take_redeliverable(self) -> list[Outgoing]:
        """Take out what may be redelivered."""
        return self._take(lambda outgoing: outgoing.message.delivery is Delivery.REDELIVER)

    def _take(self, chosen: Callable[[Outgoing], bool]) -> list[Outgoing]:
        entries = self.clear()
        taken = []
        for entry in entries:
            if chosen(entry):
                taken.append(entry)
            else:
                self.append(entry)
        return taken

    def clear(self) -> list[Outgoing]:
        """Take everything out."""
        entries = [entry for entry in self._entries if entry.state is not OutgoingState.WITHDRAWN]
        self._entries.clear()
        self._withdrawn = self._withdrawn_size = self.size = 0
        return entries
