"""quicflow/2 on a connection: the control stream, and lanes on the streams beside it (`lanes`)."""

from __future__ import annotations

from typing import final

import trio

from .dialect import Host
from .errors import RemoteProtocolError
from .lanes import LaneStreams
from .link import Link
from .protocol.credit import RETURN_WINDOW
from .protocol.handshake import ALPN, Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.pings import PingBudget, PingsSent
from .protocol.state import CloseCode, ConnectionState, check_control_frame
from .quic.engine import ConnectionEnded, StreamData, StreamReset, StreamStopped
from .wire import (
    Authentication,
    FrameReader,
    Goodbye,
    Hello,
    PingFrame,
    PongFrame,
    Welcome,
    decode,
    encode,
)

__all__ = ["Flow2"]

CONTROL_STREAM = 0
CONTROL_FRAME_LIMIT = 64 * 1024
"""Longest control frame: a hello with credentials and the state of every lane."""


@final
class Flow2:
    """quicflow/2 on one connection. `dialect.Dialect`."""

    alpn = ALPN

    def __init__(self, host: Host) -> None:
        self._host = host
        self._engine = host.engine
        self._counters = host.instruments.counters
        self._control = FrameReader(CONTROL_FRAME_LIMIT)
        self._control_arrived = 0
        self._control_bytes_sent = 0
        self._control_out: list[bytes] = []
        self._lanes: LaneStreams | None = None
        self._early: list[StreamData] = []
        self._pings = PingsSent()
        self._ping_budget = PingBudget(trio.current_time())
        self._said_goodbye = False

    # -- in ----------------------------------------------------------------------------------------------------------
    def handle_data(self, event: StreamData) -> None:
        """Take in bytes of any stream."""
        if event.stream_id == CONTROL_STREAM:
            self._control_data(event)
        elif self._lanes is not None:
            self._lanes.handle_data(event)
        elif self._host.state is ConnectionState.HELLO and self._host.is_client:
            # Lane data that overtook the welcome: bounded by the initial window, read once the welcome is here.
            self._early.append(event)
        else:
            raise RemoteProtocolError("the first frame must be a hello")

    def handle_end(self, event: StreamReset | StreamStopped) -> None:
        """Refuse: no stream ends before its connection."""
        what = "was reset" if isinstance(event, StreamReset) else "is read no more"
        raise RemoteProtocolError(f"stream {event.stream_id} {what}")

    @property
    def begun(self) -> bool:
        """True while a part of a frame has come."""
        return self._control.partial > 0 or (self._lanes is not None and self._lanes.begun)

    @property
    def holds_back(self) -> bool:
        """Never: heartbeats have credit of their own."""
        return False

    def recheck_credit(self) -> None:
        """Look at lanes again that had run out of credit: there is no event when the peer grants more."""
        if self._lanes is not None:
            self._lanes.recheck_credit()

    def _control_data(self, event: StreamData) -> None:
        if event.fin:
            raise RemoteProtocolError("the control stream was closed")
        host = self._host
        self._control_arrived += len(event.data)
        self._counters.bytes_received += len(event.data)
        self._control.feed(event.data)
        for body in self._control.frames():
            frame = decode(body)
            if frame is not None and host.state is not ConnectionState.CLOSED:
                check_control_frame(frame, host.state, from_client=not host.is_client)
                self._control_frame(frame)
        self._engine.grant(CONTROL_STREAM, self._control_arrived + RETURN_WINDOW)

    def _control_frame(self, frame: object) -> None:
        host = self._host
        if isinstance(frame, PingFrame):
            host.last_ping = host.last_heard
            self._counters.heartbeats_received += 1
            if self._ping_budget.take(host.last_heard):
                self._counters.heartbeats_sent += 1
                self._send_control(PongFrame(frame.number))
        elif isinstance(frame, PongFrame):
            host.last_ping = host.last_heard
            self._counters.heartbeats_received += 1
            sample = self._pings.answered(frame.number, trio.current_time())
            host.rtt_sample = host.rtt_sample if sample is None else sample
        else:
            assert isinstance(frame, (Hello, Welcome, Goodbye, Authentication))
            if isinstance(frame, Goodbye):
                if self._lanes is not None and not self._said_goodbye:
                    # Unasked, it wants that nothing new be started; as the answer to our own goodbye it does not.
                    self._lanes.may_start = False
                host.goodbye = frame
                if host.state is ConnectionState.OPEN:
                    host.state = ConnectionState.DRAINING
            host.control_frame(frame)

    # -- life --------------------------------------------------------------------------------------------------------
    def send(self, frame: Hello | Welcome | Authentication) -> None:
        """Write a control frame; a client's hello opens the control stream."""
        if isinstance(frame, Hello):
            stream_id = self._engine.open_stream()
            assert stream_id == CONTROL_STREAM
        self._send_control(frame)

    def _send_control(self, frame: Hello | Welcome | PingFrame | PongFrame | Goodbye | Authentication) -> None:
        self._control_out.append(encode(frame))
        self._host.kick()

    def open(self, link: Link, terms: Terms) -> None:
        """Carry a session from now on."""
        host = self._host
        self._lanes = LaneStreams(
            self._engine, link, host.limits, is_client=host.is_client, revision=terms.revision, kick=host.kick
        )
        self._lanes.may_start = host.goodbye is None

    def begin(self) -> None:
        """Take in what overtook the welcome."""
        assert self._lanes is not None, "open() comes first"
        early, self._early = self._early, []
        for event in early:
            self._lanes.handle_data(event)

    def flush(self) -> None:
        """Write what waits to be written, one piece per stream."""
        host, lanes = self._host, self._lanes
        if lanes is not None:
            lanes.flush()
            if host.goodbye is not None and not self._said_goodbye and lanes.all_received:
                self.say_goodbye(CloseCode.NORMAL, "nothing of mine is on the wire")
        if self._control_out:
            if self._engine.unsent(CONTROL_STREAM) > CONTROL_FRAME_LIMIT:
                # A peer that pings and never reads the pongs.
                host.close(CloseCode.SLOW_CONSUMER, "the control stream is not read")
                return
            data = b"".join(self._control_out)
            self._control_out.clear()
            self._control_bytes_sent += len(data)
            self._counters.bytes_sent += len(data)
            self._engine.write(CONTROL_STREAM, data)

    def ping(self) -> None:
        """Send a heartbeat."""
        self._counters.heartbeats_sent += 1
        self._send_control(PingFrame(self._pings.next(trio.current_time())))

    def say_goodbye(self, code: CloseCode, reason: str, retry_after: float = 0.0) -> None:
        """Tell the peer to start nothing new; what is on the wire is finished. No effect the second time."""
        host = self._host
        if self._said_goodbye or host.state not in (ConnectionState.OPEN, ConnectionState.DRAINING):
            return
        self._said_goodbye = True
        host.state = ConnectionState.DRAINING
        self._send_control(Goodbye(code=int(code), reason=reason, retry_after_ms=int(retry_after * 1000)))

    def end(self) -> None:
        """Let go of the lanes."""
        if self._lanes is not None:
            self._lanes.end()

    # -- messages ----------------------------------------------------------------------------------------------------
    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""
        if self._lanes is not None:
            self._lanes.note_sender(lane)

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""
        if self._lanes is not None:
            self._lanes.note_receiver(lane, at_once=self._host.waited_for)

    @property
    def quiet(self) -> bool:
        """True when both have said goodbye, and nothing is under way."""
        return self._lanes is not None and self._host.goodbye is not None and not self._control_out and self._lanes.quiet

    # -- closes and figures --------------------------------------------------------------------------------------------
    def close_of(self, code: CloseCode, reason: str) -> tuple[int, str]:
        """Return it as it is."""
        return int(code), reason

    def meaning_of(self, ended: ConnectionEnded) -> ConnectionEnded:
        """Return it as it is."""
        return ended

    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""
        return self._control_bytes_sent + (0 if self._lanes is None else self._lanes.bytes_sent)

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""
        return self._control_arrived + (0 if self._lanes is None else self._lanes.bytes_received)
