"""`Link`: one side's half of a session. It outlives connections: lanes, waiting requests and handlers hang on it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import trio

from .config import ClientConfig, ServerConfig
from .deadlines import Deadlines
from .dispatch import Dispatcher
from .errors import PayloadTooLarge, ProtocolError
from .message import Message
from .protocol.credit import CreditBudget
from .protocol.handshake import Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import ErrorFactory, LaneSender, Outgoing
from .protocol.waiting import WaitingShare, WaitingTable
from .router import Router

if TYPE_CHECKING:
    from .connection import Connection
    from .peer import Peer

__all__ = ["Link"]


class Link:
    """What a `Peer` works on.

    Attributes:
        lanes: the lanes this side has opened, by name; the default lane has the empty name.
        peers: what users send on each of them through, by name.
        share: this session's part of the waiting table.
        deadlines: where ack deadlines stand.
        ack_timeout: default of `Peer.request`, seconds.
        dispatcher: runs the handlers.
        opened: set once the first connection stood, or none ever will.
        connection: the connection that carries the session now, None while there is none.
        lane_limit: lanes that this side may have open.
        held_bytes: bytes received that wait for handlers.
    """

    def __init__(
        self,
        config: ClientConfig | ServerConfig,
        *,
        router: Router,
        sender: str,
        table: WaitingTable,
        deadlines: Deadlines,
        budget: CreditBudget,
    ) -> None:
        limits = config.limits
        self._config = config
        self._router = router
        self._sender = sender
        self._budget = budget
        self._ended: ErrorFactory | None = None
        self._payload_limit = limits.payload
        self._earlier_bytes = (0, 0)
        self.lanes = {"": LaneSender("", limits.outbox_bytes)}
        self.peers: dict[str, Peer] = {}
        self.share = WaitingShare(table)
        self.deadlines = deadlines
        self.ack_timeout = config.ack_timeout
        self.opened = trio.Event()
        self.connection: Connection | None = None
        self.lane_limit = limits.lanes
        self.held_bytes = 0

    def serve(self, peer: Peer, nursery: trio.Nursery) -> None:
        """Run handlers in this nursery, with ``peer`` as what they get to answer through."""
        config = self._config
        self.peers[""] = peer
        self.dispatcher = Dispatcher(
            self._router,
            peer=peer,
            sender=self._sender,
            workers=config.workers,
            handler_timeout=config.handler_timeout,
            payload_limit=config.limits.payload,
            queue_limit=config.limits.dispatch_queue,
            ack_limit=config.limits.outbox_bytes,
            deadlines=self.deadlines,
            progress=self._progress,
            broken=self._broken,
        )
        self.dispatcher.start(nursery)

    # -- what a peer sends -----------------------------------------------------------------------------------------
    def check(self, message: Message) -> None:
        """Raise if the message cannot be taken, now or ever."""
        if self._ended is not None:
            raise self._ended()
        if len(message.payload) > self._payload_limit:
            raise PayloadTooLarge(len(message.payload), self._payload_limit)

    def submit(self, outgoing: Outgoing) -> None:
        """Give a message to its lane, or raise as `check` does."""
        self.check(outgoing.message)
        outgoing.lane.offer(outgoing)

    def add_lane(self, name: str) -> LaneSender:
        """Open one more lane; the caller has checked name and limit."""
        lane = self.lanes[name] = LaneSender(name, self._config.limits.outbox_bytes)
        if self.connection is not None:
            lane.notify = self.connection.lane_pending
        return lane

    def allows(self, lane: LaneSender) -> bool:
        """Return False for a lane that is one too many: it was opened before the peer's limit was known."""
        return lane in itertools.islice(self.lanes.values(), self.lane_limit)

    # -- connections -----------------------------------------------------------------------------------------------
    def attach(self, connection: Connection, terms: Terms) -> None:
        """Let a connection carry the session from now on: what waited in the outboxes goes out on it."""
        self.connection = connection
        limits = self._config.limits
        self._payload_limit = min(limits.payload, terms.payload)
        self.lane_limit = min(limits.lanes, terms.lanes)
        self.dispatcher.payload_limit = self._payload_limit
        for lane in self.lanes.values():
            lane.notify = connection.lane_pending
            if self._payload_limit < limits.payload:
                lane.refuse_larger(self._payload_limit)
            if lane.pending:
                connection.lane_pending(lane)
        self.opened.set()

    def detach(self, error: ErrorFactory) -> None:
        """Note that the connection is gone: what was on the wire ends with ``error``; handlers and outboxes stay."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abandon()
            sent, received = self._earlier_bytes
            self._earlier_bytes = (sent + connection.bytes_sent, received + connection.bytes_received)
        self._payload_limit = self._config.limits.payload
        for lane in self.lanes.values():
            lane.connection_lost(error)

    def end(self, error: ErrorFactory, *, under_way: ErrorFactory | None = None) -> None:
        """Let every call raise ``error`` from now on; those under way raise ``under_way`` if given. The first reason stays."""
        if self._ended is None:
            self._ended = error
        last = error if under_way is None else under_way
        self.detach(last)
        for lane in self.lanes.values():
            lane.fail_queued(last)
        self.opened.set()

    @property
    def ended(self) -> ErrorFactory | None:
        """Why calls raise, None while they do not."""
        return self._ended

    # -- what the dispatcher reports ---------------------------------------------------------------------------------
    def account(self, lane: LaneReceiver) -> None:
        """Bring the bytes held for handlers up to date."""
        self.held_bytes += self._budget.account(lane)

    def release(self) -> None:
        """Give back what is still held, once no handler will run any more: else a dead session would shrink all windows for ever."""
        self._budget.held -= self.held_bytes
        self.held_bytes = 0

    def window(self) -> int:
        """Return the credit window for a lane at the moment, bytes."""
        return self._budget.window(self._config.limits.lane_window)

    def _progress(self, lane: LaneReceiver) -> None:
        if lane.attached and self.connection is not None:
            self.connection.lane_progress(lane)
        else:
            self.account(lane)

    def _broken(self, lane: LaneReceiver, error: ProtocolError) -> None:
        if lane.attached and self.connection is not None:
            self.connection.fail(error)

    # -- figures -----------------------------------------------------------------------------------------------------
    @property
    def messages_sent(self) -> int:
        """Messages written, over all connections."""
        return sum(lane.written for lane in self.lanes.values())

    @property
    def unacked_bytes(self) -> int:
        """Bytes written to QUIC that the peer has not acknowledged."""
        return 0 if self.connection is None else self.connection.unacked()

    @property
    def bytes_sent(self) -> int:
        """Stream bytes written, over all connections."""
        return self._earlier_bytes[0] + (0 if self.connection is None else self.connection.bytes_sent)

    @property
    def bytes_received(self) -> int:
        """Stream bytes received, over all connections."""
        return self._earlier_bytes[1] + (0 if self.connection is None else self.connection.bytes_received)
