"""The sending end of one lane: outbox, sequence numbers, what waits for receipts and acks.

Contract, in the order of a message's life::

    lane.offer(outgoing)            into the outbox, or behind it when it is full (BLOCKED)
    lane.next_batch(credit)         encodes what the peer's credit allows, in order; numbers it; admits what was blocked
    lane.handle_return(data)        receipts and acks from the stream's return half
    lane.withdraw(outgoing)         the caller gave up: removed while unwritten, else a cancellation goes out
    lane.connection_lost(error)     what was written is settled as lost; what was not stays for the next connection

No IO and no clock. Mutators are synchronous and complete, so a task cancelled around them leaves nothing half done. Whoever waits is
woken through ``outgoing.wake(outgoing.task)``.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, Self

from ..errors import AckTimeout, PayloadTooLarge, QuicFlowError, RemoteProtocolError
from ..message import Delivery, Message
from ..observe.histogram import Histogram
from ..wire import AckFrame, FrameReader, LaneOpen, ReceiptFrame, decode, encode, encode_cancel, encode_message
from .waiting import WaitingShare

__all__ = ["LaneSender", "Outgoing", "OutgoingRequest", "OutgoingState"]

MESSAGE_OVERHEAD = 64
"""Bytes that a message counts for beside its payload: envelope, id and a part of its Python objects."""

CREDIT_RESERVE = 1024
"""Bytes of a lane's credit that messages leave free, so that a cancellation can still pass on a lane whose handlers are stuck."""

SWEEP_BYTES = 256 * 1024
"""Bytes that withdrawn messages may keep alive in one queue while more than that waits in it anyway."""

ErrorFactory = Callable[[], QuicFlowError]
"""Makes a fresh exception for each waiter: one instance raised in two tasks would mix their tracebacks."""


class OutgoingState(enum.IntEnum):
    """How far a message has come."""

    NEW = -1
    """Not offered yet."""
    BLOCKED = 0
    """Behind a full outbox."""
    QUEUED = 1
    """In the outbox."""
    WRITTEN = 2
    """Handed to QUIC, which repeats it until it arrives or the connection ends."""
    RECEIVED = 3
    """Received and kept by the peer."""
    FAILED = 4
    """Will not be received, or may not have been; ``error`` says why."""
    WITHDRAWN = 5
    """Taken back by the caller before it was written."""


class Outgoing:
    """One message on its way to the peer."""

    __slots__ = ("error", "lane", "message", "seq", "size", "state", "task", "wake", "watchers")

    wants_ack = False

    def __init__(self, lane: LaneSender, message: Message) -> None:
        self.lane: LaneSender = lane
        self.message: Message = message
        self.size: int = len(message.payload) + MESSAGE_OVERHEAD
        self.state: OutgoingState = OutgoingState.NEW
        self.seq: int = 0
        self.error: ErrorFactory | None = None
        self.task: Any = None
        self.wake: Callable[[Any], None] | None = None
        self.watchers: list[Callable[[], None]] | None = None

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


class EarlyEnds(Protocol):
    """Where deadlines stand that mostly never come."""

    def ended_early(self) -> None:
        """Say that one of them no longer matters."""


class OutgoingRequest(Outgoing):
    """A message whose sender waits for its ack: for the length of one ``with`` block.

    Attributes:
        ack: the peer's answer, None until it came.
        expired: true when the ack deadline has passed.
        ack_error: why no ack will come, None while one may.
        timed: true while a finite deadline stands in the heap.
        started: when the wait began, on the clock that ``now`` of `LaneSender.handle_return` is of.
    """

    __slots__ = ("_deadlines", "_share", "ack", "ack_error", "expired", "live", "started", "timed")

    wants_ack = True
    state: OutgoingState
    wake: Callable[[Any], None] | None

    def __init__(
        self, lane: LaneSender, message: Message, share: WaitingShare, deadlines: EarlyEnds, started: float = 0.0
    ) -> None:
        super().__init__(lane, message)
        self.started: float = started
        self._share = share
        self._deadlines = deadlines
        self.ack: AckFrame | None = None
        self.ack_error: ErrorFactory | None = None
        self.expired: bool = False
        self.live: bool = False
        self.timed: bool = False

    def __enter__(self) -> Self:
        """Take a place in the waiting table.

        Raises:
            WaitingTableFull: nothing was changed.
        """
        self._share.enter()
        self.live = True
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *rest: object) -> None:
        """Give the place back; whatever is not finished by now is withdrawn.

        How the wait ended is decided here and once: its deadline can pass when its caller has been cancelled already.
        """
        self.live = False
        if self.timed:
            self.timed = False
            self._deadlines.ended_early()
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

    def expire(self, now: float) -> None:
        """End the wait at its deadline."""
        self.timed = False
        self.expired = True
        self._wake()


