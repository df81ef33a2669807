"""The lanes of one connection on the streams that carry them: both directions, both halves, with their credit. Synchronous throughout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from .config import Limits
from .errors import LaneLimitReached, LocalProtocolError, RemoteProtocolError
from .link import Link
from .protocol.credit import RETURN_WINDOW
from .protocol.handshake import ACK_RUNS, RESUMING
from .protocol.lane_receiver import FRAME_OVERHEAD, LaneReceiver
from .protocol.lane_sender import CREDIT_RESERVE, LaneSender
from .quic.engine import Engine, StreamData
from .wire import PREFIX_SIZE, LaneOpen, decode

__all__ = ["LaneStreams"]

KEPT_ACKS = 4 * RETURN_WINDOW
"""Bytes of acks that have left on one lane, and are kept although they are not confirmed: one window of them may be on the way, and as
much again for each round trip that the confirmation is late."""


class LaneStreams:
    """Which lane runs on which stream of one connection, and what waits to be written there.

    Contract: `handle_data` takes in what the engine reports, `note_sender` and `note_receiver` mark lanes with something to write,
    `flush` writes it, one piece per stream. The owner kicks the pump.

    Args:
        engine: the connection's engine.
        link: the session that the lanes belong to.
        limits: this side's limits.
        is_client: which side this is.
        revision: of the protocol that both sides speak.
        kick: has the connection's pump take a turn.

    Attributes:
        may_start: false once the peer asked that no new message be started.
        bytes_sent: bytes written on lanes, both halves.
        bytes_received: bytes received on lanes, both halves.
    """

    def __init__(
        self, engine: Engine, link: Link, limits: Limits, *, is_client: bool, revision: int, kick: Callable[[], None]
    ) -> None:
        self.may_start: bool = True
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self._engine = engine
        self._link = link
        self._limits = limits
        self._counters = link.instruments.counters
        # Streams that the server opened have an odd number (RFC 9000 section 2.1).
        self._peer_bit = 1 if is_client else 0
        self._ack_runs = revision >= ACK_RUNS
        self._keeps = revision >= RESUMING
        self._kick = kick
        self._senders: dict[int, LaneSender] = {}
        self._return_arrived: dict[int, int] = {}
        self._receivers: dict[int, LaneReceiver] = {}
        # What has come on streams whose first frame is not complete, in a session that knows lanes already.
        self._openings: dict[int, bytes] = {}
        # Dictionaries as ordered sets: the order of writing must not depend on hashes.
        self._senders_pending: dict[LaneSender, None] = {}
        self._senders_stalled: dict[LaneSender, None] = {}
        self._receivers_pending: dict[LaneReceiver, None] = {}
        # Those whose window was cut, because the process holds too much.
        self._receivers_short: dict[LaneReceiver, None] = {}

    # -- in --------------------------------------------------------------------------------------------------------
    def handle_data(self, event: StreamData) -> None:
        """Take in bytes of any stream but the control stream.

        Raises:
            ProtocolError: the peer may not do that.
        """
        stream_id = event.stream_id
        arrived = len(event.data)
        self.bytes_received += arrived
        self._counters.bytes_received += arrived
        receiver = self._receivers.get(stream_id)
        if receiver is not None:
            self._receive(receiver, event)
            return
        sender = self._senders.get(stream_id)
        if sender is not None:
            self._receive_return(sender, event)
            return
        if stream_id & 1 != self._peer_bit:
            raise RemoteProtocolError(f"stream {stream_id} is not a lane")
        if len(self._receivers) + len(self._openings) >= self._limits.lanes and stream_id not in self._openings:
            raise RemoteProtocolError(f"more than {self._limits.lanes} lanes")
        if self._link.session_lanes:
            self._open_again(event)
        else:
            self._receive(self._new_receiver(stream_id), event)

    def _new_receiver(self, stream_id: int) -> LaneReceiver:
        limits = self._limits
        receiver = LaneReceiver(stream_id, limits.payload, limits.lane_window, runs=self._ack_runs, keeps=self._keeps)
        self._receivers[stream_id] = receiver
        return receiver

    def _open_again(self, event: StreamData) -> None:
        """Take in the first bytes of a stream that may carry a lane known from an earlier connection: its name says so."""
        stream_id = event.stream_id
        data = self._openings.pop(stream_id, b"") + event.data
        size = int.from_bytes(data[:PREFIX_SIZE], "big")
        if len(data) < PREFIX_SIZE or len(data) - PREFIX_SIZE < size <= FRAME_OVERHEAD:
            if event.fin:
                raise RemoteProtocolError("a lane was closed before its session")
            self._openings[stream_id] = data
            return
        # A first frame too long to be a name, which would be copied with every packet of it, is left to a lane of its own to refuse.
        opening = decode(data[PREFIX_SIZE : PREFIX_SIZE + size]) if 0 < size <= FRAME_OVERHEAD else None
        known = self._link.session_lanes.get(opening.name) if isinstance(opening, LaneOpen) else None
        if known is None or known.attached:
            receiver = self._new_receiver(stream_id)
        else:
            receiver = known
            receiver.attach(stream_id, self._limits.lane_window)
            self._receivers[stream_id] = receiver
        self._receive(receiver, StreamData(stream_id, data, event.fin))

    def _receive(self, receiver: LaneReceiver, event: StreamData) -> None:
        named = receiver.name is not None
        receiver.feed(event.data)
        self._link.dispatcher.receive(receiver)
        if not named and receiver.name is not None:
            self._enter(receiver, receiver.name)
        if event.fin:
            raise RemoteProtocolError("a lane was closed before its session")
        self._receivers_pending[receiver] = None
        # This is a turn of the pump, which flushes at its end.
        receiver.noted = True

    def _enter(self, receiver: LaneReceiver, name: str) -> None:
        """Check a lane that has just been named, and take it up."""
        if any(other.name == name and other is not receiver for other in self._receivers.values()):
            raise RemoteProtocolError(f"lane {name!r} was opened twice")
        link = self._link
        if len(link.session_lanes) >= self._limits.lanes:
            raise RemoteProtocolError(f"more than {self._limits.lanes} lanes")
        link.enter_lane(name, receiver)

    def _receive_return(self, sender: LaneSender, event: StreamData) -> None:
        if event.fin:
            raise RemoteProtocolError("the return half of a lane was closed before its session")
        stream_id = event.stream_id
        arrived = self._return_arrived[stream_id] + len(event.data)
        self._return_arrived[stream_id] = arrived
        late = sender.acks_ignored
        # One look at the clock for all acks of a packet; the turn's own `now` is older than the packet's last neighbours.
        sender.handle_return(event.data, trio.current_time())
        self._counters.acks_late += sender.acks_ignored - late
        self._engine.grant(stream_id, arrived + RETURN_WINDOW)
        if sender.pending:
            # Receipts have made room for more, or the acks are to be confirmed. It is written in this same turn.
            self._senders_pending[sender] = None

    @property
    def begun(self) -> bool:
        """True while a part of a frame has come, on any stream, that this side's own credit does not hold back."""
        window = self._link.window()
        return (
            bool(self._openings)
            or any(sender.partial for sender in self._senders.values())
            # What handlers hold is taken off the credit; up to half a window of it the peer has been told of enough to go on.
            or any(lane.partial and (lane.held_bytes - lane.partial) * 2 <= window for lane in self._receivers.values())
        )

    def recheck_credit(self) -> None:
        """Look at lanes again that had run out of credit, either way: there is no event when the peer grants more, or others hold less."""
        if self._receivers_short:
            self._receivers_pending.update(self._receivers_short)
            self._receivers_short.clear()
        if self._senders_stalled:
            self._senders_pending.update(self._senders_stalled)
            self._senders_stalled.clear()

    # -- out -------------------------------------------------------------------------------------------------------
    def note_sender(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""
        self._senders_pending[lane] = None
        self._kick()

    def note_receiver(self, lane: LaneReceiver, *, at_once: bool) -> None:
        """Note that a handler has ended: its ack and, when enough has gathered, new credit go out soon.

        Args:
            lane: the lane of the handler.
            at_once: true to write even what is not worth a packet of its own: somebody waits for silence.
        """
        self._receivers_pending[lane] = None
        if lane.has_news or at_once or self._owes_credit(lane):
            lane.noted = True
            self._kick()
        else:
            # Nothing may come on this lane for hours: what it has given back must not shrink the windows of others meanwhile.
            self._link.account(lane)

    def _owes_credit(self, lane: LaneReceiver) -> bool:
        """Return True when a message that wants no ack must not wait for other traffic to get its credit back."""
        if lane.credit_limit(self._limits.lane_window // 2) > lane.granted:
            return True
        # Less than half of the window, when a handler that goes on holds the rest: but a peer that is about to stand still could go on.
        standing = lane.granted - lane.arrived <= 2 * CREDIT_RESERVE
        return standing and lane.credit_limit(self._link.window()) > lane.granted

    def flush(self) -> None:
        """Write what waits: receipts, acks and credit first, then cancellations and messages, one piece per stream."""
        if self._receivers_pending:
            receivers, self._receivers_pending = self._receivers_pending, {}
            for receiver in receivers:
                self._flush_receiver(receiver)
        if self._senders_pending:
            senders, self._senders_pending = self._senders_pending, {}
            for sender in senders:
                self._flush_sender(sender)

    def _write(self, stream_id: int, data: bytes) -> None:
        length = len(data)
        self.bytes_sent += length
        self._counters.bytes_sent += length
        self._engine.write(stream_id, data)

    def _flush_receiver(self, receiver: LaneReceiver) -> None:
        link, engine = self._link, self._engine
        receiver.noted = False
        if engine.unsent(receiver.stream_id) <= self._limits.outbox_bytes:
            stalled = receiver.ack_bytes > self._limits.outbox_bytes
            batch = receiver.next_batch()
            if batch:
                self._write(receiver.stream_id, batch)
                self._trim(receiver)
            if stalled:
                link.dispatcher.resume(receiver)
        else:
            # The peer does not read its acks. They wait here, and past the limit no further handler starts.
            self._receivers_pending[receiver] = None
        link.account(receiver)
        window = link.window()
        limit = receiver.credit_limit(window)
        if limit > receiver.granted:
            receiver.granted = limit
            engine.grant(receiver.stream_id, limit, window if window < self._limits.lane_window else 0)
        if window < self._limits.lane_window:
            self._receivers_short[receiver] = None

    def _trim(self, receiver: LaneReceiver) -> None:
        """Let go of acks that the peer must have, and does not confirm; never of what has not left."""
        if receiver.kept_bytes > KEPT_ACKS:
            receiver.trim(KEPT_ACKS + self._engine.unsent(receiver.stream_id))

    def _flush_sender(self, sender: LaneSender) -> None:
        stream_id = sender.stream_id
        if stream_id is None:
            stream_id = self._open(sender)
            if stream_id is None:
                return
        # After a goodbye of the peer nothing new is started.
        written, resent = sender.written, sender.resent
        batch = sender.next_batch(self._engine.credit(stream_id), start=self.may_start)
        if batch:
            self._write(stream_id, batch)
            self._counters.messages_resent += sender.resent - resent
            written = sender.written - written
            if written:
                self._counters.messages_sent += written
                if self._link.instruments.events.messages:
                    self._link.report_sent(sender, written)
        if not sender.pending or (
            batch and self.may_start and not sender.full and self._engine.credit(stream_id) > CREDIT_RESERVE
        ):
            # In the second case messages have moved up from behind the outbox, and were noted.
            sender.stalled = False
            return
        self._senders_stalled[sender] = None
        if self.may_start and not sender.full and (batch or not sender.stalled):
            sender.stalled = True
            self._counters.credit_stalls += 1

    def _open(self, sender: LaneSender) -> int | None:
        """Open the stream of a lane; None when it may not be, or not yet."""
        link = self._link
        if not link.allows(sender):
            link.lost(sender.fail_queued(partial(LaneLimitReached, f"the peer allows {link.lane_limit} lanes")))
            return None
        try:
            stream_id = self._engine.open_stream()
        except LocalProtocolError:
            # The peer's transport allows fewer streams than its hello lanes; wait for it to allow more.
            self._senders_stalled[sender] = None
            return None
        sender.stream_id = stream_id
        self._senders[stream_id] = sender
        self._return_arrived[stream_id] = 0
        sender.open_return(self._limits.payload + FRAME_OVERHEAD)
        return stream_id

    # -- the end ---------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """Let go of the streams: handlers go on, and their acks wait if the session can go on. No effect the second time."""
        lanes, self._receivers = self._receivers, {}
        for lane in lanes.values():
            lane.detach()
            self._link.account(lane)
            # Its acks may have nowhere to go now, and hold no handler back then.
            self._link.dispatcher.resume(lane)
        self._openings.clear()
        self._senders_pending.clear()
        self._senders_stalled.clear()
        self._receivers_pending.clear()
        self._receivers_short.clear()

    @property
    def all_received(self) -> bool:
        """True when the peer has confirmed every message that was written, and none waits that may still be written."""
        return not any(lane.unreceipted or (lane.unwritten and self.may_start) for lane in self._link.lanes.values())

    @property
    def quiet(self) -> bool:
        """True when nothing is under way: no message, no request of ours, no handler here, no ack of theirs.

        Lanes of the session count that the peer has not opened again on this connection: what is kept for them, it has not got.
        """
        link = self._link
        return (
            self.all_received
            and not any(lane.waiting for lane in link.lanes.values())
            and not any(lane.busy or (lane.kept_bytes and not lane.attached) for lane in link.session_lanes.values())
        )
