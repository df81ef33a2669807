"""`Link`: one side's half of a session. It outlives connections: lanes, waiting requests and handlers hang on it."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from functools import partial
from typing import Protocol

import trio

from .config import ClientConfig, ServerConfig
from .deadlines import Deadlines
from .errors import ConnectionLost, PayloadTooLarge, ProtocolError
from .gate import Gate
from .message import Message, type_name
from .observe.events import MessageSentEvent
from .observe.instruments import Instruments
from .protocol.credit import CreditBudget
from .protocol.handshake import RESUMING, Terms, states_fit
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.outgoing import ErrorFactory, Outgoing
from .protocol.waiting import WaitingShare, WaitingTable
from .wire import LaneState

__all__ = ["Link"]


class Carrier(Protocol):
    """What a link needs of the connection that carries it: `connection.Connection`."""

    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""

    def unacked(self) -> int:
        """Return how many bytes written the peer's transport has not acknowledged."""

    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write."""

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""

    def fail(self, error: ProtocolError) -> None:
        """Close because the peer broke the protocol."""

    def abandon(self) -> None:
        """Take nothing in any more, and write nothing."""


class Handlers(Protocol):
    """What a link needs of the dispatcher that runs its handlers: `dispatch.Dispatcher`."""

    payload_limit: int
    gate: Gate | None

    @property
    def received(self) -> int:
        """Messages whose handler was started."""

    @property
    def failed(self) -> int:
        """Handlers that did not succeed."""

    @property
    def cancelled(self) -> int:
        """Messages taken back by their sender before their handler ended."""

    @property
    def running(self) -> int:
        """Handlers that run now."""

    @property
    def depth(self) -> int:
        """Messages decoded whose handlers have not ended."""

    def receive(self, lane: LaneReceiver) -> None:
        """Take what a lane has received."""

    def resume(self, lane: LaneReceiver) -> None:
        """Look at a lane again."""

    def stop(self) -> None:
        """Start no further handler."""

    def release(self) -> None:
        """Stop for good, once no handler runs any more."""

    async def wait_idle(self) -> None:
        """Wait until no handler runs and no decoded message waits for one."""


class Link:
    """What a `Peer` works on.

    Attributes:
        lanes: the lanes this side has opened, by name; the default lane has the empty name.
        share: this session's part of the waiting table.
        deadlines: where ack deadlines stand.
        ack_timeout: default of `Peer.request`, seconds.
        config: as given.
        dispatcher: runs the handlers; `dispatch.run_handlers` sets it before anything is received.
        opened: set once the first connection stood, or none ever will.
        connection: the connection that carries the session now, None while there is none.
        lane_limit: lanes that this side may have open.
        held_bytes: bytes received that wait for handlers.
        trouble: what went wrong with the last connection, for error messages; empty when nothing did.
        client_id: the client's id, on either side.
        instruments: where this side counts and reports.
        received_lanes: the last lane received of each name, also from earlier sessions; their messages come first.
        session_lanes: the lanes received of this session, by name; they live as long as it.
        resumable: true when the session can go on on another connection.
    """

    def __init__(
        self,
        config: ClientConfig | ServerConfig,
        *,
        table: WaitingTable,
        deadlines: Deadlines,
        budget: CreditBudget,
        client_id: str,
        instruments: Instruments,
        earlier: Link | None = None,
        away: ErrorFactory | None = None,
    ) -> None:
        limits = config.limits
        self.config: ClientConfig | ServerConfig = config
        self.dispatcher: Handlers
        self._budget = budget
        self._ended: ErrorFactory | None = None
        # What new calls raise while no connection carries the session; None lets them wait in the outbox.
        self._away = away
        self._payload_limit = limits.payload
        self._earlier_bytes = (0, 0)
        self.client_id: str = client_id
        self.instruments: Instruments = instruments
        self.lanes: dict[str, LaneSender] = {"": self._new_lane("")}
        self.share: WaitingShare = WaitingShare(table)
        self.deadlines: Deadlines = deadlines
        self.ack_timeout: float = config.ack_timeout
        self.opened: trio.Event = trio.Event()
        self.connection: Carrier | None = None
        self.lane_limit: int = limits.lanes
        self.held_bytes: int = 0
        self.trouble: str = ""
        self._interruption = "the connection ended"
        self.received_lanes: dict[str, LaneReceiver] = {} if earlier is None else earlier.received_lanes
        self.session_lanes: dict[str, LaneReceiver] = {}
        self.resumable: bool = False

    def _new_lane(self, name: str) -> LaneSender:
        return LaneSender(name, self.config.limits.outbox_bytes, self.instruments.counters.latency)

    # -- what a peer sends -----------------------------------------------------------------------------------------
    def check(self, message: Message) -> None:
        """Raise if the message cannot be taken, now or ever."""
        if self.connection is None:
            # A session that has ended has none.
            refusal = self._ended or self._away
            if refusal is not None:
                raise refusal()
        if len(message.payload) > self._payload_limit:
            self.instruments.counters.encoding_errors += 1
            raise PayloadTooLarge(len(message.payload), self._payload_limit)

    def submit(self, outgoing: Outgoing) -> None:
        """Give a message to its lane, or raise as `check` does."""
        self.check(outgoing.message)
        outgoing.lane.offer(outgoing)

    def add_lane(self, name: str) -> LaneSender:
        """Open one more lane; the caller has checked name and limit."""
        lane = self.lanes[name] = self._new_lane(name)
        lane.confirms = self.resumable
        if self.connection is not None:
            lane.notify = self.connection.lane_pending
        return lane

    def allows(self, lane: LaneSender) -> bool:
        """Return False for a lane that is one too many: it was opened before the peer's limit was known."""
        return lane in itertools.islice(self.lanes.values(), self.lane_limit)

    # -- connections -----------------------------------------------------------------------------------------------
    def attach(self, connection: Carrier, terms: Terms, resumed: Collection[LaneState] | None = None) -> None:
        """Let a connection carry the session from now on: what waited in the outboxes goes out on it.

        ``resumed`` says how far the peer has come with our lanes, when it knows the session; `can_resume` has looked at it. None begins
        a new one, which is nothing new for a session that nothing was ever written in.
        """
        if resumed is None:
            self._begin()
        else:
            states = {state.name: state for state in resumed}
            for name, lane in self.lanes.items():
                lane.resume(states.get(name, LaneState(name)))
            self.instruments.counters.sessions_resumed += 1
        self.connection = connection
        self.resumable = terms.revision >= RESUMING
        limits = self.config.limits
        self._payload_limit = min(limits.payload, terms.payload)
        self.lane_limit = min(limits.lanes, terms.lanes)
        self.dispatcher.payload_limit = self._payload_limit
        for lane in self.lanes.values():
            lane.confirms = self.resumable
            lane.notify = connection.lane_pending
            if self._payload_limit < limits.payload:
                self.lost(lane.refuse_larger(self._payload_limit))
            if lane.pending:
                connection.lane_pending(lane)
        self.opened.set()

    def _begin(self) -> None:
        """Begin a new session: the peer knows nothing of an earlier one."""
        for lane in self.lanes.values():
            lost, again = lane.restart(
                partial(ConnectionLost, f"{self._interruption}; the peer does not know the session any more")
            )
            self.lost(lost)
            self.instruments.counters.messages_redelivered += again
        self._forget_received()

    def _forget_received(self) -> None:
        """Let go of the lanes received: their handlers go on, their acks lead nowhere."""
        lanes, self.session_lanes = self.session_lanes, {}
        for lane in lanes.values():
            lane.forget_acks()
            self.dispatcher.resume(lane)

    def inherit(self, earlier: Link) -> None:
        """Take over what an earlier session of the same peer has to redeliver; it fails what is left when it ends."""
        for name, lane in earlier.lanes.items():
            again = lane.take_redeliverable()
            if again:
                if name not in self.lanes:
                    self.add_lane(name)
                self.lanes[name].redeliver(again)
                self.instruments.counters.messages_redelivered += sum(outgoing.redelivered for outgoing in again)

    def states(self) -> tuple[LaneState, ...]:
        """Return how far the peer's lanes have come here, for a hello or a welcome."""
        return tuple(lane.state for lane in self.session_lanes.values())

    def can_resume(self, states: Collection[LaneState]) -> bool:
        """Return False when what the peer says about our lanes cannot be."""
        if not states_fit(self.states()):
            return False
        known = {state.name: state for state in states}
        every = all(lane.can_resume(known.pop(name, LaneState(name))) for name, lane in self.lanes.items())
        return every and not known

    @property
    def unfinished(self) -> bool:
        """True while the peer has not got what it is to get, or a handler owes it an answer."""
        return any(lane.unwritten or lane.unreceipted for lane in self.lanes.values()) or any(
            lane.busy for lane in self.session_lanes.values()
        )

    def pause(self, interruption: str = "") -> None:
        """Note that the connection is gone and the session is not: everything waits for its next connection.

        Should the session not go on, what was on the wire ends with this ``interruption`` as the reason.
        """
        self._interruption = interruption or self._interruption
        self._let_go()
        for lane in self.lanes.values():
            lane.pause()

    def detach(self, error: ErrorFactory) -> None:
        """Note that the session is gone with its connection: what was on the wire ends with ``error``; handlers and outboxes stay.

        What may be redelivered waits in its outbox for the next session.
        """
        self._let_go()
        self.resumable = False
        for lane in self.lanes.values():
            lost, again = lane.restart(error)
            self.lost(lost)
            self.instruments.counters.messages_redelivered += again
        self._forget_received()

    def _let_go(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abandon()
            sent, received = self._earlier_bytes
            self._earlier_bytes = (sent + connection.bytes_sent, received + connection.bytes_received)
        self._payload_limit = self.config.limits.payload

    def abandon(self) -> None:
        """Give up the messages that wait for handlers: no further one will start."""
        for lane in self.session_lanes.values():
            self.instruments.counters.messages_abandoned += lane.abandon()

    def end(self, error: ErrorFactory, *, under_way: ErrorFactory | None = None) -> None:
        """Let every call raise ``error`` from now on; those under way raise ``under_way`` if given. The first reason stays."""
        if self._ended is None:
            self._ended = error
        last = error if under_way is None else under_way
        self._let_go()
        self.resumable = False
        for lane in self.lanes.values():
            self.lost(lane.fail_written(last) + lane.fail_queued(last))
        for receiver in self.session_lanes.values():
            receiver.forget_acks()
            self.dispatcher.resume(receiver)
        self.opened.set()

    @property
    def ended(self) -> ErrorFactory | None:
        """Why calls raise, None while they do not."""
        return self._ended

    def lost(self, messages: int) -> None:
        """Count messages that were taken for sending and whose delivery will not be confirmed."""
        self.instruments.counters.messages_lost += messages

    def report_sent(self, lane: LaneSender, number: int) -> None:
        """Report the last messages that a lane has written; called only while somebody listens."""
        events = self.instruments.events
        now = events.now()
        for outgoing in lane.last_written(number):
            message = outgoing.message
            events.emit(
                MessageSentEvent(
                    at=now,
                    client_id=self.client_id,
                    message_id=message.id,
                    type=type_name(message.type),
                    size=len(message.payload),
                    lane=lane.name,
                    wants_ack=outgoing.wants_ack,
                )
            )

    # -- what the dispatcher reports ---------------------------------------------------------------------------------
    def account(self, lane: LaneReceiver) -> None:
        """Bring the bytes held for handlers up to date."""
        self.held_bytes += self._budget.account(lane)

    def note_held(self, size: int) -> None:
        """Add what a connection itself holds of messages that are not complete, or take it off."""
        self.held_bytes += size
        self._budget.held += size

    def release(self) -> None:
        """Give back what is still held, once no handler will run any more: else a dead session would shrink all windows for ever."""
        self.dispatcher.release()
        self._budget.held -= self.held_bytes
        self.held_bytes = 0

    def enter_lane(self, name: str, lane: LaneReceiver) -> None:
        """Take up a lane that has just been named, and let what an earlier connection brought on it come first."""
        self.session_lanes[name] = lane
        older = self.received_lanes.get(name)
        if older is not None:
            lane.follow(older, partial(self.dispatcher.resume, lane))
        self._remember_lane(name, lane)

    def _remember_lane(self, name: str, lane: LaneReceiver) -> None:
        """Note the lane that has this name now, and forget those of earlier connections that have nothing left to do."""
        lanes = self.received_lanes
        for other in [key for key, value in lanes.items() if not (value.attached or value.waiting or value.running)]:
            del lanes[other]
        lanes[name] = lane

    def window(self) -> int:
        """Return the credit window for a lane at the moment, bytes."""
        return self._budget.window(self.config.limits.lane_window)

    def progress(self, lane: LaneReceiver) -> None:
        """Note that a message of a lane is done with."""
        if lane.attached and self.connection is not None:
            self.connection.lane_progress(lane)
        else:
            self.account(lane)

    def broken(self, lane: LaneReceiver, error: ProtocolError) -> None:
        """Note that a lane's bytes make no sense."""
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
