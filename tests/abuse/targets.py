"""What is fuzzed: an endpoint with its engines, engines behind their encryption, and connections behind the engines.

Each target makes its inputs from a seed, and takes them one at a time through `Meter.call`, which sees what escapes and what takes long.
An input is (where, data): enough to feed it again on its own, as `replay` does for the corpus.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from aioquic.quic.packet import QuicPacketType
from aioquic.tls import Epoch

from quicflow_trio import Message
from quicflow_trio.config import Limits
from quicflow_trio.net.endpoint import Endpoint
from quicflow_trio.net.udp import SocketStatistics
from quicflow_trio.protocol.credit import RETURN_WINDOW, connection_window
from quicflow_trio.protocol.handshake import ALPN
from quicflow_trio.quic.aioquic_engine import AioquicEngine, Windows, client_engine, server_engine
from quicflow_trio.quic.engine import Address, ConnectionIdIssued, ConnectionIdRetired, Engine, StreamData
from quicflow_trio.quic.routing import Header
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import MemoryNetwork, World, open_world, throwaway_tls
from quicflow_trio.testing.pair import CLIENT, SERVER
from quicflow_trio.wire import (
    AckFrame,
    CancelFrame,
    Frame,
    Goodbye,
    LaneOpen,
    MessageFrame,
    PingFrame,
    PongFrame,
    ReceiptFrame,
    encode,
)
from tests.abuse.mutate import long_header, mutate, noise, number, quic_frames
from tests.connections.raw import Raw, hello, open_raw, welcome
from tests.messages.harness import until
from tests.quic.harness import Pair, core_of, crypto_frame, packet

PING = b"\x01"
TOO_LONG = 0.05
"""Seconds of CPU that no input may take."""


@dataclass(frozen=True)
class Finding:
    """What should not have happened."""

    where: str
    data: bytes
    what: str


class Meter:
    """Feeds inputs, and notes what they cost and what they broke."""

    def __init__(self, too_long: float = TOO_LONG) -> None:
        self.inputs = 0
        self.slowest = 0.0
        self.outcomes: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self._too_long = too_long

    def call(self, where: str, data: bytes, feed: Callable[[], object], *, inputs: int = 1) -> bool:
        """Feed one input; return False if it raised."""
        self.inputs += inputs
        started = time.thread_time()
        try:
            feed()
        except Exception:  # noqa: BLE001  any that escapes is what is looked for
            self.findings.append(Finding(where, data, traceback.format_exc()))
            return False
        spent = time.thread_time() - started
        self.slowest = max(self.slowest, spent)
        if spent > self._too_long:
            self.findings.append(Finding(where, data, f"took {spent * 1000:.0f} ms of CPU"))
        return True

    def ended(self, where: str, data: bytes, engine: Engine) -> None:
        """Note how an engine ended. Its last net, for what aioquic raises, keeps the process alive; that it was needed is a finding."""
        ended = engine.ended
        assert ended is not None
        side = "application" if ended.application else "transport"
        self.outcomes[f"{side} {int(ended.code):#x}"] += 1
        if ended.reason.endswith(" on a packet"):
            self.findings.append(Finding(where, data, f"caught by the last net: {ended.reason}"))


class Target(Protocol):
    """Something to feed."""

    async def step(self, rng: random.Random) -> None:
        """Make an input and feed it; or a few of them."""

    async def feed(self, where: str, data: bytes) -> None:
        """Feed one input of the corpus."""


# -- datagrams -------------------------------------------------------------------------------------------------------------
class FakeSocket:
    """Takes everything and sends nothing."""

    address: Address = SERVER

    def __init__(self) -> None:
        self.sent = 0

    def send_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        self.sent += len(datagrams)
        return len(datagrams)

    async def receive(self) -> list[tuple[bytes, Address]]:
        raise NotImplementedError

    async def wait_writable(self) -> None:
        raise NotImplementedError

    def statistics(self) -> SocketStatistics:
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing to close."""


class EnginePump:
    """A connection of the fuzzed endpoint: its engine, driven at once."""

    def __init__(self, engine: AioquicEngine) -> None:
        self.engine = engine


