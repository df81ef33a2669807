"""One message connection on one engine: what the pump drives. Client and server share it; they differ in who says hello.

Everything here is synchronous: it is called by the pump between two awaits, or by tasks that write and kick the pump.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Protocol

import trio

from .config import Limits
from .deadlines import Deadlines
from .endings import HANDSHAKE_TIMEOUT, UNREACHABLE
from .errors import ProtocolError, RemoteProtocolError
from .lanes import LaneStreams
from .link import Link
from .liveness import FrameWatch
from .net.endpoint import Endpoint
from .net.pump import Pump
from .observe.events import HeartbeatTimeoutEvent
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .protocol.credit import RETURN_WINDOW
from .protocol.handshake import Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.pings import PingBudget, PingsSent
from .protocol.state import CloseCode, ConnectionState, check_control_frame
from .quic.engine import (
    ConnectionEnded,
    ConnectionIdIssued,
    ConnectionIdRetired,
    Engine,
    EngineEvent,
    HandshakeCompleted,
    ResetTokenLearned,
    StreamData,
    StreamReset,
    StreamStopped,
)
from .wire import (
    Authentication,
    FrameReader,
    FrameTooLarge,
    Goodbye,
    Hello,
    LaneState,
    PingFrame,
    PongFrame,
    Welcome,
    decode,
    encode,
)

__all__ = ["Connection", "ConnectionOwner"]

log: Logger = get_logger(__name__)

_numbers = itertools.count(1)

CONTROL_STREAM = 0
CONTROL_FRAME_LIMIT = 64 * 1024
"""Longest control frame: a hello with credentials and the state of every lane."""


class ConnectionOwner(Protocol):
    """What a connection tells its client or server."""

    def handshake_completed(self, connection: Connection) -> None:
        """TLS is done: a client says hello now."""

    def control_frame(self, connection: Connection, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """A hello or welcome came (raise a ProtocolError to close), a goodbye, or something about credentials."""

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Nothing more will come; called once, at the end of `Connection.run`."""


