"""What happens, as records: `Event` and its kinds, and `EventHub`, which gives each subscriber a bounded stream of them.

Nothing is made while nobody listens: who reports a message first asks `EventHub.messages`, who reports anything else `EventHub.active`.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import ClassVar, Self, final

import trio

from .logs import Logger, get_logger

__all__ = [
    "AckTimeoutEvent",
    "BroadcastEvent",
    "ConnectEvent",
    "DisconnectEvent",
    "DisconnectReason",
    "ErrorEvent",
    "Event",
    "EventHub",
    "EventStream",
    "EVENTS",
    "HeartbeatTimeoutEvent",
    "MessageEvent",
    "MessageReceivedEvent",
    "MessageSentEvent",
    "ReconnectEvent",
    "StateChangeEvent",
]


log: Logger = get_logger(__name__)


class DisconnectReason(enum.Enum):
    """Why a connection ended. A fixed set: it names time series."""

    NORMAL = "normal"
    """The closing side was done: a client left, or `Session.close` was called."""
    PROTOCOL_ERROR = "protocol_error"
    """The other side broke the protocol."""
    FRAME_TOO_LARGE = "frame_too_large"
    """The other side announced a frame over the limit."""
    HELLO_TIMEOUT = "hello_timeout"
    """No hello, or no welcome, in time."""
    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    """Nothing was heard for the heartbeat time-out."""
    SESSION_REPLACED = "session_replaced"
    """A newer connection uses the client id."""
    REJECTED = "rejected"
    """The hello was not acceptable."""
    AUTHENTICATION_FAILED = "authentication_failed"
    """The certificate or the credentials were not accepted."""
    SHUTDOWN = "shutdown"
    """The server stopped."""
    OVERLOADED = "overloaded"
    """A limit of the whole server was reached."""
    SLOW_CONSUMER = "slow_consumer"
    """The other side did not read what it asked for."""
    INTERNAL_ERROR = "internal_error"
    """The closing side has a defect; its log has the traceback."""
    CREDENTIALS_EXPIRED = "credentials_expired"
    """The client's credentials were good no longer."""
    AUTHENTICATION_UNAVAILABLE = "authentication_unavailable"
    """The server could not find out whether the credentials were good."""
    IDLE_TIMEOUT = "idle_timeout"
    """QUIC heard nothing for its idle time-out."""
    HANDSHAKE_TIMEOUT = "handshake_timeout"
    """TLS was not done in time."""
    UNREACHABLE = "unreachable"
    """The network says that nobody listens there."""
    STATELESS_RESET = "stateless_reset"
    """The other side knows nothing of the connection: it was killed and restarted, most likely."""
    TLS = "tls"
    """TLS failed: a certificate, a version, a protocol name."""
    TRANSPORT = "transport"
    """QUIC failed in another way (RFC 9000 section 20.1)."""
    DRAINING = "draining"
    """The server takes no new connections."""
    OTHER = "other"
    """A code that this version does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What all events have.

    Attributes:
        at: when, Unix seconds.
        client_id: the client that it is about; empty when it is about none, or the server itself.
    """

    kind: ClassVar[str] = ""

    at: float
    client_id: str

    def as_json(self) -> dict[str, object]:
        """Return the event as plain values: ids as hexadecimal text, addresses as a list of host and port."""
        plain: dict[str, object] = {"kind": self.kind}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, bytes):
                value = value.hex()
            elif isinstance(value, enum.Enum):
                value = value.value
            elif isinstance(value, tuple):
                value = list(value)
            plain[declared.name] = value
        return plain


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectEvent(Event):
    """A connection stands: hello and welcome were exchanged.

    Attributes:
        remote_address: host and port of the other side.
        protocol: the message protocol that was agreed on, ``quicflow/2`` or ``quic-backbone-v1``.
    """

    kind: ClassVar[str] = "connect"

    remote_address: tuple[str, int]
    protocol: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DisconnectEvent(Event):
    """A connection that stood has ended.

    Attributes:
        reason: why.
        detail: the reason as the closing side put it; text of a peer is escaped.
        by_peer: true when the other side closed.
    """

    kind: ClassVar[str] = "disconnect"

    reason: DisconnectReason
    detail: str
    by_peer: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatTimeoutEvent(Event):
    """Nothing was heard of the other side for the heartbeat time-out; the disconnect follows.

    Attributes:
        silence: seconds since the last sign of life.
    """

    kind: ClassVar[str] = "heartbeat_timeout"

    silence: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectEvent(Event):
    """A client that was connected before is connected again; the connect event comes with it.

    Attributes:
        away: seconds since its last connection ended; 0.0 when that one still stood.
        attempts: attempts that it took; 0 on a server, which cannot know.
        resumed: true when its session goes on; false when a new one has begun.
    """

    kind: ClassVar[str] = "reconnect"

    away: float
    attempts: int
    resumed: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateChangeEvent(Event):
    """A client, or the server itself, has changed its state.

    Attributes:
        old: the state before: of a client ``idle``, ``connecting``, ``connected``; of a server ``listening``, ``draining``, ``stopped``.
        new: the state now.
        reason: why, as text; empty where the state says it all.
    """

    kind: ClassVar[str] = "state_change"

    old: str
    new: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEvent(Event):
    """What the events of single messages have.

    Attributes:
        message_id: its id, 16 bytes.
        type: its type's name.
        size: length of its payload, bytes.
        lane: its lane; empty for the default lane.
        wants_ack: true when its sender waits for an ack.
    """

    message_id: bytes
    type: str
    size: int
    lane: str
    wants_ack: bool


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSentEvent(MessageEvent):
    """A message was written to the wire."""

    kind: ClassVar[str] = "message_sent"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceivedEvent(MessageEvent):
    """A message was received and its handler is about to start."""

    kind: ClassVar[str] = "message_received"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BroadcastEvent(Event):
    """A broadcast was queued for those that could take it.

    Attributes:
        message_id: the id that everyone gets it under, 16 bytes.
        type: its type's name.
        size: length of its payload, bytes.
        targets: clients that it was meant for.
        sent: clients whose outbox took it.
    """

    kind: ClassVar[str] = "broadcast"

    message_id: bytes
    type: str
    size: int
    targets: int
    sent: int


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AckTimeoutEvent(Event):
    """A request's ack did not come in time.

    Attributes:
        message_id: id of the message, 16 bytes.
        ack_timeout: seconds that were waited.
    """

    kind: ClassVar[str] = "ack_timeout"

    message_id: bytes
    ack_timeout: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEvent(Event):
    """Something went wrong that somebody may want to look into.

    Attributes:
        error: what kind: ``handler_failed``, ``handler_timeout``, ``protocol``, ``network``, ``internal``,
            ``authentication``, ``refused_permission``, ``refused_rate``.
        detail: what happened, as text; text of a peer is escaped.
    """

    kind: ClassVar[str] = "error"

    error: str
    detail: str


