"""A server that can be killed and started again, and other things that several files here need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from quicflow_trio import (
    Authenticator,
    Client,
    ClientConfig,
    ClientState,
    Hooks,
    Router,
    Server,
    ServerConfig,
    TLSConfig,
    open_client,
    serve,
)
from quicflow_trio.background import open_background
from quicflow_trio.config import Protocol
from quicflow_trio.credentials import CredentialsSource
from quicflow_trio.testing import MemoryNetwork, echo_router, throwaway_tls

SERVER_TLS, CLIENT_TLS = throwaway_tls()


class Machine:
    """The host ``server``: its server process comes and goes."""

    def __init__(
        self,
        nursery: trio.Nursery,
        network: MemoryNetwork,
        router: Router | None,
        config: ServerConfig | None,
        hooks: Hooks | None,
        authenticate: Authenticator | None = None,
        tls: TLSConfig = SERVER_TLS,
    ) -> None:
        self.network = network
        self._nursery = nursery
        self._router = echo_router() if router is None else router
        self._config = config
        self._hooks = hooks
        self._authenticate = authenticate
        self._tls = tls
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self.server: Server

    async def start(self) -> Server:
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        self.server = await self._nursery.start(self._run)
        return self.server

    async def _run(self, task_status: trio.TaskStatus[Server]) -> None:
        with self._scope:
            await serve(
                self._router,
                host="server",
                tls=self._tls,
                authenticate=self._authenticate,
                config=self._config,
                hooks=self._hooks,
                network=self.network,
                task_status=task_status,
            )
        self._gone.set()

    async def stop(self) -> None:
        """Cancel the server: it says its last words."""
        self._scope.cancel()
        await self._gone.wait()

    async def kill(self) -> None:
        """End it as SIGKILL would: nothing of what it says gets out."""
        self.network.partition("server")
        await self.stop()
        self.network.heal("server")


@asynccontextmanager
async def open_machine(
    network: MemoryNetwork | None = None,
    *,
    router: Router | None = None,
    config: ServerConfig | None = None,
    hooks: Hooks | None = None,
    authenticate: Authenticator | None = None,
    tls: TLSConfig = SERVER_TLS,
    start: bool = True,
) -> AsyncIterator[Machine]:
    async with open_background() as background:
        network = MemoryNetwork(delay=0.01) if network is None else network
        machine = Machine(background, network, router, config, hooks, authenticate, tls)
        if start:
            await machine.start()
        yield machine


def client_of(
    network: MemoryNetwork,
    client_id: str = "worker",
    *,
    host: str | None = None,
    router: Router | None = None,
    config: ClientConfig | None = None,
    credentials: CredentialsSource = b"",
    tls: TLSConfig = CLIENT_TLS,
    protocol: Protocol = "auto",
) -> AbstractAsyncContextManager[Client]:
    """Open a client on its own host, or on ``host``."""
    return open_client(
        "server",
        client_id=client_id,
        tls=tls,
        credentials=credentials,
        router=router,
        config=config,
        network=network if host is None else network.host(host),
        protocol=protocol,
    )


def states(client: Client) -> list[ClientState]:
    return [change.state for change in client.statistics().history]


def times(client: Client, state: ClientState) -> list[float]:
    return [change.at for change in client.statistics().history if change.state is state]


async def until(ready: Callable[[], object], *, seconds: float = 600.0, step: float = 0.01) -> None:
    """Wait, in virtual time, for something that has no event."""
    with trio.fail_after(seconds):
        while not ready():  # noqa: ASYNC110 - what has no event is looked at again
            await trio.sleep(step)
