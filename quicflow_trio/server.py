"""The server: `serve`, and the `Server` that it hands out once it listens."""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import trio

from .broadcast import BroadcastReport, broadcast
from .config import ServerConfig, TLSConfig
from .connection import Connection
from .deadlines import Deadlines
from .dispatch import run_handlers
from .endings import loss
from .errors import ConfigurationError, ConnectionClosed, RemoteProtocolError
from .link import Link
from .message import Message
from .net.endpoint import Endpoint, EndpointStatistics
from .net.pump import Pump
from .net.udp import Network, UdpNetwork
from .observe.logs import printable
from .protocol.credit import RETURN_WINDOW, CreditBudget, connection_window
from .protocol.handshake import ALPN, REVISION, check_hello
from .protocol.state import CloseCode
from .protocol.waiting import WaitingTable
from .quic.aioquic_engine import Windows, server_engine
from .quic.engine import Address, ConnectionEnded
from .quic.routing import Header
from .quic.tls import TLSContext
from .router import Router
from .sessions import Session, SessionRegistry
from .wire import Goodbye, Hello, PeerLimits, Welcome

__all__ = ["Server", "ServerStatistics", "serve"]

log: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """A server in figures.

    Attributes:
        connected: sessions connected now.
        away: sessions whose connection is gone: kept for their time to live, or finishing their handlers.
        half_open: connections that have not completed their hello.
        connections: connections accepted since the start.
        disconnects: connections that had a session and ended, by reason.
        refused: connections refused before they had a session, by reason.
        requests_waiting: requests of the server that wait for their ack now.
        requests_refused: requests refused because the waiting table was full.
        held_bytes: bytes received that wait for handlers, all sessions together.
        tasks: tasks in the server's nursery.
        endpoint: the socket and the routing table in figures.
    """

    connected: int
    away: int
    half_open: int
    connections: int
    disconnects: Mapping[str, int]
    refused: Mapping[str, int]
    requests_waiting: int
    requests_refused: int
    held_bytes: int
    tasks: int
    endpoint: EndpointStatistics


