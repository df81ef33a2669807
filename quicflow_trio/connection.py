"""One message connection on one engine: what the pump drives. Client and server share it; they differ in who says hello.

Everything here is synchronous: it is called by the pump between two awaits, or by tasks that write and kick the pump.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Protocol

import trio

from .backbone1 import Backbone1
from .config import Limits
from .deadlines import Deadlines
from .dialect import Dialect, Host
from .endings import HANDSHAKE_TIMEOUT, UNREACHABLE
from .errors import ProtocolError, RemoteProtocolError
from .flow2 import Flow2
from .link import Link
from .liveness import FrameWatch
from .net.endpoint import Endpoint
from .net.pump import Pump
from .observe.events import HeartbeatTimeoutEvent
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .protocol.handshake import Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.state import CloseCode, ConnectionState
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
from .wire import Authentication, FrameTooLarge, Goodbye, Hello, LaneState, Welcome

__all__ = ["Connection", "ConnectionOwner"]

log: Logger = get_logger(__name__)

_numbers = itertools.count(1)

DIALECTS: Final[Mapping[str, Callable[[Host], Dialect]]] = {dialect.alpn: dialect for dialect in (Flow2, Backbone1)}


class ConnectionOwner(Protocol):
    """What a connection tells its client or server."""

    def handshake_completed(self, connection: Connection) -> None:
        """TLS is done: a client says hello now."""

    def control_frame(self, connection: Connection, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """A hello or welcome came (raise a ProtocolError to close), a goodbye, or something about credentials."""

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Nothing more will come; called once, at the end of `Connection.run`."""


