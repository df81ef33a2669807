"""A server's sessions: `Session`, one client as the server sees it, and the registry in which the newest connection wins."""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import final

import trio

from .auth import ANYBODY, Identity
from .connection import Connection
from .crew import Crew
from .errors import ClientNotConnected, ConnectionClosed, ConnectionLost
from .link import Link
from .observe.history import History, HistoryBook, SessionChange
from .observe.logs import printable
from .peer import Peer
from .protocol.outgoing import ErrorFactory
from .protocol.state import CloseCode
from .wire import Hello

__all__ = ["Session", "SessionRegistry"]

FINISHING = 8
"""Sessions of one client id that were replaced and may go on with their handlers. Each holds up to a window of messages on every lane, so
a client that comes back without its token again and again would fill the server with what it has sent."""


@final
class Session(Peer):
    """One client as the server sees it. The server makes it when a client's hello is accepted.

    Attributes:
        client_id: the client's id.
        identity: who it is and what it may do, as the authenticator said last; anybody, where there is none.
        id: 16 random bytes that name this session.
        home: the connection that it began on, in whose nursery its handlers run.
        connected_at: when its connection was accepted, Unix seconds.
        crew: how many handlers run for this client id, shared with its next session.
        end_reported: true once the end of its connection was counted and told.
        vouched: true once an authenticator has said who it is: no client without credentials may take it over.
    """

    def __init__(
        self, client_id: str, link: Link, connection: Connection, *, id: bytes, token: bytes, epoch: float, history: History
    ) -> None:
        super().__init__(link, link.lanes[""])
        self.client_id: str = client_id
        self.id: bytes = id
        self.home: Connection = connection
        self.identity: Identity = ANYBODY
        self._connection = connection
        self._token = token
        # Unix time minus Trio's clock: a wall clock that jumps must not move what was measured.
        self._epoch = epoch
        self._history = history
        self._retired = False
        # Whoever keeps the session waits here for a change: it was lost, resumed or retired.
        self._news = trio.lowlevel.ParkingLot()
        self._lost_at = 0.0
        self._finishing = trio.CancelScope()
        self.crew: Crew | None = None
        self.end_reported: bool = False
        self.vouched: bool = False
        self.connected_at: float = epoch + trio.current_time()
        self._address = self._current_address()

    def __repr__(self) -> str:
        return f"<Session {self.client_id!r} {'connected' if self.connected else 'away'}>"

    @property
    def connected(self) -> bool:
        """True while a connection carries the session."""
        return self._link.connection is not None

    @property
    def remote_address(self) -> tuple[str, int]:
        """Host and port that the client sends from, or last did."""
        if self.connected:
            self._address = self._current_address()
        return self._address

    def _current_address(self) -> tuple[str, int]:
        address = self._connection.engine.peer_address
        return ("", 0) if address is None else (address[0], address[1])

    @property
    def protocol(self) -> str:
        """The message protocol of its connection: ``quicflow/2`` or ``quic-backbone-v1``."""
        return self._connection.protocol

    @property
    def last_heartbeat(self) -> float | None:
        """When the last ping came, Unix seconds; None before the first."""
        ping = self._connection.last_ping
        return None if ping is None else self._epoch + ping

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time of the connection, seconds (RFC 9002 section 5.3); None before the first sample."""
        return self._connection.engine.rtt

    @property
    def history(self) -> tuple[SessionChange, ...]:
        """The last 100 changes of this client id on this server, oldest first."""
        return tuple(self._history)

    def note(self, change: str, detail: str) -> None:
        """Add to the history."""
        self._history.append(SessionChange(self._epoch + trio.current_time(), change, printable(detail)))

    async def close(self, reason: str = "closed by the server") -> None:
        """Close the client's connection and end its session; the client may connect again, as a new session.

        Waits until the connection is gone. Cancelled, it goes on by itself. Handlers that run are not cancelled.
        """
        if self.connected:
            self.note("closed", reason)
        self._link.end(partial(ConnectionClosed, reason))
        self._retire()
        self._connection.close(CloseCode.NORMAL, reason)
        await self._connection.closed.wait()

    # -- for the registry and the server -----------------------------------------------------------------------------
    def _retire(self) -> None:
        if not self._retired:
            self._retired = True
            self._lost_at = trio.current_time()
        self._news.unpark_all()

    def replace(self) -> None:
        """End the session because a newer connection has its client id."""
        self._link.end(partial(ClientNotConnected, self.client_id), under_way=partial(ConnectionLost, "the client was replaced"))
        self._retire()
        self._connection.close(CloseCode.SESSION_REPLACED, "a newer connection uses this client id")

    def lost(self, error: ErrorFactory, *, final: bool, survives: bool) -> None:
        """Note that the connection has ended.

        Args:
            error: what requests under way raise if the session has ended with it.
            final: true when the client said that it is done.
            survives: true when the session waits for the client's next connection.
        """
        self._lost_at = trio.current_time()
        if survives and self._link.resumable and not self._retired and self._link.ended is None:
            self._link.pause()
        else:
            self._link.end(partial(ClientNotConnected, self.client_id), under_way=error)
        if final:
            self._retire()
        self._news.unpark_all()

    def may_resume(self, hello: Hello) -> bool:
        """Return True when a hello shows the session's token, and says about its lanes what can be."""
        return (
            hmac.compare_digest(hello.session_token, self._token)
            and not self._retired
            and self._link.ended is None
            and self._link.resumable
            and self._link.can_resume(hello.lanes)
        )

    def let_go(self) -> Connection:
        """Have the connection of the moment, if it still seems to be one, carry the session no longer; return the last one."""
        last = self._connection
        if self.connected:
            self._link.pause()
            last.close(CloseCode.SESSION_REPLACED, "a newer connection uses this client id")
        return last

    def resume(self, connection: Connection) -> None:
        """Note that another connection carries the session from now on."""
        self._connection = connection
        self.end_reported = False
        self.connected_at = self._epoch + trio.current_time()
        self._address = self._current_address()
        self._news.unpark_all()

    @property
    def retired(self) -> bool:
        """True once it will not go on."""
        return self._retired

    @property
    def token(self) -> bytes:
        """Proves the right to resume the session; a secret of the two sides."""
        return self._token

    @property
    def lost_at(self) -> float:
        """When its last connection ended, or it was retired (Trio clock)."""
        return self._lost_at

    async def linger(self, ttl: float) -> None:
        """Keep the session: until it was without a connection for ``ttl`` seconds, or is retired and its handlers have ended.

        Handlers of a retired one have ``ttl`` seconds to end. Cancellation changes nothing.
        """
        while not self._retired:
            if self.connected:
                await self._news.park()
                continue
            with trio.move_on_at(self._lost_at + ttl):
                await self._news.park()
                continue
            if not self.connected:
                return
        self._finishing.deadline = self._lost_at + ttl
        with self._finishing:
            await self._link.dispatcher.wait_idle()

    def hurry(self) -> None:
        """Let a retired session wait for its handlers no longer: it ends soon, and cancels them."""
        self._finishing.cancel()

    def conclude(self) -> None:
        """End the session for good: its time is over, or its handlers have nowhere to run any more."""
        self._link.end(
            partial(ClientNotConnected, self.client_id), under_way=partial(ConnectionLost, "the client did not come back in time")
        )
        self._retire()
        self._link.dispatcher.stop()
        self._link.abandon()
        if not self._connection.closed.is_set():
            self._connection.close(*self._connection.farewell)