class Recorded(Pair):
    """A pair that keeps what it sends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.recorded: list[bytes] = []
        self.drop = self._record

    def _record(self, to_server: bool, data: bytes) -> bool:
        self.recorded.append(data)
        return False


def windows() -> Windows:
    limits = Limits()
    return Windows(
        stream_in=limits.lane_window, stream_out=RETURN_WINDOW, connection=connection_window(limits), streams=limits.lanes + 1
    )


def talk(pair: Pair) -> None:
    """Exchange enough on a few streams that all kinds of packets pass."""
    for size in range(0, 2800, 700):
        stream = pair.client.open_stream()
        pair.client.write(stream, bytes(size))
        pair.run(0.2)
    stream = pair.server.open_stream()
    pair.server.write(stream, bytes(3000))
    pair.run(1.0)


class DatagramTarget:
    """An endpoint on a server, and the engine of one of its clients, fed with datagrams: noise, damaged ones, forged headers."""

    AT_ONCE = 24

    def __init__(self, meter: Meter, corpus: Sequence[bytes]) -> None:
        self._meter = meter
        self._corpus = list(corpus)
        self._tls = TLSContext(throwaway_tls()[0])
        self._endpoint: Any = Endpoint(FakeSocket(), self._accept)
        self._pumps: list[EnginePump] = []
        self._renew()

    def _renew(self) -> None:
        """Start over with a connection that stands, whose packets are recorded."""
        self._pair = Recorded.connected()
        talk(self._pair)
        self._others = (self._pair.recorded + self._corpus)[-400:]
        self._pump = EnginePump(self._pair.server)
        for connection_id in self._pair.server.connection_ids:
            self._endpoint.add_route(connection_id, self._pump)
        self._age = 0

    def _accept(self, header: Header, address: Address, now: float) -> Any:
        if len(self._pumps) >= self.AT_ONCE:
            self._endpoint.remove_pump(self._pumps.pop(0))
        engine = server_engine(
            self._tls, original_destination_id=header.destination, alpn=[ALPN], idle_timeout=90, windows=windows()
        )
        pump = EnginePump(engine)
        self._pumps.append(pump)
        return pump

    async def step(self, rng: random.Random) -> None:
        await self.feed("server" if rng.random() < 0.8 else "client", self._make(rng))
        self._age += 1
        if self._age >= 20_000 or self._pair.client.closing or self._pair.server.closing:
            self._endpoint.remove_pump(self._pump)
            self._renew()

    def _make(self, rng: random.Random) -> bytes:
        kind = rng.random()
        if kind < 0.25:
            data = noise(rng, 1500)
            # The bit that every packet of QUIC has set, and a connection that is there.
            return bytes((0x40 | data[0] & 0x7F,)) + data[1:] if data and rng.random() < 0.5 else data
        if kind < 0.45:
            header = bytes((0x40 | rng.randrange(64),)) + rng.choice(self._pair.server.connection_ids)
            return header + noise(rng, 1200)
        if kind < 0.55:
            return long_header(rng)
        if kind < 0.6:
            return rng.choice(self._others)
        return mutate(rng, rng.choice(self._others), self._others)

    async def feed(self, where: str, data: bytes) -> None:
        now = self._pair.now
        if where == "client":
            engine = self._pair.client
            self._meter.call(where, data, lambda: self._drive(engine, data, SERVER, now))
            if engine.closing:
                self._meter.ended(where, data, engine)
            return
        touched: list[EnginePump] = []

        def route() -> None:
            for pump, datagrams in self._endpoint._route([(data, CLIENT)]).items():
                touched.append(pump)
                for one, address in datagrams:
                    self._drive(pump.engine, one, address, now)

        self._meter.call(where, data, route)
        for pump in touched:
            if pump.engine.closing:
                self._meter.ended(where, data, pump.engine)
                self._endpoint.remove_pump(pump)
                if pump in self._pumps:
                    self._pumps.remove(pump)

    def _drive(self, engine: AioquicEngine, data: bytes, address: Address, now: float) -> None:
        engine.receive_datagram(data, address, now)
        timer = engine.get_timer()
        if timer is not None and timer <= now:
            engine.handle_timer(now)
        engine.next_events()
        engine.datagrams_to_send(now)


# -- packets that are encrypted as they should be ----------------------------------------------------------------------------
class PacketTarget:
    """Engines on both sides, and the first flights of handshakes, fed with frames behind the right encryption."""

    LIVES = 25
    """Times that an engine which has decided to close is told to forget it: a handshake for each would take all the time."""

    def __init__(self, meter: Meter, corpus: Sequence[bytes]) -> None:
        self._meter = meter
        self._corpus = list(corpus)
        self._server_tls, self._client_tls = (TLSContext(one) for one in throwaway_tls())
        self._hello = self._client_hello()
        self._renew()

    def _renew(self) -> None:
        self._pair = Pair.connected()
        talk(self._pair)
        self._lives = self.LIVES

    def _client_hello(self) -> bytes:
        return bytes(core_of(self._fresh_client())._crypto_streams[Epoch.INITIAL].sender._buffer)

    def _fresh_client(self) -> AioquicEngine:
        client = client_engine(self._client_tls, server_name="server", alpn=[ALPN], idle_timeout=90, windows=windows())
        client.connect(SERVER, 1.0)
        return client

    async def step(self, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.06:
            # A ClientHello with its transport parameters, damaged anywhere.
            data = mutate(rng, self._hello, [self._hello])
            await self.feed("hello", data[:1100])
        elif kind < 0.1:
            await self.feed("initial", quic_frames(rng, self._corpus))
        elif kind < 0.14:
            await self.feed("handshake", quic_frames(rng, self._corpus))
        elif kind < 0.35:
            await self.feed("client", quic_frames(rng, self._corpus))
        else:
            await self.feed("server", quic_frames(rng, self._corpus))

    async def feed(self, where: str, data: bytes) -> None:
        if where in ("hello", "initial", "handshake"):
            self._feed_handshake(where, data)
            return
        data = data or PING  # a packet that is padded says as much
        pair = self._pair
        pair.now += 0.01
        if where == "server":
            engine, sealed = pair.server, packet(core_of(pair.client), data)
        else:
            engine, sealed = pair.client, packet(core_of(pair.server), data)
        self._take(where, data, engine, sealed, CLIENT if where == "server" else SERVER, pair.now)
        if engine.closing:
            self._meter.ended(where, data, engine)
            self._lives -= 1
            core = core_of(engine)
            if self._lives <= 0 or engine.terminated or not core._close_pending:
                self._renew()
            else:
                core._close_event, core._close_pending = None, False

    def _take(self, where: str, data: bytes, engine: AioquicEngine, sealed: bytes, address: Address, now: float) -> None:
        # A close must stay undone for the next life, so the answer is not built then; building it is fed apart, with each renewal.
        def take() -> None:
            engine.receive_datagram(sealed, address, now)
            if not engine.closing or self._lives <= 1:
                engine.handle_timer(now)
                engine.datagrams_to_send(now)
            for event in engine.next_events():
                assert not isinstance(event, (ConnectionIdIssued, ConnectionIdRetired)) or event.connection_id

        self._meter.call(where, data, take)

    def _feed_handshake(self, where: str, data: bytes) -> None:
        client = self._fresh_client()
        core = core_of(client)
        server = server_engine(
            self._server_tls,
            original_destination_id=client.original_destination_id,
            alpn=[ALPN],
            idle_timeout=90,
            windows=windows(),
        )
        kind = QuicPacketType.INITIAL
        if where == "handshake":
            kind = QuicPacketType.HANDSHAKE
            for one, _ in client.datagrams_to_send(1.0):
                server.receive_datagram(one, CLIENT, 1.0)
            for one, _ in server.datagrams_to_send(1.0):
                client.receive_datagram(one, SERVER, 1.0)
        payload = crypto_frame(0, data) if where == "hello" else data
        sealed = packet(core, payload or PING, kind)

        def take() -> None:
            server.receive_datagram(sealed.ljust(1200, b"\0"), CLIENT, 1.01)
            server.next_events()
            server.datagrams_to_send(1.01)

        self._meter.call(where, data, take)
        if server.closing:
            self._meter.ended(where, data, server)


# -- frames of the application --------------------------------------------------------------------------------------------
LANES = tuple(range(4, 4 * 14, 4))
HALF_NAMED = 4 * 14
"""A lane of which one byte has come: its name is still to be said."""


class FrameTarget:
    """A connection of a server in a world, and that of a client, fed with frames as if the engine had reported them."""

    def __init__(self, meter: Meter, corpus: Sequence[bytes], world: World) -> None:
        self._meter = meter
        self._corpus = list(corpus)
        self._world = world
        self._context: AbstractAsyncContextManager[Raw] | None = None
        self._raw: Raw | None = None
        self._seq: dict[int, int] = {}
        self._unbroken: list[int] = []
        self._refused: list[str] = []
        self._acks = 0
        self._hosts = 0

    async def _renew(self, *, greet: bool) -> Raw:
        await self.aclose()
        self._hosts += 1
        # Few names: histories and hosts of a hundred thousand would be what is measured.
        self._context = open_raw(self._world.network, f"raw-{self._hosts % 50}")
        raw = await self._context.__aenter__()
        self._raw = raw
        self._seq = dict.fromkeys(LANES, 0)
        self._unbroken = [*LANES, HALF_NAMED]
        self._acks = 0
        if greet:
            await raw.greet("raw")
            for stream_id in LANES:
                raw.open(LaneOpen(f"lane-{stream_id}"))
            raw.open(b"\0")
            session = self._world.server.sessions["raw"]
            for _ in range(5):
                await session.send(Message.event(b"for receipts"))
            await raw.frame(MessageFrame, 1, 5)
            # What is fed before a lane's name has come would be taken for its beginning.
            connection: Any = session._connection
            await until(lambda: all(lane in connection._dialect._lanes._receivers for lane in LANES), step=0.001)
        return raw

    async def aclose(self) -> None:
        context, self._context, self._raw = self._context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)

    async def step(self, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.1:
            body = mutate(rng, encode(hello("raw")), self._corpus) if rng.random() < 0.7 else prefixed(noise(rng, 300))
            await self.feed("hello", body)
        elif kind < 0.2:
            good = [encode(one) for one in (PongFrame(1), welcome(), Goodbye())]
            await self.feed("client", mutate(rng, rng.choice(good), self._corpus))
        else:
            stream_id = rng.choice((0, 1)) if rng.random() < 0.06 else rng.choice(self._unbroken or LANES)
            await self._feed_server(stream_id, self._good(rng, stream_id), self._bad(rng, stream_id))

    def _good(self, rng: random.Random, stream_id: int) -> list[bytes]:
        """Return frames that are in order, so that what follows them is looked at late and in all states."""
        count = rng.choice((0, 1, 5, 20, 100))
        if stream_id in LANES and self._raw is not None:
            first = self._seq[stream_id] + 1
            self._seq[stream_id] += count
            return [encode(_message(rng, seq)) for seq in range(first, first + count)]
        if stream_id == 0:
            return [encode(PingFrame(number)) for number in range(min(count, 2))]
        if stream_id == 1:
            return [encode(ReceiptFrame(min(number, 5), 0)) for number in range(count)]
        return []

    def _bad(self, rng: random.Random, stream_id: int) -> bytes:
        frame: Frame = rng.choice(
            (
                _message(rng, self._seq.get(stream_id, 0) + 1),
                _message(rng, number(rng)),
                CancelFrame(number(rng, 50) + 1),
                AckFrame(self._acks + 1, number(rng, 7) + 1, rng.randrange(6), noise(rng, 40)),
                AckFrame(number(rng, 3) + 1, number(rng, 7) + 1, 1, b"", "", number(rng, 50)),
                ReceiptFrame(number(rng, 8), number(rng, 8), ((number(rng, 9), number(rng, 9)),)),
                LaneOpen(rng.choice(("", "lane-4", "other", "a\nb"))),
                PingFrame(number(rng)),
                Goodbye(number(rng, 2**31), "bye"),
                hello("raw"),
            )
        )
        kind = rng.random()
        if kind < 0.15:
            return encode(frame)
        if kind < 0.3:
            return prefixed(noise(rng, 300))
        body = mutate(rng, encode(frame)[4:], self._corpus)
        return prefixed(body) if kind < 0.85 else mutate(rng, prefixed(body))

    async def feed(self, where: str, data: bytes) -> None:
        if where == "hello":
            await self._feed_hello(data)
        elif where == "client":
            await self._feed_client(data)
        else:
            await self._feed_server(int(where), [], data)

    async def _feed_server(self, stream_id: int, good: list[bytes], bad: bytes) -> None:
        raw = self._raw
        if raw is None or raw.engine.closing or "raw" not in self._world.server.sessions:
            await self._renew(greet=True)
            good = []
        connection: Any = self._world.server.sessions["raw"]._connection
        data = b"".join(good) + bad
        if len(self._unbroken) > 1 and stream_id in self._unbroken:
            # A connection, at 20 ms, for each refused frame would take all the time: its lanes are broken one by one, and only the last
            # refusal is let through to the engine.
            connection.close = lambda code, reason: self._refused.append(f"application {int(code):#x}")
        else:
            vars(connection).pop("close", None)
        self._hand_over(str(stream_id), bad, connection, StreamData(stream_id, data, False), len(good) + 1)
        await trio.sleep(0.001)
        self._meter.outcomes.update(self._refused)
        if connection.engine.closing:
            self._meter.ended(str(stream_id), bad, connection.engine)
            await self._renew(greet=True)
        elif self._refused or self._half_read(connection, stream_id):
            if stream_id not in self._unbroken or len(self._unbroken) == 1:
                await self._renew(greet=True)
            else:
                self._unbroken.remove(stream_id)
        elif stream_id in LANES:
            # What a damaged frame did to the count of a lane is not known here.
            self._seq[stream_id] = connection._dialect._lanes._receivers[stream_id]._received
        self._refused.clear()

    def _half_read(self, connection: Any, stream_id: int) -> bool:
        """Tell whether further frames would vanish in the rest of the last one."""
        receiver = connection._dialect._lanes._receivers.get(stream_id)
        reader = connection._dialect._control if receiver is None else receiver._reader
        return bool(reader.partial)

    async def _feed_hello(self, data: bytes) -> None:
        raw = await self._renew(greet=False)
        raw.engine.open_stream()
        connections = self._world.server._admission.connections
        connection = next(reversed(connections))
        self._hand_over("hello", data, connection, StreamData(0, data, False), 1)
        await trio.sleep(0.001)
        if connection.engine.closing:
            self._meter.ended("hello", data, connection.engine)
        await self.aclose()
        await trio.sleep(0.05)

    async def _feed_client(self, data: bytes) -> None:
        client = self._world.clients["client-0"]
        await client.wait_connected()
        connection = client._supervisor.connection
        assert connection is not None
        self._hand_over("client", data, connection, StreamData(0, data, False), 1)
        await trio.sleep(0.001)
        if connection.engine.closing:
            self._meter.ended("client", data, connection.engine)
            await trio.sleep(0.1)

    def _hand_over(self, where: str, data: bytes, connection: Any, event: StreamData, inputs: int) -> None:
        now = trio.current_time()
        self._meter.call(where, data, lambda: connection.handle_events([event], now), inputs=inputs)
        connection.pump.kick()


def prefixed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _message(rng: random.Random, seq: int) -> MessageFrame:
    payload = noise(rng, 60)
    return MessageFrame(
        max(seq, 1), rng.randbytes(16), rng.choice((1, 2, 3, 3, 4, 99)), payload, rng.random() < 0.5, number(rng), False, False
    )


@asynccontextmanager
async def open_target(name: str, meter: Meter, corpus: Sequence[bytes]) -> AsyncIterator[Target]:
    """Make a target by name; only that of frames needs a world around it."""
    if name == "datagrams":
        yield DatagramTarget(meter, corpus)
    elif name == "packets":
        yield PacketTarget(meter, corpus)
    else:
        async with open_world(clients=1, network=MemoryNetwork(delay=0.001)) as world:
            target = FrameTarget(meter, corpus, world)
            try:
                yield target
                errors = world.server.metrics().internal_errors
                if errors:
                    meter.findings.append(Finding("frames", b"", f"{errors} connections ended by a defect: see the log"))
            finally:
                await target.aclose()
