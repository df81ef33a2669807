"""One connection of a peer: exchanges on streams, one frame there and at most one back, on aioquic's or qh3's asyncio protocol.

As the original does: a frame is acted on at its boundary, and a stream is read no further. So a FIN that comes later than the frame's
last byte is never consumed, and the credit for that stream never given back (`StreamCredit`; on aioquic only, qh3's core does not let
itself be told).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from . import wire

ALPN = "quic-backbone-v1"
STREAMS = 1000
"""Streams that the other side may have open at once."""
INTERVAL = 0.002
"""Seconds after which what shall not share a packet is sent."""


class Lost(Exception):
    """The connection ended before the answer came."""


class NotConnected(Lost):
    """There is no connection now; nothing was sent."""


class StreamCredit:
    """aioquic's `Limit` for the streams of the other side, which may keep what it would give back."""

    def __init__(self, limit: Any) -> None:
        self.frame_type, self.name = limit.frame_type, limit.name
        self.used = limit.used
        self.sent = self._value = STREAMS
        self.kept = 0
        self.in_debt = 0

    @property
    def value(self) -> int:
        """Streams that the other side may have opened, over the connection's life."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        # aioquic adds one for each stream that has ended both ways.
        if self.in_debt:
            self.in_debt -= 1
            self.kept += 1
        else:
            self._value = value


class Exchange:
    """One stream.

    Attributes:
        opened: true when this side has opened it.
        answer: the frame that came on a stream of ours; None for a FIN without one.
        heard: everything that came, where ``raw`` was asked for.
        over: set once the other half has ended.
    """

    def __init__(self, stream_id: int, *, opened: bool, raw: bool = False) -> None:
        self.stream_id = stream_id
        self.opened = opened
        self.raw = raw
        self.heard = bytearray()
        self.answer: asyncio.Future[wire.Frame | None] = asyncio.get_running_loop().create_future()
        self.over = asyncio.Event()
        self.framed = False
        self.fin_with_frame = False
        self.finished = False
        self._buffer = bytearray()

    def feed(self, data: bytes, fin: bool) -> wire.Frame | None:
        """Take bytes; return the frame once it is complete."""
        if self.raw:
            self.heard += data
            return None
        if self.framed:
            return None
        self._buffer += data
        if len(self._buffer) < 4:
            return None
        length = wire.body_length(bytes(self._buffer[:4]))
        if len(self._buffer) < 4 + length:
            return None
        body = bytes(self._buffer[4 : 4 + length])
        self._buffer.clear()
        self.framed, self.fin_with_frame = True, fin
        return wire.read_frame(body)


class _Nowhere:
    """Where the datagrams of a connection go that has vanished."""

    def sendto(self, data: bytes, addr: Any) -> None:
        """Send nothing."""


def _ignore(*_: Any) -> None:
    """Receive nothing."""


class Owner(Protocol):
    """What acts on what a connection hears."""

    counts: Counter[str]

    def handle_frame(self, link: Link, exchange: Exchange, frame: wire.Frame) -> None:
        """Act on the frame of a stream that the other side has opened."""

    def handle_end(self, link: Link) -> None:
        """Note that the connection is over."""


class Link:
    """One connection.

    Attributes:
        peer_id: the client that has introduced itself; on the client's own side its own id.
        waiting: by message id who waits for an ACK, also for one that comes on another stream.
        closed: code and reason, once it is over.
    """

    def __init__(self, owner: Owner, protocol: Any) -> None:
        self.owner = owner
        self.protocol = protocol
        self.peer_id = ""
        self.waiting: dict[str, asyncio.Future[wire.Frame | None]] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.closed: tuple[int, str] | None = None
        self.over = asyncio.Event()
        self.last_heard = time.monotonic()
        self._quic = protocol._quic
        self._credit: StreamCredit | None = None
        limit = getattr(self._quic, "_local_max_streams_bidi", None)
        if limit is not None:
            self._credit = self._quic._local_max_streams_bidi = StreamCredit(limit)
        # Stock's own handler keeps a reader for each stream for ever.
        protocol.quic_event_received = self._handle_event

    # -- hearing -------------------------------------------------------------------------------------------------------
    def _handle_event(self, event: Any) -> None:
        kind = type(event).__name__
        if kind == "StreamDataReceived":
            self.last_heard = time.monotonic()
            self._handle_data(event.stream_id, bytes(event.data), event.end_stream)
        elif kind == "StreamReset":
            self.owner.counts["resets"] += 1
            self._handle_data(event.stream_id, b"", True)
        elif kind == "StopSendingReceived":
            self.owner.counts["stops"] += 1
            if (exchange := self.exchanges.get(event.stream_id)) is not None:
                exchange.finished = True
                self._forget(exchange)
        elif kind == "ConnectionTerminated":
            self._end(event.error_code, event.reason_phrase)

    def _handle_data(self, stream_id: int, data: bytes, fin: bool) -> None:
        exchange = self.exchanges.get(stream_id)
        if exchange is None:
            if stream_id % 4 == (0 if self._quic._is_client else 1):
                return  # one of ours that is over
            exchange = self.exchanges[stream_id] = Exchange(stream_id, opened=False)
        try:
            frame = exchange.feed(data, fin)
        except wire.BadFrame:
            self.owner.counts["bad_frames"] += 1
            exchange.framed = True
            self.finish(exchange)
            frame = None
        if frame is not None:
            if exchange.opened:
                exchange.answer.set_result(frame)
            else:
                self.owner.handle_frame(self, exchange, frame)
        if fin:
            self._handle_fin(exchange)

    def _handle_fin(self, exchange: Exchange) -> None:
        if not exchange.opened and exchange.framed and not exchange.fin_with_frame:
            self.owner.counts["late_fins"] += 1
            if self._credit is not None:
                self._credit.in_debt += 1
        if not exchange.answer.done():
            exchange.answer.set_result(None)
        if not exchange.opened and not exchange.framed:
            self.finish(exchange)
        exchange.over.set()
        self._forget(exchange)

    def _forget(self, exchange: Exchange) -> None:
        if exchange.over.is_set() and exchange.finished:
            self.exchanges.pop(exchange.stream_id, None)

    def _end(self, code: int, reason: str) -> None:
        if self.closed is not None:
            return
        self.closed = (code, reason)
        for exchange in self.exchanges.values():
            exchange.over.set()
            if not exchange.answer.done():
                exchange.answer.set_exception(Lost(reason))
                exchange.answer.exception()  # nobody may be waiting
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(Lost(reason))
                future.exception()
        self.exchanges.clear()
        self.over.set()
        self.owner.handle_end(self)

    # -- speaking ------------------------------------------------------------------------------------------------------
    def open(self, *, raw: bool = False) -> Exchange:
        """Take the next stream; it is there with the first `write`, before anything else is opened."""
        if self.closed is not None:
            raise Lost(self.closed[1])
        exchange = Exchange(self._quic.get_next_available_stream_id(), opened=True, raw=raw)
        self.exchanges[exchange.stream_id] = exchange
        return exchange

    def write(self, exchange: Exchange, data: bytes, *, fin: bool) -> None:
        """Send; FIN leaves in the frame that has the last byte."""
        if exchange.finished or self.closed is not None:
            return
        self._quic.send_stream_data(exchange.stream_id, data, fin)
        self.protocol._transmit_soon()
        if fin:
            exchange.finished = True
            self._forget(exchange)

    def finish(self, exchange: Exchange) -> None:
        """Send FIN, alone if everything else has left."""
        self.write(exchange, b"", fin=True)

    def write_late(self, exchange: Exchange, data: bytes) -> None:
        """Send, and FIN a packet later."""
        self.write(exchange, data, fin=False)
        self.protocol.transmit()
        self.finish_later(exchange, INTERVAL)

    def finish_later(self, exchange: Exchange, seconds: float) -> None:
        """Send FIN after a while."""
        asyncio.get_running_loop().call_later(seconds, self.finish, exchange)

    def close(self, code: int, reason: str) -> None:
        """Close with a code and a reason."""
        self._quic.close(error_code=code, reason_phrase=reason)
        self.protocol.transmit()

    def vanish(self) -> None:
        """Be gone without a word: hear and say nothing more."""
        self.protocol.datagram_received = self.protocol.datagrams_received = _ignore
        self.protocol._transport, self.protocol._sendto_many = _Nowhere(), None
        self._end(0, "vanished")

    def figures(self) -> dict[str, Any]:
        """Return what it holds."""
        return {
            "exchanges": len(self.exchanges),
            "waiting": len(self.waiting),
            "streams": len(getattr(self._quic, "_streams", ())),
            "credit_kept": 0 if self._credit is None else self._credit.kept,
        }


# -- sockets --------------------------------------------------------------------------------------------------------------
class Stack:
    """aioquic or qh3: the same API under another name."""

    def __init__(self, name: str) -> None:
        self._asyncio = import_module(f"{name}.asyncio")
        self._protocol = import_module(f"{name}.asyncio.protocol").QuicConnectionProtocol
        self._configuration = import_module(f"{name}.quic.configuration").QuicConfiguration
        self._connection = import_module(f"{name}.quic.connection").QuicConnection
        self._tls = import_module(f"{name}.tls")

    def configure(self, *, client: bool, settings: dict[str, Any]) -> Any:
        """Return the settings of TLS and QUIC from ``cert``, ``key``, ``ca``, ``alpn`` and ``idle_timeout``."""
        made = self._configuration(
            is_client=client,
            alpn_protocols=settings.get("alpn", [ALPN]),
            idle_timeout=settings.get("idle_timeout", 60.0),
            server_name="localhost" if client else None,
        )
        if "cert" in settings:
            made.load_cert_chain(settings["cert"], settings["key"])
        if client:
            made.load_verify_locations(settings["ca"])
            if hasattr(made, "signature_algorithms"):
                # qh3 does not offer by itself what our throw-away certificates are signed with.
                kinds = self._tls.SignatureAlgorithm
                made.signature_algorithms = [kinds.ED25519, kinds.ECDSA_SECP256R1_SHA256]
        return made

    async def serve(self, port: int, configuration: Any, accept: Callable[[Any], None]) -> tuple[Any, int]:
        """Listen on loopback; return the server, and its port."""

        def create(quic: Any, stream_handler: Any = None) -> Any:
            protocol = self._protocol(quic, stream_handler)
            accept(protocol)
            return protocol

        server = await self._asyncio.serve("127.0.0.1", port, configuration=configuration, create_protocol=create)
        return server, server._transport.get_extra_info("sockname")[1]

    async def connect(self, port: int, configuration: Any, owner: Owner) -> tuple[Link, Any]:
        """Begin a handshake with the server on this port of loopback; return the link, and what closes its socket."""
        # Not `asyncio.connect`, which binds an IPv6 socket whether or not the machine has any.
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self._protocol(self._connection(configuration=configuration)), local_addr=("127.0.0.1", 0)
        )
        link = Link(owner, protocol)
        protocol.connect(("127.0.0.1", port))
        return link, transport
