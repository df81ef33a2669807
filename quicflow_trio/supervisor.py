"""What keeps a client connected: attempts, backoff, the connection of the moment, and what its end means for the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from .client_endpoint import ClientEndpoint
from .client_state import ClientState, StateChange
from .config import ClientConfig
from .connection import Connection
from .credentials import ClientCredentials
from .deadlines import Deadlines
from .endings import loss, reason_label, refusal, report_end, survivable
from .errors import ConnectionLost, CredentialsUnavailable, LocalProtocolError, QuicFlowError, RemoteProtocolError
from .gauges import NetworkTotals
from .heartbeat import heartbeat
from .link import Link
from .net.endpoint import Endpoint
from .net.movable import MovableSocket
from .net.udp import Network
from .observe.events import StateChangeEvent
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger, printable
from .observe.metrics import count
from .observe.state import Observable, set_value
from .protocol.credit import RETURN_WINDOW, connection_window
from .protocol.handshake import alpn_offer, check_welcome, make_hello
from .protocol.outgoing import ErrorFactory
from .protocol.state import CloseCode
from .quic.engine import Address, ConnectionEnded
from .quic.engines import engine_maker
from .quic.limits import Windows
from .quic.tls import TLSContext
from .reconnect import Backoff
from .wire import Authentication, Goodbye, Hello, Welcome

__all__ = ["Supervisor"]

log: Logger = get_logger(__name__)

HISTORY = 100


class Supervisor:
    """Keeps the session of one client connected until it is left or refused for good. Owns the connection of the moment.

    Args:
        address: host and port of the server.
        tls: checked and loaded.
        config: the client's.
        network: where its sockets come from.
        credentials: what it shows.
        link: its side of the session.
        deadlines: of a connection with a socket of its own; a shared socket has others.
        instruments: where it counts and reports.
        protocol: what it offers to speak; see `client.open_client`.

    Attributes:
        state: where the client stands.
        changed: whoever waits for a change of it, or for the end, parks here.
        closed: set when the client is done for good.
        connection: the one of the moment; None between two.
        refusal: makes the error with which the server refused the client for good; None while it has not.
        refusal_seen: true once somebody was told.
        attempts: connection attempts so far.
        connects: those that led to a connection.
        history: the last changes of state.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: TLSContext,
        config: ClientConfig,
        network: Network | ClientEndpoint,
        credentials: ClientCredentials,
        link: Link,
        deadlines: Deadlines,
        instruments: Instruments,
        protocol: str = "auto",
    ) -> None:
        self.state: Observable[ClientState] = Observable(ClientState.IDLE)
        self.changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self.closed: trio.Event = trio.Event()
        self.connection: Connection | None = None
        self.refusal: ErrorFactory | None = None
        self.refusal_seen: bool = False
        self.attempts: int = 0
        self.connects: int = 0
        self.history: deque[StateChange] = deque(maxlen=HISTORY)
        self._client_id = link.client_id
        self._log = log.bind(client_id=self._client_id)
        self._host, self._port = address
        self._tls = tls
        self._alpn = alpn_offer(protocol)
        self._config = config
        self._engines = engine_maker(config.engine, tls)
        self._network = network
        self._credentials = credentials
        self._link = link
        self._deadlines = deadlines
        self._instruments = instruments
        self._events = instruments.events
        self._backoff = Backoff(config.backoff_initial, config.backoff_max, config.jitter, config.seed)
        self._endpoint: Endpoint | None = None
        self._socket: MovableSocket | None = None
        self._moving = trio.Lock()
        # Of the endpoints that are closed.
        self._network_totals = NetworkTotals()
        self._retry_after = 0.0
        # Of the session that goes on on the next connection; empty when there is none.
        self._token = b""
        self._attempts_at_loss = 0
        self._lost_at: float | None = None
        self._rtt: float | None = None

    @property
    def rtt(self) -> float | None:
        """Round trip of the last heartbeat, seconds; None before the first."""
        return self._rtt if self.connection is None else self.connection.rtt_sample

    def network_totals(self) -> NetworkTotals:
        """Return what the client's own sockets have counted, so far and over all connections."""
        totals = self._network_totals.copy()
        if self._endpoint is not None:
            totals.add(self._endpoint.statistics())
        return totals

    # -- state -----------------------------------------------------------------------------------------------------
    def set_state(self, state: ClientState, reason: str = "") -> None:
        """Note where the client stands, and tell whoever wants to know."""
        old = self.state.value
        if state is old:
            return
        why = {"reason": reason} if reason else {}
        self._log.info("state changed", old=old, new=state, **why)
        self.history.append(StateChange(trio.current_time(), state, reason))
        if reason:
            self._link.trouble = f" (the last attempt: {reason})"
        set_value(self.state, state)
        if self._events.active:
            now = self._events.now()
            self._events.emit(StateChangeEvent(at=now, client_id=self._client_id, old=old.value, new=state.value, reason=reason))
        self.changed.unpark_all()

    def end(self, error: ErrorFactory) -> None:
        """Close for good: every call raises ``error`` from now on."""
        self._link.end(error)
        self.changed.unpark_all()
        self.closed.set()

    def _refuse(self, error: ErrorFactory) -> None:
        self._log.error("refused for good", reason=error())

        def seen() -> QuicFlowError:
            self.refusal_seen = True
            return error()

        self.refusal = seen
        self.end(seen)

    # -- attempts --------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Connect, run, back off, again; end only when refused. Owns the connection of the moment."""
        while self.refusal is None:
            self.attempts += 1
            self._instruments.counters.reconnect_attempts = self.attempts - 1
            started = trio.current_time()
            try:
                await self._attempt()
            except CredentialsUnavailable as exc:
                self._instruments.report_error(self._client_id, "authentication", str(exc))
                self.set_state(ClientState.IDLE, printable(str(exc)))
            except OSError as exc:
                self._instruments.counters.network_errors += 1
                self._instruments.report_error(self._client_id, "network", str(exc))
                self.set_state(ClientState.IDLE, str(exc))
            except Exception as exc:
                # A defect of ours must not surface in the caller's nursery; it is logged whole and the client goes on.
                log.exception("connection ended by an unexpected error", client_id=self._client_id)
                self._instruments.counters.internal_errors += 1
                self._instruments.report_error(self._client_id, "internal", f"{type(exc).__name__}: {exc}")
                self._token = b""
                self._link.detach(partial(ConnectionLost, "the connection ended by an internal error"))
                self.set_state(ClientState.IDLE, "internal error")
            if self.refusal is None:
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
        self.set_state(ClientState.CONNECTING)
        await self._credentials.fetch()
        connects = self.connects
        failure: OSError | None = None
        for address in await self._network.resolve(self._host, self._port):
            self.set_state(ClientState.CONNECTING)
            failure = None
            try:
                await self._run_connection(address)
            except OSError as exc:
                failure = exc
            if self.connects != connects or self.refusal is not None:
                break
        if failure is not None:
            raise failure

    async def _run_connection(self, address: Address) -> None:
        network = self._network
        if isinstance(network, ClientEndpoint):
            async with network.use(address, self._refused_by_network) as shared:
                await self._run_on(shared, network.deadlines, address)
            return
        self._socket = MovableSocket(await network.bind_for(address))
        self._endpoint = endpoint = Endpoint(self._socket, refused=self._refused_by_network)
        try:
            await self._run_on(endpoint, self._deadlines, address, endpoint.run)
        finally:
            endpoint.close()
            self._socket = None
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
            self.connection = None

    async def rebind(self) -> None:
        """See `client.Client.rebind`; the client was connected just now."""
        network = self._network
        if isinstance(network, ClientEndpoint):
            raise LocalProtocolError("clients that share a socket cannot move: open this one without open_endpoint()")
        async with self._moving:
            connection, socket = self.connection, self._socket
            if connection is None or socket is None or connection.closed.is_set():
                raise ConnectionLost("there is no connection that could move")
            address = connection.engine.peer_address
            assert address is not None, "a connection that stands has a peer"
            new = await network.bind_for(address)
            if self._socket is not socket or not connection.engine.migrate():
                new.close()
                raise ConnectionLost("the connection has ended, or the server allows it no move now")
            heard = socket.move_to(new)
            self._log.info("moved to another address", address=new.address)
            # The first packet from there must be more than an ACK for the server to follow (RFC 9000 section 9.2).
            connection.ping()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, connection.closed, nursery.cancel_scope)
                await heard.wait()
                nursery.cancel_scope.cancel()
        if not heard.is_set():
            raise ConnectionLost("the connection ended before the server was heard at the new address")

    def _refused_by_network(self) -> None:
        if self.connection is not None:
            self.connection.refused()

    def _connect(self, endpoint: Endpoint, deadlines: Deadlines, address: Address) -> Connection:
        config = self._config
        limits = config.limits
        engine = self._engines.client_engine(
            self._tls,
            server_name=self._host,
            alpn=self._alpn,
            idle_timeout=config.heartbeat_timeout * 2,
            windows=Windows(
                stream_in=limits.lane_window,
                stream_out=RETURN_WINDOW,
                connection=connection_window(limits),
                streams=limits.lanes,
            ),
            datagram_size=config.datagram_size,
            congestion=config.congestion,
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
        self.connection = connection
        return connection

    async def _beat(self) -> None:
        await self.state.wait_value(ClientState.CONNECTED)
        assert self.connection is not None
        await heartbeat(self.connection)

    # -- connection.ConnectionOwner ----------------------------------------------------------------------------------
    def handshake_completed(self, connection: Connection) -> None:
        """Say hello."""
        hello = make_hello(self._client_id, self._config.limits, self._credentials.value, self._token, self._link.states())
        connection.send(hello)

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
        self.connects += 1
        self._backoff.reset()
        address = connection.engine.peer_address
        assert address is not None, "whoever says welcome has an address"
        away = None if self._lost_at is None else trio.current_time() - self._lost_at
        attempts = self.attempts - self._attempts_at_loss
        self._instruments.report_connect(
            self._client_id, (address[0], address[1]), connection.protocol, away=away, attempts=attempts, resumed=resumed
        )
        self.set_state(ClientState.CONNECTED)

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Settle what was on the wire, and see whether the end is final."""
        self._rtt = connection.rtt_sample
        if connection.opened_at is None:
            count(self._instruments.counters.connections_refused, reason_label(ended, is_client=True))
        else:
            self._lost_at = trio.current_time()
            self._attempts_at_loss = self.attempts
            report_end(self._instruments, self._client_id, ended, is_client=True)
        error = self._credentials.connection_ended(ended, opened=connection.opened_at is not None) or refusal(ended)
        if error is not None:
            self._refuse(error)
        elif connection.opened_at is None:
            # An attempt that led to nothing changes nothing.
            self._link.pause()
        elif survivable(ended) and self._link.resumable:
            self._link.pause(str(loss(ended)()))
        else:
            self._token = b""
            self._link.detach(loss(ended))
        self.set_state(ClientState.IDLE, printable(ended.reason) or "closed")

    # -- leaving -----------------------------------------------------------------------------------------------------
    async def leave(self) -> None:
        """Finish what is under way within ``close_grace``: outboxes, receipts, handlers and their acks."""
        with trio.move_on_after(self._config.close_grace):
            while self.refusal is None:
                connection = self.connection
                if connection is not None and self.state.value is ClientState.CONNECTED:
                    connection.say_goodbye(CloseCode.NORMAL, "client disconnect")
                    connection.begin_drain()
                    await connection.drained()
                if not self._link.unfinished:
                    return
                # There was no connection yet, or it was lost, or its server is draining: the next one gets its chance.
                if connection is not None and self.state.value is ClientState.CONNECTED:
                    await connection.closed.wait()
                else:
                    await self.changed.park()


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