class Connection:
    """One connection: control stream, liveness, drain; its lanes are `LaneStreams`. `net.pump.Driver` for its pump.

    Args:
        engine: the QUIC side.
        endpoint: the socket it shares.
        owner: whom to tell.
        is_client: which side this is.
        limits: this side's limits.
        handshake_timeout: seconds until TLS must be done.
        hello_timeout: seconds from there to the hello or welcome.
        heartbeat_timeout: seconds without a frame, or a part of one, after which the connection counts as dead.
        deadlines: where its timers stand.
        instruments: where it counts and reports.

    Attributes:
        deadlines: where its timers stand, as given.
        number: tells its log lines from those of other connections.
        pump: drives it.
        state: where it stands.
        link: the session it carries, None before it is open.
        terms: what was agreed on, None before it is open.
        opened_at: when it became open (Trio clock), None before.
        last_heard: when the last frame, or a part of one, came (Trio clock).
        last_ping: when the last ping came or, on a client, the last pong (Trio clock); None before.
        rtt_sample: seconds from ping to pong, the last one; None before, and on a server.
        goodbye: the peer's goodbye, None before it came.
        farewell: what a cancelled connection tells its peer as its last word.
        closed: set once the connection has ended.
    """

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        owner: ConnectionOwner,
        *,
        is_client: bool,
        limits: Limits,
        handshake_timeout: float,
        hello_timeout: float,
        heartbeat_timeout: float,
        deadlines: Deadlines,
        instruments: Instruments,
    ) -> None:
        now = trio.current_time()
        self.number: int = next(_numbers)
        self.deadlines: Deadlines = deadlines
        self.engine: Engine = engine
        self.pump: Pump = Pump(engine, endpoint, self, deadlines)
        self.state: ConnectionState = ConnectionState.HANDSHAKE
        self.link: Link | None = None
        self.terms: Terms | None = None
        self.opened_at: float | None = None
        self.last_heard: float = now
        self.last_ping: float | None = None
        self.rtt_sample: float | None = None
        self._control_bytes_sent = 0
        self.goodbye: Goodbye | None = None
        self.farewell: tuple[CloseCode, str] = (
            (CloseCode.NORMAL, "client disconnect") if is_client else (CloseCode.SHUTDOWN, "server shutdown")
        )
        self.closed: trio.Event = trio.Event()
        self._endpoint = endpoint
        self._owner = owner
        self._is_client = is_client
        self._limits = limits
        self._hello_timeout = hello_timeout
        self._heartbeat_timeout = heartbeat_timeout
        self._instruments = instruments
        self._handshake_deadline = now + handshake_timeout
        self._control = FrameReader(CONTROL_FRAME_LIMIT)
        self._frames = FrameWatch(heartbeat_timeout)
        self._control_arrived = 0
        self._control_out: list[bytes] = []
        self._lanes: LaneStreams | None = None
        self._early: list[StreamData] = []
        self._pings = PingsSent()
        self._ping_budget = PingBudget(now)
        self._said_goodbye = False
        self._quiet: trio.Event | None = None

    # -- life ------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Pump until the connection ends, then tell the owner; also when cancelled."""
        for connection_id in self.engine.connection_ids:
            self._endpoint.add_route(connection_id, self.pump)
        try:
            await self.pump.run()
        except Exception:
            self.farewell = (CloseCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            # When cancelled, also between a close and the turn that sends it. The last word needs no wait, so it needs no shield either.
            if not self.engine.closing:
                self.engine.close(int(self.farewell[0]), self.farewell[1])
            self._endpoint.transmit_nowait(self.engine.datagrams_to_send(trio.current_time()))
            # After the heartbeat time-out the peer has given up by itself.
            self._endpoint.remove_pump(self.pump, self.engine.last_word, self._heartbeat_timeout)
            self._finish()
            self.engine.release()

    def _finish(self) -> None:
        self.state = ConnectionState.CLOSED
        if self._lanes is not None:
            self._lanes.end()
        if self._quiet is not None:
            self._quiet.set()
        ended = self.engine.ended
        assert ended is not None, "an engine that is closing knows why"
        counters = self._instruments.counters
        counters.packets_lost += self.engine.packets_lost
        counters.inbox_drops += self.pump.dropped
        if not ended.application:
            counters.network_errors += 1
            self._report_error("network", ended.reason)
        self._owner.connection_ended(self, ended)
        self.closed.set()

    def _report_error(self, error: str, detail: str) -> None:
        self._instruments.report_error("" if self.link is None else self.link.client_id, error, detail)

    def open(self, link: Link, terms: Terms, resumed: Collection[LaneState] | None = None) -> None:
        """Carry a session from now on: hello and welcome were exchanged. ``resumed`` as for `Link.attach`."""
        self.link = link
        self.terms = terms
        self.state = ConnectionState.OPEN
        self.opened_at = trio.current_time()
        self._lanes = lanes = LaneStreams(
            self.engine, link, self._limits, is_client=self._is_client, revision=terms.revision, kick=self.pump.kick
        )
        lanes.may_start = self.goodbye is None
        link.attach(self, terms, resumed)
        early, self._early = self._early, []
        for event in early:
            lanes.handle_data(event)
        self.pump.kick()

    def close(self, code: CloseCode, reason: str) -> None:
        """Close now; what is not sent yet is dropped, see `drained`."""
        if not self.engine.closing:
            # From here on nothing of the peer counts, not even what stands behind the offence in the same packet.
            self.state = ConnectionState.CLOSED
            self.engine.close(int(code), reason)
            self.pump.kick()

    @property
    def context(self) -> dict[str, object]:
        """What a log line about it says beside its event: its number, the client once that is known, and where the peer is."""
        client = {} if self.link is None else {"client_id": self.link.client_id}
        return {"connection": self.number, **client, "remote": self.engine.peer_address}

    def abandon(self) -> None:
        """Take nothing in any more, and write nothing: the session has let go of it, and its lanes are ready for another connection.

        It ends soon, but its pump can have a turn before that.
        """
        self.state = ConnectionState.CLOSED
        if self._lanes is not None:
            self._lanes.end()

    def refused(self) -> None:
        """Give up if there is no connection yet: the network says that nobody listens over there.

        A connection that stands does not believe it: anyone can forge the message, and a server may be on its way back.
        """
        if self.state is ConnectionState.HANDSHAKE and not self.engine.closing:
            self.engine.close(0, UNREACHABLE, application=False)
            self.pump.kick()

    def fail(self, error: ProtocolError) -> None:
        """Close because the peer broke the protocol."""
        code = CloseCode.FRAME_TOO_LARGE if isinstance(error, FrameTooLarge) else CloseCode.PROTOCOL_ERROR
        log.warning("peer broke the protocol", **self.context, error=error)
        self._instruments.counters.decoding_errors += 1
        self._report_error("protocol", str(error))
        self.close(code, str(error))

    # -- net.pump.Driver -------------------------------------------------------------------------------------------
    def handle_events(self, events: Sequence[EngineEvent], now: float) -> None:
        """Act on what the engine reports."""
        try:
            for event in events:
                if self.state is ConnectionState.CLOSED:
                    return
                if event.__class__ is StreamData:
                    self.last_heard = now
                    self._stream_data(event)
                else:
                    self._rare_event(event)
            if now >= self._frames.due:
                self._look_at_frames(now)
        except ProtocolError as exc:
            self.fail(exc)

    def received(self) -> None:
        """Look at lanes again that had run out of credit: there is no event when the peer grants more."""
        if self._lanes is not None:
            self._lanes.recheck_credit()

    def flush(self, now: float) -> None:
        """Write into the engine what waits to be written, one piece per stream."""
        self._instruments.counters.mark(now)
        if self.engine.closing or self.state is ConnectionState.CLOSED:
            return
        lanes = self._lanes
        if lanes is not None:
            lanes.flush()
            if self.goodbye is not None and not self._said_goodbye and lanes.all_received:
                self.say_goodbye(CloseCode.NORMAL, "nothing of mine is on the wire")
        if self._control_out:
            if self.engine.unsent(CONTROL_STREAM) > CONTROL_FRAME_LIMIT:
                # A peer that pings and never reads the pongs.
                self.close(CloseCode.SLOW_CONSUMER, "the control stream is not read")
                return
            data = b"".join(self._control_out)
            self._control_out.clear()
            self._control_bytes_sent += len(data)
            self._instruments.counters.bytes_sent += len(data)
            self.engine.write(CONTROL_STREAM, data)

    def deadline(self) -> float:
        """Return when the peer must have been heard of."""
        if self.state is ConnectionState.CLOSED:
            return math.inf
        if self.state <= ConnectionState.HELLO:
            return self._handshake_deadline
        return self.last_heard + self._heartbeat_timeout

    def handle_deadline(self, now: float) -> None:
        """Close a connection whose handshake, hello or heartbeat did not come."""
        if self.engine.closing:
            return
        if self.state is ConnectionState.HANDSHAKE:
            self.engine.close(0, HANDSHAKE_TIMEOUT, application=False)
        elif self.state is ConnectionState.HELLO:
            self.close(CloseCode.HELLO_TIMEOUT, "hello timeout")
        else:
            self._heartbeat_failed(now, "heartbeat timeout")

    def _heartbeat_failed(self, now: float, reason: str) -> None:
        silence = now - self.last_heard
        log.warning("nothing heard from the peer", **self.context, silence=round(silence, 3), reason=reason)
        self._instruments.counters.heartbeat_timeouts += 1
        events = self._instruments.events
        if events.active:
            assert self.link is not None, "only an open connection has a heartbeat"
            events.emit(HeartbeatTimeoutEvent(at=events.now(), client_id=self.link.client_id, silence=silence))
        self.close(CloseCode.HEARTBEAT_TIMEOUT, reason)

    def transmitted(self) -> None:
        """See whether a drain is complete."""
        if self._quiet is not None and self._is_quiet():
            self._quiet.set()

    # -- streams in ------------------------------------------------------------------------------------------------
    def _look_at_frames(self, now: float) -> None:
        """Close the connection when a frame has begun and does not go on; see `liveness`."""
        begun = self._control.partial > 0 or (self._lanes is not None and self._lanes.begun)
        if self._frames.look(now, self.bytes_received, begun=begun) and self.state > ConnectionState.HELLO:
            self._heartbeat_failed(now, "a frame has begun and does not go on")

    def _stream_data(self, event: StreamData) -> None:
        if event.stream_id == CONTROL_STREAM:
            self._control_data(event)
        elif self._lanes is not None:
            self._lanes.handle_data(event)
        elif self.state is ConnectionState.HELLO and self._is_client:
            # Lane data that overtook the welcome: bounded by the initial window, read once the welcome is here.
            self._early.append(event)
        else:
            raise RemoteProtocolError("the first frame must be a hello")

    def _control_data(self, event: StreamData) -> None:
        if event.fin:
            raise RemoteProtocolError("the control stream was closed")
        self._control_arrived += len(event.data)
        self._instruments.counters.bytes_received += len(event.data)
        self._control.feed(event.data)
        for body in self._control.frames():
            frame = decode(body)
            if frame is not None and self.state is not ConnectionState.CLOSED:
                check_control_frame(frame, self.state, from_client=not self._is_client)
                self._control_frame(frame)
        self.engine.grant(CONTROL_STREAM, self._control_arrived + RETURN_WINDOW)

    def _control_frame(self, frame: object) -> None:
        if isinstance(frame, PingFrame):
            self.last_ping = self.last_heard
            self._instruments.counters.heartbeats_received += 1
            if self._ping_budget.take(self.last_heard):
                self._instruments.counters.heartbeats_sent += 1
                self._send_control(PongFrame(frame.number))
        elif isinstance(frame, PongFrame):
            self.last_ping = self.last_heard
            self._instruments.counters.heartbeats_received += 1
            sample = self._pings.answered(frame.number, trio.current_time())
            self.rtt_sample = self.rtt_sample if sample is None else sample
        else:
            assert isinstance(frame, (Hello, Welcome, Goodbye, Authentication))
            if isinstance(frame, Goodbye):
                if self._lanes is not None and not self._said_goodbye:
                    # Unasked, it wants that nothing new be started; as the answer to our own goodbye it does not.
                    self._lanes.may_start = False
                self.goodbye = frame
                if self.state is ConnectionState.OPEN:
                    self.state = ConnectionState.DRAINING
            self._owner.control_frame(self, frame)

    def _rare_event(self, event: EngineEvent) -> None:
        match event:
            case ConnectionIdIssued():
                self._endpoint.add_route(event.connection_id, self.pump)
            case ConnectionIdRetired():
                self._endpoint.remove_route(event.connection_id)
            case ResetTokenLearned():
                self._endpoint.add_reset_token(event.token, self.pump)
            case HandshakeCompleted():
                self.state = ConnectionState.HELLO
                self.pump.handshake_completed()
                self._handshake_deadline = trio.current_time() + self._hello_timeout
                self._owner.handshake_completed(self)
            case StreamReset():
                raise RemoteProtocolError(f"stream {event.stream_id} was reset")
            case StreamStopped():
                raise RemoteProtocolError(f"stream {event.stream_id} is read no more")
            case ConnectionEnded() | StreamData():
                # The pump ends with the first, and `run` reports it; the second is not rare.
                return

    # -- streams out -----------------------------------------------------------------------------------------------
    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""
        if self._lanes is not None:
            self._lanes.note_sender(lane)

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""
        if self._lanes is not None:
            self._lanes.note_receiver(lane, at_once=self._quiet is not None or self.goodbye is not None)

    def send_hello(self, hello: Hello) -> None:
        """Open the control stream with a client's hello."""
        stream_id = self.engine.open_stream()
        assert stream_id == CONTROL_STREAM
        self._send_control(hello)

    def send_welcome(self, welcome: Welcome) -> None:
        """Answer a hello."""
        self._send_control(welcome)

    def send_authentication(self, frame: Authentication) -> None:
        """Show fresh credentials, or say what became of them."""
        self._send_control(frame)

    def ping(self) -> None:
        """Send a heartbeat."""
        self._instruments.counters.heartbeats_sent += 1
        self._send_control(PingFrame(self._pings.next(trio.current_time())))

    def say_goodbye(self, code: CloseCode, reason: str, retry_after: float = 0.0) -> None:
        """Tell the peer to start nothing new; what is on the wire is finished. No effect the second time."""
        if self._said_goodbye or self.state not in (ConnectionState.OPEN, ConnectionState.DRAINING):
            return
        self._said_goodbye = True
        self.state = ConnectionState.DRAINING
        self._send_control(Goodbye(code=int(code), reason=reason, retry_after_ms=int(retry_after * 1000)))

    def _send_control(self, frame: Hello | Welcome | PingFrame | PongFrame | Goodbye | Authentication) -> None:
        self._control_out.append(encode(frame))
        self.pump.kick()

    # -- figures ---------------------------------------------------------------------------------------------------
    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""
        return self._control_bytes_sent + (0 if self._lanes is None else self._lanes.bytes_sent)

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""
        return self._control_arrived + (0 if self._lanes is None else self._lanes.bytes_received)

    def unacked(self) -> int:
        """Return how many bytes written the peer's transport has not acknowledged."""
        return self.engine.unacked()

    # -- draining --------------------------------------------------------------------------------------------------
    def begin_drain(self) -> None:
        """Watch from now on for the moment when nothing is under way; say goodbye first.

        Under way are: messages of ours not received, requests of ours not answered, handlers here, acks of theirs not acknowledged.
        """
        if self._quiet is None:
            self._quiet = trio.Event()
            self.pump.kick()

    async def drained(self) -> None:
        """Wait until nothing is under way in either direction since `begin_drain`, or the connection has ended."""
        if self.state is not ConnectionState.CLOSED and self._quiet is not None:
            await self._quiet.wait()

    def _is_quiet(self) -> bool:
        return (
            self._lanes is not None
            and self.goodbye is not None
            and not self._control_out
            and self._lanes.quiet
            and self.engine.unacked() == 0
        )