class Connection:
    """One connection: its life, liveness, drain. What is said on it is its `Dialect`'s. `net.pump.Driver` for its pump.

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
        kick: has the pump take a turn.
        state: where it stands.
        link: the session it carries, None before it is open.
        terms: what was agreed on, None before it is open.
        opened_at: when it became open (Trio clock), None before.
        last_heard: when the last frame, or a part of one, came (Trio clock).
        last_ping: when the last ping came or, on a client, the last pong (Trio clock); None before.
        rtt_sample: seconds from ping to pong, the last one; None before, and on a server.
        goodbye: the peer's goodbye, None before it came.
        is_client: as given.
        limits: as given.
        instruments: as given.
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
        self.kick: Callable[[], None] = self.pump.kick
        self.state: ConnectionState = ConnectionState.HANDSHAKE
        self.link: Link | None = None
        self.terms: Terms | None = None
        self.opened_at: float | None = None
        self.last_heard: float = now
        self.last_ping: float | None = None
        self.rtt_sample: float | None = None
        self.goodbye: Goodbye | None = None
        self.farewell: tuple[CloseCode, str] = (
            (CloseCode.NORMAL, "client disconnect") if is_client else (CloseCode.SHUTDOWN, "server shutdown")
        )
        self.closed: trio.Event = trio.Event()
        self._endpoint = endpoint
        self._owner = owner
        self.is_client: bool = is_client
        self.limits: Limits = limits
        self._hello_timeout = hello_timeout
        self._heartbeat_timeout = heartbeat_timeout
        self.instruments: Instruments = instruments
        self._handshake_deadline = now + handshake_timeout
        self._frames = FrameWatch(heartbeat_timeout)
        self._dialect: Dialect | None = None
        # What is left of it once the connection has ended.
        self._ended: ConnectionEnded | None = None
        self._protocol = ""
        self._bytes = (0, 0)
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
                self.engine.close(*self._in_its_words(*self.farewell))
            self._endpoint.transmit_nowait(self.engine.datagrams_to_send(trio.current_time()))
            # After the heartbeat time-out the peer has given up by itself.
            self._endpoint.remove_pump(self.pump, self.engine.last_word, self._heartbeat_timeout)
            self._finish()
            self._release()

    def _finish(self) -> None:
        self.state = ConnectionState.CLOSED
        if self._dialect is not None:
            self._dialect.end()
        if self._quiet is not None:
            self._quiet.set()
        ended = self.ended
        assert ended is not None, "an engine that is closing knows why"
        counters = self.instruments.counters
        counters.packets_lost += self.engine.packets_lost
        counters.inbox_drops += self.pump.dropped
        if not ended.application:
            counters.network_errors += 1
            self._report_error("network", ended.reason)
        self._owner.connection_ended(self, ended)
        self.closed.set()

    def _release(self) -> None:
        """Keep the figures only: what leads back here from engine and dialect would leave all of it to the garbage collector."""
        self._ended, self._protocol, self._bytes = self.ended, self.protocol, (self.bytes_sent, self.bytes_received)
        self._dialect = None
        self.engine.release()

    def _report_error(self, error: str, detail: str) -> None:
        self.instruments.report_error("" if self.link is None else self.link.client_id, error, detail)

    def open(self, link: Link, terms: Terms, resumed: Collection[LaneState] | None = None) -> None:
        """Carry a session from now on: hello and welcome were exchanged. ``resumed`` as for `Link.attach`."""
        self.link = link
        self.terms = terms
        self.state = ConnectionState.OPEN
        self.opened_at = trio.current_time()
        dialect = self._speak()
        dialect.open(link, terms)
        link.attach(self, terms, resumed)
        dialect.begin()
        self.pump.kick()

    def close(self, code: CloseCode, reason: str) -> None:
        """Close now; what is not sent yet is dropped, see `drained`."""
        if not self.engine.closing:
            # From here on nothing of the peer counts, not even what stands behind the offence in the same packet.
            self.state = ConnectionState.CLOSED
            self.engine.close(*self._in_its_words(code, reason))
            self.pump.kick()

    def _in_its_words(self, code: CloseCode, reason: str) -> tuple[int, str]:
        return (int(code), reason) if self._dialect is None else self._dialect.close_of(code, reason)

    @property
    def ended(self) -> ConnectionEnded | None:
        """Why the connection ends, in the words of quicflow/2, as soon as that is known."""
        ended = self._ended or self.engine.ended
        return ended if ended is None or self._dialect is None else self._dialect.meaning_of(ended)

    @property
    def protocol(self) -> str:
        """The message protocol that it speaks, by its name in TLS; empty before TLS is done."""
        return self._protocol if self._dialect is None else self._dialect.alpn

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
        if self._dialect is not None:
            self._dialect.end()

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
        self.note_error(error)
        self.close(code, str(error))

    def note_error(self, error: Exception) -> None:
        """Count and report what the peer got wrong."""
        self.instruments.counters.decoding_errors += 1
        self._report_error("protocol", str(error))

    # -- net.pump.Driver -------------------------------------------------------------------------------------------
    def handle_events(self, events: Sequence[EngineEvent], now: float) -> None:
        """Act on what the engine reports."""
        try:
            for event in events:
                if self.state is ConnectionState.CLOSED:
                    return
                if event.__class__ is StreamData:
                    self.last_heard = now
                    (self._dialect or self._speak()).handle_data(event)
                else:
                    self._rare_event(event)
            if now >= self._frames.due:
                self._look_at_frames(now)
        except ProtocolError as exc:
            self.fail(exc)

    def received(self) -> None:
        """Look at lanes again that had run out of credit: there is no event when the peer grants more."""
        if self._dialect is not None:
            self._dialect.recheck_credit()

    def flush(self, now: float) -> None:
        """Write into the engine what waits to be written, one piece per stream."""
        self.instruments.counters.mark(now)
        if self.engine.closing or self.state is ConnectionState.CLOSED:
            return
        if self._dialect is not None:
            self._dialect.flush()

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
        elif self._dialect is not None and self._dialect.holds_back:
            # It could not say a word. When the network is gone as well, the engine's idle time-out ends it.
            self.last_heard = now
        else:
            self._heartbeat_failed(now, "heartbeat timeout")

    def _heartbeat_failed(self, now: float, reason: str) -> None:
        silence = now - self.last_heard
        log.warning("nothing heard from the peer", **self.context, silence=round(silence, 3), reason=reason)
        self.instruments.counters.heartbeat_timeouts += 1
        events = self.instruments.events
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
        begun = self._dialect is not None and self._dialect.begun
        if self._frames.look(now, self.bytes_received, begun=begun) and self.state > ConnectionState.HELLO:
            self._heartbeat_failed(now, "a frame has begun and does not go on")

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
                self._dialect = DIALECTS.get(event.alpn, Flow2)(self)
                self.pump.handshake_completed()
                self._handshake_deadline = trio.current_time() + self._hello_timeout
                self._owner.handshake_completed(self)
            case StreamReset() | StreamStopped():
                self._speak().handle_end(event)
            case ConnectionEnded() | StreamData():
                # The pump ends with the first, and `run` reports it; the second is not rare.
                return

    def _speak(self) -> Dialect:
        if self._dialect is None:
            raise RemoteProtocolError("nothing may come before the handshake")
        return self._dialect

    # -- out -------------------------------------------------------------------------------------------------------
    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""
        if self._dialect is not None:
            self._dialect.lane_pending(lane)

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""
        if self._dialect is not None:
            self._dialect.lane_progress(lane)

    def send(self, frame: Hello | Welcome | Authentication) -> None:
        """Say hello, answer one, show fresh credentials, or say what became of them."""
        self._speak().send(frame)

    def ping(self) -> None:
        """Send a heartbeat; the last one may be due when the connection has just ended."""
        if self._dialect is not None:
            self._dialect.ping()

    def say_goodbye(self, code: CloseCode, reason: str, retry_after: float = 0.0) -> None:
        """Tell the peer to start nothing new; what is on the wire is finished. No effect the second time."""
        if self._dialect is not None:
            self._dialect.say_goodbye(code, reason, retry_after)

    def control_frame(self, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """Tell the owner what the peer says."""
        self._owner.control_frame(self, frame)

    # -- figures ---------------------------------------------------------------------------------------------------
    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""
        return self._bytes[0] if self._dialect is None else self._dialect.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""
        return self._bytes[1] if self._dialect is None else self._dialect.bytes_received

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
        return self._dialect is not None and self._dialect.quiet and self.engine.unacked() == 0

    @property
    def waited_for(self) -> bool:
        """True while somebody waits for silence."""
        return self._quiet is not None or self.goodbye is not None
