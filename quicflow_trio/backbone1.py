"""quic-backbone-v1 on a connection: the introduction on stream 0, then an exchange on every stream (`exchanges`).

Hello and welcome stand for the introduction above: a client's hello goes out as the first PING, a server's welcome as its PONG. What the
protocol has no word for is not said: resuming, credentials, goodbye, cancellation.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import final

import trio

from .dialect import Host
from .errors import LocalProtocolError, RemoteProtocolError
from .exchanges import STREAMS, Exchanges, now_ms
from .link import Link
from .protocol.backbone1 import FIRST_FRAME, NO_CLIENT_ID, PAYLOAD, FrameIntake, Oversized, close_of, meaning_of
from .protocol.handshake import BACKBONE1, Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.state import CloseCode, ConnectionState
from .quic.engine import ConnectionEnded, StreamData, StreamReset, StreamStopped
from .wire import (
    Authentication,
    BackboneFrame,
    BackbonePing,
    BackbonePong,
    Hello,
    PeerLimits,
    Welcome,
    encode_backbone,
)

__all__ = ["Backbone1"]

INTRODUCTION = 0
"""The stream that the first ping comes on, and its answer."""

LIMITS = PeerLimits(payload=PAYLOAD, lanes=1)
LONGEST_INTERVAL_MS = 3_600_000


@final
class Backbone1:
    """quic-backbone-v1 on one connection. `dialect.Dialect`."""

    alpn = BACKBONE1

    def __init__(self, host: Host) -> None:
        self._host = host
        self._engine = host.engine
        self._exchanges: Exchanges | None = None
        self._introduction: FrameIntake | None = FrameIntake(0)
        self._pinged_at = 0.0
        # What came before the introduction was complete, and its bytes.
        self._early: list[StreamData] = []
        self._early_bytes = 0
        self._bytes_sent = 0
        self._bytes_received = 0
        self._closed: tuple[CloseCode, str] | None = None
        self._engine.raise_stream_limit(STREAMS)

    # -- in ----------------------------------------------------------------------------------------------------------
    def handle_data(self, event: StreamData) -> None:
        """Take in bytes of any stream."""
        if event.stream_id == INTRODUCTION:
            self._bytes_received += len(event.data)
            self._host.instruments.counters.bytes_received += len(event.data)
            self._introduce(event)
        elif self._exchanges is not None:
            self._exchanges.handle_data(event)
        else:
            # Messages may overtake the introduction, or its answer.
            self._early.append(event)
            self._early_bytes += len(event.data)
            limits = self._host.limits
            if self._early_bytes > limits.lane_window + limits.payload or len(self._early) > STREAMS:
                raise RemoteProtocolError(FIRST_FRAME)

    def _introduce(self, event: StreamData) -> None:
        intake = self._introduction
        if intake is None:
            if not event.fin:
                # Nothing more belongs there; it is read to its end all the same.
                self._engine.grant(INTRODUCTION, self._bytes_received + self._host.limits.lane_window)
            return
        try:
            frame = intake.feed(event.data)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(FIRST_FRAME) from error
        if frame is None and not event.fin:
            return
        self._introduction = None
        self._take(frame)

    def _take(self, frame: BackboneFrame | Oversized | None) -> None:
        host = self._host
        if host.is_client:
            if not isinstance(frame, BackbonePong):
                raise RemoteProtocolError("the first ping was not answered")
            host.rtt_sample = trio.current_time() - self._pinged_at
            host.last_ping = host.last_heard
            host.instruments.counters.heartbeats_received += 1
            host.control_frame(Welcome(heartbeat_interval_ms=LONGEST_INTERVAL_MS, limits=LIMITS))
        elif not isinstance(frame, BackbonePing):
            raise RemoteProtocolError(FIRST_FRAME)
        elif not frame.client_id:
            host.close(CloseCode.REJECTED, NO_CLIENT_ID)
        else:
            host.last_ping = host.last_heard
            host.instruments.counters.heartbeats_received += 1
            host.control_frame(Hello(client_id=frame.client_id, limits=LIMITS))

    def handle_end(self, event: StreamReset | StreamStopped) -> None:
        """Take an abandoned half for one that ends: it concerns no other stream."""
        if event.stream_id == INTRODUCTION:
            if self._exchanges is None:
                raise RemoteProtocolError(FIRST_FRAME)
        elif isinstance(event, StreamReset):
            if self._exchanges is not None:
                self._exchanges.handle_reset(event)
            else:
                self._early.append(StreamData(event.stream_id, b"", fin=True))
        elif self._exchanges is not None:
            self._exchanges.handle_stop(event.stream_id)

    @property
    def begun(self) -> bool:
        """True while a part of a frame has come."""
        return self._exchanges is not None and self._exchanges.begun

    @property
    def holds_back(self) -> bool:
        """True while handlers keep the peer from sending anything, heartbeats included."""
        return self._exchanges is not None and self._exchanges.holds_back

    def recheck_credit(self) -> None:
        """Look again at what the peer's stream limit held back."""
        if self._exchanges is not None:
            self._exchanges.recheck_credit()

    # -- life --------------------------------------------------------------------------------------------------------
    def send(self, frame: Hello | Welcome | Authentication) -> None:
        """Introduce a client, or answer it; there is no word on credentials."""
        counters = self._host.instruments.counters
        if isinstance(frame, Hello):
            stream_id = self._engine.open_stream()
            assert stream_id == INTRODUCTION
            self._pinged_at = trio.current_time()
            counters.heartbeats_sent += 1
            self._write(BackbonePing(frame.client_id))
        elif isinstance(frame, Welcome):
            counters.heartbeats_sent += 1
            self._write(BackbonePong(now_ms()))

    def _write(self, frame: BackboneFrame) -> None:
        data = encode_backbone(frame, now_ms())
        self._bytes_sent += len(data)
        self._host.instruments.counters.bytes_sent += len(data)
        # The peer may have said, with its ping, that it does not read the answer.
        with contextlib.suppress(LocalProtocolError):
            self._engine.write(INTRODUCTION, data, fin=True)
        self._host.kick()

    def open(self, link: Link, terms: Terms) -> None:
        """Carry a session from now on."""
        self._exchanges = Exchanges(self._host, link)

    def begin(self) -> None:
        """Take in what overtook the introduction."""
        assert self._exchanges is not None, "open() comes first"
        self._exchanges.begin()
        early, self._early = self._early, []
        for event in early:
            self._exchanges.handle_data(event)

    def flush(self) -> None:
        """Write what waits to be written."""
        if self._exchanges is not None:
            self._exchanges.flush()

    def ping(self) -> None:
        """Send a heartbeat."""
        if self._exchanges is not None:
            self._exchanges.ping()

    def say_goodbye(self, code: CloseCode, reason: str, retry_after: float) -> None:
        """Note that this side is about to leave: the peer learns it from the close."""
        if self._host.state is ConnectionState.OPEN:
            self._host.state = ConnectionState.DRAINING
            self._host.kick()

    def end(self) -> None:
        """Let go of the streams."""
        if self._exchanges is not None:
            self._exchanges.end()
        self._early.clear()

    # -- messages ----------------------------------------------------------------------------------------------------
    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""
        if self._exchanges is not None:
            self._exchanges.note_sender(lane)

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""
        if self._exchanges is not None:
            self._exchanges.note_receiver()

    @property
    def quiet(self) -> bool:
        """True when nothing is under way that this side knows of."""
        return self._exchanges is not None and self._exchanges.quiet

    # -- closes and figures --------------------------------------------------------------------------------------------
    def close_of(self, code: CloseCode, reason: str) -> tuple[int, str]:
        """Return a close as the protocol has it."""
        if self._closed is None:
            self._closed = code, reason
        return close_of(code, reason)

    def meaning_of(self, ended: ConnectionEnded) -> ConnectionEnded:
        """Return an end with the code that it has in quicflow/2: as this side meant it, or as its reason says."""
        if not ended.application:
            return ended
        if ended.by_peer or self._closed is None:
            return replace(ended, code=int(meaning_of(ended.code, ended.reason)))
        return replace(ended, code=int(self._closed[0]), reason=self._closed[1])

    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""
        return self._bytes_sent + (0 if self._exchanges is None else self._exchanges.bytes_sent)

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""
        return self._bytes_received + (0 if self._exchanges is None else self._exchanges.bytes_received)