EVENTS: tuple[type[Event], ...] = (
    ConnectEvent,
    DisconnectEvent,
    HeartbeatTimeoutEvent,
    ReconnectEvent,
    StateChangeEvent,
    MessageSentEvent,
    MessageReceivedEvent,
    BroadcastEvent,
    AckTimeoutEvent,
    ErrorEvent,
)
"""Every kind of event."""

_MESSAGES = frozenset({MessageSentEvent, MessageReceivedEvent})


@final
class EventStream:
    """A subscriber's events, oldest first: iterate over it. `Server.open_events` and `Client.open_events` make it.

    The iteration ends when the server or client has ended and everything buffered was read.

    Attributes:
        kinds: the kinds that it gets.
        dropped: events that found the buffer full and are lost to this subscriber.
    """

    def __init__(self, kinds: frozenset[type[Event]], max_buffer_size: int, client_id: str | None) -> None:
        self.kinds: frozenset[type[Event]] = kinds
        self.dropped: int = 0
        self._client_id = client_id
        # Not a memory channel: its answer to being full is an exception, which costs ten times as much as a look at a length, for
        # every event and every subscriber that does not read.
        self._buffer: deque[Event] = deque()
        self._room = max_buffer_size
        self._readers = trio.lowlevel.ParkingLot()
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. Cancelled, it has taken none."""
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._ended:
                raise StopAsyncIteration
            await self._readers.park()
        return self._buffer.popleft()

    def _offer(self, event: Event) -> bool:
        if self._client_id is not None and event.client_id != self._client_id:
            return True
        if len(self._buffer) >= self._room:
            self.dropped += 1
            return False
        self._buffer.append(event)
        if self._readers:
            self._readers.unpark()
        return True

    def _end(self) -> None:
        self._ended = True
        self._readers.unpark_all()


class EventHub:
    """Gives each event to everyone who subscribed to its kind. Emitting never waits: a full buffer loses the event, and counts it.

    Attributes:
        active: true while anybody listens.
        messages: true while anybody listens to single messages, or the log does: at level debug, looked up when the hub is made and
            when somebody comes or goes, so that a message costs nothing.
        dropped: events dropped, over all subscribers.
        epoch: Unix time minus Trio's clock, for who makes events.
    """

    __slots__ = ("_by_kind", "_closed", "_logged", "_streams", "active", "dropped", "epoch", "messages")

    def __init__(self, epoch: float) -> None:
        self._streams: list[EventStream] = []
        self._by_kind: dict[type[Event], list[EventStream]] = {}
        self._closed = False
        self._logged = False
        self.active: bool = False
        self.messages: bool = False
        self.dropped: int = 0
        self.epoch: float = epoch
        self._recount()

    def __len__(self) -> int:
        """Return how many subscribers there are."""
        return len(self._streams)

    def now(self) -> float:
        """Return the time for an event, Unix seconds."""
        return self.epoch + trio.current_time()

    def emit(self, event: Event) -> None:
        """Give an event to who wants it."""
        kind = event.__class__
        if self._logged and isinstance(event, MessageEvent):
            _log_message(event)
        for stream in self._by_kind.get(kind, ()):
            if not stream._offer(event):
                self.dropped += 1

    @contextmanager
    def subscribe(
        self, kinds: Collection[type[Event]] | None, max_buffer_size: int, client_id: str | None = None
    ) -> Iterator[EventStream]:
        """Subscribe for the length of one ``with``.

        Raises:
            TypeError: ``kinds`` holds something that is no kind of event.
            ValueError: the buffer is not at least 1.
        """
        chosen = frozenset(EVENTS if kinds is None else kinds)
        if not chosen <= frozenset(EVENTS):
            raise TypeError(f"kinds = {kinds!r}: expected classes of events, such as ConnectEvent")
        if not max_buffer_size >= 1:
            raise ValueError(f"max_buffer_size = {max_buffer_size!r}: expected at least 1")
        stream = EventStream(chosen, max_buffer_size, client_id)
        if self._closed:
            stream._end()
        self._streams.append(stream)
        self._recount()
        try:
            yield stream
        finally:
            self._streams.remove(stream)
            self._recount()
            stream._end()
            stream._buffer.clear()

    @asynccontextmanager
    async def open(
        self, kinds: Collection[type[Event]] | None, max_buffer_size: int, client_id: str | None
    ) -> AsyncIterator[EventStream]:
        """Subscribe for the length of one ``async with``; see `subscribe`."""
        with self.subscribe(kinds, max_buffer_size, client_id) as stream:
            yield stream

    def close(self) -> None:
        """Let every stream end once what it has buffered was read."""
        self._closed = True
        for stream in self._streams:
            stream._end()
        self._recount()

    def _recount(self) -> None:
        self._by_kind = {kind: [stream for stream in self._streams if kind in stream.kinds] for kind in EVENTS}
        self.active = bool(self._streams) and not self._closed
        self._logged = log.is_enabled_for(logging.DEBUG) and not self._closed
        self.messages = self._logged or (self.active and any(stream.kinds & _MESSAGES for stream in self._streams))


def _log_message(event: MessageEvent) -> None:
    what = {declared.name: getattr(event, declared.name) for declared in fields(event) if declared.name != "at"}
    log.debug("message sent" if isinstance(event, MessageSentEvent) else "message received", **what)
