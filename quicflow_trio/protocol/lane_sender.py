"""The sending end of one lane: outbox, sequence numbers, what waits for receipts and acks.

Contract, in the order of a message's life::

    lane.offer(outgoing)            into the outbox, or behind it when it is full (BLOCKED)
    lane.next_batch(credit)         encodes what the peer's credit allows, in order; numbers it; admits what was blocked
    lane.handle_return(data)        receipts and acks from the stream's return half
    lane.withdraw(outgoing)         the caller gave up: removed while unwritten, else a cancellation goes out

and, when the connection is gone::

    lane.pause()                    nothing is lost yet: what was written is kept until the peer has received it
    lane.resume(state)              the peer knows the session: what it has not received goes out again, under the same numbers
    lane.restart(error)             it does not: numbering starts anew; what may be redelivered goes out again, the rest has failed
    lane.fail_written(error)        there will be no other connection for it

No IO and no clock. Mutators are synchronous and complete, so a task cancelled around them leaves nothing half done.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from ..errors import PayloadTooLarge, RemoteProtocolError
from ..message import Delivery
from ..observe.histogram import Histogram
from ..wire import (
    AckFrame,
    FrameReader,
    LaneOpen,
    LaneState,
    ReceiptFrame,
    decode,
    encode,
    encode_cancel,
    encode_confirm,
    encode_message,
)
from .one_by_one import OneByOne
from .outgoing import ErrorFactory, Outbox, Outgoing, OutgoingRequest, OutgoingState

__all__ = ["CREDIT_RESERVE", "LaneSender"]

CREDIT_RESERVE = 1024
"""Bytes of a lane's credit that messages leave free, so that a cancellation can still pass on a lane whose handlers are stuck."""

PREFIX = 4

CONFIRM_ACKS = 64
CONFIRM_BYTES = 3072
"""Acks taken, by number and by bytes, after which the peer is told that it need not keep them. Fewer bytes than the least that
`Limits.outbox_bytes` may be, after which a peer begins to let go of them."""

RANGES_TAKEN = 64
"""Ranges of one receipt that are looked at."""

# Looked at for every message: as an attribute of its class, each takes twice as long.
REDELIVER = Delivery.REDELIVER
WRITTEN = OutgoingState.WRITTEN
RECEIVED = OutgoingState.RECEIVED

CANCELS_KEPT = 1024
"""Cancellations that are repeated after a resume; of those before them a handler may run to its end."""


