"""Peers driven by hand: an engine on a simulated host that says exactly what a test wants, allowed or not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from quicflow_trio.background import open_background
from quicflow_trio.net.udp import DatagramSocket
from quicflow_trio.protocol.handshake import ALPN, REVISION
from quicflow_trio.quic.aioquic_engine import AioquicEngine, Windows, client_engine, server_engine
from quicflow_trio.quic.engine import Address, ConnectionEnded, EngineEvent, HandshakeCompleted, StreamData
from quicflow_trio.quic.routing import parse_header
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import MemoryNetwork, throwaway_tls
from quicflow_trio.wire import Frame, FrameReader, Hello, PeerLimits, Welcome, decode, encode

E = TypeVar("E")
PORT = 8474
WINDOWS = Windows(stream_in=1_000_000, stream_out=1_000_000, connection=16_000_000, streams=64)
LIMITS = PeerLimits(payload=1_048_576, lanes=16)


def hello(client_id: str = "raw", limits: PeerLimits = LIMITS) -> Hello:
    return Hello(revision=REVISION, client_id=client_id, limits=limits)


def welcome(interval: float = 15.0, limits: PeerLimits = LIMITS) -> Welcome:
    return Welcome(revision=REVISION, session_id=bytes(16), heartbeat_interval_ms=round(interval * 1000), limits=limits)


class Raw:
    """One engine and its socket. ``events`` and ``streams`` grow by themselves; nothing is answered but by QUIC."""

    def __init__(self, engine: AioquicEngine, socket: DatagramSocket) -> None:
        self.engine = engine
        self.socket = socket
        self.events: list[EngineEvent] = []
        self.streams: dict[int, bytes] = {}
        self.grants = True
        self.on_event: Callable[[Raw, EngineEvent], None] | None = None
        self._sleep = trio.CancelScope()
        self._news = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        # Whoever leaves the block of `open_raw` closes the socket, in the middle of a turn perhaps.
        with contextlib.suppress(trio.ClosedResourceError):
            await self._turns()

    async def _turns(self) -> None:
        while not self.engine.terminated:
            self.transmit()
            timer = self.engine.get_timer()
            deadline = math.inf if timer is None else max(timer, trio.current_time() + 1e-6)
            batch: list[tuple[bytes, Address]] = []
            with trio.CancelScope(deadline=deadline) as self._sleep:
                batch = await self.socket.receive()
            self.feed(batch)
        self.transmit()

    def transmit(self) -> None:
        self.socket.send_nowait(self.engine.datagrams_to_send(trio.current_time()))

    def feed(self, batch: list[tuple[bytes, Address]]) -> None:
        now = trio.current_time()
        for data, address in batch:
            self.engine.receive_datagram(data, address, now)
        self.engine.handle_timer(now)
        for event in self.engine.next_events():
            self.events.append(event)
            if isinstance(event, StreamData):
                self.streams[event.stream_id] = self.streams.get(event.stream_id, b"") + event.data
                if self.grants:
                    self.engine.grant(event.stream_id, len(self.streams[event.stream_id]) + 1_000_000)
            if self.on_event is not None:
                self.on_event(self, event)
        self._news.unpark_all()

    def kick(self) -> None:
        """Have what was written sent."""
        self._sleep.cancel()

    async def wait(self, ready: Callable[[], object]) -> None:
        while not ready():
            await self._news.park()

    async def event(self, kind: type[E]) -> E:
        """Wait for the first event of a kind."""
        await self.wait(lambda: self.got(kind))
        return self.got(kind)[0]

    def got(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def ended(self) -> ConnectionEnded:
        """Wait until the other side has closed, and tell why."""
        await self.wait(lambda: self.engine.closing)
        ended = self.engine.ended
        assert ended is not None
        return ended

    def write(self, stream_id: int, *content: Frame | bytes, fin: bool = False) -> None:
        """Write frames, or bytes as they are, and have them sent."""
        self.engine.write(stream_id, b"".join(one if isinstance(one, bytes) else encode(one) for one in content), fin=fin)
        self.kick()

    def open(self, *content: Frame | bytes) -> int:
        """Open the next stream with these frames."""
        stream_id = self.engine.open_stream()
        self.write(stream_id, *content)
        return stream_id

    def frames(self, stream_id: int = 0) -> list[Frame]:
        """Decode what came on a stream so far."""
        reader = FrameReader(2_000_000)
        reader.feed(self.streams.get(stream_id, b""))
        return [frame for body in reader.frames() if (frame := decode(body)) is not None]

    async def frame(self, kind: type[E], stream_id: int = 0, count: int = 1) -> E:
        """Wait for the n-th frame of a kind on a stream."""

        def found() -> list[E]:
            return [frame for frame in self.frames(stream_id) if isinstance(frame, kind)]

        await self.wait(lambda: len(found()) >= count)
        return found()[count - 1]

    async def greet(self, client_id: str = "raw") -> Raw:
        """Exchange hello and welcome."""
        self.open(hello(client_id))
        await self.frame(Welcome)
        return self


@asynccontextmanager
async def open_raw(
    network: MemoryNetwork, host: str = "raw", *, windows: Windows = WINDOWS, alpn: str = ALPN, handshake: bool = True
) -> AsyncIterator[Raw]:
    """Connect a client by hand to the host ``server``; the block starts after TLS."""
    tls = TLSContext(throwaway_tls()[1])
    socket = await network.host(host).bind_for(("server", PORT))
    engine = client_engine(tls, server_name="server", alpn=[alpn], idle_timeout=90, windows=windows)
    engine.connect(("server", PORT), trio.current_time())
    raw = Raw(engine, socket)
    async with open_background() as background:
        background.start_soon(raw.run)
        if handshake:
            await raw.event(HandshakeCompleted)
        try:
            yield raw
        finally:
            engine.close(0, "raw peer done")
            raw.transmit()
            socket.close()


class RawServer:
    """Answers on the host ``server``: an engine per client address, in the order of arrival."""

    def __init__(
        self, socket: DatagramSocket, alpn: str, on_event: Callable[[Raw, EngineEvent], None], windows: Windows = WINDOWS
    ) -> None:
        self.peers: list[Raw] = []
        self._socket = socket
        self._alpn = alpn
        self._windows = windows
        self._on_event = on_event
        self._by_address: dict[Address, Raw] = {}
        self._tls = TLSContext(throwaway_tls()[0])

    async def run(self) -> None:
        while True:
            deadline = min((peer.engine.get_timer() or math.inf for peer in self.peers), default=math.inf)
            batch: list[tuple[bytes, Address]] = []
            with trio.move_on_at(max(deadline, trio.current_time() + 1e-6)):
                batch = await self._socket.receive()
            for data, address in batch:
                self._peer(data, address).feed([(data, address)])
            for peer in self.peers:
                peer.feed([])
                peer.transmit()

    def _peer(self, data: bytes, address: Address) -> Raw:
        peer = self._by_address.get(address)
        if peer is None:
            header = parse_header(data)
            assert header is not None
            engine = server_engine(
                self._tls, original_destination_id=header.destination, alpn=[self._alpn], idle_timeout=90, windows=self._windows
            )
            peer = self._by_address[address] = Raw(engine, self._socket)
            peer.on_event = self._on_event
            self.peers.append(peer)
        return peer


@asynccontextmanager
async def open_raw_server(
    network: MemoryNetwork, on_event: Callable[[Raw, EngineEvent], None], *, alpn: str = ALPN, windows: Windows = WINDOWS
) -> AsyncIterator[RawServer]:
    """Serve by hand: ``on_event`` is called with each event and writes the answers; they leave with the same turn."""
    socket = await network.bind("server", PORT)
    server = RawServer(socket, alpn, on_event, windows)
    async with open_background() as background:
        background.start_soon(server.run)
        yield server
    socket.close()
