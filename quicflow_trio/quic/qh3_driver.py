"""What moves a qh3 connection: datagrams in and out, timers, and the core's events in our words. `qh3_engine` adds the streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from qh3._hazmat import QuicConnectionCore

from .engine import (
    STATELESS_RESET,
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
from .limits import (
    KEY_UPDATE_INTERVAL,
    MAX_PROBE_INTERVAL,
    MAX_REASON_BYTES,
)
from .qh3_budgets import HandshakeBudget, KeyUpdates
from .qh3_core import HandshakeRefusedError, Qh3Core
from .qh3_credit import Streams
from .qh3_paths import Paths
from .routing import MIN_INITIAL_SIZE
from .tls import tls_alert

__all__ = ["PADDING_FRAME", "Qh3Driver"]

_NUDGE: Final = 1e-6
"""Seconds past a timer at which it is fired: the core counts in nanoseconds, and rounding must not make it fire for ever."""

_STUCK: Final = 1e-3
"""Seconds after which a timer that did not move when it fired may fire again."""

_NO_ROOM: Final = "packet builder capacity exhausted"
"""What the core says when the next frame does not fit into what may be sent to an address that is not validated."""

_IDLE: Final = b"Idle timeout"
"""The reason the core gives itself."""

_PACKETS: Final = 2
"""The place in the core's report of how many packets were taken."""

_INTERNAL_ERROR: Final = 0x01
_CRYPTO_BUFFER_EXCEEDED: Final = 0x0D
_KEY_UPDATE_ERROR: Final = 0x0E
_UNEXPECTED_MESSAGE: Final = 0x10A
PADDING_FRAME: Final = 0x00
"""The frame type named beside a transport error that no frame caused."""

_CRYPTO_FRAME: Final = 0x06


