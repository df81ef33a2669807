"""A server and its clients on one simulated network, ready to use: `open_world`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from ..background import open_background
from ..client import Client, open_client
from ..config import ClientConfig, ServerConfig
from ..message import Message
from ..observe.hooks import Hooks
from ..router import Request, Router
from ..server import Server, serve
from .network import MemoryNetwork
from .tls import throwaway_tls

__all__ = ["World", "echo_router", "open_world"]

PORT = 8474
DRAIN_GRACE = 30.0


@dataclass(frozen=True, slots=True)
class World:
    """What `open_world` gives.

    Attributes:
        server: the server, on the host ``server``.
        clients: the clients by id: ``client-0``, ``client-1`` ...; each on a host of its own, named by its id.
        network: what connects them.
    """

    server: Server
    clients: dict[str, Client]
    network: MemoryNetwork


def echo_router() -> Router:
    """Return a router that answers every command and query with its payload, and takes every event."""
    router = Router()

    async def echo(request: Request) -> bytes:
        return request.message.payload

    async def take(_: Request) -> None:
        return None

    router.add(Message.command().type, echo)
    router.add(Message.query().type, echo)
    router.add(Message.event().type, take)
    return router


@asynccontextmanager
async def open_world(
    *,
    clients: int = 1,
    router: Router | None = None,
    client_router: Router | None = None,
    network: MemoryNetwork | None = None,
    seed: int = 0,
    server_config: ServerConfig | None = None,
    client_config: ClientConfig | None = None,
    hooks: Hooks | None = None,
) -> AsyncIterator[World]:
    """Open a server and clients on a `MemoryNetwork`, all connected when the block starts.

    Args:
        clients: how many clients.
        router: the server's handlers; None echoes (`echo_router`).
        client_router: the clients' handlers; None echoes.
        network: None makes a perfect one with ``seed``.
        seed: seed of the network and, plus the client's number, of each client's backoff.
        server_config: configuration of the server.
        client_config: configuration of each client.
        hooks: the server's.

    Leaving the block normally closes the clients, drains the server and checks that nothing is left. Use it in virtual time
    (``autojump_clock``) and inside `seeded` where one seed must give one run.

    Raises:
        AssertionError: after the block, when a session, waiter, task, connection id or undelivered byte was left behind.
    """
    network = MemoryNetwork(seed=seed) if network is None else network
    server_tls, client_tls = throwaway_tls()
    async with open_background() as background:
        run = partial(serve, router or echo_router(), host="server", port=PORT, tls=server_tls, hooks=hooks, network=network)
        started: Server = await background.start(partial(run, config=server_config))
        world = World(started, {}, network)
        async with AsyncExitStack() as stack:
            open_one = partial(
                open_client,
                "server",
                PORT,
                tls=client_tls,
                router=echo_router() if client_router is None else client_router,
                network=network,
            )
            for number in range(clients):
                client_id = f"client-{number}"
                client = open_one(client_id=client_id, config=_with_seed(client_config, seed + number))
                world.clients[client_id] = await stack.enter_async_context(client)
            for opened in world.clients.values():
                await opened.wait_connected()
            yield world
        await started.drain(grace=DRAIN_GRACE)
        _check_nothing_left(world)


def _with_seed(config: ClientConfig | None, seed: int) -> ClientConfig:
    if config is None:
        return ClientConfig(seed=seed)
    return config if config.seed is not None else replace(config, seed=seed)


def _check_nothing_left(world: World) -> None:
    figures = world.server.statistics()
    left = {
        "connected sessions": figures.connected,
        "kept sessions": figures.away,
        "half-open connections": figures.half_open,
        "waiting requests": figures.requests_waiting,
        "bytes held for handlers": figures.held_bytes,
        "tasks": figures.tasks,
        "connection ids": figures.endpoint.connection_ids,
    }
    for client_id, client in world.clients.items():
        statistics = client.statistics()
        left[f"waiting requests of {client_id}"] = statistics.requests_waiting
        left[f"bytes held for handlers of {client_id}"] = statistics.held_bytes
    assert not any(left.values()), f"left behind: { {name: value for name, value in left.items() if value} }"
