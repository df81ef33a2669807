"""One life of a server and of a client, from the start to the end of all its calls."""

from __future__ import annotations

from functools import partial

import trio

from ..client import Client, open_client
from ..config import ClientConfig, ServerConfig
from ..credentials import CredentialsSource
from ..errors import QuicFlowError
from ..observe.events import ConnectEvent, DisconnectEvent, EventStream
from ..server import Server, serve
from ..testing.network import MemoryNetwork
from ..testing.tls import throwaway_tls
from .handlers import make_router
from .history import Happened
from .process import Process
from .schedule import SERVER
from .settings import authenticate
from .traffic import Caller

__all__ = ["be_client", "be_server"]

_PORT = 8474
_DRAIN_SECONDS = 5.0
_CALLS_END_WITHIN = 30.0
_EVENTS = 10_000


async def be_server(process: Process, caller: Caller, config: ServerConfig, *, guarded: bool, network: MemoryNetwork) -> None:
    """Serve until the process is to stop, then drain; ``guarded`` asks clients for credentials."""
    router = make_router(process)
    tls = throwaway_tls()[0]
    async with trio.open_nursery() as nursery:
        run = partial(
            serve,
            router,
            host=SERVER,
            port=_PORT,
            tls=tls,
            authenticate=authenticate if guarded else None,
            config=config,
            network=network,
        )
        server: Server = await nursery.start(run)
        process.server = server
        async with server.open_events(kinds=[ConnectEvent, DisconnectEvent], max_buffer_size=_EVENTS) as events:
            nursery.start_soon(_watch, process, events)  # noqa: ASYNC111  it ends with the events, and those with the server
            async with trio.open_nursery() as process.callers:
                process.callers.start_soon(caller.talk)
                await process.stopping.wait()
                process.talking.cancel()
                await server.drain(grace=_DRAIN_SECONDS)
                process.callers.cancel_scope.deadline = trio.current_time() + _CALLS_END_WITHIN
            _note_unended(process)
            nursery.cancel_scope.cancel()


async def be_client(
    process: Process, caller: Caller, config: ClientConfig, credentials: CredentialsSource, network: MemoryNetwork
) -> None:
    """Stay connected until the process is to stop, then leave."""
    async with trio.open_nursery() as nursery, trio.open_nursery() as process.callers:
        async with open_client(
            SERVER,
            _PORT,
            client_id=process.host,
            tls=throwaway_tls()[1],
            credentials=credentials,
            router=make_router(process),
            config=config,
            network=network,
        ) as client:
            process.client = client
            async with client.open_events(kinds=[ConnectEvent, DisconnectEvent], max_buffer_size=_EVENTS) as events:
                nursery.start_soon(_watch, process, events)  # noqa: ASYNC111  it ends with the events, and those with the client
                nursery.start_soon(_watch_refusal, process, client)  # noqa: ASYNC111  it ends with the client
                process.callers.start_soon(caller.talk)
                await process.stopping.wait()
                process.talking.cancel()
        process.callers.cancel_scope.deadline = trio.current_time() + _CALLS_END_WITHIN
    _note_unended(process)


async def _watch(process: Process, events: EventStream) -> None:
    """Note beginnings and ends of connections until the program has ended."""
    async for event in events:
        peer = event.client_id if process.host == SERVER else SERVER
        if isinstance(event, ConnectEvent):
            process.note(Happened.CONNECTED, peer=peer)
        elif isinstance(event, DisconnectEvent):
            process.note(Happened.DISCONNECTED, peer=peer, detail=f"{event.reason.value} {event.detail}")
    if events.dropped:
        process.note(Happened.LEFT, detail=f"{events.dropped} events that nobody saw")


async def _watch_refusal(process: Process, client: Client) -> None:
    try:
        await client.wait_closed()
    except QuicFlowError as exc:
        process.note(Happened.LEFT, detail=f"refused for good: {type(exc).__name__}: {exc}")


def _note_unended(process: Process) -> None:
    assert process.callers is not None, "it has just ended"
    if process.callers.cancel_scope.cancelled_caught and not process.dead:
        process.note(Happened.LEFT, detail="calls that did not end with their process")
    process.callers = None