class _Queue:
    """A FIFO whose entries can be withdrawn in constant time: they are marked, and swept out when they are the larger part."""

    __slots__ = ("_entries", "_withdrawn", "_withdrawn_size", "size")

    def __init__(self) -> None:
        self._entries: deque[Outgoing] = deque()
        self._withdrawn = 0
        self._withdrawn_size = 0
        self.size: int = 0

    def __bool__(self) -> bool:
        return len(self._entries) > self._withdrawn

    def __len__(self) -> int:
        return len(self._entries) - self._withdrawn

    def append(self, outgoing: Outgoing) -> None:
        self._entries.append(outgoing)
        self.size += outgoing.size

    def peek(self) -> Outgoing:
        entries = self._entries
        while entries[0].state is OutgoingState.WITHDRAWN:
            self._withdrawn_size -= entries.popleft().size
            self._withdrawn -= 1
        return entries[0]

    def popleft(self) -> Outgoing:
        outgoing = self.peek()
        self._entries.popleft()
        self.size -= outgoing.size
        return outgoing

    def withdraw(self, outgoing: Outgoing) -> None:
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
        entries = self.clear()
        larger = []
        for entry in entries:
            if len(entry.message.payload) > limit:
                larger.append(entry)
            else:
                self.append(entry)
        return larger

    def clear(self) -> list[Outgoing]:
        entries = [entry for entry in self._entries if entry.state is not OutgoingState.WITHDRAWN]
        self._entries.clear()
        self._withdrawn = self._withdrawn_size = self.size = 0
        return entries


