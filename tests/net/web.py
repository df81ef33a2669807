"""As much of HTTP/3 (RFC 9114) as a foreign client needs to download something: on our engine, pump and endpoint, nothing above them.

Debian's `ngtcp2-client` speaks only HTTP/3, which needs three unidirectional streams from the client; ours refuses all of them, so the
engines made here are told to take three.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from aioquic.tls import Epoch

from quicflow_trio.deadlines import Deadlines
from quicflow_trio.net.endpoint import Endpoint
from quicflow_trio.net.pump import Pump
from quicflow_trio.net.stateless import Doorkeeper
from quicflow_trio.net.udp import UdpNetwork
from quicflow_trio.quic.aioquic_engine import AioquicEngine, server_engine
from quicflow_trio.quic.engine import (
    Address,
    ConnectionEnded,
    ConnectionIdIssued,
    ConnectionIdRetired,
    EngineEvent,
    HandshakeCompleted,
    StreamData,
)
from quicflow_trio.quic.limits import Windows
from quicflow_trio.quic.routing import Header
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import throwaway_tls

ALPN = "h3"
WINDOWS = Windows(stream_in=65536, stream_out=65536, connection=1 << 20, streams=100)
UNI_STREAMS, UNI_WINDOW = 3, 4096
AHEAD = 256 * 1024
"""Bytes written to the engine that have not left yet."""
# HEADERS (type 1) of 3 bytes: no dynamic table (RFC 9204 section 4.5.1), then entry 25 of the static one, ":status: 200".
STATUS_200 = bytes((0x01, 3, 0x00, 0x00, 0xC0 | 25))
DATA = b"\x00"


def content(number: int, size: int) -> bytes:
    """Return what the stream with this number is answered with."""
    return random.Random(number).randbytes(size)


def _length(value: int) -> bytes:
    """Encode as RFC 9000 section 16 has it, always in eight bytes."""
    return (value | 3 << 62).to_bytes(8, "big")


class WebConnection:
    """One connection: the pump's driver. Each request is answered with `content` of the number of its stream.

    Attributes:
        alpn: once the handshake is complete.
        addresses: those from which the client was heard, one after the other.
        requests: streams on which a request has ended.
        key_updates: changes of the keys we send with.
        ended: why it is over.
    """

    def __init__(self, endpoint: Endpoint, engine: AioquicEngine, size: int, new_keys_every: int) -> None:
        self.engine = engine
        self.alpn = ""
        self.addresses: list[Address] = []
        self.requests: list[int] = []
        self.ended: ConnectionEnded | None = None
        self.key_updates = 0
        self._phase = 0
        self._size = size
        self._new_keys_every = new_keys_every
        self._endpoint = endpoint
        self._rest: dict[int, memoryview] = {}
        self.timers = Deadlines()
        self.pump = Pump(engine, endpoint, self, self.timers)

    async def run(self) -> None:
        """Live until the connection ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.timers.run)
            await self.pump.run()
            nursery.cancel_scope.cancel()
        self.ended = self.engine.ended
        self._endpoint.remove_pump(self.pump)

    # -- pump.Driver ---------------------------------------------------------------------------------------------------
    def handle_events(self, events: Sequence[EngineEvent], now: float) -> None:
        for event in events:
            if isinstance(event, StreamData):
                if event.stream_id % 4 == 0 and event.fin:
                    self.requests.append(event.stream_id)
                    body = content(event.stream_id // 4, self._size)
                    self._rest[event.stream_id] = memoryview(STATUS_200 + DATA + _length(len(body)) + body)
            elif isinstance(event, HandshakeCompleted):
                self.alpn = event.alpn
                self.pump.handshake_completed()
            elif isinstance(event, ConnectionIdIssued):
                self._endpoint.add_route(event.connection_id, self.pump)
            elif isinstance(event, ConnectionIdRetired):
                self._endpoint.remove_route(event.connection_id)

    def received(self) -> None:
        address = self.engine.peer_address
        if address is not None and (not self.addresses or self.addresses[-1] != address):
            self.addresses.append(address)

    def flush(self, now: float) -> None:
        for stream_id, rest in list(self._rest.items()):
            room = min(self.engine.credit(stream_id), AHEAD - self.engine.unsent(stream_id))
            if room <= 0 and len(rest):
                continue
            piece = rest[:room]
            self._rest[stream_id] = rest[len(piece) :]
            self.engine.write(stream_id, bytes(piece), fin=len(piece) == len(rest))
            if len(piece) == len(rest):
                del self._rest[stream_id]

    def deadline(self) -> float:
        return math.inf

    def handle_deadline(self, now: float) -> None:
        raise AssertionError("there is none")

    def transmitted(self) -> None:
        phase = self.engine._core._cryptos[Epoch.ONE_RTT].key_phase
        self.key_updates += phase != self._phase
        self._phase = phase
        # Many turns are more than one round trip: the peer has acknowledged a packet under the keys in use (RFC 9001 section 6.1).
        if self._new_keys_every and self._rest and self.pump.turns % self._new_keys_every == 0:
            self.engine._core.request_key_update()
        if self._rest and any(self.engine.unsent(stream_id) < AHEAD // 2 for stream_id in self._rest):
            self.pump.kick()


class WebServer:
    """What `open_web_server` gives.

    Attributes:
        port: where it listens, on loopback.
        connections: all that there were.
        endpoint: its socket.
    """

    def __init__(self, nursery: trio.Nursery, size: int, new_keys_every: int) -> None:
        self.connections: list[WebConnection] = []
        self.endpoint: Endpoint
        self._nursery = nursery
        self._size = size
        self._new_keys_every = new_keys_every
        self._tls = TLSContext(throwaway_tls()[0])

    @property
    def port(self) -> int:
        return self.endpoint.address[1]

    def accept(self, header: Header, address: Address, now: float) -> Pump:
        """Make a connection for a client's first packet."""
        engine = server_engine(
            self._tls,
            original_destination_id=header.destination if header.original is None else header.original,
            alpn=[ALPN],
            idle_timeout=20.0,
            windows=WINDOWS,
            retry_source_id=None if header.original is None else header.destination,
        )
        core = engine._core
        core._local_max_streams_uni.value = core._local_max_streams_uni.sent = UNI_STREAMS
        core._local_max_stream_data_uni = UNI_WINDOW
        connection = WebConnection(self.endpoint, engine, self._size, self._new_keys_every)
        self.connections.append(connection)
        for connection_id in engine.connection_ids:
            self.endpoint.add_route(connection_id, connection.pump)
        self._nursery.start_soon(connection.run)
        return connection.pump


@asynccontextmanager
async def open_web_server(size: int, *, retry: bool = False, new_keys_every: int = 0) -> AsyncIterator[WebServer]:
    """Serve ``size`` bytes for every request, for the length of the block; ``retry`` sends every client away once,
    ``new_keys_every`` so many turns of the pump we change the keys."""
    async with trio.open_nursery() as nursery:
        server = WebServer(nursery, size, new_keys_every)
        doorkeeper = Doorkeeper(must_retry=lambda now: retry)
        server.endpoint = Endpoint(await UdpNetwork().bind("127.0.0.1", 0), server.accept, doorkeeper=doorkeeper)
        nursery.start_soon(server.endpoint.run)
        try:
            yield server
        finally:
            server.endpoint.close()
            nursery.cancel_scope.cancel()
