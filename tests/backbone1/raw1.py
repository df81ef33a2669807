"""Peers of quic-backbone-v1 driven by hand: `tests.connections.raw` with the words of this protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import (
    BackboneAck,
    BackboneData,
    BackboneFrame,
    BackbonePing,
    BackbonePong,
    FrameReader,
    decode_backbone,
    encode_backbone,
)
from tests.connections.raw import Raw, RawServer, open_raw, open_raw_server

V1 = "quic-backbone-v1"
STAMP = 1_700_000_000_000
WINDOWS = Windows(stream_in=1_000_000, stream_out=1_000_000, connection=64_000_000, streams=1000)


def wire(frame: BackboneFrame) -> bytes:
    return encode_backbone(frame, STAMP)


def data(payload: bytes = b"hi", *, ack: bool = False, msg_id: str = "m1", type: int = 1) -> BackboneData:
    return BackboneData(msg_id, "raw", "server", type, payload, ack, STAMP)


def put(raw: Raw, frame: BackboneFrame | bytes, *, fin: bool = True) -> int:
    """Open a stream for one frame."""
    stream_id = raw.engine.open_stream()
    raw.write(stream_id, frame if isinstance(frame, bytes) else wire(frame), fin=fin)
    return stream_id


def frames(raw: Raw, stream_id: int) -> list[BackboneFrame | None]:
    """Decode what came on a stream."""
    reader = FrameReader(20_000_000)
    reader.feed(raw.streams.get(stream_id, b""))
    return [decode_backbone(body) for body in reader.frames()]


def finished(raw: Raw, stream_id: int) -> bool:
    return any(isinstance(event, StreamData) and event.stream_id == stream_id and event.fin for event in raw.events)


async def answer(raw: Raw, stream_id: int) -> BackboneFrame | None:
    """Wait until the peer has finished a stream; return its frame, None where it wrote none."""
    await raw.wait(lambda: finished(raw, stream_id))
    found = frames(raw, stream_id)
    assert len(found) <= 1
    return found[0] if found else None


@asynccontextmanager
async def open_raw1(
    network: MemoryNetwork, client_id: str = "raw", *, host: str = "raw", windows: Windows = WINDOWS, introduce: bool = True
) -> AsyncIterator[Raw]:
    """Connect a client by hand to the host ``server``, and have it introduced."""
    async with open_raw(network, host, alpn=V1, windows=windows) as raw:
        if introduce:
            assert put(raw, BackbonePing(client_id)) == 0
            assert isinstance(await answer(raw, 0), BackbonePong)
        yield raw


Answerer = Callable[[Raw, int, BackboneData], None]


def echo(raw: Raw, stream_id: int, message: BackboneData) -> None:
    """Answer as the original's server does."""
    if message.wait_ack:
        reply = BackboneAck(message.msg_id, 1, message.payload)
        raw.write(stream_id, wire(reply), fin=True)
    else:
        raw.write(stream_id, b"", fin=True)


@asynccontextmanager
async def open_raw_server1(
    network: MemoryNetwork, on_data: Answerer = echo, on_event: Callable[[Raw, EngineEvent], None] | None = None
) -> AsyncIterator[RawServer]:
    """Serve by hand on the host ``server``: pings are answered, ``on_data`` gets each message."""

    def handle(raw: Raw, event: EngineEvent) -> None:
        if on_event is not None:
            on_event(raw, event)
        if not isinstance(event, StreamData) or event.stream_id & 1 or not event.fin:
            return
        for frame in frames(raw, event.stream_id):
            if isinstance(frame, BackbonePing):
                raw.write(event.stream_id, wire(BackbonePong(STAMP)), fin=True)
            elif isinstance(frame, BackboneData):
                on_data(raw, event.stream_id, frame)

    async with open_raw_server(network, handle, alpn=V1, windows=WINDOWS) as server:
        yield server