@final
class Server:
    """A listening server. `serve` makes it and runs it."""

    def __init__(self, router: Router, tls: TLSContext, config: ServerConfig) -> None:
        limits = config.limits
        self._router = router
        self._tls = tls
        self._config = config
        self._registry = SessionRegistry()
        self._deadlines = Deadlines()
        self._table = WaitingTable(limits.waiting, limits.waiting_per_session)
        self._budget = CreditBudget(limits.total_bytes)
        self._windows = Windows(
            stream_in=limits.lane_window,
            stream_out=RETURN_WINDOW,
            connection=connection_window(limits),
            streams=limits.lanes + 1,  # the control stream beside the lanes
        )
        # In the order of arrival, so that the oldest is the first; a nursery stands there once its task has started.
        self._half_open: dict[Connection, trio.Nursery | None] = {}
        self._connections: dict[Connection, Session | None] = {}
        self._accepted = 0
        self._disconnects: dict[str, int] = {}
        self._refused: dict[str, int] = {}
        self._draining = False
        self._retry_after = 0.0
        self._stop = trio.Event()
        self._stopped = trio.Event()

    # -- public ----------------------------------------------------------------------------------------------------
    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        address = self._endpoint.address
        return (address[0], address[1])

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The connected sessions by client id: a live, read-only view. Copy it before you wait while iterating."""
        return self._registry.connected

    def session(self, client_id: str) -> Session:
        """Return the session of a client, also one that is away but kept.

        Raises:
            ClientNotConnected: there is none.
        """
        return self._registry.find(client_id)

    async def broadcast(
        self, message: Message, *, to: Iterable[str] | None = None, ack_timeout: float | None = None
    ) -> BroadcastReport:
        """Send one message to all connected clients, or to those named.

        Args:
            message: what to send; everyone gets it under the same id, on the default lane.
            to: client ids; None means everyone who is connected now.
            ack_timeout: seconds to wait for acks; None wants none and returns once the outboxes have taken the message.

        Never waits for one slow client: a full outbox is a `SlowConsumer` in ``failed``. Cancellation leaves no waiter behind; what
        was queued by then is sent, and handlers whose ack is no longer waited for are cancelled.

        Raises:
            ConfigurationError: ``ack_timeout`` is not more than 0.
            ConnectionClosed: the server was closed.
        """
        if self._stop.is_set():
            raise ConnectionClosed("the server was closed")
        return await broadcast(self.sessions, message, to=to, ack_timeout=ack_timeout)

    def statistics(self) -> ServerStatistics:
        """Return the server's figures."""
        connected = len(self._registry.connected)
        return ServerStatistics(
            connected=connected,
            away=sum(session is not None for session in self._connections.values()) - connected,
            half_open=len(self._half_open),
            connections=self._accepted,
            disconnects=dict(self._disconnects),
            refused=dict(self._refused),
            requests_waiting=self._table.active,
            requests_refused=self._table.refused,
            held_bytes=self._budget.held,
            tasks=len(self._nursery.child_tasks),
            endpoint=self._endpoint.statistics(),
        )

    async def drain(self, *, grace: float, retry_after: float = 1.0) -> None:
        """Stop gracefully: accept nobody, let what is under way finish, then close and let `serve` return.

        Args:
            grace: seconds after which what is still under way is cancelled.
            retry_after: seconds that clients are asked to stay away.

        Returns once `serve` has ended its tasks. Cancelled, the server stays as it is: draining, taking no new clients.
        """
        self._draining = True
        self._retry_after = retry_after
        for connection in [*self._half_open]:
            connection.close(CloseCode.SHUTDOWN, "the server is draining")
        with trio.move_on_after(grace):
            sessions = [session for session in self._connections.values() if session is not None]
            for session in sessions:
                session._connection.say_goodbye(CloseCode.SHUTDOWN, "the server is draining", retry_after)
                session._connection.begin_drain()
            for session in sessions:
                await session._connection.drained()
                # Handlers of clients that are gone already have their time as well.
                await session._link.dispatcher.wait_idle()
        await self.aclose()

    async def aclose(self) -> None:
        """Stop now: cancel handlers, tell every client, let `serve` return. Waits until its tasks have ended."""
        self._stop.set()
        await self._stopped.wait()

    # -- running ---------------------------------------------------------------------------------------------------
    async def _run(self, host: str, port: int, network: Network, task_status: trio.TaskStatus[Server]) -> None:
        socket = await network.bind(host, port)
        self._endpoint = endpoint = Endpoint(socket, self._accept)
        self._epoch = time.time() - trio.current_time()
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(endpoint.run)
                self._nursery.start_soon(self._deadlines.run)
                _warn_if_exposed(self.address[0])
                log.info("listening on %s port %d", *self.address)
                task_status.started(self)
                await self._stop.wait()
                self._end_sessions()
                # Every connection says its last word as it is cancelled; that needs no wait.
                self._nursery.cancel_scope.cancel()
        finally:
            self._end_sessions()
            endpoint.close()
            self._stopped.set()
            log.info("stopped")

    def _end_sessions(self) -> None:
        for session in self._registry.connected.values():
            session._link.end(partial(ConnectionClosed, "the server was closed"))

    def _accept(self, header: Header, address: Address, now: float) -> Pump | None:
        """Make a connection for a client's first packet."""
        if self._draining:
            self._count(self._refused, "draining")
            return None
        config = self._config
        if len(self._half_open) >= config.limits.half_open:
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.close(CloseCode.OVERLOADED, "too many half-open connections")
        engine = server_engine(
            self._tls,
            original_destination_id=header.destination,
            alpn=[ALPN],
            idle_timeout=config.heartbeat_timeout * 2,
            windows=self._windows,
            datagram_size=config.datagram_size,
        )
        connection = Connection(
            engine,
            self._endpoint,
            self,
            is_client=False,
            limits=config.limits,
            handshake_timeout=config.handshake_timeout,
            hello_timeout=config.hello_timeout,
            heartbeat_timeout=config.heartbeat_timeout,
        )
        self._accepted += 1
        self._connections[connection] = None
        # Counted at once: a whole batch of first packets comes in before the first of their tasks has run.
        self._half_open[connection] = None
        self._nursery.start_soon(self._run_connection, connection)
        return connection.pump

    async def _run_connection(self, connection: Connection) -> None:
        """One connection, and the session that outlives it, in one nursery whose body is the pump."""
        try:
            async with trio.open_nursery() as nursery:
                if connection in self._half_open:
                    self._half_open[connection] = nursery
                try:
                    await connection.run()
                    session = self._connections[connection]
                    if session is not None:
                        await session.linger(self._config.session_ttl)
                        self._registry.forget(session)
                finally:
                    # However it ends: the other sessions of the client share a worker limit, and must not wake a dispatcher whose
                    # nursery is closing.
                    session = self._connections[connection]
                    if session is not None:
                        session.stop_handlers()
                nursery.cancel_scope.cancel()
        except Exception:
            # A defect in one connection must not take the others down; it is logged whole and counted.
            log.exception("a connection ended by an unexpected error")
            self._count(self._disconnects, "internal error")
        finally:
            self._half_open.pop(connection, None)
            session = self._connections.pop(connection)
            if session is not None:
                self._registry.forget(session)
                session._link.release()

    # -- connection.ConnectionOwner ----------------------------------------------------------------------------------
    def handshake_completed(self, connection: Connection) -> None:
        """Wait for the hello."""

    def control_frame(self, connection: Connection, frame: Hello | Welcome | Goodbye) -> None:
        """Take a hello or a goodbye."""
        if isinstance(frame, Hello):
            self._hello(connection, frame)

    def _hello(self, connection: Connection, hello: Hello) -> None:
        if self._draining:
            connection.close(CloseCode.SHUTDOWN, "the server is draining")
            return
        config = self._config
        try:
            terms = check_hello(hello, config.heartbeat_interval)
        except RemoteProtocolError as exc:
            connection.close(CloseCode.REJECTED, str(exc))
            return
        client_id = hello.client_id
        earlier = self._registry.get(client_id)
        link = Link(
            config,
            table=self._table,
            deadlines=self._deadlines,
            budget=self._budget,
            earlier=None if earlier is None else earlier._link,
        )
        session = Session(
            client_id,
            link,
            connection,
            id=os.urandom(16),
            epoch=self._epoch,
            history=self._registry.history(client_id),
        )
        nursery = self._half_open.pop(connection)
        assert nursery is not None, "a connection that says hello has its task"
        crew = None if earlier is None else earlier.crew
        session.crew = run_handlers(link, self._router, peer=session, sender=client_id, nursery=nursery, crew=crew)
        older = self._registry.enter(session)
        if older is not None:
            if older.connected:
                older.note("replaced", "a newer connection uses the client id")
                log.warning("client %s: a newer connection takes the session over", printable(client_id))
            older.replace()
        self._connections[connection] = session
        connection.send_welcome(
            Welcome(
                revision=REVISION,
                session_id=session.id,
                session_token=b"",
                resumed=False,
                lanes=(),
                heartbeat_interval_ms=math.ceil(config.heartbeat_interval * 1000),
                limits=PeerLimits(payload=config.limits.payload, lanes=config.limits.lanes),
            )
        )
        connection.open(link, terms)
        session.note("connected", "{}:{}".format(*session.remote_address))
        log.info("client %s: connected from %s port %d", printable(client_id), *session.remote_address)

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Take the session off the list of the connected; it is kept for its time to live unless the client is done."""
        reason = printable(ended.reason) or f"code {ended.code:#x}"
        session = self._connections[connection]
        if session is None:
            self._count(self._refused, _reason(ended))
            address = connection.engine.peer_address or ("an unknown address", 0)
            log.info("connection from %s port %d ended before its hello: %s", address[0], address[1], reason)
            return
        self._count(self._disconnects, _reason(ended))
        if self._registry.get(session.client_id) is session:
            # Not of one that was replaced: its end would stand in the history behind the beginning of the newer one.
            session.note("disconnected", reason)
        log.info("client %s: disconnected: %s", printable(session.client_id), reason)
        self._registry.leave(session)
        if ended.application and ended.code == CloseCode.SHUTDOWN and not ended.by_peer:
            # Also when `serve` was cancelled: this side closed, nothing was lost.
            session._link.end(partial(ConnectionClosed, "the server was closed"))
        session.lost(loss(ended), final=ended.application and ended.code == CloseCode.NORMAL)

    @staticmethod
    def _count(counters: dict[str, int], reason: str) -> None:
        counters[reason] = counters.get(reason, 0) + 1


def _reason(ended: ConnectionEnded) -> str:
    """Return a bounded name for an end: peers choose the text of theirs, so it must not become a key."""
    if ended.application:
        name = CloseCode(ended.code).name.lower() if ended.code in CloseCode._value2member_map_ else "other"
    else:
        name = "idle timeout" if ended.timed_out else "tls" if ended.tls_alert is not None else "transport"
    return f"{'peer' if ended.by_peer else 'server'}: {name}"


def _warn_if_exposed(host: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return  # A simulated host.
    if not loopback:
        log.warning(
            "listening on %s, beyond this machine: clients are not authenticated yet, so anyone who reaches the port can connect "
            "and take over the session of a client whose id they know",
            host,
        )


async def serve(
    router: Router,
    *,
    host: str = "0.0.0.0",
    port: int = 8474,
    tls: TLSConfig,
    config: ServerConfig | None = None,
    network: Network | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until it is closed, drained or cancelled. Start it in a nursery::

        server = await nursery.start(partial(serve, router, tls=tls))

    Args:
        router: handlers for messages of clients.
        host: address to listen on. Until clients are authenticated, beyond loopback anyone can connect: the log warns.
        port: UDP port; 0 takes a free one, see `Server.address`.
        tls: made by `TLSConfig.server`.
        config: see `ServerConfig`.
        network: None is UDP; a `quicflow_trio.testing.MemoryNetwork` in tests.
        task_status: Trio's; `trio.Nursery.start` passes it and returns the `Server` once it listens.

    Returns after `Server.aclose` or a finished `Server.drain`. Cancelled, it tells every client and cancels their handlers.

    Raises:
        ConfigurationError: an argument is out of range, or a certificate cannot be used.
        OSError: the address cannot be bound.
    """
    if tls.is_client:
        raise ConfigurationError("tls: expected TLSConfig.server(...), got a client's")
    server = Server(router, TLSContext(tls), ServerConfig() if config is None else config)
    await server._run(host, port, UdpNetwork() if network is None else network, task_status)
