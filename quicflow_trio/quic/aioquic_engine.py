"""The engine contract on aioquic: `client_engine` and `server_engine` make one connection each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aioquic.quic import events

from ..errors import LocalProtocolError
from .engine import (
    Address,
    ConnectionEnded,
    ConnectionIdIssued,
    ConnectionIdRetired,
    EngineEvent,
    HandshakeCompleted,
    ResetTokenLearned,
    StreamData,
    StreamReset,
    StreamStopped,
)
from .hardened import HardenedConnection
from .lean import take_apart
from .limits import Windows
from .probes import ProbeBudget
from .resets import ResetKey
from .tls import TLSContext, tls_alert

__all__ = ["AioquicEngine", "Windows", "client_engine", "server_engine"]

_NUDGE: Final = 1e-6
"""Seconds past a timer at which it is fired: one that fires at exactly its time can leave itself unchanged, for ever."""

_STUCK: Final = 1e-3
"""Seconds after which a timer that did not move when it fired may fire again."""


def client_engine(
    tls: TLSContext,
    *,
    server_name: str,
    alpn: Sequence[str],
    idle_timeout: float,
    windows: Windows,
    datagram_size: int = 1200,
    congestion: str = "reno",
    probes: ProbeBudget | None = None,
) -> AioquicEngine:
    """Make the client side of a connection; `AioquicEngine.connect` starts it.

    Args:
        tls: certificates and trust, made of a client's `TLSConfig`.
        server_name: the name or address dialled; `TLSConfig.server_name` comes before it.
        alpn: protocols offered, best first.
        idle_timeout: seconds without any packet after which the connection ends.
        windows: receive credit that the server starts with.
        datagram_size: UDP payload of the packets sent, bytes.
        congestion: name of the congestion control, see `congestion`.
        probes: what all connections on the socket take their probes from; None for no limit.
    """
    configuration = tls.client_configuration(
        server_name=server_name, alpn=alpn, idle_timeout=idle_timeout, datagram_size=datagram_size, congestion=congestion
    )
    return AioquicEngine(HardenedConnection({0: configuration}, windows, probes=probes))


def server_engine(
    tls: TLSContext,
    *,
    original_destination_id: bytes,
    alpn: Sequence[str],
    idle_timeout: float,
    windows: Windows,
    datagram_size: int = 1200,
    congestion: str = "reno",
    probes: ProbeBudget | None = None,
    retry_source_id: bytes | None = None,
    reset_key: ResetKey | None = None,
) -> AioquicEngine:
    """Make the server side of a connection for a client's first datagram, which is then given to `receive_datagram`.

    Args:
        tls: certificates, made once of a server's `TLSConfig` and shared by all its connections.
        original_destination_id: the destination connection id in that datagram; after a Retry, in the one before that.
        alpn: protocols spoken, best first.
        idle_timeout: seconds without any packet after which the connection ends.
        windows: receive credit that the client starts with.
        datagram_size: UDP payload of the packets sent, bytes.
        congestion: name of the congestion control, see `congestion`.
        probes: what all connections on the socket take their probes from; None for no limit.
        retry_source_id: after a Retry, the destination id in that datagram; the client's address counts as validated then.
        reset_key: makes the tokens by which the client will know a server that has lost the connection; None makes up random ones.
    """
    configurations = tls.server_configurations(
        alpn=alpn, idle_timeout=idle_timeout, datagram_size=datagram_size, congestion=congestion
    )
    return AioquicEngine(
        HardenedConnection(
            configurations,
            windows,
            original_destination_id=original_destination_id,
            retry_source_id=retry_source_id,
            reset_key=reset_key,
            client_verifier=tls.client_verifier,
            probes=probes,
        )
    )


class AioquicEngine:
    """`Engine` on a `HardenedConnection`; see there for the contract. Made by `client_engine` and `server_engine`.

    Beyond the contract: `peer_certificate`.
    """

    def __init__(self, core: HardenedConnection) -> None:
        self._core = core
        self._clock = 0.0
        self._dirty = False
        self._timer: float | None = None
        self._timer_valid = False
        self._fired_at = -1.0
        self._close_datagrams: list[tuple[bytes, Address]] = []
        self._heard_closing = 0
        self._answer_close = False

    # -- inputs ------------------------------------------------------------------------------------------------------
    def connect(self, addr: Address, now: float) -> None:
        """Start the handshake; client side, once, before anything else."""
        self._clock = max(self._clock, now)
        self._touch()
        self._core.connect(addr, self._clock)

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """Take in one datagram from the network."""
        if now > self._clock:
            self._clock = now
        self._touch()
        if self._close_datagrams:
            # Our CONNECTION_CLOSE may be lost, and a peer that still sends has not got it. Answering the 1st, 2nd, 4th, 8th ...
            # packet bounds what a peer can make us send (RFC 9000 section 10.2.1).
            self._heard_closing += 1
            self._answer_close |= self._heard_closing & (self._heard_closing - 1) == 0
            return
        self._core.receive_datagram(data, addr, self._clock)

    def handle_timer(self, now: float) -> None:
        """Let time pass. Before `get_timer` it does nothing; at or after, it moves that timer on or fires it."""
        timer = self.get_timer()
        if timer is None or now < timer - _NUDGE:
            return
        self._clock = max(self._clock, now, timer) + _NUDGE
        self._fired_at = self._clock
        dirty = self._dirty
        self._touch()
        self._core.handle_timer(self._clock)
        if self._core.probe_denied:
            # Thousands of denied probes are no reason to build thousands of packets that stay empty.
            self._dirty = dirty

    def _touch(self) -> None:
        self._dirty = True
        self._timer_valid = False

    # -- outputs -----------------------------------------------------------------------------------------------------
    def next_events(self) -> list[EngineEvent]:
        """Return what has happened since the last call, oldest first."""
        source = self._core._events
        found: list[EngineEvent] = []
        if not source:
            return found
        for event in source:
            if type(event) is events.StreamDataReceived:
                found.append(StreamData(event.stream_id, event.data, event.end_stream))
            elif (translated := self._translate(event)) is not None:
                found.append(translated)
        source.clear()
        return found

    def _translate(self, event: object) -> EngineEvent | None:
        match event:
            case ConnectionIdIssued() | ResetTokenLearned():
                return event
            case events.ConnectionIdRetired():
                return ConnectionIdRetired(event.connection_id)
            case events.HandshakeCompleted():
                return HandshakeCompleted(event.alpn_protocol or "")
            case events.StreamReset():
                return StreamReset(event.stream_id, event.error_code)
            case events.StopSendingReceived():
                return StreamStopped(event.stream_id, event.error_code)
            case events.ConnectionTerminated():
                return self._translate_end(event)
        # aioquic's own ConnectionIdIssued comes too late and more than once; ALPN is part of HandshakeCompleted.
        return None

    def _translate_end(self, event: events.ConnectionTerminated) -> ConnectionEnded:
        application = event.frame_type is None
        return ConnectionEnded(
            code=event.error_code,
            reason=event.reason_phrase,
            application=application,
            by_peer=self._core.closed_by_peer,
            timed_out=self._core.timed_out,
            tls_alert=None if application else tls_alert(event.error_code),
            reset=self._core.was_reset,
        )

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Build the packets that may leave now. Costs next to nothing when nothing was put in and no timer is due."""
        if not self._dirty:
            timer = self.get_timer()
            if timer is None or now < timer:
                return []
        self._dirty = self._timer_valid = False
        if now > self._clock:
            self._clock = now
        if self._answer_close:
            self._answer_close = False
            return list(self._close_datagrams)
        closing = self._core._close_pending
        datagrams = self._core.datagrams_to_send(self._clock)
        if closing:
            self._close_datagrams = list(datagrams)
        return datagrams

    def get_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called; None when not at all."""
        if not self._timer_valid:
            core = self._core
            timer = core.get_timer() if core._close_at is not None else None
            if timer is not None and timer <= self._fired_at:
                # It has just fired and stands where it stood, as when the answer waits for `datagrams_to_send`.
                timer = self._fired_at + _STUCK
            self._timer = timer
            self._timer_valid = True
        return self._timer

    # -- streams -----------------------------------------------------------------------------------------------------
    def open_stream(self) -> int:
        """Take the next stream id of this side.

        Raises:
            LocalProtocolError: the peer's stream limit is reached (before the handshake it is 0).
        """
        core = self._core
        stream_id = core.get_next_available_stream_id()
        if stream_id // 4 >= core._remote_max_streams_bidi or not core._handshake_complete:
            raise LocalProtocolError(f"the peer allows {core._remote_max_streams_bidi} streams, all of them were opened")
        # Made now and not with the first write: until then aioquic would give the same id again, and know of no credit.
        core._get_or_create_stream_for_send(stream_id)
        return stream_id

    def write(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Append to a stream's send buffer; without effect once the connection is closing.

        Raises:
            LocalProtocolError: the stream is finished, was reset, or was never opened.
        """
        stream = self._core._streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(f"stream {stream_id} is finished or was never opened")
        if self._core._close_event is not None:
            return
        try:
            stream.sender.write(data, end_stream=fin)
        except RuntimeError as error:
            raise LocalProtocolError(f"stream {stream_id}: {error}") from error
        self._core.wrote = True
        self._touch()

    def credit(self, stream_id: int) -> int:
        """Return how many further bytes the peer would accept on this stream; 0 when the stream is over."""
        stream = self._core._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        return stream.max_stream_data_remote - stream.sender._buffer_stop

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes written to this stream have not left in a first packet yet."""
        stream = self._core._streams.get(stream_id)
        if stream is None or stream.sender._reset_error_code is not None:
            return 0
        return stream.sender._buffer_stop - stream.sender.highest_offset

    def unacked(self) -> int:
        """Return how many stream bytes the peer has not acknowledged; a FIN without bytes counts as one."""
        total = 0
        for stream in self._core._streams.values():
            sender = stream.sender
            if sender._buffer_stop == sender._buffer_start and sender._buffer_fin is None:
                continue  # What is asked of a thousand idle connections at a time should be cheap.
            if sender.is_finished or sender._reset_error_code is not None:
                continue
            waiting = sender._buffer_stop - sender._buffer_start
            for acked in sender._acked:
                waiting -= acked.stop - acked.start
            if not waiting and sender._buffer_fin is not None:
                waiting = 1
            total += waiting
        return total

    def grant(self, stream_id: int, limit: int, window: int = 0) -> bool:
        """Let the peer send up to offset ``limit`` on this stream, ``window`` bytes ahead if not 0; no effect on one that is over.

        Returns:
            True when a transmit is worth while for the update alone: a quarter of the window is new, or the peer waits for it.
        """
        stream = self._core._streams.get(stream_id)
        if stream is None or not self._core.grant(stream, limit, window):
            return False
        self._touch()
        return True

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon the sending half; no effect on a finished stream."""
        stream = self._core._streams.get(stream_id)
        if stream is not None:
            stream.sender.reset(code)
            self._touch()

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to abandon its sending half; no effect on a finished stream."""
        stream = self._core._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.receiver.stop(code)
            self._touch()

    # -- the connection ----------------------------------------------------------------------------------------------
    def close(self, code: int, reason: str = "", *, application: bool = True) -> None:
        """Close now; a connection that has heard nobody and told nobody ends at once."""
        core = self._core
        if core._close_event is not None:
            return
        core.close(code, None if application else 0, reason)
        if not core._network_paths:
            core.end_unheard()
        self._touch()

    def hold(self, size: int) -> None:
        """See `Engine.hold`."""
        if size < self._core.held:
            self._touch()
        self._core.held = size

    def raise_stream_limit(self, streams: int) -> None:
        """Let the peer have ``streams`` bidirectional streams open at once; never lowers."""
        self._core.raise_stream_limit(streams)
        self._touch()

    def migrate(self) -> bool:
        """See `Engine.migrate`."""
        core = self._core
        if not core._handshake_confirmed or not core._peer_cid_available:
            return False
        core.migrate()
        return True

    def release(self) -> None:
        """See `Engine.release`."""
        take_apart(self._core)

    @property
    def closing(self) -> bool:
        """True from `close`, or from the peer's close, on."""
        return self._core._close_event is not None

    @property
    def terminated(self) -> bool:
        """True once `ConnectionEnded` is due or drained."""
        return self._core.terminated

    @property
    def ended(self) -> ConnectionEnded | None:
        """Why the connection ends, known as soon as `closing` is true."""
        event = self._core._close_event
        return None if event is None else self._translate_end(event)

    @property
    def last_word(self) -> list[tuple[bytes, Address]]:
        """The packets that told the peer of `close`; empty when they have not left."""
        return self._close_datagrams

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None before the first sample."""
        loss = self._core._loss
        return loss._rtt_smoothed if loss._rtt_initialized else None

    @property
    def packets_lost(self) -> int:
        """Packets declared lost, whose content was sent again."""
        return self._core.packets_lost

    @property
    def peer_address(self) -> Address | None:
        """Where datagrams go now."""
        address: Address | None = self._core.get_peer_address()
        return address

    @property
    def connection_ids(self) -> list[bytes]:
        """Ids by which the peer may address this connection at this moment."""
        return [one.cid for one in self._core._host_cids]

    @property
    def original_destination_id(self) -> bytes:
        """The id that the client's first packets carry."""
        return self._core.original_destination_connection_id

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate as DER once it is verified; None before, and when it was not asked for."""
        return self._core.peer_certificate
