"""The server: `serve`, and the `Server` that it hands out once it listens."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import final

import trio

from .admission import Admission
from .auth import Authenticator
from .broadcast import BroadcastReport, broadcast
from .config import OpsConfig, ServerConfig, TLSConfig
from .errors import ConfigurationError, ConnectionClosed
from .gauges import NetworkTotals, measure
from .message import Message
from .net.endpoint import Endpoint, EndpointStatistics
from .net.udp import Network, UdpNetwork
from .observe.events import Event, EventStream, StateChangeEvent
from .observe.history import SessionChange
from .observe.hooks import Hooks, open_hooks
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger, report_suppressed
from .observe.metrics import MetricsSnapshot
from .protocol.state import CloseCode
from .quic.tls import TLSContext
from .router import Router
from .sessions import Session

__all__ = ["Server", "ServerStatistics", "serve"]

log: Logger = get_logger(__name__)

RETURNS_PER_SECOND = 500
"""Clients of a drained server that are asked back within one second: about what a core can do handshakes with, beside its work."""


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

    def __init__(self, router: Router, tls: TLSContext, config: ServerConfig, authenticate: Authenticator | None = None) -> None:
        self._instruments = Instruments()
        self._events = self._instruments.events
        self._admission = Admission(router, tls, config, self._instruments, authenticate)
        self._open_to_all = authenticate is None
        self._ops_url: str | None = None
        self._state = "stopped"
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._endpoint: Endpoint
        self._nursery: trio.Nursery

    # -- public ----------------------------------------------------------------------------------------------------
    @property
    def address(self) -> tuple[str, int]:
        """Host and port that it listens on."""
        address = self._endpoint.address
        return (address[0], address[1])

    @property
    def ops_url(self) -> str | None:
        """Where its ops side answers, ``http://127.0.0.1:8475`` for one; None when `serve` was not asked for one."""
        return self._ops_url

    @property
    def draining(self) -> bool:
        """True from the call of `drain` on."""
        return self._admission.draining

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The connected sessions by client id: a live, read-only view. Copy it before you wait while iterating."""
        return self._admission.registry.connected

    def known_sessions(self) -> list[Session]:
        """Return the connected sessions and those that are away: kept, or finishing their handlers."""
        return self._admission.registry.known()

    def departed(self) -> list[str]:
        """Return the ids of the last 10,000 clients that have left, the latest first; `history` still knows them."""
        return self._admission.registry.histories.gone()

    def history(self, client_id: str) -> tuple[SessionChange, ...]:
        """Return the last 100 changes of a client, oldest first, also after it has left; empty when it is not known."""
        return self._admission.registry.histories.of(client_id)

    def session(self, client_id: str) -> Session:
        """Return the session of a client, also one that is away but kept.

        Raises:
            ClientNotConnected: there is none.
        """
        return self._admission.registry.find(client_id)

    async def broadcast(
        self, message: Message, *, to: Iterable[str] | None = None, ack_timeout: float | None = None
    ) -> BroadcastReport:
        """Send one message to all connected clients, or to those named.

        Args:
            message: what to send; everyone gets it under the same id, on the default lane.
            to: client ids; None means everyone who is connected now.
            ack_timeout: seconds to wait for acks; None wants none and returns once the outboxes have taken the message.

        Never waits for one slow client: a full outbox is a `SlowConsumer` in ``failed``. With more than 1,024 clients it waits, at most a
        second for each such number, until those before have received the message: machines that many of them share would else lose it
        for want of room. Cancellation leaves no waiter behind; what
        was queued by then is sent, and handlers whose ack is no longer waited for are cancelled.

        Raises:
            ConfigurationError: ``ack_timeout`` is not more than 0.
            ConnectionClosed: the server was closed.
        """
        if self._stop.is_set():
            raise ConnectionClosed("the server was closed")
        return await broadcast(self.sessions, message, to=to, ack_timeout=ack_timeout, instruments=self._instruments)

    def statistics(self) -> ServerStatistics:
        """Return the server's figures."""
        admission = self._admission
        counters = self._instruments.counters
        connected = len(self.sessions)
        return ServerStatistics(
            connected=connected,
            away=len(admission.sessions()) - connected,
            half_open=len(admission.half_open),
            connections=admission.accepted,
            disconnects=dict(counters.disconnects),
            refused=dict(counters.connections_refused),
            requests_waiting=admission.table.active,
            requests_refused=admission.table.refused,
            held_bytes=admission.budget.held,
            tasks=len(self._nursery.child_tasks),
            endpoint=self._endpoint.statistics(),
        )

    def metrics(self) -> MetricsSnapshot:
        """Return all counters and gauges at this moment. It takes about 3 us for each session."""
        admission = self._admission
        sessions = admission.sessions()
        network = NetworkTotals()
        network.add(self._endpoint.statistics())
        connected = len(self.sessions)
        return measure(
            self._instruments,
            links=[session._link for session in sessions],
            connections=admission.connections.keys(),
            table=admission.table,
            network=network,
            connected=connected,
            half_open=len(admission.half_open),
            away=len(sessions) - connected,
        )

    def open_events(
        self, *, max_buffer_size: int = 256, kinds: Collection[type[Event]] | None = None, client_id: str | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to what happens::

            async with server.open_events(kinds=[ConnectEvent, DisconnectEvent]) as events:
                async for event in events:
                    print(event)

        Args:
            max_buffer_size: events that may wait for this subscriber; further ones are dropped and counted in ``events.dropped``.
            kinds: the classes of events wanted; None wants all, single messages included.
            client_id: only events about this client; None wants those about all, and about the server.

        No subscriber can slow the traffic. Events of messages cost time only while somebody wants them. The iteration ends when the
        server has stopped. Cancellation loses no event but those that come after it.

        Raises:
            TypeError: ``kinds`` holds something else.
            ValueError: the buffer is not at least 1.
        """
        return self._events.open(kinds, max_buffer_size, client_id)

    async def drain(self, *, grace: float, retry_after: float = 1.0) -> None:
        """Stop gracefully: accept nobody, let what is under way finish, then close and let `serve` return.

        Args:
            grace: seconds after which what is still under way is cancelled.
            retry_after: seconds that clients are asked to stay away, at least. With many of them each is given a little more than the
                one before, so that they come back at 500 a second and not all at once.

        Returns once `serve` has ended its tasks. Cancelled, the server stays as it is: draining, taking no new clients.
        """
        admission = self._admission
        admission.draining = True
        self._set_state("draining", f"for at most {grace:g} s")
        log.info("draining", grace=grace, sessions=len(self.sessions))
        for connection in [*admission.half_open]:
            connection.close(CloseCode.SHUTDOWN, "the server is draining")
        with trio.move_on_after(grace):
            sessions = admission.sessions()
            for number, session in enumerate(sessions):
                away = retry_after + number / RETURNS_PER_SECOND
                session._connection.say_goodbye(CloseCode.SHUTDOWN, "the server is draining", away)
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
    async def _run(
        self,
        host: str,
        port: int,
        network: Network,
        ops: OpsConfig | None,
        hooks: Hooks | None,
        task_status: trio.TaskStatus[Server],
    ) -> None:
        with ExitStack() as stack:
            # Both addresses first, so that one that is taken raises as itself and not in a group.
            listener = None
            if ops is not None:
                from .ops import bind_ops

                listener = await bind_ops(ops)
                stack.callback(listener.socket.close)
            self._endpoint = Endpoint(
                await network.bind(host, port), self._admission.accept, doorkeeper=self._admission.doorkeeper
            )
            stack.callback(self._stopped.set)
            stack.callback(self._events.close)
            stack.callback(self._endpoint.close)
            # Around the rest, so that hooks see its end.
            async with open_hooks(hooks, self._events, self._instruments.hook_failed):
                try:
                    await self._serve(ops, listener, task_status)
                finally:
                    self._end_sessions()
                    self._set_state("stopped")
                    report_suppressed()
                    log.info("stopped")

    async def _serve(
        self, ops: OpsConfig | None, listener: trio.SocketListener | None, task_status: trio.TaskStatus[Server]
    ) -> None:
        admission = self._admission
        async with trio.open_nursery() as self._nursery:
            admission.open(self._endpoint, self._nursery)
            if ops is not None:
                from .ops import run_ops

                self._ops_url = await self._nursery.start(partial(run_ops, self, ops, listener=listener))
            self._nursery.start_soon(self._endpoint.run)
            self._nursery.start_soon(admission.deadlines.run)
            if self._open_to_all:
                _warn_if_exposed(self.address[0])
            self._set_state("listening")
            log.info("listening", address=self.address)
            task_status.started(self)
            await self._stop.wait()
            self._end_sessions()
            # Every connection says its last word as it is cancelled; that needs no wait.
            self._nursery.cancel_scope.cancel()

    def _end_sessions(self) -> None:
        for session in self._admission.sessions():
            session._link.end(partial(ConnectionClosed, "the server was closed"))

    def _set_state(self, state: str, reason: str = "") -> None:
        old, self._state = self._state, state
        if self._events.active and state != old:
            self._events.emit(StateChangeEvent(at=self._events.now(), client_id="", old=old, new=state, reason=reason))


def _warn_if_exposed(host: str) -> None:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return  # A simulated host.
    if not loopback:
        log.warning(
            "listening beyond this machine: there is no authenticator, so anyone who reaches the port can connect "
            "and take over the session of a client whose id they know",
            host=host,
        )


async def serve(
    router: Router,
    *,
    host: str = "0.0.0.0",
    port: int = 8474,
    tls: TLSConfig,
    authenticate: Authenticator | None = None,
    config: ServerConfig | None = None,
    ops: str | OpsConfig | None = None,
    hooks: Hooks | None = None,
    network: Network | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until it is closed, drained or cancelled. Start it in a nursery::

        server = await nursery.start(partial(serve, router, tls=tls))

    Args:
        router: handlers for messages of clients.
        host: address to listen on. Beyond loopback and without ``authenticate`` anyone can connect: the log warns.
        port: UDP port; 0 takes a free one, see `Server.address`.
        tls: made by `TLSConfig.server`.
        authenticate: an async function that is asked before a client gets a session, or takes one over, and when it shows fresh
            credentials: it gets an `AuthenticationRequest`, and returns an `Identity` or raises `CredentialsRefused`. It runs in a task
            of that connection and holds up no other. `SignedTokens` and `ClientCertificates` are two. None takes everybody.
        config: see `ServerConfig`.
        ops: where to answer those who operate this, over HTTP: ``"127.0.0.1:8475"`` (port 0 takes a free one, see `Server.ops_url`), or
            an `OpsConfig`; None does not.
        hooks: async functions to be called on events.
        network: None is UDP; a `quicflow_trio.testing.MemoryNetwork` in tests.
        task_status: Trio's; `trio.Nursery.start` passes it and returns the `Server` once it listens.

    The session of a client whose connection was lost is kept for ``config.session_ttl``, and goes on when the client returns with its
    token. Sessions end with the server: clients of its next life begin new ones.

    Returns after `Server.aclose` or a finished `Server.drain`. Cancelled, it tells every client and cancels their handlers.

    Raises:
        ConfigurationError: an argument is out of range, or a certificate cannot be used.
        OSError: the address cannot be bound.
    """
    if tls.is_client:
        raise ConfigurationError("tls: expected TLSConfig.server(...), got a client's")
    if isinstance(ops, str):
        ops = OpsConfig(ops)
    if authenticate is not None and not callable(authenticate):
        raise ConfigurationError(f"authenticate = {authenticate!r}: expected an async function")
    server = Server(router, TLSContext(tls), ServerConfig() if config is None else config, authenticate)
    await server._run(host, port, UdpNetwork() if network is None else network, ops, hooks, task_status)
