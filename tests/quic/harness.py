"""Two engines and a wire between them, in virtual time; and the stock class in the engine's clothes, to be shown misbehaving."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from aioquic import tls as aioquic_tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from quicflow_trio.config import TLSConfig
from quicflow_trio.quic.aioquic_engine import AioquicEngine, Windows
from quicflow_trio.quic.certificates import CertificateAndKey
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.quic.engines import EngineMaker, engine_maker
from quicflow_trio.quic.hardened import HardenedConnection
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing.pair import CLIENT, EnginePair

ALPN = ("quicflow/2",)
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
    was_reset = False
    peer_certificate = None
    probe_denied = False

    def __init__(self, configurations: Mapping[int, QuicConfiguration], _windows: Windows, **options: Any) -> None:
        options.pop("client_verifier", None)
        odcid = options.pop("original_destination_id", None)
        super().__init__(configuration=configurations[0], original_destination_connection_id=odcid, **options)

    @property
    def terminated(self) -> bool:
        return self._state.name == "TERMINATED"


def core_of(engine: AioquicEngine) -> QuicConnection:
    return engine._core


AIOQUIC = "aioquic"
QH3 = "qh3"
PAIRINGS = ((AIOQUIC, AIOQUIC), (QH3, QH3), (QH3, AIOQUIC), (AIOQUIC, QH3))
"""Engines of client and server."""


def not_for_qh3(pairing: tuple[str, str], *, client: str = "", server: str = "") -> None:
    """Skip where the side that has a reason runs on qh3."""
    for engine, reason in zip(pairing, (client, server), strict=True):
        if reason and engine == QH3:
            pytest.skip(f"qh3: {reason}")


def maker(engine: str, tls: TLSContext) -> EngineMaker:
    if engine == QH3:
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")
    return engine_maker(engine, tls)


def make_client(tls: TLSContext, *, stock: bool = False, engine: str = AIOQUIC, **options: Any) -> AioquicEngine:
    """Make a client; of whatever engine, the tests know it by the type that has all they use."""
    settings: dict[str, Any] = {"server_name": "localhost", "alpn": ALPN, "idle_timeout": 30.0, "windows": WINDOWS, **options}
    if not stock:
        return cast(AioquicEngine, maker(engine, tls).client_engine(tls, **settings))
    windows, extra = settings.pop("windows"), settings.pop("core", {})
    configuration = tls.client_configuration(datagram_size=1200, **settings)
    return AioquicEngine(cast(HardenedConnection, StockConnection({0: configuration}, windows, **extra)))


def make_server(tls: TLSContext, odcid: bytes, *, stock: bool = False, engine: str = AIOQUIC, **options: Any) -> AioquicEngine:
    settings: dict[str, Any] = {"alpn": ALPN, "idle_timeout": 30.0, "windows": WINDOWS, **options}
    if not stock:
        return cast(AioquicEngine, maker(engine, tls).server_engine(tls, original_destination_id=odcid, **settings))
    windows, extra = settings.pop("windows"), settings.pop("core", {})
    settings.pop("reset_key", None)
    configurations = tls.server_configurations(datagram_size=1200, **settings)
    # The window the test counts on; everything else as shipped.
    limited = QuicConfiguration(**{**vars(configurations[0]), "max_stream_data": windows.stream_in})
    core = StockConnection({0: limited}, windows, original_destination_id=odcid, **extra)
    return AioquicEngine(cast(HardenedConnection, core))


class Pair(EnginePair):
    """An `EnginePair` of engines on aioquic, into which packets can be forged."""

    client: AioquicEngine
    server: AioquicEngine

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