class LaneSender(OneByOne):
    """The sending end of one lane; see the module's docstring for the contract.

    Attributes:
        name: the lane's name, empty for the default lane.
        stream_id: the stream it runs on, None while no connection carries it.
        acks_ignored: acks that nobody waited for (late, duplicate, unknown).
        written: messages written since the start, over all connections; a message that is written again counts once.
        resent: messages written again because an earlier connection had ended before they were received.
        confirms: true when the peer keeps acks until they are confirmed.
        stalled: true while it has messages to write and no credit.
    """

    __slots__ = (
        "_ack_bytes",
        "_ack_seq",
        "_announce",
        "_confirmed",
        "_last_seq",
        "_outbox_limit",
        "_owes_confirm",
        "_reader",
        "_resend",
        "_unhandled",
        "confirms",
        "name",
        "notify",
        "resent",
        "stalled",
        "stream_id",
        "written",
    )

    def __init__(self, name: str, outbox_limit: int, latency: Histogram | None = None) -> None:
        self.name: str = name
        self.stream_id: int | None = None
        self.acks_ignored: int = 0
        self.written: int = 0
        self.resent: int = 0
        self.confirms: bool = False
        self.stalled: bool = False
        self._latency = Histogram() if latency is None else latency
        # Called when the lane has something to write; the connection sets it, so a lane need not know who carries it.
        self.notify: Callable[[LaneSender], None] | None = None
        self._outbox_limit = outbox_limit
        self._outbox = Outbox()
        self._blocked = Outbox()
        self._reset()

    def _reset(self) -> None:
        self._announce = True
        self._last_seq = 0
        self._ack_seq = 0
        # How far the peer was told that its acks were taken, and the bytes of those since then.
        self._confirmed = 0
        self._ack_bytes = 0
        self._owes_confirm = False
        # Cancellations to be written, and those of messages that the peer is not known to be done with.
        self._cancels: list[int] = []
        self._cancelled: dict[int, None] = {}
        self._unreceipted: deque[Outgoing] = deque()
        # Received but not known to be handled, by number: kept for a peer that is restarted. Requests stand among the waiting, until
        # their ack: that they were handled says nothing of how.
        self._unhandled: dict[int, Outgoing] = {}
        # What both of them hold, bytes.
        self._kept_bytes = 0
        # The part of the unreceipted that is still to be written on this connection.
        self._resend: deque[Outgoing] = deque()
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
        # What is blocked has a size, so that is the cheap way to ask whether anything is.
        return self._outbox.size < self._outbox_limit and not self._blocked.size

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
        return (
            self._outbox.size > 0
            or bool(self._cancels)
            or bool(self._resend)
            # On a new connection of a session in which the lane was used, its acks need their stream.
            or (self._announce and self._last_seq > 0)
            or self._owes_confirm
        )

    @property
    def full(self) -> bool:
        """True while so much is kept for a resume that nothing more may be written."""
        return self.confirms and self._kept_bytes >= self._outbox_limit

    # -- from the caller -----------------------------------------------------------------------------------------
    def offer(self, outgoing: Outgoing) -> None:
        """Queue a message: QUEUED when the outbox has room for it, else BLOCKED behind those that wait already."""
        outbox = self._outbox
        waiting = outbox.size
        if waiting < self._outbox_limit and not self._blocked.size:
            outgoing.state = OutgoingState.QUEUED
            outbox.append(outgoing)
            # Not for every message: a lane that has something to write already was noted, and stays so until it has nothing.
            if not waiting and self.notify is not None:
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
        elif self._waiting.get(outgoing.seq) is outgoing:
            seq = outgoing.seq
            del self._waiting[seq]
            if self._resend and seq >= self._resend[0].seq:
                return  # Its number is still to be filled on this connection: see `_write_again`.
            if len(self._cancelled) >= CANCELS_KEPT:
                del self._cancelled[next(iter(self._cancelled))]
            self._cancelled[seq] = None
            self._cancels.append(seq)
            if self.notify is not None:
                self.notify(self)

    # -- to the stream -------------------------------------------------------------------------------------------
    def next_batch(self, credit: int, *, start: bool = True) -> bytes:
        """Encode what may be written now: cancellations, then messages while more than the reserve of ``credit`` is left.

        The last message may overshoot the credit: the peer grants a frame that has begun to its end. Without ``start`` no message is
        written that was not written before. Returns the bytes to write as one piece; empty when nothing may be written.
        """
        chunks: list[bytes] = []
        if self._announce:
            self._announce = False
            opening = encode(LaneOpen(name=self.name, acked=self._ack_seq))
            self._note_confirmed()
            chunks.append(opening)
            credit -= len(opening)
        elif self._owes_confirm:
            self._note_confirmed()
            chunks.append(encode_confirm(self._ack_seq))
            credit -= len(chunks[-1])
        if self._cancels:
            for seq in self._cancels:
                chunks.append(encode_cancel(seq))
                credit -= len(chunks[-1])
            self._cancels.clear()
        resend = self._resend
        while resend and credit > CREDIT_RESERVE:
            chunks.append(self._write_again(resend.popleft()))
            credit -= len(chunks[-1])
        outbox = self._outbox
        limit = math.inf
        if not start or resend:
            limit = 0
        elif self.confirms:
            limit = self._outbox_limit
        while outbox.size and credit > CREDIT_RESERVE and self._kept_bytes < limit:
            outgoing = outbox.popleft()
            self._number(outgoing)
            chunk = outgoing.encode()
            credit -= len(chunk)
            chunks.append(chunk)
        if self._blocked.size:
            self._admit()
        return b"".join(chunks)

    def _note_confirmed(self) -> None:
        self._confirmed, self._ack_bytes, self._owes_confirm = self._ack_seq, 0, False

    def _number(self, outgoing: Outgoing) -> None:
        """Give a message its number, under which it waits for receipt and ack."""
        self._last_seq = seq = self._last_seq + 1
        outgoing.seq = seq
        outgoing.state = WRITTEN
        self.written += 1
        self._unreceipted.append(outgoing)
        self._kept_bytes += outgoing.size
        if outgoing.wants_ack:
            self._waiting[seq] = outgoing  # type: ignore[assignment]

    def _write_again(self, outgoing: Outgoing) -> bytes:
        message = outgoing.message
        seq = outgoing.seq
        self.resent += 1
        if outgoing.wants_ack and seq not in self._waiting:
            # Taken back meanwhile. Its number has to be filled; the cancellation in front of it keeps it from being handled.
            return encode_cancel(seq) + encode_message(seq, message.id, message.type, b"", False, message.timestamp)
        return outgoing.encode()

    def _admit(self) -> None:
        """Move blocked messages into the outbox, in order, as far as there is room."""
        moved = False
        while self._blocked.size and self._outbox.size < self._outbox_limit:
            outgoing = self._blocked.popleft()
            self._outbox.append(outgoing)
            outgoing.admitted()
            moved = True
        # Also when the last one was taken back, which somebody may wait for who drains.
        if (moved or not self._outbox.size) and self.notify is not None:
            self.notify(self)

    # -- from the stream's return half -----------------------------------------------------------------------------
    def open_return(self, frame_limit: int) -> None:
        """Get ready to read the return half of a new stream; frames over ``frame_limit`` bytes are refused."""
        self._reader = FrameReader(frame_limit)

    @property
    def partial(self) -> int:
        """Bytes of a frame on the return half that has begun and is not complete."""
        return 0 if self._reader is None else self._reader.partial

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
                self._ack_bytes += len(body) + PREFIX
                self._handle_ack(frame, now)  # type: ignore[arg-type]
            elif kind is ReceiptFrame:
                self._handle_receipt(frame)  # type: ignore[arg-type]
            elif frame is not None:
                raise RemoteProtocolError(f"{kind.__name__} is not allowed on the return half of a lane")
        if self._ack_seq - self._confirmed >= CONFIRM_ACKS or self._ack_bytes >= CONFIRM_BYTES:
            self._owes_confirm = self.confirms

    def _handle_ack(self, frame: AckFrame, now: float) -> None:
        if frame.ack_seq != self._ack_seq + 1:
            raise RemoteProtocolError(f"ack number {frame.ack_seq} follows {self._ack_seq}")
        first, last = frame.seq, frame.seq + frame.more
        self._ack_seq = frame.ack_seq + frame.more
        if frame.more and (last > self._last_seq or self._ack_seq > self._last_seq):
            # A few bytes that claim a million acks would cost their time.
            raise RemoteProtocolError(f"acks up to message {last}, but the last one sent was {self._last_seq}")
        take = self._waiting.pop
        observe = self._latency.observe
        for seq in range(first, last + 1):
            request = take(seq, None)
            if request is None:
                # The request was cancelled or timed out while the ack was on its way, or the peer makes things up.
                self.acks_ignored += 1
                self._cancelled.pop(seq, None)
            else:
                observe(now - request.started)
                request.acknowledge(frame)

    def _handle_receipt(self, frame: ReceiptFrame) -> None:
        received = frame.received
        last = self._resend[0].seq - 1 if self._resend else self._last_seq
        if received > last:
            raise RemoteProtocolError(f"receipt for message {received}, but the last one sent was {last}")
        self._take_receipt(received, frame.handled)
        if self._unhandled or self._cancelled:
            self._take_handled(frame.handled, frame.ranges)

    def _take_receipt(self, received: int, handled: int) -> None:
        unreceipted = self._unreceipted
        while unreceipted and unreceipted[0].seq <= received:
            outgoing = unreceipted.popleft()
            seq = outgoing.seq
            if not outgoing.wants_ack and self.confirms and seq > handled and outgoing.message.delivery is REDELIVER:
                self._unhandled[seq] = outgoing
            else:
                self._kept_bytes -= outgoing.size
            outgoing.state = RECEIVED
            if outgoing.watchers is not None:
                outgoing.settle(RECEIVED)

    def _take_handled(self, handled: int, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Forget what was handled: every message up to ``handled``, and those in the ranges."""
        for entries in (self._unhandled, self._cancelled):
            while entries:
                seq = next(iter(entries))
                if seq > handled:
                    break
                self._handled(seq)
                self._cancelled.pop(seq, None)
        # Our own peers give no more; beyond that the work would be out of proportion to a receipt's bytes.
        for first, last in ranges[:RANGES_TAKEN]:
            if last - first < len(self._unhandled):
                for seq in range(first, last + 1):
                    self._handled(seq)
            else:
                for seq in [seq for seq in self._unhandled if first <= seq <= last]:
                    self._handled(seq)

    def _handled(self, seq: int) -> None:
        outgoing = self._unhandled.pop(seq, None)
        if outgoing is not None:
            self._kept_bytes -= outgoing.size

    # -- from one connection to the next -----------------------------------------------------------------------------
    def pause(self) -> None:
        """Note that the connection is gone; what was written is kept for the session's next one."""
        self.stream_id = None
        self.notify = None
        self.stalled = False
        self._announce = True
        self._reader = None
        self._resend.clear()

    def can_resume(self, state: LaneState) -> bool:
        """Return False when what the peer says about the lane cannot be: then its session is not this one."""
        first = self._unreceipted[0].seq if self._unreceipted else self._last_seq + 1
        return first - 1 <= state.received <= self._last_seq and state.handled <= state.received

    def resume(self, state: LaneState) -> None:
        """Go on where the peer says that it is: what it has not received is written again, and cancellations are repeated."""
        self._take_receipt(state.received, state.handled)
        self._take_handled(state.handled)
        self._cancelled = dict.fromkeys(seq for seq in self._cancelled if seq <= state.received)
        self._cancels = [*self._cancelled]
        self._resend.extend(self._unreceipted)

    def restart(self, error: ErrorFactory) -> tuple[int, int]:
        """Begin a new session: messages that may be redelivered and are not known to be handled go out again, before all others.

        Other messages that were written have failed, and requests that wait for their ack with ``error``. Returns how many messages
        failed unreceived, and how many go out again.
        """
        unreceipted, waiting = self._unreceipted, self._waiting
        again = self._redeliverable()
        for outgoing in again:
            outgoing.state = OutgoingState.QUEUED
        self.pause()
        self._reset()
        self.redeliver(again)
        failed = _fail([outgoing for outgoing in unreceipted if outgoing.state is not OutgoingState.QUEUED], error)
        for request in waiting.values():
            if request.state is not OutgoingState.QUEUED:
                request.fail(error)
        return failed, len(again)

    def _redeliverable(self) -> list[Outgoing]:
        """Return what was written and may be redelivered, in the order of its numbers."""
        messages = {**self._unhandled, **self._waiting}
        messages.update((outgoing.seq, outgoing) for outgoing in self._unreceipted if not outgoing.wants_ack)
        return [messages[seq] for seq in sorted(messages) if messages[seq].message.delivery is REDELIVER]

    def take_redeliverable(self) -> list[Outgoing]:
        """Take out what goes out again in another session: what may be redelivered, whether written or not."""
        again = self._redeliverable()
        taken = {*again}
        for outgoing in again:
            self._waiting.pop(outgoing.seq, None)
        self._unreceipted = deque(outgoing for outgoing in self._unreceipted if outgoing not in taken)
        self._unhandled.clear()
        return again + self._outbox.take_redeliverable() + self._blocked.take_redeliverable()

    def redeliver(self, again: list[Outgoing]) -> None:
        """Put messages of an earlier session in front of all others."""
        for outgoing in again:
            outgoing.lane = self
            outgoing.redelivered = outgoing.redelivered or outgoing.seq > 0
            outgoing.admitted()
        self._outbox.prepend(again)

    def fail_written(self, error: ErrorFactory) -> int:
        """Settle what was written as failed and return how many messages that were; what was not written stays for the next connection."""
        unreceipted, waiting = self._unreceipted, self._waiting
        self.pause()
        self._reset()
        failed = _fail(unreceipted, error)
        for request in waiting.values():
            request.fail(error)
        return failed

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


def _fail(written: Iterable[Outgoing], error: ErrorFactory) -> int:
    """Settle what was written and not receipted, and return how much of it may be lost."""
    failed = 0
    for outgoing in written:
        if outgoing.answered:
            outgoing.settle(OutgoingState.RECEIVED)
        else:
            outgoing.settle(OutgoingState.FAILED, error)
            failed += 1
    return failed
