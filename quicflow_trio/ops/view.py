"""What the ops side sees of a server: protocols that `server.Server` and its sessions fulfil, so that ops needs to import neither."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ..errors import QuicFlowError
from ..message import Ack, Message
from ..observe.events import Event, EventStream
from ..observe.history import SessionChange
from ..observe.metrics import MetricsSnapshot
from ..peer import Peer, PeerStatistics, Sent

__all__ = ["BroadcastOutcome", "ClientView", "ServerView"]


class IdentityView(Protocol):
    """Who a client is: `auth.Identity`."""

    @property
    def name(self) -> str:
        """As the authenticator says; empty where there is none."""


class ClientView(Protocol):
    """One client's session: `sessions.Session`."""

    client_id: str
    connected_at: float

    @property
    def connected(self) -> bool:
        """True while a connection carries it."""

    @property
    def identity(self) -> IdentityView:
        """Who it has shown to be."""

    @property
    def protocol(self) -> str:
        """The message protocol of its connection."""

    @property
    def remote_address(self) -> tuple[str, int]:
        """Host and port that the client sends from, or last did."""

    @property
    def last_heartbeat(self) -> float | None:
        """When the last ping came, Unix seconds."""

    @property
    def rtt(self) -> float | None:
        """Round-trip time, seconds."""

    def statistics(self) -> PeerStatistics:
        """Return its figures."""

    def lane(self, name: str) -> Peer:
        """Return a lane of it."""

    async def send(self, message: Message) -> Sent:
        """Queue a message."""

    async def request(self, message: Message, *, ack_timeout: float | None = None) -> Ack:
        """Send a message and wait for its ack."""

    async def close(self, reason: str = ...) -> None:
        """Close its connection and end it."""


class BroadcastOutcome(Protocol):
    """What became of a broadcast: `broadcast.BroadcastReport`."""

    @property
    def sent(self) -> int:
        """Sessions whose outbox took it."""

    @property
    def acked(self) -> Mapping[str, Ack]:
        """Acks by client id."""

    @property
    def failed(self) -> Mapping[str, QuicFlowError]:
        """Why not, by client id."""


class ServerView(Protocol):
    """A running server: `server.Server`."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and UDP port of the backbone."""

    @property
    def draining(self) -> bool:
        """True from the call of `drain` on."""

    @property
    def sessions(self) -> Mapping[str, ClientView]:
        """The connected sessions by client id."""

    def known_sessions(self) -> Iterable[ClientView]:
        """Return the connected sessions and those that are away but kept."""

    def departed(self) -> list[str]:
        """Return the ids of clients that have left and whose history is kept, the latest first."""

    def history(self, client_id: str) -> tuple[SessionChange, ...]:
        """Return the last 100 changes of a client, oldest first, also after it has left; empty when it is unknown."""

    def session(self, client_id: str) -> ClientView:
        """Return a session, connected or away; `ClientNotConnected` when there is none."""

    def metrics(self) -> MetricsSnapshot:
        """Return all figures."""

    def open_events(
        self, *, max_buffer_size: int = 256, kinds: Collection[type[Event]] | None = None, client_id: str | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to events."""

    async def broadcast(
        self, message: Message, *, to: Iterable[str] | None = None, ack_timeout: float | None = None
    ) -> BroadcastOutcome:
        """Send one message to many."""

    async def drain(self, *, grace: float, retry_after: float = 1.0) -> None:
        """Stop gracefully."""