class LaneSender:
    """The sending end of one lane; see the module's docstring for the contract.

    Attributes:
        name: the lane's name, empty for the default lane.
        stream_id: the stream it runs on, None while no connection carries it.
        acks_ignored: acks that nobody waited for (late, duplicate, unknown).
        written: messages written since the start, over all connections.
        stalled: true while it has messages to write and no credit.
    """

    __slots__ = (
        "_ack_seq",
        "_announce",
        "_blocked",
        "_cancels",
        "_last_seq",
        "_latency",
        "_outbox",
        "_outbox_limit",
        "_reader",
        "_unreceipted",
        "_waiting",
        "acks_ignored",
        "name",
        "notify",
        "stalled",
        "stream_id",
        "written",
    )

    def __init__(self, name: str, outbox_limit: int, latency: Histogram | None = None) -> None:
        self.name: str = name
        self.stream_id: int | None = None
        self.acks_ignored: int = 0
        self.written: int = 0
        self.stalled: bool = False
        self._latency = Histogram() if latency is None else latency
        # Called when the lane has something to write; the connection sets it, so a lane need not know who carries it.
        self.notify: Callable[[LaneSender], None] | None = None
        self._outbox_limit = outbox_limit
        self._outbox = _Queue()
        self._blocked = _Queue()
        self._reset()

    def _reset(self) -> None:
        self._announce = True
        self._last_seq = 0
        self._ack_seq = 0
        self._cancels: list[int] = []
        self._unreceipted: deque[Outgoing] = deque()
        self._waiting: dict[int, OutgoingRequest] = {}
        self._reader: FrameReader | None = None

    # -- what is on the way --------------------------------------------------------------------------------------
    @property
    def outbox_bytes(self) -> int:
        """Bytes that wait to be written, senders that wait for room included."""
        return self._outbox.size + self._blocked.size

    @property
    def has_room(self) -> bool:
        """True when the next message goes straight into the outbox."""
        return not self._blocked and self._outbox.size < self._outbox_limit

    @property
    def unwritten(self) -> int:
        """Messages that wait to be written."""
        return len(self._outbox) + len(self._blocked)

    @property
    def unreceipted(self) -> int:
        """Messages written whose receipt has not come."""
        return len(self._unreceipted)

    @property
    def waiting(self) -> int:
        """Written requests that wait for their ack."""
        return len(self._waiting)

    @property
    def pending(self) -> bool:
        """True when there is something to write, credit allowing."""
        return bool(self._cancels) or bool(self._outbox)

    # -- from the caller -----------------------------------------------------------------------------------------
    def offer(self, outgoing: Outgoing) -> None:
        """Queue a message: QUEUED when the outbox has room for it, else BLOCKED behind those that wait already."""
        if self.has_room:
            outgoing.state = OutgoingState.QUEUED
            self._outbox.append(outgoing)
            if self.notify is not None:
                self.notify(self)
        else:
            outgoing.state = OutgoingState.BLOCKED
            self._blocked.append(outgoing)

    def withdraw(self, outgoing: Outgoing) -> None:
        """Take a message back: silently while unwritten, by a cancellation to the peer when its ack is waited for."""
        state = outgoing.state
        if state is OutgoingState.QUEUED:
            self._outbox.withdraw(outgoing)
            self._admit()
        elif state is OutgoingState.BLOCKED:
            self._blocked.withdraw(outgoing)
        elif outgoing.seq and self._waiting.pop(outgoing.seq, None) is not None:
            self._cancels.append(outgoing.seq)
            if self.notify is not None:
                self.notify(self)

    # -- to the stream -------------------------------------------------------------------------------------------
    def next_batch(self, credit: int) -> bytes:
        """Encode what may be written now: cancellations, then messages while more than the reserve of ``credit`` is left.

        The last message may overshoot the credit: the peer grants a frame that has begun to its end. Returns the bytes to write as
        one piece; empty when nothing may be written.
        """
        chunks: list[bytes] = []
        if self._announce:
            self._announce = False
            opening = encode(LaneOpen(name=self.name))
            chunks.append(opening)
            credit -= len(opening)
        if self._cancels:
            for seq in self._cancels:
                chunks.append(encode_cancel(seq))
                credit -= len(chunks[-1])
            self._cancels.clear()
        outbox = self._outbox
        while outbox and credit > CREDIT_RESERVE:
            chunk = self._write(outbox.popleft())
            credit -= len(chunk)
            chunks.append(chunk)
        if self._blocked:
            self._admit()
        return b"".join(chunks)

    def _write(self, outgoing: Outgoing) -> bytes:
        self._last_seq = seq = self._last_seq + 1
        outgoing.seq = seq
        outgoing.state = OutgoingState.WRITTEN
        self.written += 1
        self._unreceipted.append(outgoing)
        wants_ack = outgoing.wants_ack
        if wants_ack:
            assert isinstance(outgoing, OutgoingRequest)
            self._waiting[seq] = outgoing
        message = outgoing.message
        redeliver = message.delivery is Delivery.REDELIVER
        return encode_message(seq, message.id, message.type, message.payload, wants_ack, message.timestamp, redeliver)

    def _admit(self) -> None:
        """Move blocked messages into the outbox, in order, as far as there is room."""
        moved = False
        while self._blocked and self._outbox.size < self._outbox_limit:
            outgoing = self._blocked.popleft()
            self._outbox.append(outgoing)
            outgoing.admitted()
            moved = True
        if moved and self.notify is not None:
            self.notify(self)

    # -- from the stream's return half -----------------------------------------------------------------------------
    def open_return(self, frame_limit: int) -> None:
        """Get ready to read the return half of a new stream; frames over ``frame_limit`` bytes are refused."""
        self._reader = FrameReader(frame_limit)

    def handle_return(self, data: bytes, now: float) -> None:
        """Take in receipts and acks; ``now`` measures how long the acks took.

        Raises:
            RemoteProtocolError: what came is not allowed there.
        """
        reader = self._reader
        assert reader is not None, "open_return() comes first"
        reader.feed(data)
        for body in reader.frames():
            frame = decode(body)
            kind = frame.__class__
            if kind is AckFrame:
                self._handle_ack(frame, now)  # type: ignore[arg-type]
            elif kind is ReceiptFrame:
                self._handle_receipt(frame)  # type: ignore[arg-type]
            elif frame is not None:
                raise RemoteProtocolError(f"{kind.__name__} is not allowed on the return half of a lane")

    def _handle_ack(self, frame: AckFrame, now: float) -> None:
        if frame.ack_seq != self._ack_seq + 1:
            raise RemoteProtocolError(f"ack number {frame.ack_seq} follows {self._ack_seq}")
        self._ack_seq = frame.ack_seq
        request = self._waiting.pop(frame.seq, None)
        if request is None:
            # The request was cancelled or timed out while the ack was on its way, or the peer makes things up.
            self.acks_ignored += 1
        else:
            self._latency.observe(now - request.started)
            request.acknowledge(frame)

    def _handle_receipt(self, frame: ReceiptFrame) -> None:
        received = frame.received
        if received > self._last_seq:
            raise RemoteProtocolError(f"receipt for message {received}, but the last one sent was {self._last_seq}")
        unreceipted = self._unreceipted
        while unreceipted and unreceipted[0].seq <= received:
            unreceipted.popleft().settle(OutgoingState.RECEIVED)

    # -- the end ---------------------------------------------------------------------------------------------------
    def connection_lost(self, error: ErrorFactory) -> int:
        """Settle what was written as failed and return how many messages that were; what was not written stays for the next connection."""
        unreceipted, waiting = self._unreceipted, self._waiting
        self.stream_id = None
        self.notify = None
        self._reset()
        for outgoing in unreceipted:
            outgoing.settle(OutgoingState.FAILED, error)
        for request in waiting.values():
            request.fail(error)
        return len(unreceipted)

    def refuse_larger(self, limit: int) -> int:
        """Settle as failed, and count, what waits with a payload over the limit: this peer accepts less than the last one, or than we do."""
        larger = self._outbox.take_larger(limit) + self._blocked.take_larger(limit)
        for outgoing in larger:
            outgoing.settle(OutgoingState.FAILED, partial(PayloadTooLarge, len(outgoing.message.payload), limit))
        self._admit()
        return len(larger)

    def fail_queued(self, error: ErrorFactory) -> int:
        """Settle what was not written as failed, and count it: there will be no further connection."""
        queued = self._outbox.clear() + self._blocked.clear()
        for outgoing in queued:
            outgoing.settle(OutgoingState.FAILED, error)
        return len(queued)

    def last_written(self, number: int) -> list[Outgoing]:
        """Return the last messages written, oldest first, as far as their receipts have not come."""
        unreceipted = self._unreceipted
        return [unreceipted[index] for index in range(max(len(unreceipted) - number, 0), len(unreceipted))]