class Qh3Driver:
    """The half of `Qh3Engine` that faces the network.

    Args:
        connection: what makes the core and takes it through the handshake.
        is_client: which side this is.
    """

    def __init__(self, connection: Qh3Core, *, is_client: bool) -> None:
        self._connection = connection
        self._is_client = is_client
        self._core: QuicConnectionCore | None = None
        self._paths = Paths()
        self._peer_address: Address | None = None
        self._streams = Streams(connection.windows, is_client=is_client)
        self._connection_ids = [connection.host_cid]
        self._clock = 0.0
        self._dirty = False
        self._timer: float | None = None
        self._timer_valid = False
        self._fired_at = -1.0
        self._sent_at = 0.0
        self._found: list[EngineEvent] = []
        self._taken = False
        self._handshake_done = False
        self._budget = HandshakeBudget()
        self._peer_certificate: bytes | None = None
        self._heard = False
        self._unsettled = False
        self._losses = 0
        self._packets = 0
        self._key_update_at = KEY_UPDATE_INTERVAL
        self._key_updates = KeyUpdates()
        self._ended: ConnectionEnded | None = None
        self._terminated = False
        self._close_polled = False
        self._close_datagrams: list[tuple[bytes, Address]] = []
        self._heard_closing = 0
        self._answer_close = False

    # -- inputs ------------------------------------------------------------------------------------------------------
    def connect(self, addr: Address, now: float) -> None:
        """Start the handshake; client side, once, before anything else."""
        self._clock = max(self._clock, now)
        self._touch()
        self._peer_address = addr
        self._guard(self._connection.connect, self._paths.made_up(addr, None), self._clock)
        self._core = self._connection.native

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """Take in one datagram from the network."""
        if now > self._clock:
            self._clock = now
        self._touch()
        if self._ended is None:
            self._guard(self._receive, data, addr)
        elif self._close_datagrams:
            # As `AioquicEngine`: answering the 1st, 2nd, 4th, 8th ... packet bounds what a peer can make us send.
            self._heard_closing += 1
            self._answer_close |= self._heard_closing & (self._heard_closing - 1) == 0

    def _receive(self, data: bytes, addr: Address) -> None:
        made_up = self._paths.made_up(addr, self._peer_address)
        if not self._handshake_done and data and data[0] & 0x80:
            self._receive_handshake(data, made_up, addr)
            return
        core = self._core
        if core is None:
            return
        if core.receive_datagram(data, made_up, self._clock)[_PACKETS]:
            self._heard = True
            if addr != self._peer_address:
                self._peer_address = self._paths.real(core.active_path[2][:2]) or self._peer_address
        if not self._key_updates.bearable(core.receive_key_phase, self._clock):
            self._fail(_KEY_UPDATE_ERROR, "too many key updates")
        self._note_losses(core)
        if self._streams.stalled is not None and core.state != "connected":
            # The reason for the end stands behind what nobody will read any more.
            self._streams.abandon()

    def _receive_handshake(self, data: bytes, made_up: tuple[str, int], addr: Address) -> None:
        connection = self._connection
        if self._core is None:
            if self._is_client or len(data) < MIN_INITIAL_SIZE or not connection.begin(data, made_up, self._clock):
                return
            self._peer_address = addr
        elif self._is_client and connection.renew(data, made_up, self._clock):
            self._core = connection.native
            return
        self._core = core = connection.native
        assert core is not None, "it was made above, or by `connect`"
        if not self._budget.take_datagram(len(data)):
            self._fail(_CRYPTO_BUFFER_EXCEEDED, "too much handshake data", _CRYPTO_FRAME)
            return
        for packet in connection.packets(data):
            if core.receive_datagram(packet, made_up, self._clock, len(data))[_PACKETS]:
                connection.learn_peer_id(packet)
            self._drain()
            if self._ended is not None:
                return
        self._note_losses(core)

    def _note_losses(self, core: QuicConnectionCore) -> None:
        losses = core.loss_total
        if losses != self._losses:
            self._losses = losses
            self._unsettled = True

    def handle_timer(self, now: float) -> None:
        """Let time pass. Before `get_timer` it does nothing; at or after, it moves that timer on or fires it."""
        timer = self._core_timer()
        if timer is None or now < timer - _NUDGE:
            return
        if self._ended is not None and not self._close_polled:
            return  # The core's closing period counts from the last packet it heard: it may be over before the close was sent.
        self._clock = max(self._clock, now, timer) + _NUDGE
        self._fired_at = self._clock
        self._touch()
        self._guard(self._fire)

    def _fire(self) -> None:
        core = self._core
        assert core is not None, "without it there is no timer"
        due = core.get_timer()
        if due is not None and due[1] > self._clock:
            # The core's next probe is too far away. What was lost goes out again when this one is answered.
            self._sent_at = self._clock
            core.send_ping(0)
            return
        core.handle_timer(self._clock)
        self._note_losses(core)

    def _touch(self) -> None:
        self._dirty = True
        self._timer_valid = False

    def _guard(self, operation: Callable[..., object], *arguments: object) -> None:
        """Do something with what a peer sent: whatever it raises ends this connection, and no other."""
        try:
            operation(*arguments)
        except Exception as error:  # noqa: BLE001
            self._fail(_INTERNAL_ERROR, f"{type(error).__name__} on a packet")
        except BaseException as error:  # noqa: ASYNC103  (synchronous; what is no panic is raised again)
            # A panic of the core is none of Python's exceptions, and leaves a core behind that only panics.
            if type(error).__module__ != "pyo3_runtime":
                raise
            self._core = None
            self._end(ConnectionEnded(_INTERNAL_ERROR, "panic on a packet", application=False, by_peer=False))

    # -- outputs -----------------------------------------------------------------------------------------------------
    def next_events(self) -> list[EngineEvent]:
        """Return what has happened since the last call, oldest first."""
        if self._core is not None:
            self._guard(self._drain)
        if self._heard:
            self._heard = False
            stalled = self._streams.stalled
            if stalled is not None and self._ended is None:
                # More of it has come, or of a stream behind it. It is kept, but whoever waits for a sign of life gets one.
                self._found.append(StreamData(stalled, b"", False))
        found, self._found = self._found, []
        return found

    def _drain(self) -> None:
        """Take events out of the core; each gives the peer credit, so none while a stream is stalled."""
        core, streams = self._core, self._streams
        assert core is not None, "asked only when there is one"
        while streams.stalled is None:
            native = core.next_event()
            if native is None:
                return
            self._touch()
            self._taken = True
            if native[0] == "stream_data":
                if self._ended is None:
                    data = streams.receive(native[1], native[2], native[3])
                    if data is not None:
                        self._found.append(data)
            else:
                self._take(native)

    def _take(self, native: tuple[Any, ...]) -> None:
        """Act on any event but stream data."""
        match native:
            case ("stream_credit", stream_id, maximum):
                self._streams.credit(stream_id, maximum)
            case ("stream_finished", stream_id):
                self._streams.finish(stream_id)
            case ("stream_reset", stream_id, code, _):
                self._streams.drop(stream_id)
                self._found.append(StreamReset(stream_id, code))
            case ("stop_sending", stream_id, code):
                self._streams.enter(stream_id).closed = True
                self._found.append(StreamStopped(stream_id, code))
            case ("connection_id_issued", connection_id):
                self._connection_ids.append(connection_id)
                self._found.append(ConnectionIdIssued(connection_id))
            case ("connection_id_retired", connection_id):
                if connection_id in self._connection_ids:
                    self._connection_ids.remove(connection_id)
                self._found.append(ConnectionIdRetired(connection_id))
            case ("crypto_data", epoch, offset, data):
                self._crypto(epoch, offset, data)
            case ("peer_closed", application, code, _, reason):
                self._closed(code, reason, application, by_peer=True)
            case ("protocol_error", code, _, reason):
                self._closed(code, reason.encode(), False, by_peer=False)
            case ("connection_terminated", code, _, reason):
                self._terminate(code, reason)

    def _closed(self, code: int, reason: bytes, application: bool, *, by_peer: bool, reset: bool = False) -> None:
        if self._ended is None:
            alert = None if application else tls_alert(code)
            text = reason.decode("utf-8", "replace")
            self._ended = ConnectionEnded(code, text, application, by_peer, tls_alert=alert, reset=reset)
            self._streams.abandon()

    def _terminate(self, code: int, reason: bytes) -> None:
        timed_out = reason == _IDLE
        if self._ended is None and not timed_out:
            self._closed(code, STATELESS_RESET.encode(), False, by_peer=True, reset=True)
        self._end(ConnectionEnded(code, reason.decode(), application=False, by_peer=False, timed_out=True))

    def _end(self, ended: ConnectionEnded) -> None:
        """Report the end, once; an earlier reason for it comes before ``ended``."""
        self._ended = self._ended or ended
        if not self._terminated:
            self._terminated = True
            self._streams.abandon()
            self._found.append(self._ended)

    def _crypto(self, epoch: int, offset: int, data: bytes) -> None:
        if not self._budget.take_crypto(len(data)):
            self._fail(_CRYPTO_BUFFER_EXCEEDED, "too much handshake data", _CRYPTO_FRAME)
        elif self._ended is not None or (self._handshake_done and self._is_client):
            return  # A client gets session tickets, and wants none.
        elif self._handshake_done:
            self._fail(_UNEXPECTED_MESSAGE, "a handshake message after the handshake", _CRYPTO_FRAME)
        else:
            try:
                alpn = self._connection.take_crypto(epoch, offset, data)
                if alpn is not None:
                    self._complete(alpn)
            except HandshakeRefusedError as error:
                self._fail(error.code, str(error), _CRYPTO_FRAME)

    def _complete(self, alpn: str) -> None:
        connection = self._connection
        self._peer_certificate = connection.peer_certificate()
        self._streams.peer_stream_in, self._streams.peer_stream_out = connection.peer_windows()
        token = connection.peer_reset_token()
        connection.forget_tls()
        self._handshake_done = True
        if token is not None:
            self._found.append(ResetTokenLearned(token))
        self._found.append(HandshakeCompleted(alpn))

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Build the packets that may leave now. Costs next to nothing when nothing was put in and no timer is due."""
        if not self._dirty:
            timer = self._core_timer()
            if timer is None or now < timer:
                return []
        self._dirty = self._timer_valid = self._taken = False
        if now > self._clock:
            self._clock = now
        if self._answer_close:
            self._answer_close = False
            return list(self._close_datagrams)
        datagrams: list[tuple[bytes, Address]] = []
        if self._core is not None:
            self._guard(self._poll, datagrams)
        ended = self._ended
        if ended is not None and not self._close_polled:
            self._close_polled = True
            if not ended.by_peer:
                self._close_datagrams = list(datagrams)
        return datagrams

    def _poll(self, datagrams: list[tuple[bytes, Address]]) -> None:
        core = self._core
        assert core is not None, "asked only when there is one"
        poll, clock, real = core.poll_transmit, self._clock, self._paths.real
        try:
            while (transmit := poll(clock)) is not None:
                address = real(transmit[1])
                if address is not None:
                    datagrams.append((transmit[0], address))
        except RuntimeError as error:
            # The core takes too little room before the address is validated for a defect. The peer's next packet makes more.
            if str(error) != _NO_ROOM:
                raise
        self._unsettled = False
        if datagrams:
            self._sent_at = clock
            self._packets += len(datagrams)
            # The core never counts what it has encrypted under one key.
            if self._packets >= self._key_update_at and self._handshake_done and self._ended is None:
                core.request_key_update()
                self._key_update_at = self._packets + KEY_UPDATE_INTERVAL

    def get_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called; None when not at all.

        At once while there are events to take, or some were taken and gave credit that waits for `datagrams_to_send`.
        """
        if self._found or self._taken:
            return self._clock
        core = self._core
        if core is not None and core.has_events and self._streams.stalled is None:
            return self._clock
        return self._core_timer()

    def _core_timer(self) -> float | None:
        if not self._timer_valid:
            timer = None
            due = None if self._core is None or self._terminated else self._core.get_timer()
            if due is not None:
                kind, timer = due
                if kind == "loss_detection" and self._handshake_done and timer > self._sent_at + MAX_PROBE_INTERVAL:
                    # The core doubles the time between its probes without end, while heartbeats wait.
                    timer = max(self._sent_at + MAX_PROBE_INTERVAL, self._clock)
                if timer <= self._fired_at:
                    timer = self._fired_at + _STUCK
            self._timer = timer
            self._timer_valid = True
        return self._timer

    # -- the end --------------------------------------------------------------------------------------------------------
    def _fail(self, code: int, reason: str, frame_type: int = PADDING_FRAME) -> None:
        """Close for what the peer did."""
        if self._ended is None:
            self._begin_close(code, reason, False, frame_type)

    def _begin_close(self, code: int, reason: str, application: bool, frame_type: int) -> None:
        # It must fit into one packet.
        said = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
        self._closed(code, said.encode(), application, by_peer=False)
        core = self._core
        if core is None:
            self._end(ConnectionEnded(code, said, application, by_peer=False))
        else:
            # When the peer's own close has come, and waits among the events, this has no effect.
            core.close(code, None if application else frame_type, said.encode())
        self._touch()
