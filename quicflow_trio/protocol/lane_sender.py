"""The sending end of one lane: outbox, sequence numbers, what waits for receipts and acks.

Contract, in the order of a message's life::

    lane.offer(outgoing)            into the outbox, or behind it when it is full (BLOCKED)
    lane.next_batch(credit)         encodes what the peer's credit allows, in order; numbers it; admits what was blocked
    lane.handle_return(data)        receipts and acks from the stream's return half
    lane.withdraw(outgoing)         the caller gave up: removed while unwritten, else a cancellation goes out
    lane.connection_lost(error)     what was written is settled as lost; what was not stays for the next connection

No IO and no clock. Mutators are synchronous and complete, so a task cancelled around them leaves nothing half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from ..errors import PayloadTooLarge, RemoteProtocolError
from ..message import Delivery
from ..observe.histogram import Histogram
from ..wire import AckFrame, FrameReader, LaneOpen, ReceiptFrame, decode, encode, encode_cancel, encode_message
from .outgoing import ErrorFactory, Outbox, Outgoing, OutgoingRequest, OutgoingState

__all__ = ["CREDIT_RESERVE", "LaneSender"]

CREDIT_RESERVE = 1024
"""Bytes of a lane's credit that messages leave free, so that a cancellation can still pass on a lane whose handlers are stuck."""


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
        self._outbox = Outbox()
        self._blocked = Outbox()
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
        return bool(self._cancels) or self._outbox.size > 0

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
        while outbox.size and credit > CREDIT_RESERVE:
            chunk = self._write(outbox.popleft())
            credit -= len(chunk)
            chunks.append(chunk)
        if self._blocked.size:
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
        while self._blocked.size and self._outbox.size < self._outbox_limit:
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
            else:
                observe(now - request.started)
                request.acknowledge(frame)

    def _handle_receipt(self, frame: ReceiptFrame) -> None:
        received = frame.received
        if received > self._last_seq:
            raise RemoteProtocolError(f"receipt for message {received}, but the last one sent was {self._last_seq}")
        unreceipted = self._unreceipted
        while unreceipted and unreceipted[0].seq <= received:
            outgoing = unreceipted.popleft()
            outgoing.state = OutgoingState.RECEIVED
            if outgoing.watchers is not None:
                outgoing.settle(OutgoingState.RECEIVED)

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
