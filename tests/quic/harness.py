"""Two engines and a wire between them, in virtual time; and the stock class in the engine's clothes, to be shown misbehaving."""

from __future__ import annotations

import datetime
import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from aioquic import tls as aioquic_tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from quicflow_trio.config import TLSConfig
from quicflow_trio.quic.aioquic_engine import AioquicEngine, Windows, client_engine, server_engine
from quicflow_trio.quic.certificates import CertificateAndKey
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.quic.hardened import HardenedConnection
from quicflow_trio.quic.tls import TLSContext

ALPN = ("quicflow/2",)
CLIENT, SERVER = ("client", 1), ("server", 1)
WINDOW = 64 * 1024
WINDOWS = Windows(stream_in=WINDOW, stream_out=WINDOW, connection=1024 * 1024, streams=16)
NOW = datetime.datetime.now(datetime.UTC)

E = TypeVar("E")


@dataclass(frozen=True)
class Files:
    """Certificates on disk, made once for the whole session."""

    folder: Path
    authority: CertificateAndKey

    def write(self, name: str, pair: CertificateAndKey) -> tuple[Path, Path]:
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.pk"
        pair.write_pem(cert, key)
        return cert, key

    def server(self, name: str = "server", **options: Any) -> TLSContext:
        return TLSContext(TLSConfig.server(self.folder / f"{name}.crt", self.folder / f"{name}.pk", **options))

    def client(self, certificate: str | None = None, *, ca: str = "ca", **options: Any) -> TLSContext:
        if certificate is not None:
            options |= {"cert_file": self.folder / f"{certificate}.crt", "key_file": self.folder / f"{certificate}.pk"}
        return TLSContext(TLSConfig.client(self.folder / f"{ca}.crt", **options))


class StockConnection(QuicConnection):
    """aioquic's own class; the additions only let `AioquicEngine` carry it, nothing is mended."""

    closed_by_peer = False
    timed_out = False
    peer_certificate = None

    def __init__(self, configurations: Mapping[int, QuicConfiguration], _windows: Windows, **options: Any) -> None:
        options.pop("client_verifier", None)
        odcid = options.pop("original_destination_id", None)
        super().__init__(configuration=configurations[0], original_destination_connection_id=odcid, **options)

    @property
    def terminated(self) -> bool:
        return self._state.name == "TERMINATED"


def core_of(engine: AioquicEngine) -> QuicConnection:
    return engine._core


def make_client(tls: TLSContext, *, stock: bool = False, **options: Any) -> AioquicEngine:
    settings: dict[str, Any] = {"server_name": "localhost", "alpn": ALPN, "idle_timeout": 30.0, "windows": WINDOWS, **options}
    if not stock:
        return client_engine(tls, **settings)
    windows, extra = settings.pop("windows"), settings.pop("core", {})
    configuration = tls.client_configuration(datagram_size=1200, **settings)
    return AioquicEngine(cast(HardenedConnection, StockConnection({0: configuration}, windows, **extra)))


def make_server(tls: TLSContext, odcid: bytes, *, stock: bool = False, **options: Any) -> AioquicEngine:
    settings: dict[str, Any] = {"alpn": ALPN, "idle_timeout": 30.0, "windows": WINDOWS, **options}
    if not stock:
        return server_engine(tls, original_destination_id=odcid, **settings)
    windows, extra = settings.pop("windows"), settings.pop("core", {})
    configurations = tls.server_configurations(datagram_size=1200, **settings)
    # The window the test counts on; everything else as shipped.
    limited = QuicConfiguration(**{**vars(configurations[0]), "max_stream_data": windows.stream_in})
    core = StockConnection({0: limited}, windows, original_destination_id=odcid, **extra)
    return AioquicEngine(cast(HardenedConnection, core))


