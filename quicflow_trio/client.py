"""The client: `open_client` and what it gives, a `Client` that stays connected."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import final

import trio

from .background import open_background
from .client_endpoint import ClientEndpoint
from .client_state import ClientState, ClientStatistics, StateChange
from .config import ClientConfig, TLSConfig
from .connection import Connection
from .credentials import ClientCredentials, CredentialsSource
from .deadlines import Deadlines
from .dispatch import run_handlers
from .endings import loss, reason_label, refusal, report_end, survivable
from .errors import (
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    CredentialsUnavailable,
    QuicFlowError,
    RemoteProtocolError,
)
from .gauges import NetworkTotals, measure
from .heartbeat import heartbeat
from .link import Link
from .net.endpoint import Endpoint
from .net.udp import Network, UdpNetwork
from .observe.events import Event, EventStream, StateChangeEvent
from .observe.hooks import Hooks, open_hooks
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger, printable
from .observe.metrics import MetricsSnapshot, count
from .observe.state import Observable, set_value
from .peer import Peer, PeerStatistics
from .protocol.credit import RETURN_WINDOW, CreditBudget, connection_window
from .protocol.handshake import ALPN, check_client_id, check_welcome, make_hello
from .protocol.outgoing import ErrorFactory
from .protocol.state import CloseCode
from .protocol.waiting import WaitingTable
from .quic.engine import Address, ConnectionEnded
from .quic.engines import engine_maker
from .quic.limits import Windows
from .quic.tls import TLSContext
from .reconnect import Backoff
from .router import Router
from .wire import Authentication, Goodbye, Hello, Welcome

__all__ = ["Client", "open_client"]

log: Logger = get_logger(__name__)

HISTORY = 100


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
    ) -> None:
        self.client_id: str = client_id
        self._log = log.bind(client_id=client_id)
        self.state: Observable[ClientState] = Observable(ClientState.IDLE)
        self._host = host
        self._port = port
        self._tls = tls
        self._config = config
        self._engines = engine_maker(config.engine, tls)
        self._network = network
        self._credentials = ClientCredentials(credentials, config.authenticate_timeout, client_id)
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
        self._backoff = Backoff(config.backoff_initial, config.backoff_max, config.jitter, config.seed)
        self._connection: Connection | None = None
        self._endpoint: Endpoint | None = None
        # Of the endpoints that are closed.
        self._network_totals = NetworkTotals()
        self._changed = trio.lowlevel.ParkingLot()
        self._closed = trio.Event()
        self._refusal: ErrorFactory | None = None
        self._refusal_seen = False
        self._retry_after = 0.0
        # Of the session that goes on on the next connection; empty when there is none.
        self._token = b""
        self._attempts = 0
        self._connects = 0
        self._attempts_at_loss = 0
        self._lost_at: float | None = None
        self._rtt: float | None = None
        self._history: deque[StateChange] = deque(maxlen=HISTORY)

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
            await self._changed.park()

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
        assert self._connection is not None
        await self._credentials.renew(self._connection)

    async def wait_closed(self) -> None:
        """Wait until the client is closed for good: its block was left, or the server refused it.

        Raises:
            ConnectionRefused, SessionReplaced: it was refused.
        """
        await self._closed.wait()
        if self._refusal is not None:
            raise self._refusal()

    def statistics(self) -> ClientStatistics:
        """Return the client's figures."""
        peer = super().statistics()
        figures = {name: getattr(peer, name) for name in PeerStatistics.__dataclass_fields__}
        rtt = self._rtt if self._connection is None else self._connection.rtt_sample
        return ClientStatistics(
            **figures,
            state=self.state.value,
            attempts=self._attempts,
            connects=self._connects,
            rtt=rtt,
            history=tuple(self._history),
        )

    def metrics(self) -> MetricsSnapshot:
        """Return all counters and gauges at this moment; the counters go on over all connections."""
        network = self._network_totals.copy()
        if self._endpoint is not None:
            network.add(self._endpoint.statistics())
        connected = self.state.value is ClientState.CONNECTED
        return measure(
            self._instruments,
            links=[self._link],
            connections=[] if self._connection is None else [self._connection],
            table=self._table,
            network=network,
            connected=int(connected),
            half_open=int(self.state.value is ClientState.CONNECTING),
            away=int(self.state.value is ClientState.IDLE),
        )

    def open_events(
        self, *, max_buffer_size: int = 256, kinds: Collection[type[Event]] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to what happens on this side; see `Server.open_events`. The iteration ends when the client is closed."""
        return self._events.open(kinds, max_buffer_size, None)

    # -- state -----------------------------------------------------------------------------------------------------
    def _set_state(self, state: ClientState, reason: str = "") -> None:
        old = self.state.value
        if state is old:
            return
        why = {"reason": reason} if reason else {}
        self._log.info("state changed", old=old, new=state, **why)
        self._history.append(StateChange(trio.current_time(), state, reason))
        if reason:
            self._link.trouble = f" (the last attempt: {reason})"
        set_value(self.state, state)
        if self._events.active:
            now = self._events.now()
            self._events.emit(StateChangeEvent(at=now, client_id=self.client_id, old=old.value, new=state.value, reason=reason))
        self._changed.unpark_all()

    def _end(self, error: ErrorFactory) -> None:
        """Close for good: every call raises ``error`` from now on."""
        self._link.end(error)
        self._changed.unpark_all()
        self._closed.set()

    def _refuse(self, error: ErrorFactory) -> None:
        self._log.error("refused for good", reason=error())

        def seen() -> QuicFlowError:
            self._refusal_seen = True
            return error()

        self._refusal = seen
        self._end(seen)

    # -- the supervisor --------------------------------------------------------------------------------------------
    async def _supervise(self) -> None:
        """Connect, run, back off, again; end only when refused. Owns the connection of the moment."""
        while self._refusal is None:
            self._attempts += 1
            self._instruments.counters.reconnect_attempts = self._attempts - 1
            started = trio.current_time()
            try:
                await self._attempt()
            except CredentialsUnavailable as exc:
                self._instruments.report_error(self.client_id, "authentication", str(exc))
                self._set_state(ClientState.IDLE, printable(str(exc)))
            except OSError as exc:
                self._instruments.counters.network_errors += 1
                self._instruments.report_error(self.client_id, "network", str(exc))
                self._set_state(ClientState.IDLE, str(exc))
            except Exception as exc:
                # A defect of ours must not surface in the caller's nursery; it is logged whole and the client goes on.
                log.exception("connection ended by an unexpected error", client_id=self.client_id)
                self._instruments.counters.internal_errors += 1
                self._instruments.report_error(self.client_id, "internal", f"{type(exc).__name__}: {exc}")
                self._token = b""
                self._link.detach(partial(ConnectionLost, "the connection ended by an internal error"))
                self._set_state(ClientState.IDLE, "internal error")
            if self._refusal is None:
                # Added, not the larger of the two: the jitter keeps the clients of a drained server from coming back in one instant.
                delay = self._backoff.next_delay(trio.current_time() - started) + self._retry_after
                self._retry_after = 0.0
                self._log.info("waiting for the next attempt", delay=round(delay, 3))
                await trio.sleep(delay)

    async def _attempt(self) -> None:
        """Try the server's addresses one after the other, until one leads to a connection and that has ended.

        Raises:
            OSError: the name does not resolve, or the last address cannot be reached.
        """
        self._set_state(ClientState.CONNECTING)
        await self._credentials.fetch()
        connects = self._connects
        failure: OSError | None = None
        for address in await self._network.resolve(self._host, self._port):
            self._set_state(ClientState.CONNECTING)
            failure = None
            try:
                await self._run_connection(address)
            except OSError as exc:
                failure = exc
            if self._connects != connects or self._refusal is not None:
                break
        if failure is not None:
            raise failure

    async def _run_connection(self, address: Address) -> None:
        network = self._network
        if isinstance(network, ClientEndpoint):
            async with network.use(address, self._refused_by_network) as shared:
                await self._run_on(shared, network.deadlines, address)
            return
        self._endpoint = endpoint = Endpoint(await network.bind_for(address), refused=self._refused_by_network)
        try:
            await self._run_on(endpoint, self._deadlines, address, endpoint.run)
        finally:
            endpoint.close()
            self._network_totals.add(endpoint.statistics())
            self._endpoint = None

    async def _run_on(
        self, endpoint: Endpoint, deadlines: Deadlines, address: Address, *beside: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for task in (*beside, self._beat):
                    nursery.start_soon(task)
                connection = self._connect(endpoint, deadlines, address)
                if self._credentials.renewable:
                    nursery.start_soon(self._credentials.keep_fresh, connection)
                await connection.run()
                nursery.cancel_scope.cancel()
        finally:
            self._connection = None

    def _refused_by_network(self) -> None:
        if self._connection is not None:
            self._connection.refused()

    def _connect(self, endpoint: Endpoint, deadlines: Deadlines, address: Address) -> Connection:
        config = self._config
        limits = config.limits
        engine = self._engines.client_engine(
            self._tls,
            server_name=self._host,
            alpn=[ALPN],
            idle_timeout=config.heartbeat_timeout * 2,
            windows=Windows(
                stream_in=limits.lane_window,
                stream_out=RETURN_WINDOW,
                connection=connection_window(limits),
                streams=limits.lanes,
            ),
            datagram_size=config.datagram_size,
            probes=endpoint.probes,
        )
        engine.connect(address, trio.current_time())
        connection = Connection(
            engine,
            endpoint,
            self,
            is_client=True,
            limits=limits,
            handshake_timeout=config.handshake_timeout,
            hello_timeout=config.hello_timeout,
            heartbeat_timeout=config.heartbeat_timeout,
            deadlines=deadlines,
            instruments=self._instruments,
        )
        connection.pump.kick()
        self._connection = connection
        return connection

    async def _beat(self) -> None:
        await self.state.wait_value(ClientState.CONNECTED)
        assert self._connection is not None
        await heartbeat(self._connection)

    # -- connection.ConnectionOwner ----------------------------------------------------------------------------------
    def handshake_completed(self, connection: Connection) -> None:
        """Say hello."""
        hello = make_hello(self.client_id, self._config.limits, self._credentials.value, self._token, self._link.states())
        connection.send_hello(hello)

    def control_frame(self, connection: Connection, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """Take the welcome, the goodbye or a word on credentials."""
        if isinstance(frame, Authentication):
            self._credentials.handle(frame)
            return
        if isinstance(frame, Goodbye):
            # At most what an unreachable server would cost: no peer may send a client away for ever.
            self._retry_after = min(frame.retry_after_ms / 1000, self._config.backoff_max)
            self._log.info("server says goodbye", reason=frame.reason, retry_after=self._retry_after)
            return
        assert isinstance(frame, Welcome), "the state table lets nothing else through"
        terms = check_welcome(frame, self._config.heartbeat_interval)
        resumed = frame.resumed and bool(self._token)
        if resumed and not self._link.can_resume(frame.lanes):
            # The next attempt begins anew.
            self._token = b""
            raise RemoteProtocolError("the welcome says of our lanes what cannot be")
        self._token = frame.session_token
        connection.open(self._link, terms, frame.lanes if resumed else None)
        self._connects += 1
        self._backoff.reset()
        address = connection.engine.peer_address
        assert address is not None, "whoever says welcome has an address"
        away = None if self._lost_at is None else trio.current_time() - self._lost_at
        attempts = self._attempts - self._attempts_at_loss
        self._instruments.report_connect(self.client_id, (address[0], address[1]), away=away, attempts=attempts, resumed=resumed)
        self._set_state(ClientState.CONNECTED)

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Settle what was on the wire, and see whether the end is final."""
        self._rtt = connection.rtt_sample
        if connection.opened_at is None:
            count(self._instruments.counters.connections_refused, reason_label(ended, is_client=True))
        else:
            self._lost_at = trio.current_time()
            self._attempts_at_loss = self._attempts
            report_end(self._instruments, self.client_id, ended, is_client=True)
        error = self._credentials.connection_ended(ended, opened=connection.opened_at is not None) or refusal(ended)
        if error is not None:
            self._refuse(error)
        elif connection.opened_at is None or (survivable(ended) and self._link.resumable):
            # An attempt that led to nothing changes nothing.
            self._link.pause()
        else:
            self._token = b""
            self._link.detach(loss(ended))
        self._set_state(ClientState.IDLE, printable(ended.reason) or "closed")

    # -- leaving -----------------------------------------------------------------------------------------------------
    async def _leave(self) -> None:
        """Finish what is under way within ``close_grace``: outboxes, receipts, handlers and their acks."""
        with trio.move_on_after(self._config.close_grace):
            while self._refusal is None:
                connection = self._connection
                if connection is not None and self.state.value is ClientState.CONNECTED:
                    connection.say_goodbye(CloseCode.NORMAL, "client disconnect")
                    connection.begin_drain()
                    await connection.drained()
                if not any(lane.unwritten or lane.unreceipted for lane in self._link.lanes.values()):
                    return
                # There was no connection yet, or it was lost, or its server is draining: the next one gets its chance.
                if connection is not None and self.state.value is ClientState.CONNECTED:
                    await connection.closed.wait()
                else:
                    await self._changed.park()


def _checked(tls: TLSConfig, client_id: str) -> TLSConfig:
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
        router: handlers for messages of the server; None has none.
        config: see `ClientConfig`.
        hooks: async functions to be called on events.
        network: None is a UDP socket of its own, `open_endpoint` gives a shared one; a `testing.MemoryNetwork` or its host in tests.

    The block starts at once: the first send or request waits for the connection. A lost connection is opened again, for ever, with
    backoff. Leaving the block normally finishes what is under way within ``config.close_grace`` and says goodbye; cancellation or an
    exception only says goodbye. An exception of the block leaves it as itself, never in an ExceptionGroup.

    Raises:
        ConfigurationError: at once, when an argument is out of range.
        ConnectionRefused, SessionReplaced: at the end of the block, if the server refused the client for good and no call said so.
    """
    check_client_id(client_id)
    if not 1 <= port <= 65_535:
        raise ConfigurationError(f"port = {port!r}: expected a whole number from 1 to 65,535")
    tls = _checked(TLSConfig.client() if tls is None else tls, client_id)
    network = (UdpNetwork() if network is None else network).for_client(client_id)
    client = Client(host, port, client_id, TLSContext(tls), config or ClientConfig(), network, credentials)
    async with open_hooks(hooks, client._events, client._instruments.hook_failed):
        try:
            async with open_background() as background:
                background.start_soon(client._deadlines.run)
                background.start_soon(client._supervise)
                run_handlers(client._link, router or Router(), peer=client, sender="server", nursery=background)
                try:
                    yield client
                    await client._leave()
                finally:
                    # The connection's last word is sent without waiting when its task is cancelled, so nothing here needs a shield.
                    if client._refusal is None:
                        client._end(partial(ConnectionClosed, "the client was closed"))
        finally:
            client._set_state(ClientState.IDLE, "closed")
            client._link.dispatcher.stop()
            client._link.release()
            client._events.close()
    if client._refusal is not None and not client._refusal_seen:
        raise client._refusal()
