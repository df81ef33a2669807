"""The engine contract: one QUIC connection without sockets, clocks or Trio.

What stands above (`net`, the connection) knows this protocol and these events, never a QUIC library. The order of calls is::

    engine.receive_datagram(data, addr, now)   any number of times
    engine.handle_timer(now)                   when engine.get_timer() has come
    engine.next_events()                       after either; drained at once
    engine.write / grant / reset / close       at any time in between
    engine.datagrams_to_send(now)              once, when all of that is done: never once per message

``now`` is seconds of one monotonic clock, resolved well below a millisecond. Nothing here raises on what a peer sends: a violation
ends in a `ConnectionEnded` event and a close packet among the datagrams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "STATELESS_RESET",
    "Address",
    "ConnectionEnded",
    "ConnectionIdIssued",
    "ConnectionIdRetired",
    "Engine",
    "EngineEvent",
    "HandshakeCompleted",
    "ResetTokenLearned",
    "StreamData",
    "StreamReset",
    "StreamStopped",
]

STATELESS_RESET: Final = "the peer has lost this connection, as after a restart (stateless reset)"
"""The reason of a `ConnectionEnded` whose ``reset`` is true."""

Address = tuple[str, int] | tuple[str, int, int, int]
"""Where a datagram goes to or came from: (host, port), for IPv6 with flow information and scope."""


@dataclass(slots=True, frozen=True)
class HandshakeCompleted:
    """TLS is done, the peer's certificate (where one is asked for) verified, streams may be used.

    Attributes:
        alpn: the protocol both sides agreed on.
    """

    alpn: str


class StreamData:
    """Bytes of one stream, in order. Not frozen: one is made per packet, and a frozen dataclass costs three times as much.

    Attributes:
        stream_id: the stream.
        data: the next bytes; can be empty when ``fin`` is set.
        fin: true when these are the last.
    """

    __slots__ = ("data", "fin", "stream_id")

    def __init__(self, stream_id: int, data: bytes, fin: bool) -> None:
        self.stream_id: int = stream_id
        self.data: bytes = data
        self.fin: bool = fin

    def __repr__(self) -> str:
        return f"StreamData(stream_id={self.stream_id}, {len(self.data)} bytes, fin={self.fin})"


@dataclass(slots=True, frozen=True)
class StreamReset:
    """The peer abandoned its sending half of a stream.

    Attributes:
        stream_id: the stream.
        code: the peer's application error code.
    """

    stream_id: int
    code: int


@dataclass(slots=True, frozen=True)
class StreamStopped:
    """The peer will read no more of a stream; our sending half has been reset.

    Attributes:
        stream_id: the stream.
        code: the peer's application error code.
    """

    stream_id: int
    code: int


@dataclass(slots=True, frozen=True)
class ConnectionIdIssued:
    """The peer may address this connection by one more id.

    Attributes:
        connection_id: the id, to be entered into the endpoint's table.
    """

    connection_id: bytes


@dataclass(slots=True, frozen=True)
class ConnectionIdRetired:
    """The peer uses an id no longer.

    Attributes:
        connection_id: the id, to be taken out of the endpoint's table.
    """

    connection_id: bytes


@dataclass(slots=True, frozen=True)
class ResetTokenLearned:
    """The peer has said by which token it will make itself known should it lose this connection (RFC 9000 section 10.3).

    Attributes:
        token: the last 16 bytes of a datagram that is to be given to this engine, whatever connection id stands in front.
    """

    token: bytes


@dataclass(slots=True, frozen=True)
class ConnectionEnded:
    """The last event: the engine has terminated.

    Attributes:
        code: QUIC transport error code, or application code when ``application`` is true.
        reason: text beside the code.
        application: true for an application close, false for a transport one.
        by_peer: true when the peer closed, false when this engine did (or its idle timer).
        timed_out: true when nothing was heard for the idle time-out.
        tls_alert: the TLS alert number (RFC 8446 section 6) when the code is a CRYPTO_ERROR, else None.
        reset: true when the peer has said, by a stateless reset, that it knows nothing of this connection.
    """

    code: int
    reason: str
    application: bool
    by_peer: bool
    timed_out: bool = False
    tls_alert: int | None = None
    reset: bool = False


EngineEvent = (
    StreamData
    | StreamReset
    | StreamStopped
    | HandshakeCompleted
    | ConnectionIdIssued
    | ConnectionIdRetired
    | ResetTokenLearned
    | ConnectionEnded
)


class Engine(Protocol):
    """One QUIC connection, client or server side. Streams are bidirectional ones throughout."""

    # -- inputs ------------------------------------------------------------------------------------------------------
    def connect(self, addr: Address, now: float) -> None:
        """Start the handshake; client side, once, before anything else."""

    def receive_datagram(self, data: bytes, addr: Address, now: float) -> None:
        """Take in one datagram from the network."""

    def handle_timer(self, now: float) -> None:
        """Let time pass; safe to call at or after `get_timer`, always moves that timer on or fires it."""

    # -- outputs -----------------------------------------------------------------------------------------------------
    def next_events(self) -> list[EngineEvent]:
        """Return what has happened since the last call, oldest first; empty when nothing did."""

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Address]]:
        """Build the packets that may leave now. Cheap when nothing is due; safe before the first datagram."""

    def get_timer(self) -> float | None:
        """Return when `handle_timer` wants to be called; None when not at all."""

    # -- streams -----------------------------------------------------------------------------------------------------
    def open_stream(self) -> int:
        """Take the next stream id of this side. The peer hears of it with the first `write`.

        Raises:
            LocalProtocolError: the peer's stream limit is reached.
        """

    def write(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Append to a stream's send buffer. Nothing leaves before `datagrams_to_send`.

        The buffer is not bounded here: writers ask `credit` and `unsent` first and keep what they may not write yet.

        Raises:
            LocalProtocolError: the stream is finished or was reset.
        """

    def credit(self, stream_id: int) -> int:
        """Return how many further bytes the peer would accept on this stream; negative when more than that is written."""

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes written to this stream have not left in a first packet yet."""

    def unacked(self) -> int:
        """Return how many stream bytes, over all streams, the peer has not acknowledged; 0 when all arrived."""

    def grant(self, stream_id: int, limit: int, window: int = 0) -> bool:
        """Let the peer send up to offset ``limit`` (absolute, in bytes) on this stream. Never takes back.

        Receive credit is only ever given this way, starting from the initial window: the peer can hold no more memory here than was
        granted. The MAX_STREAM_DATA frame is worth a packet when a good part of the window is new. ``window`` is what the peer may be
        ahead at the moment, bytes, where that is less than the initial window: a good part of that would never come together.

        Returns:
            True when a transmit is worth while for the update alone.
        """

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon the sending half; no effect on a finished stream."""

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to abandon its sending half; no effect on a finished stream."""

    def hold(self, size: int) -> None:
        """Keep ``size`` bytes that have come off the credit of the whole connection, until they are handled.

        For a protocol whose streams are too many for their windows to bound what comes. On qh3 it has no effect.
        """

    def raise_stream_limit(self, streams: int) -> None:
        """Let the peer have ``streams`` streams open at once, for a protocol that is known only after TLS; never lowers.

        On qh3 it has no effect: its core keeps to what the handshake said.
        """

    # -- the connection ----------------------------------------------------------------------------------------------
    def close(self, code: int, reason: str = "", *, application: bool = True) -> None:
        """Close now. Unsent stream data is dropped: drain first. `ConnectionEnded` follows once the closing period is over."""

    def migrate(self) -> bool:
        """Go on by another of the connection ids that the peer has given, as a client must that moves to another address.

        So nobody who sees both can tell that it is the same (RFC 9000 section 9.5). The peer's side takes the first packet from there for
        the move, and asks whether the address is ours.

        Returns:
            False when there is no other id, or the handshake is not confirmed; then nothing has changed.
        """

    def release(self) -> None:
        """Free what an ended connection holds. Afterwards there is nothing left but the figures: why it ended, `rtt` and the like."""

    @property
    def closing(self) -> bool:
        """True from `close`, or from the peer's close, on."""

    @property
    def terminated(self) -> bool:
        """True once `ConnectionEnded` is due or drained."""

    @property
    def ended(self) -> ConnectionEnded | None:
        """Why the connection ends, known as soon as `closing` is true; the event of the same content follows later."""

    @property
    def last_word(self) -> list[tuple[bytes, Address]]:
        """The packets that told the peer of `close`, to be sent again while it goes on sending; empty when they have not left."""

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds (RFC 9002 section 5.3); None before the first sample."""

    @property
    def packets_lost(self) -> int:
        """Packets declared lost, whose content was sent again (RFC 9002 section 6)."""

    @property
    def peer_address(self) -> Address | None:
        """Where datagrams go now; changes when a client migrates."""

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate as DER, once it is verified; None before, and when there is none."""

    @property
    def connection_ids(self) -> list[bytes]:
        """Ids by which the peer may address this connection at this moment."""

    @property
    def original_destination_id(self) -> bytes:
        """The id that the client's first packets carry; an endpoint routes by it until the handshake is confirmed."""
