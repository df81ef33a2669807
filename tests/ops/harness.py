"""What the ops tests share: a server that is not one, an ops side over it on a loopback port, and raw connections to that."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2
import trio

from quicflow_trio import Ack, AckStatus, ClientNotConnected, Identity, Message, PayloadTooLarge, PeerStatistics, QuicFlowError
from quicflow_trio.config import OpsConfig
from quicflow_trio.observe.events import ConnectEvent, Event, EventHub, EventStream, MessageSentEvent
from quicflow_trio.observe.histogram import Histogram
from quicflow_trio.observe.history import SessionChange
from quicflow_trio.observe.metrics import MetricsSnapshot
from quicflow_trio.ops import run_ops

TOKEN = "open-sesame"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class FakeClient:
    """A session that answers with the payload reversed, or as `fails` says."""

    def __init__(self, client_id: str, number: int = 0, *, connected: bool = True) -> None:
        self.client_id = client_id
        self.connected_at = 1000.0 + number
        self.connected = connected
        self.identity = Identity(name="")
        self.protocol = "quicflow/2"
        self.remote_address = ("127.0.0.1", 5000 + number)
        self.last_heartbeat: float | None = 1500.0
        self.rtt: float | None = 0.002 * (number + 1)
        self.number = number
        self.sent: list[tuple[str, Message]] = []
        self.closed: list[str] = []
        self.fails: QuicFlowError | Exception | None = None
        self.waits: trio.Event | None = None
        self.waiting = 0

    def statistics(self) -> PeerStatistics:
        number = self.number
        return PeerStatistics(
            messages_sent=10 + number,
            messages_received=20 + number,
            messages_failed=1,
            handlers_running=2,
            requests_waiting=3,
            outbox_messages=4,
            outbox_bytes=500 - number,
            unreceipted=0,
            unacked_bytes=0,
            held_bytes=7,
            bytes_sent=1000,
            bytes_received=2000 + number,
            lanes=1,
        )

    def lane(self, name: str) -> Any:
        return FakeLane(self, name)

    async def send(self, message: Message) -> Any:
        await self.take("", message)

    async def request(self, message: Message, *, ack_timeout: float | None = None) -> Ack:
        await self.take("", message)
        return Ack(AckStatus.SUCCESS, message.payload[::-1])

    async def take(self, lane: str, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if len(message.payload) > 1024 * 1024:
            raise PayloadTooLarge(len(message.payload), 1024 * 1024)
        if self.fails is not None:
            raise self.fails
        self.sent.append((lane, message))
        if self.waits is not None:
            self.waiting += 1
            try:
                await self.waits.wait()
            finally:
                self.waiting -= 1

    async def close(self, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self.closed.append(reason)


class FakeLane:
    def __init__(self, client: FakeClient, name: str) -> None:
        self.client = client
        self.name = name

    async def send(self, message: Message) -> None:
        await self.client.take(self.name, message)

    async def request(self, message: Message, *, ack_timeout: float | None = None) -> Ack:
        await self.client.take(self.name, message)
        return Ack(AckStatus.SUCCESS, message.payload[::-1])


@dataclass
class FakeOutcome:
    sent: int
    acked: dict[str, Ack]
    failed: dict[str, QuicFlowError]


@dataclass
class FakeServer:
    """The figures and sessions that a test puts in, and what was asked of them."""

    clients: list[FakeClient] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    changes: dict[str, tuple[SessionChange, ...]] = field(default_factory=dict)
    address: tuple[str, int] = ("127.0.0.1", 8474)
    draining: bool = False
    drains: list[tuple[float, float]] = field(default_factory=list)
    broadcasts: list[tuple[Message, list[str] | None, float | None]] = field(default_factory=list)
    hub: EventHub = field(default_factory=lambda: EventHub(0.0))
    latency: Histogram = field(default_factory=Histogram)
    figures: dict[str, Any] = field(default_factory=dict)
    fails: Exception | None = None

    @property
    def sessions(self) -> dict[str, FakeClient]:
        return {client.client_id: client for client in self.clients if client.connected}

    @property
    def untouched(self) -> bool:
        """True when nothing was commanded."""
        return not (self.drains or self.broadcasts or any(client.sent or client.closed for client in self.clients))

    def known_sessions(self) -> list[FakeClient]:
        return [*self.clients]

    def departed(self) -> list[str]:
        return [*self.gone]

    def history(self, client_id: str) -> tuple[SessionChange, ...]:
        return self.changes.get(client_id, ())

    def session(self, client_id: str) -> FakeClient:
        for client in self.clients:
            if client.client_id == client_id:
                return client
        raise ClientNotConnected(client_id)

    def metrics(self) -> MetricsSnapshot:
        if self.fails is not None:
            raise self.fails
        return MetricsSnapshot(connected_clients=len(self.sessions), latency=self.latency.snapshot(), **self.figures)

    def open_events(
        self, *, max_buffer_size: int = 256, kinds: Collection[type[Event]] | None = None, client_id: str | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        return self.hub.open(kinds, max_buffer_size, client_id)

    async def broadcast(
        self, message: Message, *, to: Iterable[str] | None = None, ack_timeout: float | None = None
    ) -> FakeOutcome:
        await trio.lowlevel.checkpoint()
        named = None if to is None else [*to]
        self.broadcasts.append((message, named, ack_timeout))
        wanted = [*self.sessions] if named is None else named
        reached = [client_id for client_id in wanted if client_id in self.sessions]
        acks = {client_id: Ack(AckStatus.SUCCESS, b"\xff" if client_id == "binary" else b"ok") for client_id in reached}
        failed: dict[str, QuicFlowError] = {name: ClientNotConnected(name) for name in wanted if name not in reached}
        return FakeOutcome(len(reached), acks if ack_timeout is not None else {}, failed)

    async def drain(self, *, grace: float, retry_after: float = 1.0) -> None:
        self.draining = True
        self.drains.append((grace, retry_after))
        if self.fails is not None:
            raise self.fails
        await trio.sleep_forever()

    def connect_event(self, client_id: str) -> ConnectEvent:
        return ConnectEvent(at=1.5, client_id=client_id, remote_address=("127.0.0.1", 4), protocol="quicflow/2")

    def sent_event(self, client_id: str) -> MessageSentEvent:
        return MessageSentEvent(at=1.5, client_id=client_id, message_id=bytes(16), type="EVENT", size=1, lane="", wants_ack=False)


@dataclass
class OpsSide:
    """A running ops side.

    Attributes:
        url: where it is.
        server: what it shows.
        http: a client of it, that shows the token.
        scope: cancels it.
        ended: set when it has ended.
    """

    url: str
    server: FakeServer
    http: httpx2.AsyncClient
    scope: trio.CancelScope
    ended: trio.Event

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def dial(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


@asynccontextmanager
async def open_ops(server: FakeServer | None = None, **settings: Any) -> AsyncIterator[OpsSide]:
    """Run an ops side beside the block; within ten seconds everything has to be over."""
    server = FakeServer() if server is None else server
    config = OpsConfig(**{"address": "127.0.0.1:0", "token": TOKEN, "stop_grace": 0.3, **settings})
    scope = trio.CancelScope()
    ended = trio.Event()

    async def run(task_status: trio.TaskStatus[str]) -> None:
        try:
            with scope:
                await run_ops(cast(Any, server), config, task_status=task_status)
        finally:
            ended.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            async with httpx2.AsyncClient(base_url=url, headers=BEARER) as http:
                yield OpsSide(url, server, http, scope, ended)
            scope.cancel()


class Wire:
    """A connection whose answers are looked at as they come in, byte by byte.

    Attributes:
        stream: the connection.
        received: everything so far.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = ""

    async def get(self, path: str) -> None:
        await self.stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    async def until(self, text: str) -> str:
        """Read until the text has come; return what stands before it and take both off."""
        while text not in self.received:
            piece = await self.stream.receive_some()
            assert piece, f"the connection ended without {text!r}: {self.received!r}"
            self.received += piece.decode()
        before, _, self.received = self.received.partition(text)
        return before


@asynccontextmanager
async def open_wire(ops: OpsSide, path: str | None = None) -> AsyncIterator[Wire]:
    """Connect, and ask for a path."""
    async with await ops.dial() as stream:
        wire = Wire(stream)
        if path is not None:
            await wire.get(path)
        yield wire


async def read_all(stream: trio.SocketStream) -> bytes:
    """Read until the other side has closed, cleanly or not."""
    received = b""
    with contextlib.suppress(trio.BrokenResourceError):
        async for piece in stream:
            received += piece
    return received


def records(text: str) -> list[dict[str, str]]:
    """Take server-sent events apart; comments are left out."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            found.append(dict(line.split(": ", 1) for line in lines))
    return found


async def until(condition: Any) -> None:
    """Wait for something that happens in real time, on another task."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - the condition is any figure of the library
            await trio.sleep(0.005)
