"""Admission: a connection's way from a client's first packet to a session, and what is left of both when it ends."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import final

import trio

from .auth import Authenticator, Identity
from .config import ServerConfig
from .connection import Connection
from .deadlines import Deadlines
from .dispatch import run_handlers
from .endings import ending_text, loss, reason_label, report_end, survivable
from .errors import ClientNotConnected, ConnectionClosed, RemoteProtocolError
from .gatekeeper import Gatekeeper, is_named
from .link import Link
from .net.endpoint import Endpoint
from .net.key_file import load_reset_key
from .net.pump import Pump
from .net.stateless import Doorkeeper
from .observe.events import DisconnectReason
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .observe.metrics import count
from .protocol.backbone1 import NO_SESSION
from .protocol.credit import RETURN_WINDOW, CreditBudget, connection_window
from .protocol.handshake import BACKBONE1, RESUMING, REVISION, TOKEN_BYTES, Terms, alpn_offer, check_hello
from .protocol.state import CloseCode
from .protocol.waiting import WaitingTable
from .quic.engine import Address, ConnectionEnded
from .quic.engines import engine_maker
from .quic.limits import Windows
from .quic.retry import InitialRate
from .quic.routing import Header
from .quic.tls import TLSContext
from .router import Router
from .sessions import Session, SessionRegistry
from .wire import Authentication, Goodbye, Hello, PeerLimits, Welcome

__all__ = ["Admission"]

log: Logger = get_logger(__name__)

RETRY_FLOOR = 64
"""Half-open connections that are no load yet, twice over."""

TURNED_AWAY = 4096
"""Refused attempts that are remembered, so that each is counted once."""


@final
class Admission:
    """Admits clients and runs their connections. `connection.ConnectionOwner` for all connections of a server.

    Args:
        router: handlers for messages of clients.
        tls: the server's certificates.
        config: as given to `serve`.
        instruments: where it counts and reports.
        authenticate: tells who a client is; None takes everybody.

    Attributes:
        registry: the sessions.
        table: who waits for acks, over all sessions.
        budget: bytes that wait for handlers, over all sessions.
        deadlines: of acks and handlers; somebody must run them.
        half_open: connections whose hello has not come, the oldest first; a nursery stands there once the task has started.
        connections: all connections, and those whose session is finishing its handlers; None stands there before the hello.
        accepted: connections since the start.
        draining: true refuses everybody.
        doorkeeper: answers packets of unknown connections.
    """

    def __init__(
        self,
        router: Router,
        tls: TLSContext,
        config: ServerConfig,
        instruments: Instruments,
        authenticate: Authenticator | None = None,
    ) -> None:
        limits = config.limits
        self.registry: SessionRegistry = SessionRegistry()
        self.table: WaitingTable = WaitingTable(limits.waiting, limits.waiting_per_session)
        self.budget: CreditBudget = CreditBudget(limits.total_bytes)
        self.deadlines: Deadlines = Deadlines()
        self.half_open: dict[Connection, trio.Nursery | None] = {}
        self.connections: dict[Connection, Session | None] = {}
        self.accepted: int = 0
        self.draining: bool = False
        key = None if config.reset_key_file is None else load_reset_key(Path(config.reset_key_file))
        self.doorkeeper: Doorkeeper = Doorkeeper(key, self._must_retry)
        self._initials = InitialRate(limits.initials_per_second)
        self._turned_away: dict[bytes, None] = {}
        self._router = router
        self._tls = tls
        self._engines = engine_maker(config.engine, tls)
        self._config = config
        self._instruments = instruments
        self._counters = instruments.counters
        self._gatekeeper = Gatekeeper(authenticate, config, instruments, self.deadlines)
        self._windows = Windows(
            stream_in=limits.lane_window,
            stream_out=RETURN_WINDOW,
            connection=connection_window(limits),
            streams=limits.lanes + 1,  # the control stream beside the lanes
        )
        self._endpoint: Endpoint
        self._nursery: trio.Nursery

    def open(self, endpoint: Endpoint, nursery: trio.Nursery) -> None:
        """Run connections in this nursery from now on, on the socket whose endpoint calls `accept`."""
        self._endpoint = endpoint
        self._nursery = nursery

    def _must_retry(self, now: float) -> bool:
        """Tell whether there is such a load that a new client must show first that its address is its own."""
        busy = max(len(self.half_open) * 2, RETRY_FLOOR) > max(self._config.limits.half_open, RETRY_FLOOR)
        return self._initials.too_fast(now) or busy

    # -- from the first packet ---------------------------------------------------------------------------------------
    def accept(self, header: Header, address: Address, now: float) -> Pump | None:
        """Make a connection for a client's first packet."""
        if self.draining:
            self._turn_away(header.destination)
            return None
        config = self._config
        if len(self.half_open) >= config.limits.half_open:
            oldest = next(iter(self.half_open))
            del self.half_open[oldest]
            oldest.close(CloseCode.OVERLOADED, "too many half-open connections")
        engine = self._engines.server_engine(
            self._tls,
            original_destination_id=header.destination if header.original is None else header.original,
            alpn=alpn_offer(config.protocol),
            idle_timeout=config.heartbeat_timeout * 2,
            windows=self._windows,
            datagram_size=config.datagram_size,
            congestion=config.congestion,
            probes=self._endpoint.probes,
            retry_source_id=None if header.original is None else header.destination,
            reset_key=self.doorkeeper.key,
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
            deadlines=self.deadlines,
            instruments=self._instruments,
        )
        self.accepted += 1
        self.connections[connection] = None
        # Counted at once: a whole batch of first packets comes in before the first of their tasks has run.
        self.half_open[connection] = None
        self._nursery.start_soon(self._run_connection, connection)
        return connection.pump

    def _turn_away(self, attempt: bytes) -> None:
        """Count a refused attempt once: nobody answers it, so its first packet comes again and again, under the same id."""
        if attempt not in self._turned_away:
            if len(self._turned_away) >= TURNED_AWAY:
                del self._turned_away[next(iter(self._turned_away))]
            self._turned_away[attempt] = None
            count(self._counters.connections_refused, f"server:{DisconnectReason.DRAINING.value}")

    async def _run_connection(self, connection: Connection) -> None:
        """One connection, and the session that outlives it, in one nursery whose body is the pump."""
        try:
            async with trio.open_nursery() as nursery:
                if connection in self.half_open:
                    self.half_open[connection] = nursery
                try:
                    await connection.run()
                    session = self._session_at_home(connection)
                    if session is not None:
                        await session.linger(self._config.session_ttl)
                        self.registry.forget(session)
                finally:
                    # However it ends: the other sessions of the client share a worker limit, and must not wake a dispatcher whose
                    # nursery is closing.
                    session = self._session_at_home(connection)
                    if session is not None:
                        session.conclude()
                nursery.cancel_scope.cancel()
        except Exception as exc:
            # A defect in one connection must not take the others down; it is logged whole and counted.
            log.exception("connection ended by an unexpected error", **connection.context)
            self._report_defect(connection, exc)
        finally:
            self.half_open.pop(connection, None)
            session = self._session_at_home(connection)
            del self.connections[connection]
            if session is not None:
                self.registry.forget(session)
                session._release()

    def _session_at_home(self, connection: Connection) -> Session | None:
        """Return the session that began on a connection: others that carried it since leave its end to that one's task."""
        session = self.connections[connection]
        return session if session is not None and session.home is connection else None

    def sessions(self) -> list[Session]:
        """Return all sessions, each once: connected, away, or finishing their handlers."""
        return [session for connection, session in self.connections.items() if session is not None and session.home is connection]

    def _report_defect(self, connection: Connection, exc: Exception) -> None:
        self._counters.internal_errors += 1
        session = self.connections[connection]
        client_id = "" if session is None else session.client_id
        self._instruments.report_error(client_id, "internal", f"{type(exc).__name__}: {exc}")

    # -- connection.ConnectionOwner ----------------------------------------------------------------------------------
    def handshake_completed(self, connection: Connection) -> None:
        """Wait for the hello."""

    def control_frame(self, connection: Connection, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """Take a hello, fresh credentials or a goodbye."""
        if isinstance(frame, Hello):
            self._hello(connection, frame)
        elif isinstance(frame, Authentication):
            self._gatekeeper.renew(connection, frame)

    def _hello(self, connection: Connection, hello: Hello) -> None:
        if self.draining:
            connection.close(CloseCode.SHUTDOWN, "the server is draining")
            return
        config = self._config
        try:
            terms = check_hello(hello, config.heartbeat_interval)
        except RemoteProtocolError as exc:
            connection.close(CloseCode.REJECTED, str(exc))
            return
        if self._is_taken(hello.client_id, connection):
            connection.close(CloseCode.OVERLOADED, NO_SESSION)
            return
        self._gatekeeper.check(
            connection,
            hello.client_id,
            hello.credentials,
            nursery=self.half_open.get(connection),
            admit=partial(self._admit, connection, hello, terms),
        )

    def _is_taken(self, client_id: str, connection: Connection) -> bool:
        """Return True for an id whose session this client of quic-backbone-v1 may not take over: most prove nothing."""
        session = self.registry.get(client_id)
        if connection.protocol != BACKBONE1 or session is None or session.retired:
            return False
        if session.vouched and not (session.protocol == BACKBONE1 and is_named(connection, client_id)):
            return True
        return self._config.v1_duplicates == "refuse" and session.connected

    def _admit(self, connection: Connection, hello: Hello, terms: Terms, identity: Identity) -> None:
        if self._is_taken(hello.client_id, connection):
            # By one who came while the authenticator was thinking.
            connection.close(CloseCode.OVERLOADED, NO_SESSION)
            return
        config = self._config
        session = self._resume(connection, hello) if terms.revision >= RESUMING else None
        resumed = session is not None
        if session is None:
            session = self._make_session(hello.client_id, connection)
        connection.send(
            Welcome(
                revision=REVISION,
                session_id=session.id,
                session_token=session.token if terms.revision >= RESUMING else b"",
                resumed=resumed,
                lanes=session._link.states() if resumed else (),
                heartbeat_interval_ms=math.ceil(config.heartbeat_interval * 1000),
                limits=PeerLimits(payload=config.limits.payload, lanes=config.limits.lanes),
            )
        )
        connection.open(session._link, terms, hello.lanes if resumed else None)
        self._gatekeeper.admitted(session, connection, identity)
        log.info("client connected", **connection.context, resumed=resumed)

    def _resume(self, connection: Connection, hello: Hello) -> Session | None:
        """Let a connection carry the session whose token its hello shows; None when there is no such session, or not any more."""
        session = self.registry.get(hello.client_id)
        if session is None or not hello.session_token or not session.may_resume(hello):
            return None
        last = session.let_go()
        self._report_end(session, last)
        del self.half_open[connection]
        away = trio.current_time() - session.lost_at if last.closed.is_set() else 0.0
        self.connections[connection] = session
        session.resume(connection)
        self.registry.enter(session)
        session.note("connected", "{}:{}".format(*session.remote_address))
        self._instruments.report_connect(
            session.client_id, session.remote_address, session.protocol, away=away, attempts=0, resumed=True
        )
        return session

    def _make_session(self, client_id: str, connection: Connection) -> Session:
        """Make the session of a connection, and let it take over from an earlier one of the same client."""
        earlier = self.registry.get(client_id)
        if earlier is not None and not earlier.vouched and self._gatekeeper.vouches(connection):
            # Whoever that was shall not hold up the one who has shown credentials.
            earlier.hurry()
            earlier = None
        link = Link(
            self._config,
            table=self.table,
            deadlines=self.deadlines,
            budget=self.budget,
            client_id=client_id,
            instruments=self._instruments,
            earlier=None if earlier is None else earlier._link,
            away=partial(ClientNotConnected, client_id) if self._config.away == "refuse" else None,
        )
        history = self.registry.histories.enter(client_id)
        before = history[-1] if history else None
        session = Session(
            client_id,
            link,
            connection,
            id=os.urandom(16),
            token=os.urandom(TOKEN_BYTES),
            epoch=self._instruments.epoch,
            history=history,
        )
        nursery = self.half_open.pop(connection)
        assert nursery is not None, "a connection that says hello has its task"
        crew = None if earlier is None else earlier.crew
        session.crew = run_handlers(link, self._router, peer=session, sender=client_id, nursery=nursery, crew=crew)
        older = self.registry.enter(session)
        if older is not None:
            if older.connected:
                older.note("replaced", "a newer connection uses the client id")
                log.warning("a newer connection takes the session over", client_id=client_id, connection=connection.number)
            link.inherit(older._link)
            older.replace()
            self._report_end(older, older._connection)
        self.connections[connection] = session
        session.note("connected", "{}:{}".format(*session.remote_address))
        away = None
        if before is not None:
            away = 0.0 if before.change == "connected" else session.connected_at - before.at
        self._instruments.report_connect(client_id, session.remote_address, session.protocol, away=away, attempts=0)
        return session

    def _report_end(self, session: Session, connection: Connection) -> None:
        """Report an end once: of a session that is replaced before the beginning of the one that replaces it."""
        ended = connection.ended
        if session.end_reported or ended is None:
            return
        session.end_reported = True
        report_end(self._instruments, session.client_id, ended, is_client=False)

    def connection_ended(self, connection: Connection, ended: ConnectionEnded) -> None:
        """Take the session off the list of the connected; it is kept for its time to live unless the client is done."""
        self._gatekeeper.ended(connection)
        reason = ending_text(ended)
        session = self.connections[connection]
        if session is None:
            count(self._counters.connections_refused, reason_label(ended, is_client=False))
            log.info("connection ended before its hello", **connection.context, reason=reason)
            return
        if session._connection is not connection:
            # Another one carries the session since; this end was told of then.
            log.info("earlier connection of a client ended", **connection.context, reason=reason)
            return
        self._report_end(session, connection)
        if self.registry.get(session.client_id) is session:
            # Not of one that was replaced: its end would stand in the history behind the beginning of the newer one.
            session.note("disconnected", reason)
        log.info("client disconnected", **connection.context, reason=reason, by="client" if ended.by_peer else "server")
        self.registry.leave(session)
        if ended.application and ended.code == CloseCode.SHUTDOWN and not ended.by_peer:
            # Also when `serve` was cancelled: this side closed, nothing was lost.
            session._link.end(partial(ConnectionClosed, "the server was closed"))
        final = ended.application and ended.code == CloseCode.NORMAL
        session.lost(loss(ended), final=final, survives=survivable(ended))