class SessionRegistry:
    """Which session a client id means now.

    Attributes:
        connected: a live, read-only view of the connected sessions by client id.
        histories: the changes of every client, also of those that have left.
    """

    def __init__(self) -> None:
        self._connected: dict[str, Session] = {}
        self._kept: dict[str, Session] = {}
        self._finishing: dict[str, deque[Session]] = {}
        self.connected: Mapping[str, Session] = MappingProxyType(self._connected)
        self.histories: HistoryBook = HistoryBook()

    def find(self, client_id: str) -> Session:
        """Return the session of a client id, connected or away.

        Raises:
            ClientNotConnected: there is none.
        """
        session = self.get(client_id)
        if session is None:
            raise ClientNotConnected(client_id)
        return session

    def get(self, client_id: str) -> Session | None:
        """Return the session of a client id, connected or away; None when there is none."""
        return self._kept.get(client_id)

    def known(self) -> list[Session]:
        """Return the sessions that are connected, and those that are away but kept."""
        return [*self._kept.values()]

    def enter(self, session: Session) -> Session | None:
        """Let the id mean this session from now on; return the one it meant before. The newest wins."""
        client_id = session.client_id
        older = self._kept.get(client_id)
        if older is not None and older is not session:
            self._finish(older)
        self._kept[client_id] = session
        # Taken out first, so that the view keeps the order of connecting.
        self._connected.pop(client_id, None)
        self._connected[client_id] = session
        return older

    def _finish(self, session: Session) -> None:
        """Note that a session only has its handlers to finish now; the oldest of too many has had its time."""
        finishing = self._finishing.setdefault(session.client_id, deque())
        finishing.append(session)
        if len(finishing) > FINISHING:
            finishing.popleft().hurry()

    def leave(self, session: Session) -> None:
        """Take a session whose connection ended off the list of the connected, unless a newer one stands there."""
        if self._connected.get(session.client_id) is session:
            del self._connected[session.client_id]

    def forget(self, session: Session) -> None:
        """Forget a session, unless a newer one has its id."""
        self.leave(session)
        finishing = self._finishing.get(session.client_id, deque())
        if session in finishing:
            finishing.remove(session)
            if not finishing:
                del self._finishing[session.client_id]
        if self._kept.get(session.client_id) is session:
            del self._kept[session.client_id]
            self.histories.leave(session.client_id)
