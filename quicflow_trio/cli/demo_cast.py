"""The cast of the demo: a server and its clients, with handlers that note what they see."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import final

import trio

from ..background import open_background
from ..client import Client, open_client
from ..config import TLSConfig
from ..message import MessageType
from ..quic.certificates import make_authority, make_server_certificate
from ..router import Request, Router
from ..server import Server, serve

__all__ = ["NAMES", "Cast", "open_cast"]

HOST = "127.0.0.1"
NAMES = ("ada", "ben", "cleo", "dora", "emil")
INBOX = 100
VALID_FOR = datetime.timedelta(days=2)


@final
class Workshop:
    """The server's handlers, and what they have noted.

    Attributes:
        cancelled: set when the handler that takes too long was cancelled.
        gate: the handler of events waits for it.
        events: events handled.
    """

    def __init__(self) -> None:
        self.cancelled: trio.Event = trio.Event()
        self.gate: trio.Event = trio.Event()
        self.events: int = 0

    def router(self) -> Router:
        """Return the server's router."""
        router = Router()
        router.add(MessageType.COMMAND, self._command)
        router.add(MessageType.EVENT, self._event, serial=True)
        return router

    async def _command(self, request: Request) -> bytes:
        match request.message.payload:
            case b"print the report":
                raise RuntimeError("the printer is out of paper")
            case b"dig a tunnel":
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    self.cancelled.set()
                    raise
            case b"take half a second":
                await trio.sleep(0.5)
        return request.message.payload.upper()

    async def _event(self, request: Request) -> None:
        await self.gate.wait()
        self.events += 1


@final
class Inbox:
    """What one client has received.

    Args:
        name: its client id.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._put, self._get = trio.open_memory_channel[bytes](INBOX)

    def router(self) -> Router:
        """Return the client's router."""
        router = Router()
        router.add(MessageType.EVENT, self._event)
        router.add(MessageType.QUERY, self._query)
        return router

    async def _event(self, request: Request) -> None:
        self._put.send_nowait(request.message.payload)

    async def _query(self, request: Request) -> bytes:
        return b"%s is fine" % self._name.encode()

    async def take(self) -> bytes:
        """Wait for the next event and take it out."""
        return await self._get.receive()

    @property
    def is_empty(self) -> bool:
        """True when every event that came was taken out."""
        return self._get.statistics().current_buffer_used == 0


@final
class Cast:
    """Everybody on the stage.

    Attributes:
        server: the server.
        workshop: its handlers.
        clients: the clients by id; the present one, where one was replaced.
        inboxes: what each has received, by id.
        connect_ms: how long each took to connect, by id, milliseconds.
    """

    def __init__(self, server: Server, workshop: Workshop, tls: TLSConfig, nursery: trio.Nursery) -> None:
        self.server: Server = server
        self.workshop: Workshop = workshop
        self.clients: dict[str, Client] = {}
        self.inboxes: dict[str, Inbox] = {}
        self.connect_ms: dict[str, float] = {}
        self._tls = tls
        self._nursery = nursery

    async def enter(self, name: str) -> Client:
        """Connect a client that stays until the end; return the one that had the id before, or else this one."""
        inbox = Inbox(name)
        started = time.perf_counter()
        # In a task of its own: its block outlives the step, whose deadline it must not be nested in.
        client: Client = await self._nursery.start(self._live, name, inbox)
        self.connect_ms[name] = (time.perf_counter() - started) * 1000
        former = self.clients.get(name, client)
        self.clients[name] = client
        self.inboxes[name] = inbox
        return former

    async def _live(self, name: str, inbox: Inbox, *, task_status: trio.TaskStatus[Client]) -> None:
        host, port = self.server.address
        async with open_client(host, port, client_id=name, tls=self._tls, router=inbox.router()) as client:
            await client.wait_connected()
            task_status.started(client)
            await trio.sleep_forever()


@asynccontextmanager
async def open_cast(folder: Path) -> AsyncIterator[Cast]:
    """Make certificates in ``folder`` and start the server; the clients enter one by one."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority(now=now, valid_for=VALID_FOR)
    ca_file, cert_file, key_file = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    ca_file.write_bytes(authority.certificate_pem)
    make_server_certificate(authority, [HOST], now=now, valid_for=VALID_FOR).write_pem(cert_file, key_file)
    workshop = Workshop()
    tls = TLSConfig.server(cert_file, key_file)
    async with open_background() as background:
        server: Server = await background.start(partial(serve, workshop.router(), host=HOST, port=0, tls=tls))
        yield Cast(server, workshop, TLSConfig.client(ca_file), background)
