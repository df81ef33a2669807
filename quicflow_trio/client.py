"""The client: `open_client` and what it gives, a `Client` that stays connected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import final

import trio

from .background import open_background
from .client_endpoint import ClientEndpoint
from .client_state import ClientState, ClientStatistics
from .config import ClientConfig, Protocol, TLSConfig, check_protocol
from .credentials import ClientCredentials, CredentialsSource
from .deadlines import Deadlines
from .dispatch import run_handlers
from .errors import (
    ConfigurationError,
    ConnectionClosed,
)
from .gauges import measure
from .link import Link
from .net.udp import Network, UdpNetwork
from .observe.events import Event, EventStream
from .observe.hooks import Hooks, open_hooks
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .observe.metrics import MetricsSnapshot
from .observe.state import Observable
from .peer import Peer, PeerStatistics
from .protocol.credit import CreditBudget
from .protocol.handshake import check_client_id
from .protocol.waiting import WaitingTable
from .quic.tls import TLSContext
from .router import Router
from .supervisor import Supervisor

__all__ = ["Client", "open_client"]

log: Logger = get_logger(__name__)


@final
class Client(Peer):
    """A client's end of its session with the server. `open_client` makes it.

    Attributes:
        client_id: the id it is known by.
        state: the `ClientState` as an observable: ``.value``, ``await .wait_value(v)``, ``async for new, old in .transitions()``.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        tls: TLSContext,
        config: ClientConfig,
        network: Network | ClientEndpoint,
        credentials: CredentialsSource = b"",
        protocol: Protocol = "auto",
    ) -> None:
        self.client_id: str = client_id
        self._instruments = Instruments()
        self._events = self._instruments.events
        self._deadlines = Deadlines()
        limits = config.limits
        # One session, so the whole table is its share.
        self._table = WaitingTable(limits.waiting, limits.waiting)
        link = Link(
            config,
            table=self._table,
            deadlines=self._deadlines,
            budget=CreditBudget(limits.total_bytes),
            client_id=client_id,
            instruments=self._instruments,
        )
        super().__init__(link, link.lanes[""])
        self._credentials = ClientCredentials(credentials, config.authenticate_timeout, client_id)
        self._supervisor = Supervisor(
            (host, port), tls, config, network, self._credentials, link, self._deadlines, self._instruments, protocol
        )
        self.state: Observable[ClientState] = self._supervisor.state

    # -- public ----------------------------------------------------------------------------------------------------
    async def wait_connected(self) -> None:
        """Wait until the client is connected; return at once when it is.

        Cancellation changes nothing.

        Raises:
            ConnectionRefused, SessionReplaced: the client was refused for good.
            ConnectionClosed: the client was closed.
        """
        await trio.lowlevel.checkpoint()
        while self.state.value is not ClientState.CONNECTED:
            ended = self._link.ended
            if ended is not None:
                raise ended()
            await self._supervisor.changed.park()

    async def reauthenticate(self, credentials: bytes | None = None) -> None:
        """Show the server fresh credentials on the connection that stands; return once it has taken them. Waits for a connection.

        Not needed where ``credentials`` of `open_client` is a function: it is asked, and the result shown, in good time.

        Args:
            credentials: shown from now on, at later connections too; None asks the function, or shows the same bytes again.

        Cancelled, the server may have taken them or not.

        Raises:
            AuthenticationFailed: the server does not take them; the connection stands for as long as the last were good for.
            CredentialsUnavailable: the function raised or took too long.
            ConnectionLost: the connection ended meanwhile; the next one is opened with these credentials.
            ConnectionRefused, SessionReplaced, ConnectionClosed: as for `wait_connected`.
            LocalProtocolError: the server is of a version that cannot do that.
            ConfigurationError: the credentials are longer than 32 KiB, or no bytes.
        """
        if credentials is None:
            await self._credentials.fetch()
        else:
            self._credentials.replace(credentials)
        await self.wait_connected()
        assert self._supervisor.connection is not None
        await self._credentials.renew(self._supervisor.connection)

    async def rebind(self) -> None:
        """Move the connection that stands to a new local socket; return once the server was heard there. Waits for a connection.

        For a machine that knows it is in another network now, or a program that wants another port. A connection whose address is
        changed by somebody in between (a NAT, for one) stands by itself; this one need not wait until that is noticed. The connection
        goes on under another connection id, the server makes sure of the address, and what is under way ends with its true result.

        Cancelled, the connection has moved or has not; it stands in either case.

        Raises:
            LocalProtocolError: the client shares its socket with others (`open_endpoint`).
            ConnectionLost: the connection ended meanwhile, or the server has not given it another connection id yet; what is under way
                goes on with the session, as after any loss.
            OSError: no socket can be bound; the connection stays where it is.
            ConnectionRefused, SessionReplaced, ConnectionClosed: as for `wait_connected`.
        """
        await self.wait_connected()
        await self._supervisor.rebind()

    async def wait_closed(self) -> None:
        """Wait until the client is closed for good: its block was left, or the server refused it.

        Raises:
            ConnectionRefused, SessionReplaced: it was refused.
        """
        await self._supervisor.closed.wait()
        if self._supervisor.refusal is not None:
            raise self._supervisor.refusal()

    def statistics(self) -> ClientStatistics:
        """Return the client's figures."""
        peer = super().statistics()
        figures = {name: getattr(peer, name) for name in PeerStatistics.__dataclass_fields__}
        return ClientStatistics(
            **figures,
            state=self.state.value,
            attempts=self._supervisor.attempts,
            connects=self._supervisor.connects,
            rtt=self._supervisor.rtt,
            history=tuple(self._supervisor.history),
        )

    def metrics(self) -> MetricsSnapshot:
        """Return all counters and gauges at this moment; the counters go on over all connections."""
        connected = self.state.value is ClientState.CONNECTED
        return measure(
            self._instruments,
            links=[self._link],
            connections=[] if self._supervisor.connection is None else [self._supervisor.connection],
            table=self._table,
            network=self._supervisor.network_totals(),
            connected=int(connected),
            half_open=int(self.state.value is ClientState.CONNECTING),
            away=int(self.state.value is ClientState.IDLE),
        )

    def open_events(
        self, *, max_buffer_size: int = 256, kinds: Collection[type[Event]] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to what happens on this side; see `Server.open_events`. The iteration ends when the client is closed."""
        return self._events.open(kinds, max_buffer_size, None)


def _checked(client_id: str, port: int, protocol: str, tls: TLSConfig | None) -> TLSConfig:
    """Check what `open_client` was given, and return the TLS settings."""
    check_client_id(client_id)
    check_protocol("protocol", protocol)
    if not 1 <= port <= 65_535:
        raise ConfigurationError(f"port = {port!r}: expected a whole number from 1 to 65,535")
    if tls is None:
        return TLSConfig.client()
    if not tls.is_client:
        raise ConfigurationError("tls: expected TLSConfig.client(...), got a server's")
    if tls.insecure:
        log.warning("client does not verify the server's certificate (insecure)", client_id=client_id)
    return tls


@asynccontextmanager
async def open_client(
    host: str,
    port: int = 8474,
    *,
    client_id: str,
    tls: TLSConfig | None = None,
    credentials: CredentialsSource = b"",
    protocol: Protocol = "auto",
    router: Router | None = None,
    config: ClientConfig | None = None,
    hooks: Hooks | None = None,
    network: Network | ClientEndpoint | None = None,
) -> AsyncIterator[Client]:
    """Open a client that connects and stays connected while the block runs.

    Args:
        host: the server's name or address.
        port: its UDP port.
        client_id: the id to be known by, 1 to 256 bytes of printable text. A newer connection with the same id takes over.
        tls: None verifies the server against the public authorities.
        credentials: for the server's authenticator; a function is asked for fresh ones at each attempt, and before they expire.
        protocol: ``"quicflow/2"``, ``"quic-backbone-v1"`` (the original's; see the README), or ``"auto"`` to let the server choose.
        router: handlers for messages of the server; None has none.
        config: see `ClientConfig`.
        hooks: async functions to be called on events.
        network: None is a UDP socket of its own, `open_endpoint` gives a shared one; a `testing.MemoryNetwork` or its host in tests.

    The block starts at once: the first send or request waits for the connection. A lost connection is opened again, for ever, with
    backoff, and the session goes on there: what was lost goes out again, handlers run once, calls do not notice. It ends with the
    server's process, after ``ServerConfig.session_ttl`` without a connection, or when one side closes it: then see `Delivery`. Leaving
    the block normally finishes what is under way within ``config.close_grace``, also over another connection, and says goodbye;
    cancellation or an exception only says goodbye. An exception of the block leaves it as itself, never in an ExceptionGroup.

    Raises:
        ConfigurationError: at once, when an argument is out of range.
        ConnectionRefused, SessionReplaced: at the end of the block, if the server refused the client for good and no call said so.
    """
    tls = _checked(client_id, port, protocol, tls)
    network = (UdpNetwork() if network is None else network).for_client(client_id)
    client = Client(host, port, client_id, TLSContext(tls), config or ClientConfig(), network, credentials, protocol)
    async with open_hooks(hooks, client._events, client._instruments.hook_failed):
        try:
            async with open_background() as background:
                background.start_soon(client._deadlines.run)
                background.start_soon(client._supervisor.run)
                run_handlers(client._link, router or Router(), peer=client, sender="server", nursery=background)
                try:
                    yield client
                    await client._supervisor.leave()
                finally:
                    # The connection's last word is sent without waiting when its task is cancelled, so nothing here needs a shield.
                    if client._supervisor.refusal is None:
                        client._supervisor.end(partial(ConnectionClosed, "the client was closed"))
        finally:
            client._supervisor.set_state(ClientState.IDLE, "closed")
            client._release()
            client._events.close()
    if client._supervisor.refusal is not None and not client._supervisor.refusal_seen:
        raise client._supervisor.refusal()
