"""quic-backbone-v1: messages and pings on streams, one exchange on each, both ways. Synchronous throughout.

To the session above it is the default lane: `LaneSender` gives its messages one by one, `LaneReceiver` gets each message under the next
number, as if it had come on a lane, and what that answers goes to the stream that the message came on.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from functools import partial
from typing import Final

import trio

from .dialect import Host
from .errors import ConnectionLost, LaneLimitReached, LocalProtocolError
from .half_frames import BAD_FRAMES, THROWN_AWAY, HalfFrames
from .link import Link
from .protocol.backbone1 import (
    FOREIGN,
    LONGEST_ID,
    FrameIntake,
    Inbound,
    Outbound,
    Oversized,
    ack_of,
    answer_of,
    id_from_text,
)
from .protocol.credit import RETURN_WINDOW, connection_window
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.outgoing import Outgoing
from .protocol.pings import PingBudget
from .quic.engine import StreamData, StreamReset
from .wire import (
    AckFrame,
    AckStatus,
    BackboneAck,
    BackboneData,
    BackboneFrame,
    BackbonePing,
    BackbonePong,
    DecodeError,
    FrameReader,
    FrameTooLarge,
    LaneOpen,
    decode,
    encode,
    encode_backbone,
    encode_message,
)

__all__ = ["STREAMS", "Exchanges", "now_ms"]

STREAMS: Final = 1000
"""Streams that either side may have open at once; as many as the original takes."""


def now_ms() -> int:
    """Return what frames are stamped with."""
    return time.time_ns() // 1_000_000


class Exchanges(HalfFrames):
    """The streams of one connection after its introduction, but for stream 0.

    Args:
        host: the connection.
        link: the session.

    Attributes:
        bytes_sent: stream bytes written.
        bytes_received: stream bytes received.
    """

    def __init__(self, host: Host, link: Link) -> None:
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self._host = host
        self._engine = host.engine
        self._link = link
        self._limits = host.limits
        self._counters = host.instruments.counters
        self._peer_bit = 1 if host.is_client else 0
        self._names = (link.client_id, "server") if host.is_client else ("server", link.client_id)
        self._lane: LaneSender = link.lanes[""]
        self._receiver = LaneReceiver(0, self._limits.payload, self._limits.lane_window, runs=False)
        self._in: dict[int, Inbound] = {}
        self._out: dict[int, Outbound] = {}
        self._seq = 0
        # Messages that are to be answered, by their number; and of ours that wait for an answer, by their id.
        self._owed: dict[int, Inbound] = {}
        self._asked: dict[str, Outbound] = {}
        # Streams whose message was taken, and which are finished once handlers have come so far that more may come.
        self._taken: deque[Inbound] = deque()
        self._pings_due = 0
        self._ping_budget = PingBudget(trio.current_time())
        # Bytes of messages on streams that are not over, and of frames that are not complete.
        self._under_way = 0
        self._gathered = 0
        self._window = connection_window(self._limits)
        # Beyond this, what cannot be completed is thrown away: a peer that sends all its messages at once, a packet of each in turn,
        # must be allowed more than its window.
        self._gather_limit = max(self._window, self._limits.total_bytes // 4)
        self._send_due = True
        self._receive_due = False
        self._stalled = False
        self._held_back = 0
        # Streams with answers of ours that had not left when they were last looked at; and bytes of their copies on streams of ours.
        self._answering: dict[int, None] = {}
        self._copies = 0

    def begin(self) -> None:
        """Take up the lane that messages are received on: the session is attached now."""
        self._receiver.feed(encode(LaneOpen()))
        self._link.dispatcher.receive(self._receiver)
        self._link.enter_lane("", self._receiver)

    # -- in ----------------------------------------------------------------------------------------------------------
    def handle_data(self, event: StreamData) -> None:
        """Take in bytes of any stream but 0.

        Raises:
            RemoteProtocolError: far too many pings.
        """
        arrived = len(event.data)
        self.bytes_received += arrived
        self._counters.bytes_received += arrived
        if event.stream_id & 1 == self._peer_bit:
            self._handle_inbound(event)
        else:
            self._handle_answer(event)

    def handle_reset(self, event: StreamReset) -> None:
        """Take a half that the peer has abandoned for one that ends here, and a message on it for lost."""
        stream = self._out.get(event.stream_id)
        if stream is not None and stream.outgoing is not None and not stream.outgoing.wants_ack:
            self._thrown_away(stream.outgoing)
        self.handle_data(StreamData(event.stream_id, b"", fin=True))

    def handle_stop(self, stream_id: int) -> None:
        """Write no more on a stream whose other side does not read."""
        inbound = self._in.get(stream_id)
        if inbound is not None:
            inbound.finished = True
            self._forget(inbound)
            return
        stream = self._out.get(stream_id)
        if (
            stream is not None
            and stream.outgoing is not None
            and not stream.outgoing.wants_ack
            and self._engine.unsent(stream_id)
        ):
            self._thrown_away(stream.outgoing)

    def _thrown_away(self, outgoing: Outgoing) -> None:
        self._link.lost(self._lane.lose(outgoing, partial(ConnectionLost, "the peer has thrown the message away")))

    def _handle_inbound(self, event: StreamData) -> None:
        stream_id, data = event.stream_id, event.data
        stream = self._in.get(stream_id)
        if stream is None:
            stream = self._in[stream_id] = Inbound(stream_id, self._limits.payload)
        first = not stream.arrived
        stream.arrived += len(data)
        stream.over = stream.over or event.fin
        if stream.intake is not None:
            if first and self._peer_bit and data.startswith(FOREIGN):
                stream.intake = None
                self._finish(stream)
            else:
                self._read(stream, stream.intake, data)
        if not stream.over:
            self._engine.grant(stream_id, stream.arrived + self._link.window())
        self._forget(stream)

    def _take(self, stream: Inbound, frame: BackboneFrame | Oversized) -> None:
        """Act on the frame of a stream."""
        host = self._host
        if isinstance(frame, Oversized):
            self._refuse(stream, frame.data, frame.size)
        elif isinstance(frame, BackboneData):
            if len(frame.msg_id) > LONGEST_ID:
                host.note_error(DecodeError(f"a message id of {len(frame.msg_id):,} characters"))
                self._finish(stream)
            elif len(frame.payload) > self._limits.payload:
                self._refuse(stream, frame, len(frame.payload))
            else:
                self._take_message(stream, frame)
        elif isinstance(frame, BackbonePing) and not host.is_client:
            host.last_ping = host.last_heard
            self._counters.heartbeats_received += 1
            if self._ping_budget.take(host.last_heard):
                self._counters.heartbeats_sent += 1
                self._finish(stream, BackbonePong(now_ms()))
            else:
                self._finish(stream)
        else:
            if isinstance(frame, BackboneAck):
                asked = self._asked.get(frame.msg_id)
                if asked is not None:
                    self._answered(asked, frame)
            self._finish(stream)

    def _refuse(self, stream: Inbound, data: BackboneData, size: int) -> None:
        self._host.note_error(FrameTooLarge(size, self._limits.payload))
        if data.wait_ack and len(data.msg_id) <= LONGEST_ID:
            error = f"payload of {size:,} bytes, the limit is {self._limits.payload:,}"
            self._answer(stream, data.msg_id, AckFrame(1, 1, AckStatus.FAILURE, b"", error))
        else:
            self._throw_away(stream)

    def _take_message(self, stream: Inbound, data: BackboneData) -> None:
        self._seq = seq = self._seq + 1
        if data.wait_ack:
            stream.msg_id = data.msg_id
            self._owed[seq] = stream
        else:
            self._taken.append(stream)
        receiver = self._receiver
        receiver.feed(
            encode_message(seq, id_from_text(data.msg_id), max(data.type, 0), data.payload, data.wait_ack, max(data.timestamp, 0))
        )
        self._link.dispatcher.receive(receiver)
        self._receive_due = True

    def _handle_answer(self, event: StreamData) -> None:
        """Take in bytes of the return half of a stream of ours."""
        stream = self._out.get(event.stream_id)
        if stream is None:
            return
        stream.arrived += len(event.data)
        if stream.intake is not None:
            try:
                frame = stream.intake.feed(event.data)
            except BAD_FRAMES as error:
                self._host.note_error(error)
                self._unanswered(stream, f"the answer cannot be read: {error}")
            else:
                if frame is not None:
                    self._take_answer(stream, frame)
                elif event.fin:
                    self._unanswered(stream, "the peer finished the stream without an answer")
        if event.fin:
            del self._out[event.stream_id]
            self._copies -= stream.copy_size
            if stream.outgoing is not None:
                self._under_way -= stream.outgoing.size
                # What is read to its end has been received.
                self._lane.settle(stream.outgoing)
            self._send_due = True
        else:
            self._engine.grant(event.stream_id, stream.arrived + RETURN_WINDOW)

    def _take_answer(self, stream: Outbound, frame: BackboneFrame | Oversized) -> None:
        if stream.pinged_at is not None:
            stream.intake = None
            if isinstance(frame, BackbonePong):
                host = self._host
                host.last_ping = host.last_heard
                host.rtt_sample = trio.current_time() - stream.pinged_at
                self._counters.heartbeats_received += 1
        elif isinstance(frame, (BackboneAck, BackboneData)):
            self._answered(stream, frame)
        elif isinstance(frame, Oversized):
            self._unanswered(stream, f"an answer of {frame.size:,} bytes, the limit is {self._limits.payload:,}")
        else:
            self._unanswered(stream, "the peer answered with a heartbeat")

    def _unanswered(self, stream: Outbound, why: str) -> None:
        self._answered(stream, BackboneAck(stream.msg_id, AckStatus.FAILURE, b"", why))

    def _answered(self, stream: Outbound, frame: BackboneAck | BackboneData) -> None:
        """Give a message its answer; the first one counts."""
        stream.intake = None
        self._asked.pop(stream.msg_id, None)
        outgoing = stream.outgoing
        if outgoing is not None and outgoing.wants_ack:
            late = self._lane.acks_ignored
            self._lane.answer(outgoing, answer_of(frame, stream.msg_id, outgoing.seq), trio.current_time())
            self._counters.acks_late += self._lane.acks_ignored - late

    @property
    def begun(self) -> bool:
        """True while a part of a frame has come."""
        streams = (self._in, self._out)
        return any(stream.intake is not None and stream.arrived for side in streams for stream in side.values())

    # -- out: what waits ---------------------------------------------------------------------------------------------
    def ping(self) -> None:
        """Send a heartbeat on a stream of its own."""
        self._pings_due = 1
        self._host.kick()

    def note_sender(self, lane: LaneSender) -> None:
        """Note that a lane has something to write; there is only one that may."""
        if lane is self._lane:
            self._send_due = True
            self._host.kick()
        else:
            self._link.lost(lane.fail_queued(partial(LaneLimitReached, "quic-backbone-v1 has one lane, without a name")))

    def note_receiver(self) -> None:
        """Note that a handler has ended."""
        self._receive_due = True
        if self._receiver.has_news or self._taken or self._host.waited_for or self._held_back > self._window // 4:
            self._host.kick()
        else:
            self._link.account(self._receiver)

    def recheck_credit(self) -> None:
        """Look again whether the peer allows more streams: there is no event when it does."""
        if self._stalled:
            self._stalled = False
            self._send_due = True
        if self._answering:
            self._receive_due = True

    def flush(self) -> None:
        """Write what waits: answers, then heartbeats, then messages."""
        if self._receive_due:
            self._receive_due = False
            self._flush_receiver()
        if self._pings_due and self._open(BackbonePing(self._names[0]), Outbound(None, FrameIntake(0), trio.current_time())):
            self._pings_due = 0
            self._counters.heartbeats_sent += 1
        if self._send_due:
            self._send_due = False
            self._flush_sender()

    def _flush_receiver(self) -> None:
        receiver, link = self._receiver, self._link
        unsent = self._unsent_answers()
        stalled = receiver.ack_bytes > self._limits.outbox_bytes >= unsent
        # Answers that a peer does not take stay where they stop further handlers.
        batch = receiver.next_batch() if unsent <= self._limits.outbox_bytes else b""
        reader = FrameReader(len(batch)) if batch else None
        if reader is not None:
            reader.feed(batch)
            for body in reader.frames():
                frame = decode(body)
                if isinstance(frame, AckFrame):
                    stream = self._owed.pop(frame.seq)
                    self._answer(stream, stream.msg_id, frame)
                    self._forget(stream)
        window = link.window()
        while self._taken and receiver.held_bytes <= window:
            stream = self._taken.popleft()
            self._finish(stream)
            self._forget(stream)
        link.account(receiver)
        # What waits for handlers, or for its end, is not given back to the peer; when the whole process holds much, nor is a part of the
        # rest. Where only the peer can make room, by bringing the end of something, it may always go on.
        others = self._gathered + (self._limits.lane_window - window) * self._limits.lanes
        self._held_back = receiver.held_bytes + min(others, self._window * 3 // 4)
        self._engine.hold(self._held_back)
        if stalled:
            link.dispatcher.resume(receiver)

    def _unsent_answers(self) -> int:
        """Return how many bytes of answers have not left."""
        unsent = {stream_id: size for stream_id in self._answering if (size := self._engine.unsent(stream_id))}
        self._answering = dict.fromkeys(unsent)
        return sum(unsent.values())

    def _flush_sender(self) -> None:
        lane = self._lane
        withdrawn = lane.withdrawn()
        if withdrawn:
            self._stop_waiting(withdrawn)
        written = 0
        # A few streams are left for heartbeats.
        while lane.ready and len(self._out) < STREAMS - 8 and self._under_way < self._limits.outbox_bytes:
            try:
                stream_id = self._engine.open_stream()
            except LocalProtocolError:
                self._counters.credit_stalls += not self._stalled
                self._stalled = True
                break
            outgoing = lane.take()
            written += 1
            # The answer of one that wants none is read, and not looked at.
            stream = Outbound(outgoing, FrameIntake(self._limits.payload) if outgoing.wants_ack else None)
            self._out[stream_id] = stream
            self._under_way += outgoing.size
            if outgoing.wants_ack:
                self._asked[stream.msg_id] = stream
            message = outgoing.message
            sender, receiver = self._names
            data = BackboneData(
                stream.msg_id, sender, receiver, message.type, message.payload, outgoing.wants_ack, message.timestamp
            )
            self._write(stream_id, data)
        if written:
            self._counters.messages_sent += written
            if self._link.instruments.events.messages:
                self._link.report_sent(lane, written)

    def _stop_waiting(self, withdrawn: set[int]) -> None:
        """Ask for the end of streams whose answer nobody waits for: those of a peer that never answers would use up all there may be."""
        for stream_id, stream in self._out.items():
            if stream.outgoing is not None and stream.outgoing.seq in withdrawn:
                stream.intake = None
                self._asked.pop(stream.msg_id, None)
                self._engine.stop(stream_id, THROWN_AWAY)

    def _open(self, frame: BackboneFrame, stream: Outbound) -> bool:
        """Open a stream for a frame that is no message of the session; False when the peer allows none now."""
        try:
            stream_id = self._engine.open_stream()
        except LocalProtocolError:
            return False
        self._out[stream_id] = stream
        self._write(stream_id, frame)
        return True

    def _write(self, stream_id: int, frame: BackboneFrame | None) -> None:
        """Write a frame, if there is one, and finish our half in the same piece: a FIN that comes late is never read over there."""
        data = b"" if frame is None else encode_backbone(frame, now_ms())
        self.bytes_sent += len(data)
        self._counters.bytes_sent += len(data)
        # The peer may have said that it reads no more of a stream before the stream itself came.
        with contextlib.suppress(LocalProtocolError):
            self._engine.write(stream_id, data, fin=True)

    def _answer(self, stream: Inbound, msg_id: str, frame: AckFrame | None) -> None:
        """Answer a message, on a new stream as well where its sender finished with it: some never read the stream they wrote on."""
        if frame is None:
            self._finish(stream)
            return
        ack = ack_of(frame, msg_id, as_json=self._link.config.v1_results == "json")
        self._finish(stream, ack)
        self._answering[stream.stream_id] = None
        # Of copies that the peer does not take there are no more than so many.
        size = len(ack.result)
        if stream.over and len(self._out) < STREAMS // 2 and self._copies + size <= self._limits.outbox_bytes:
            copy = Outbound(None, None)
            if self._open(ack, copy):
                copy.copy_size = size
                self._copies += size

    def _finish(self, stream: Inbound, frame: BackboneFrame | None = None) -> None:
        if not stream.finished:
            stream.finished = True
            self._write(stream.stream_id, frame)
            self._host.kick()

    def _forget(self, stream: Inbound) -> None:
        if stream.finished and stream.over:
            self._in.pop(stream.stream_id, None)

    # -- the end -----------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """Let go of the streams: handlers go on, their answers have nowhere to go."""
        if self._receiver.attached:
            self._receiver.detach()
            self._link.account(self._receiver)
            self._link.dispatcher.resume(self._receiver)
        self._link.note_held(-self._gathered)
        self._gathered = 0
        self._answering.clear()
        self._in.clear()
        self._out.clear()
        self._owed.clear()
        self._asked.clear()
        self._taken.clear()
        self._send_due = self._receive_due = self._stalled = False
        self._pings_due = 0

    @property
    def holds_back(self) -> bool:
        """True while handlers of ours keep the peer from sending anything, heartbeats included."""
        return self._receiver.busy and (self._held_back > self._window // 2 or len(self._in) >= STREAMS - 8)

    @property
    def quiet(self) -> bool:
        """True when every message of ours was received and answered, and every message of theirs handled and answered."""
        lane = self._lane
        return not (
            lane.unwritten
            or lane.unreceipted
            or lane.waiting
            or self._receiver.busy
            or self._owed
            or self._taken
            or self._pings_due
        )