@dataclass
class Pair:
    """A client, a server and the datagrams between them. Bounded: a livelock fails instead of hanging."""

    client: AioquicEngine
    server: AioquicEngine
    delay: float = 0.01
    loss: float = 0.0
    seed: int = 0
    now: float = 1.0
    drop: Callable[[bool, bytes], bool] | None = None
    client_events: list[EngineEvent] = field(default_factory=list)
    server_events: list[EngineEvent] = field(default_factory=list)
    trace: list[tuple[float, bool, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._air: list[tuple[float, int, bool, bytes]] = []
        self._sent = 0
        self.on_round: Callable[[], None] | None = None

    def transmit(self) -> None:
        for to_server, engine in ((True, self.client), (False, self.server)):
            for data, _addr in engine.datagrams_to_send(self.now):
                self.trace.append((self.now, to_server, len(data)))
                lost = self._random.random() < self.loss or (self.drop is not None and self.drop(to_server, data))
                if not lost:
                    self._sent += 1
                    heapq.heappush(self._air, (self.now + self.delay, self._sent, to_server, data))

    def run(self, seconds: float = 5.0, until: Callable[[], bool] | None = None, *, rounds: int = 50_000) -> None:
        end = self.now + seconds
        for _ in range(rounds):
            self.transmit()
            self.collect()
            if self.on_round is not None:
                self.on_round()
            if until is not None and until():
                return
            times = [t for t in (self.client.get_timer(), self.server.get_timer()) if t is not None]
            times += [self._air[0][0]] if self._air else []
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            self._deliver()
        raise AssertionError(f"no end after {rounds} rounds, at {self.now}")

    def _deliver(self) -> None:
        while self._air and self._air[0][0] <= self.now:
            _, _, to_server, data = heapq.heappop(self._air)
            if to_server:
                self.server.receive_datagram(data, CLIENT, self.now)
            else:
                self.client.receive_datagram(data, SERVER, self.now)
        for engine in (self.client, self.server):
            timer = engine.get_timer()
            if timer is not None and timer <= self.now:
                engine.handle_timer(self.now)

    def collect(self) -> None:
        self.client_events += self.client.next_events()
        self.server_events += self.server.next_events()

    def handshake(self) -> Pair:
        self.client.connect(SERVER, self.now)
        self.run(1.0)
        return self

    def inject(self, payload: bytes, packet_type: QuicPacketType = QuicPacketType.ONE_RTT) -> None:
        """Encrypt frames with the client's keys and hand them to the server."""
        self.server.receive_datagram(packet(core_of(self.client), payload, packet_type), CLIENT, self.now)


def packet(core: QuicConnection, payload: bytes, packet_type: QuicPacketType = QuicPacketType.ONE_RTT) -> bytes:
    """Build one well-encrypted packet around any bytes."""
    epoch = aioquic_tls.Epoch.ONE_RTT if packet_type is QuicPacketType.ONE_RTT else aioquic_tls.Epoch[packet_type.name]
    assert core._version is not None
    builder = QuicPacketBuilder(
        host_cid=core.host_cid,
        peer_cid=core._peer_cid.cid,
        version=core._version,
        is_client=core._is_client,
        max_datagram_size=1500,
        packet_number=core._packet_number,
    )
    builder.start_packet(packet_type, core._cryptos[epoch])
    builder._buffer.push_bytes(payload)
    assert builder._packet is not None
    builder._packet.is_ack_eliciting = True
    datagrams, _ = builder.flush()
    core._packet_number = builder.packet_number
    return datagrams[0]


def varint(value: int) -> bytes:
    for size, prefix in ((1, 0), (2, 0x40), (4, 0x80), (8, 0xC0)):
        if value < 1 << (8 * size - 2):
            raw = value.to_bytes(size, "big")
            return bytes((raw[0] | prefix,)) + raw[1:]
    raise ValueError(value)


def stream_frame(stream_id: int, offset: int, data: bytes, *, fin: bool = False) -> bytes:
    return bytes((0x0E | fin,)) + varint(stream_id) + varint(offset) + varint(len(data)) + data


def crypto_frame(offset: int, data: bytes) -> bytes:
    return b"\x06" + varint(offset) + varint(len(data)) + data


def only(events: list[EngineEvent], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def received(events: list[EngineEvent], stream_id: int = 0) -> bytes:
    return b"".join(event.data for event in only(events, StreamData) if event.stream_id == stream_id)
