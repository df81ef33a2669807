"""The receiving end of one lane: frames in, messages in order out, receipts, acks and credit back.

Contract::

    lane.feed(data)                 bytes of the forward half; raises on a frame that is announced too large
    lane.decode(limit)              turns messages into `Incoming` on ``lane.queue``; those over the limit stay encoded
    lane.finish(incoming, ...)      its handler has ended (or never will run): credit is released, the ack queued
    lane.next_batch()               receipts and acks to write on the return half
    lane.credit_limit(window)       how far the peer may send, as an absolute offset
    lane.detach()                   the connection is gone; with ``keeps`` the acks wait for the session's next one
    lane.attach(...)                it goes on there: acks that the peer has not taken are written again, from the store

Memory is bounded by credit: at most window + one frame of bytes arrive ahead of the handlers. A session that resumes gets a stream with
a whole window of new credit, while handlers hold what came on earlier ones. So no more than a window is ever *decoded* ahead of them;
the rest is given up with its connection, and comes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import RemoteProtocolError
from ..wire import (
    AckStatus,
    CancelFrame,
    ConfirmFrame,
    FrameReader,
    LaneOpen,
    LaneState,
    MessageFrame,
    decode,
    encode_ack,
    encode_receipt,
    holds_message,
)
from .handshake import check_lane_name
from .kept_acks import KeptAcks
from .lane_sender import CREDIT_RESERVE
from .ranges import add_number

__all__ = ["FRAME_OVERHEAD", "Incoming", "LaneReceiver"]

_SUCCESS = int(AckStatus.SUCCESS)

FRAME_OVERHEAD = 1024
"""How much longer than its payload a frame may be: envelope, error text of an ack, fields of later revisions."""

PREFIX = 4
RUN_BYTES = 16
"""What a run of acks counts for until it is written."""
RECEIPT_RANGES = 64
"""Most ranges in one receipt; beyond it they are left to a later one, when the gaps have closed."""


class Incoming:
    """One message received, until its handler has ended.

    Attributes:
        lane: where it came from.
        frame: the decoded message.
        size: bytes of credit it holds.
        cancelled: true once the sender took it back.
        cancel: stops the handler that runs for it; None while none runs.
        serial: true when the lane's next message waits for this one's end.
    """

    __slots__ = ("cancel", "cancelled", "frame", "lane", "serial", "size")

    def __init__(self, lane: LaneReceiver, frame: MessageFrame, size: int) -> None:
        self.lane: LaneReceiver = lane
        self.frame: MessageFrame = frame
        self.size: int = size
        self.cancelled: bool = False
        self.serial: bool = False
        self.cancel: Callable[[], None] | None = None


class LaneReceiver:
    """The receiving end of one lane; see the module's docstring for the contract.

    Attributes:
        stream_id: the stream it runs on.
        name: its name, None until the first frame named it.
        queue: decoded messages that wait for a handler, in order.
        running: handlers that run for it now.
        held_back: true while a serial handler keeps the next message waiting.
        granted: the highest offset granted so far.
        attached: false while no connection carries it.
        noted: true while its connection will look at it before it sends again, so that it need not be told of what is done.
        keeps: true when acks are kept until the peer has confirmed them, for a resume; else they end with the connection.
        ack_bytes: bytes of acks that wait to be written.
        released: bytes of credit given back, all in all.
        scheduled: true while the dispatcher has it on its list.
        counted: bytes of it that stand in the credit budget.
        older: the lane of the same name on an earlier connection while that still has messages or handlers; they come first.
        newer: called once when nothing waits here any more, for the lane that has this one as its `older`.
    """

    __slots__ = (
        "_ack_seq",
        "_acks",
        "_active",
        "_ahead",
        "_cancelled_later",
        "_handled",
        "_held",
        "_kept",
        "_largest",
        "_later",
        "_opened",
        "_payload_limit",
        "_reader",
        "_received",
        "_run_first",
        "_run_last",
        "_runs",
        "_tell_handled",
        "_told",
        "_window",
        "ack_bytes",
        "arrived",
        "attached",
        "counted",
        "granted",
        "held_back",
        "keeps",
        "name",
        "newer",
        "noted",
        "older",
        "queue",
        "released",
        "running",
        "scheduled",
        "stream_id",
    )

    def __init__(self, stream_id: int, payload_limit: int, granted: int, *, runs: bool = True, keeps: bool = False) -> None:
        self.stream_id: int = stream_id
        self.name: str | None = None
        self.queue: deque[Incoming] = deque()
        self.running: int = 0
        self.held_back: bool = False
        self.scheduled: bool = False
        self.attached: bool = True
        self.noted: bool = False
        self.counted: int = 0
        self.older: LaneReceiver | None = None
        self.newer: Callable[[], None] | None = None
        self.granted: int = granted
        self.arrived: int = 0
        self.released: int = 0
        self.ack_bytes: int = 0
        self.keeps: bool = keeps
        self._opened = False
        self._payload_limit = payload_limit
        self._window = granted
        self._reader = FrameReader(payload_limit + FRAME_OVERHEAD)
        self._active: dict[int, Incoming] = {}
        # What those hold, bytes.
        self._held = 0
        # The longest message so far, bytes.
        self._largest = 0
        self._received = 0
        self._handled = 0
        # First and last of each run of messages handled ahead of one that is not, in order. There are at most as many runs as there
        # are handlers under way, however long one of them stands still.
        self._ahead: list[list[int]] = []
        self._told = (0, 0)
        self._tell_handled = False
        self._ack_seq = 0
        self._acks: list[bytes] = []
        self._kept = KeptAcks()
        # Messages that were handled in the order in which they came, without a result: they share one ack. -1 while there are none.
        self._runs = runs
        self._run_first = self._run_last = -1
        # Messages not decoded yet, and which of them were taken back meanwhile.
        self._later: deque[bytes] = deque()
        self._cancelled_later: set[int] = set()

    @property
    def held_bytes(self) -> int:
        """Bytes received whose handlers have not ended."""
        return self.arrived - self.released

    @property
    def kept_bytes(self) -> int:
        """Bytes of acks written that the peer has not confirmed."""
        return self._kept.size

    @property
    def undecoded(self) -> bool:
        """True when messages wait to be decoded."""
        return bool(self._later)

    @property
    def waiting(self) -> bool:
        """True while messages wait for a handler, or for a serial one to end."""
        return bool(self.queue) or self.held_back or bool(self._later)

    @property
    def busy(self) -> bool:
        """True while there are messages whose handlers have not ended, or acks to be written."""
        return bool(self._active or self._later or self.ack_bytes)

    def follow(self, older: LaneReceiver, resume: Callable[[], None]) -> None:
        """Let the lane of the same name on an earlier connection go first; ``resume`` is called when this one may start."""
        if older.waiting or older.running:
            self.older = older
            older.newer = resume

    def still_behind(self) -> bool:
        """Return True while the lane that goes first has messages or handlers; forget it once it has none."""
        older = self.older
        if older is not None and not older.waiting and not older.running:
            self.older = older = None
        return older is not None

    def pass_on(self) -> None:
        """Let the lane that comes after this one begin, if nothing waits here."""
        newer = self.newer
        if newer is not None and not self.waiting:
            self.newer = None
            newer()

    def abandon(self) -> int:
        """Give up what waits, and count it: no handler will be started for it any more."""
        number = len(self.queue) + len(self._later)
        self.queue.clear()
        self._later.clear()
        self.held_back = False
        self.pass_on()
        return number

    @property
    def active(self) -> int:
        """Messages decoded whose handlers have not ended."""
        return len(self._active)

    @property
    def partial(self) -> int:
        """Bytes of a frame that has begun and is not complete."""
        return self._reader.partial

    def feed(self, data: bytes) -> None:
        """Take in bytes of the forward half.

        Raises:
            FrameTooLarge: the next frame is announced over the limit; nothing of it was kept.
            EmptyFrame: it is announced with no length.
        """
        self.arrived += len(data)
        self._reader.feed(data)

    def decode(self, limit: int) -> int:
        """Decode what has arrived, at most ``limit`` messages of it; return how many were queued.

        Further messages stay encoded, which takes a tenth of the memory; so do those beyond a window of bytes whose handlers have not
        ended. Cancellations do not wait behind them: the handler that one
        is to end may be what they all wait for.

        Raises:
            RemoteProtocolError: what came is not allowed there, or out of sequence.
        """
        later = self._later
        window = self._window
        queued = 0
        while later and queued < limit and self._held < window:
            queued += self._take(later.popleft())
        for body in self._reader.frames():
            if (later or queued >= limit or self._held >= window) and holds_message(body):
                later.append(body)
            else:
                queued += self._take(body)
        return queued

    def _take(self, body: bytes) -> bool:
        """Decode and act on one frame; return True when it was a message."""
        size = len(body) + PREFIX
        frame = decode(body)
        kind = frame.__class__
        if kind is MessageFrame:
            self._queue_message(frame, size)  # type: ignore[arg-type]
            return True
        self.released += size
        if kind is CancelFrame:
            self._handle_cancel(frame.seq)  # type: ignore[union-attr]
        elif kind is ConfirmFrame:
            self._confirm(frame.acked)  # type: ignore[union-attr]
        elif kind is LaneOpen:
            self._handle_open(frame)  # type: ignore[arg-type]
        elif frame is not None:
            raise RemoteProtocolError(f"{kind.__name__} is not allowed on the forward half of a lane")
        return False

    def _queue_message(self, frame: MessageFrame, size: int) -> None:
        if self.name is None:
            raise RemoteProtocolError("the first frame of a lane must name it")
        seq = frame.seq
        if seq != self._received + 1:
            raise RemoteProtocolError(f"message {seq} follows {self._received} on lane {self.name!r}")
        if len(frame.payload) > self._payload_limit:
            raise RemoteProtocolError(f"payload of {len(frame.payload):,} bytes, the limit is {self._payload_limit:,}")
        self._received = seq
        if size > self._largest:
            self._largest = size
        incoming = Incoming(self, frame, size)
        if self._cancelled_later and seq in self._cancelled_later:
            self._cancelled_later.remove(seq)
            incoming.cancelled = True
        self._active[seq] = incoming
        self._held += size
        self.queue.append(incoming)

    def _handle_open(self, frame: LaneOpen) -> None:
        if self._opened:
            raise RemoteProtocolError(f"lane {self.name!r} was named twice")
        problem = check_lane_name(frame.name)
        if problem is not None:
            raise RemoteProtocolError(f"lane name {problem}")
        self._opened = True
        self.name = frame.name
        self._replay(frame.acked)

    def _confirm(self, acked: int) -> None:
        if acked > self._ack_seq:
            raise RemoteProtocolError(f"{acked} acks confirmed, but the last one was {self._ack_seq}")
        self._kept.confirm(acked)

    def _replay(self, acked: int) -> None:
        """Queue the acks again that went out on an earlier connection and were not taken."""
        self._confirm(acked)
        again = self._kept.replay(acked)
        self.ack_bytes += sum(map(len, again))
        self._acks[:0] = again

    def _handle_cancel(self, seq: int) -> None:
        following = self._received + len(self._later) + 1
        if seq > following:
            raise RemoteProtocolError(f"cancellation of message {seq}, which was not sent")
        if seq > self._received:
            # Not decoded yet; or directly in front of its message, so there is never more than one of these.
            self._cancelled_later.add(seq)
            return
        incoming = self._active.get(seq)
        if incoming is None or incoming.cancelled:
            return  # Its handler has ended: the ack and the cancellation crossed.
        incoming.cancelled = True
        if incoming.cancel is not None:
            incoming.cancel()

    def finish(self, incoming: Incoming, status: int, result: bytes, error: str = "") -> None:
        """Note that a message is done with: release its credit and, when it wants one and was not taken back, queue its ack."""
        frame = incoming.frame
        seq = frame.seq
        del self._active[seq]
        self._held -= incoming.size
        self.released += incoming.size
        if seq == self._handled + 1 and not self._ahead:
            self._handled = seq
        else:
            self._note_handled(seq)
        if frame.redeliver or incoming.cancelled:
            # Its sender keeps it, or its cancellation, until it hears of this, so that must not wait for something else to be said.
            self._tell_handled = True
        if frame.wants_ack and (self.attached or self.keeps) and not incoming.cancelled:
            self._ack_seq = ack_seq = self._ack_seq + 1
            if status == _SUCCESS and not result and self._runs:
                if seq == self._run_last + 1:
                    self._run_last = seq
                    return
                self._end_run(ack_seq - 1)
                self._run_first = self._run_last = seq
                self.ack_bytes += RUN_BYTES
            else:
                self._end_run(ack_seq - 1)
                ack = encode_ack(ack_seq, seq, status, result, error)
                self._acks.append(ack)
                self.ack_bytes += len(ack)

    def _end_run(self, ack_seq: int) -> None:
        """Encode the run of acks whose last one has this number, if there is a run."""
        first = self._run_first
        if first > 0:
            more = self._run_last - first
            self._acks.append(encode_ack(ack_seq - more, first, _SUCCESS, b"", more=more))
            self._run_first = self._run_last = -1

    def _note_handled(self, seq: int) -> None:
        """Enter a message into the runs of the handled, of which the first may close the gap behind it."""
        ahead = self._ahead
        add_number(ahead, seq)
        if ahead[0][0] == self._handled + 1:
            self._handled = ahead.pop(0)[1]

    def trim(self, limit: int) -> None:
        """Keep no more than about ``limit`` bytes of acks that the peer does not confirm; see `KeptAcks.trim`."""
        self._kept.trim(limit)

    def next_batch(self) -> bytes:
        """Return the acks that wait and, when it has news, a receipt, as one piece; empty when there is nothing to say."""
        self._end_run(self._ack_seq)
        acks = self._acks
        told = (self._received, self._handled)
        batch = b""
        if acks:
            batch = b"".join(acks)
            if self.keeps:
                self._kept.keep(self._ack_seq, acks, len(batch))
                self._acks = []
            else:
                acks.clear()
            self.ack_bytes = 0
        # That more was handled is of use to a later connection only, and goes with something else: by itself it would be a packet, and
        # its acknowledgement another, for every message whose handler takes longer than a turn.
        if (
            told[0] != self._told[0]
            or ((batch or self._tell_handled) and told != self._told)
            or (self._tell_handled and self._ahead)
        ):
            self._told = told
            self._tell_handled = False
            batch += encode_receipt(
                self._received, self._handled, tuple((first, last) for first, last in self._ahead[:RECEIPT_RANGES])
            )
        return batch

    @property
    def has_news(self) -> bool:
        """True when something is to be written for its own sake. Receipts are: a sender may keep too much for it to write on."""
        return self.ack_bytes > 0 or self._tell_handled or self._received != self._told[0]

    def credit_limit(self, window: int) -> int:
        """Return the absolute offset that the peer may send up to with this window.

        A message that has begun within the window may come to its end, however long it is; and behind it there is room for cancellations,
        without which the handlers that hold the window might never end. Our own senders begin no message in that room. What others
        put there has not begun within the window, so that it gives no further room.
        """
        reader = self._reader
        limit = self.released + window
        if self.held_bytes - max(reader.partial, self._largest) < window:
            return max(limit, self.arrived + reader.missing + CREDIT_RESERVE)
        return limit

    @property
    def state(self) -> LaneState:
        """How far the lane has come, as it is told to the peer in a hello or welcome."""
        return LaneState(self.name or "", self._received, self._handled)

    def detach(self) -> None:
        """Forget the connection: handlers go on, a frame that has begun will not be completed.

        With ``keeps`` the acks wait for the session's next connection, and what is not decoded is thrown away: it was not told to be
        received, so it comes again. Without, acks have nowhere to go.
        """
        self.attached = self.noted = False
        if self.keeps or not self.queue:
            # What is encoded still is only looked at when the queue before it runs out.
            self._later.clear()
            self._cancelled_later.clear()
        # Counted anew and not added to: bytes that broke the protocol belong to no message that will ever be finished.
        self.released = self.arrived - self._held - sum(len(body) + PREFIX for body in self._later)
        if not self.keeps:
            self.forget_acks()

    def forget_acks(self) -> None:
        """Drop all acks, from now on too: nobody will ask for them."""
        self.keeps = False
        self._acks.clear()
        self._kept.clear()
        self._run_first = self._run_last = -1
        self.ack_bytes = 0

    def attach(self, stream_id: int, granted: int) -> None:
        """Go on with a stream of the session's next connection, whose first frame names the lane again.

        What handlers still hold counts against the stream's window.
        """
        self.stream_id = stream_id
        self.granted = granted
        self.attached = True
        self.arrived = 0
        self.released = -self._held
        self._opened = False
        # What the peer was told in the hello or welcome may be old by now, and has no ranges.
        self._told = (0, 0)
        self._reader = FrameReader(self._payload_limit + FRAME_OVERHEAD)
