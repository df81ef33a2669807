"""Both halves of a session over a line that is cut at any byte: each message handled once and in order, each wait answered, nothing kept."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pytest

from quicflow_trio.config import ClientConfig, Limits, ServerConfig
from quicflow_trio.deadlines import Deadlines
from quicflow_trio.errors import ClientNotConnected, ConnectionLost, ProtocolError
from quicflow_trio.link import Link
from quicflow_trio.message import Delivery, Message, MessageType
from quicflow_trio.observe.instruments import Instruments
from quicflow_trio.protocol.credit import CreditBudget
from quicflow_trio.protocol.lane_receiver import FRAME_OVERHEAD, Incoming, LaneReceiver
from quicflow_trio.protocol.lane_sender import CONFIRM_BYTES, LaneSender
from quicflow_trio.protocol.outgoing import Outgoing, OutgoingRequest, OutgoingState
from quicflow_trio.protocol.waiting import WaitingTable
from quicflow_trio.wire import AckStatus
from tests.protocol.line import Handlers, Line, Side, terms

LANES = ("", "second", "third")


@dataclass
class Sent:
    """One message, from the call to its end."""

    outgoing: Outgoing
    lane: str
    place: int
    from_client: bool
    taken_back: bool = False
    # How often its handler was started, and how often it was told that this may not be the first time.
    started: int = 0
    redelivered: int = 0
    results: set[bytes] = field(default_factory=set)
    # True once the process that sent it is gone.
    orphaned: bool = False
    # Lives of the receiving side in which its handler was started.
    lives: list[int] = field(default_factory=list)

    @property
    def message(self) -> Message:
        return self.outgoing.message


class World:
    """Client, server, the line between them, and what has happened."""

    def __init__(self, seed: int, *, restarts: bool = False) -> None:
        self.random = chance = random.Random(seed)
        self.restarts = restarts
        self.limits = Limits(
            payload=chance.choice((3000, 40_000)),
            lane_window=chance.choice((16 * 1024, 64 * 1024)),
            outbox_bytes=chance.choice((4096, 20_000, 1 << 20)),
        )
        self.queue_limit = chance.choice((1, 3, 1000))
        self.workers = chance.choice((1, 4, 30))
        self.instruments = Instruments()
        self.messages: dict[bytes, Sent] = {}
        self.places: Counter[tuple[bool, str]] = Counter()
        self.last_started: dict[tuple[bool, str], int] = {}
        self.open: list[Sent] = []
        self.lives = {True: 0, False: 0}
        self.line: Line | None = None
        self.token: object | None = None
        self.session: object | None = None
        self.welcome: object = None
        self.cuts = 0
        self.failures: list[str] = []
        self.table = WaitingTable(100_000, 100_000)
        self.client, self.server = self.begin(is_client=True), self.begin(is_client=False)
        # The first welcome is not lost: a client that never got one has no session to come back to.
        self.reconnect()

    def begin(self, *, is_client: bool, earlier: Link | None = None, side: Side | None = None) -> Side:
        """Start a process, or another session within the server's."""
        if side is None:
            side = Side(is_client=is_client, limits=self.limits, started=self.handler_started)
            self.lives[is_client] += 1
        link = Link(
            ClientConfig(limits=self.limits) if is_client else ServerConfig(limits=self.limits),
            table=self.table,
            deadlines=Deadlines(),
            budget=CreditBudget(self.limits.total_bytes),
            client_id="a",
            instruments=self.instruments,
            earlier=earlier,
        )
        side.adopt(link, self.queue_limit)
        return side

    # -- what the two processes do ---------------------------------------------------------------------------------
    def send(self) -> None:
        chance = self.random
        side = chance.choice((self.client, self.server))
        name = chance.choice(LANES)
        lane = side.link.lanes.get(name) or side.link.add_lane(name)
        size = chance.choice((0, 10, 300, 2900, self.limits.payload))
        delivery = Delivery.REDELIVER if chance.random() < 0.4 else Delivery.AT_MOST_ONCE
        message = Message(MessageType.COMMAND, chance.randbytes(8) + bytes(max(size - 8, 0)), delivery=delivery)
        self.submit(side, lane, message, wants_ack=chance.random() < 0.6)

    def submit(self, side: Side, lane: LaneSender, message: Message, *, wants_ack: bool) -> Sent:
        name = lane.name
        outgoing: Outgoing
        if wants_ack:
            outgoing = OutgoingRequest(lane, message, side.link.share, Deadlines()).__enter__()
        else:
            outgoing = Outgoing(lane, message)
        self.places[side.is_client, name] += 1
        sent = Sent(outgoing, name, self.places[side.is_client, name], side.is_client)
        self.messages[message.id] = sent
        if outgoing.wants_ack:
            self.open.append(sent)
        side.link.submit(outgoing)
        return sent

    def take_back(self) -> None:
        if self.open:
            sent = self.open.pop(self.random.randrange(len(self.open)))
            request = cast(OutgoingRequest, sent.outgoing)
            sent.taken_back = request.ack is None and request.ack_error is None
            request.__exit__()

    def handler_started(self, side: Side, incoming: Incoming) -> bool:
        sent = self.messages[incoming.frame.id]
        assert incoming.frame.payload == sent.message.payload
        assert sent.from_client is not side.is_client
        assert incoming.lane.name == sent.lane
        sent.started += 1
        sent.redelivered += incoming.frame.redelivered
        sent.lives.append(self.lives[side.is_client])
        if not self.restarts:
            assert sent.place > self.last_started.get((sent.from_client, sent.lane), 0), "out of order, or twice"
            self.last_started[sent.from_client, sent.lane] = sent.place
        return sent.message.payload[0] < 40

    def work(self) -> bool:
        """Start or end a handler on either side; return False when there is nothing to do."""
        chance = self.random
        moves = []
        for handlers in (*self.client.handlers, *self.server.handlers):
            ready = handlers.ready()
            if ready and len(handlers.under_way) < self.workers:
                moves.append(partial(handlers.start, chance.choice(ready)))
            if handlers.under_way:
                stopping = [one for one in handlers.under_way if one.cancelled] or handlers.under_way
                moves.append(partial(self.end_handler, handlers, chance.choice(stopping)))
        if moves:
            chance.choice(moves)()
        return bool(moves)

    def end_handler(self, handlers: Handlers, incoming: Incoming) -> None:
        sent = self.messages[incoming.frame.id]
        if sent.message.payload[1] < 30:
            handlers.end(incoming, AckStatus.FAILURE, b"", sent.message.id.hex())
        else:
            size = self.random.choice((0, 0, 10, 1000, self.limits.payload))
            result = sent.message.id * (size // 16)
            sent.results.add(result)
            handlers.end(incoming, AckStatus.SUCCESS, result)

    # -- the line --------------------------------------------------------------------------------------------------
    def failed(self, side: Side, error: ProtocolError) -> None:
        raise AssertionError(f"{'client' if side.is_client else 'server'}: {error}") from error

    def notice(self, side: Side) -> None:
        """Let one side notice that its connection is gone."""
        if side.link.connection is not None:
            side.link.pause()
            self.cuts += 1

    def cut(self) -> None:
        """End the line; the server may notice now, later, or only from the client's next hello."""
        self.line, self.welcome = None, None
        self.notice(self.client)
        if self.random.random() < 0.5:
            self.notice(self.server)

    def connect(self) -> None:
        """Say hello on a new line; it may get lost, or the welcome."""
        self.line = line = Line(self.client, self.server, self.failed)
        hello = self.client.link.states()
        if self.random.random() < 0.1:
            self.line = None
            return
        server = self.server
        agreed = terms(self.limits)
        resumed = self.token is not None and self.token is self.session and server.link.can_resume(hello)
        if resumed:
            server.link.pause()
        else:
            assert self.restarts or self.session is None, "the session is lost"
            older = server.link if self.session is not None else None
            if older is not None or server.link.connection is not None:
                self.begin(is_client=False, earlier=older, side=server)
                assert older is not None
                server.link.inherit(older)
                older.end(partial(ClientNotConnected, "a"), under_way=partial(ConnectionLost, "replaced"))
            self.session = object()
        states = server.link.states() if resumed else None
        line.carriers[1].open(server.link, agreed, hello if resumed else None)
        self.welcome = (self.session, states)

    def take_welcome(self) -> None:
        if self.welcome is not None and self.line is not None:
            token, states = cast("tuple[object, tuple[object, ...] | None]", self.welcome)
            self.welcome = None
            self.token = token
            if states is not None:
                assert self.client.link.can_resume(states)  # type: ignore[arg-type]
            self.line.carriers[0].open(self.client.link, terms(self.limits), states)  # type: ignore[arg-type]

    def reconnect(self) -> None:
        while self.line is None:
            self.connect()
        self.take_welcome()

    def cut_and_reconnect(self) -> Line:
        self.cut()
        self.reconnect()
        assert self.line is not None
        return self.line

    def restart(self) -> None:
        """Kill one side and start it again; the other may notice only from the hello or the welcome."""
        is_client = self.random.random() < 0.5
        self.line, self.welcome = None, None
        for sent in self.messages.values():
            sent.orphaned = sent.orphaned or sent.from_client is is_client
        self.open = [sent for sent in self.open if not sent.orphaned]
        if is_client:
            self.token = None
            self.client = self.begin(is_client=True)
        else:
            self.notice(self.client)
            self.session = None
            self.server = self.begin(is_client=False)

    # -- the run ---------------------------------------------------------------------------------------------------
    def step(self) -> None:
        chance = self.random.random()
        if chance < 0.10:
            self.send()
        elif chance < 0.12:
            self.take_back()
        elif chance < 0.30:
            self.work()
        elif chance < 0.45:
            if self.line is not None:
                self.line.flush()
        elif chance < 0.48:
            self.take_welcome()
        elif chance < 0.49:
            self.cut()
        elif chance < 0.493 and self.restarts:
            self.restart()
        elif self.line is None:
            if chance < 0.6:
                self.connect()
        else:
            self.line.step(self.random)
        self.check_bounds()

    def settle(self) -> None:
        """Let everything come to its end on one connection."""
        self.reconnect()
        idle = 0
        while idle < 3:
            assert self.line is not None
            self.line.flush()
            idle = 0 if self.line.step(self.random) | self.work() else idle + 1

    def lanes(self) -> list[LaneSender]:
        return [*self.client.link.lanes.values(), *self.server.link.lanes.values()]

    def receivers(self) -> list[LaneReceiver]:
        return [*self.client.link.session_lanes.values(), *self.server.link.session_lanes.values()]

    def check_bounds(self) -> None:
        limits = self.limits
        frame = limits.payload + FRAME_OVERHEAD
        for lane in self.lanes():
            assert lane._kept_bytes <= limits.outbox_bytes + frame or self.restarts
            assert lane._kept_bytes == sum(one.size for one in (*lane._unreceipted, *lane._unhandled.values()))
        for receiver in self.receivers():
            # What is decoded, and what came on this connection and is not: flat, however many connections there were.
            assert receiver._held <= limits.lane_window + frame
            assert receiver.held_bytes <= 2 * (limits.lane_window + frame)
            assert receiver.kept_bytes == sum(len(ack) for _, acks, _ in receiver._kept._pieces for ack in acks)

    def check_end(self) -> None:
        for sent in self.messages.values():
            outgoing = sent.outgoing
            if sent.taken_back:
                assert sent.started <= 1
                continue
            assert sent.started == 1
            assert outgoing.state is OutgoingState.RECEIVED
            if isinstance(outgoing, OutgoingRequest):
                self.check_answer(sent, outgoing)

    def check_end_after_restarts(self) -> None:
        for sent in self.messages.values():
            outgoing = sent.outgoing
            assert len(set(sent.lives)) == sent.started, "twice in one life"
            if outgoing.message.delivery is Delivery.AT_MOST_ONCE:
                assert sent.started <= 1
            assert sent.redelivered >= sent.started - 1
            if sent.orphaned or sent.taken_back:
                continue
            if outgoing.message.delivery is Delivery.REDELIVER:
                assert sent.started >= 1
                assert outgoing.state is OutgoingState.RECEIVED
            else:
                assert outgoing.state in (OutgoingState.RECEIVED, OutgoingState.FAILED)
            if isinstance(outgoing, OutgoingRequest):
                if outgoing.ack_error is None:
                    self.check_answer(sent, outgoing)
                else:
                    assert outgoing.message.delivery is Delivery.AT_MOST_ONCE
                    assert isinstance(outgoing.ack_error(), ConnectionLost)

    def check_answer(self, sent: Sent, request: OutgoingRequest) -> None:
        assert request.ack is not None
        assert request.ack_error is None
        if request.ack.status == AckStatus.SUCCESS:
            assert request.ack.result in sent.results
        else:
            assert request.ack.error == sent.message.id.hex()

    def check_nothing_left(self) -> None:
        for lane in self.lanes():
            assert (lane.unwritten, lane.unreceipted, lane.waiting, lane._kept_bytes) == (0, 0, 0, 0)
            assert (lane._unhandled, lane._cancels, [*lane._resend]) == ({}, [], [])
        for receiver in self.receivers():
            assert (receiver.active, receiver.undecoded, receiver.ack_bytes, receiver.held_bytes) == (0, False, 0, 0)
            assert receiver.kept_bytes < CONFIRM_BYTES
            assert (receiver._ahead, receiver._cancelled_later) == ([], set())

    def check_credit(self) -> None:
        """What a sender may send is what its receiver can take: neither less, nor more."""
        assert self.line is not None
        for mine, theirs in (self.line.carriers, self.line.carriers[::-1]):
            assert mine.streams is not None
            assert theirs.streams is not None
            for receiver in theirs.streams._receivers.values():
                theirs.streams.note_receiver(receiver, at_once=True)
        self.settle()
        for mine, theirs in (self.line.carriers, self.line.carriers[::-1]):
            assert theirs.streams is not None
            for stream_id, receiver in theirs.streams._receivers.items():
                assert mine.wire.credit(stream_id) == self.limits.lane_window
                assert receiver.granted - receiver.arrived == self.limits.lane_window
        for side in (self.client, self.server):
            assert side.link.held_bytes == side.link._budget.held == 0


@pytest.mark.parametrize("seed", range(150))
async def test_each_message_is_handled_once_and_answered(seed: int) -> None:
    world = World(seed)
    for _ in range(world.random.choice((100, 1000, 2500))):
        world.step()
    world.settle()
    world.check_end()
    world.check_nothing_left()
    world.check_credit()
    # Once more: the little that was not confirmed yet is now.
    world.cut()
    world.settle()
    world.check_nothing_left()
    assert sum(receiver.kept_bytes for receiver in world.receivers()) == 0
    assert [lane._cancelled for lane in world.lanes() if lane._cancelled] == []
    assert world.table.active == len(world.open)


@pytest.mark.parametrize("seed", range(150))
async def test_restarts_of_either_side(seed: int) -> None:
    """At most once, or flagged: and whoever waits hears the truth, or that nobody knows it."""
    world = World(seed, restarts=True)
    for _ in range(world.random.choice((300, 1000, 2500))):
        world.step()
    world.settle()
    world.check_end_after_restarts()
    world.check_nothing_left()
