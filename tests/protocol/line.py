"""A line between two sides of a session, without QUIC, tasks and time: bytes on streams, which may be cut at any one of them."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import cast

from quicflow_trio.config import Limits
from quicflow_trio.errors import ProtocolError
from quicflow_trio.gate import Gate
from quicflow_trio.lanes import LaneStreams
from quicflow_trio.link import Link
from quicflow_trio.protocol.credit import RETURN_WINDOW
from quicflow_trio.protocol.handshake import REVISION, Terms
from quicflow_trio.protocol.lane_receiver import Incoming, LaneReceiver
from quicflow_trio.protocol.lane_sender import LaneSender
from quicflow_trio.quic.engine import Engine, StreamData
from quicflow_trio.wire import AckStatus, LaneState


class Half:
    """What one side has written on one stream: how much left, how much may leave, what is on its way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.written = 0
        self.data = bytearray()
        # Limits that the other side has granted and this one has not heard of.
        self.grants: deque[int] = deque()

    @property
    def passed(self) -> int:
        return self.written - len(self.data)


class Wire:
    """One side's end of the line: as much of an `Engine` as `LaneStreams` asks for."""

    def __init__(self, first: int, window: int) -> None:
        self.other: Wire
        self.halves: dict[int, Half] = {}
        self._next = first
        self._window = window

    def open_stream(self) -> int:
        stream_id, self._next = self._next, self._next + 4
        self.halves[stream_id] = Half(self._window)
        self.other.halves[stream_id] = Half(RETURN_WINDOW)
        return stream_id

    def write(self, stream_id: int, data: bytes) -> None:
        half = self.halves[stream_id]
        half.data += data
        half.written += len(data)

    def credit(self, stream_id: int) -> int:
        half = self.halves[stream_id]
        return half.limit - half.written

    def unsent(self, stream_id: int) -> int:
        return len(self.halves[stream_id].data)

    def grant(self, stream_id: int, limit: int, window: int = 0) -> bool:
        self.other.halves[stream_id].grants.append(limit)
        return True


class Handlers:
    """Starts and ends handlers when it is told to, as the dispatcher would: at most one per serial lane, cancelled when asked."""

    def __init__(self, side: Side, link: Link, queue_limit: int) -> None:
        self.payload_limit = side.limits.payload
        self.gate: Gate | None = None
        self.received = self.failed = self.cancelled = self.running = self.depth = 0
        self._side = side
        self._link = link
        self._queue_limit = queue_limit
        self._lanes: dict[LaneReceiver, None] = {}
        self.under_way: list[Incoming] = []
        self.asked_to_stop: set[Incoming] = set()

    def receive(self, lane: LaneReceiver) -> None:
        lane.decode(max(self._queue_limit - len(lane.queue), 0))
        self.resume(lane)

    def resume(self, lane: LaneReceiver) -> None:
        self._lanes[lane] = None

    def stop(self) -> None:
        self._lanes.clear()

    def release(self) -> None:
        self.stop()

    async def wait_idle(self) -> None:
        raise AssertionError("not here")

    def ready(self) -> list[LaneReceiver]:
        limit = self._side.limits.outbox_bytes
        self._lanes = dict.fromkeys(lane for lane in self._lanes if lane.queue or lane.undecoded)
        return [
            lane
            for lane in self._lanes
            if lane.queue and not lane.held_back and lane.ack_bytes <= limit and not (lane.older and lane.older.waiting)
        ]

    def start(self, lane: LaneReceiver) -> None:
        incoming = lane.queue.popleft()
        if not lane.queue and lane.undecoded:
            lane.decode(self._queue_limit)
        lane.running += 1
        if incoming.cancelled:
            self.end(incoming, AckStatus.FAILURE, b"", "cancelled")
            return
        if self._side.started(incoming):
            lane.held_back = incoming.serial = True
        incoming.cancel = lambda: self.asked_to_stop.add(incoming)
        self.under_way.append(incoming)

    def end(self, incoming: Incoming, status: int, result: bytes, error: str = "") -> None:
        if incoming in self.under_way:
            self.under_way.remove(incoming)
        self.asked_to_stop.discard(incoming)
        incoming.cancel = None
        lane = incoming.lane
        lane.running -= 1
        lane.finish(incoming, int(status), result, error)
        if incoming.serial:
            lane.held_back = False
        if not lane.queue and lane.undecoded:
            lane.decode(self._queue_limit)
        self.resume(lane)
        lane.pass_on()
        self._link.progress(lane)


class Carrier:
    """One side's half of a connection: as much of a `Connection` as a `Link` asks for."""

    bytes_sent = bytes_received = 0

    def __init__(self, side: Side, wire: Wire, failed: Callable[[Side, ProtocolError], None]) -> None:
        self.wire = wire
        self.closed = False
        self._side = side
        self._failed = failed
        self.streams: LaneStreams | None = None
        self._early: list[StreamData] = []

    def open(self, link: Link, terms: Terms, resumed: tuple[LaneState, ...] | None) -> None:
        self.streams = LaneStreams(
            cast(Engine, self.wire),
            link,
            self._side.limits,
            is_client=self._side.is_client,
            revision=terms.revision,
            kick=lambda: None,
        )
        link.attach(self, terms, resumed)
        early, self._early = self._early, []
        for event in early:
            self.take(event)

    def take(self, event: StreamData) -> None:
        if self.closed:
            return
        if self.streams is None:
            self._early.append(event)
            return
        try:
            self.streams.handle_data(event)
        except ProtocolError as exc:
            self.fail(exc)

    def flush(self) -> None:
        if not self.closed and self.streams is not None:
            self.streams.recheck_credit()
            self.streams.flush()

    def unacked(self) -> int:
        return 0

    def lane_pending(self, lane: LaneSender) -> None:
        assert self.streams is not None
        self.streams.note_sender(lane)

    def lane_progress(self, lane: LaneReceiver) -> None:
        assert self.streams is not None
        self.streams.note_receiver(lane, at_once=False)

    def fail(self, error: ProtocolError) -> None:
        self.closed = True
        self._failed(self._side, error)

    def abandon(self) -> None:
        self.closed = True
        if self.streams is not None:
            self.streams.end()


class Side:
    """One process: a client or a server, with its half of the session."""

    link: Link

    def __init__(self, *, is_client: bool, limits: Limits, started: Callable[[Side, Incoming], bool]) -> None:
        self.is_client = is_client
        self.limits = limits
        self._started = started
        # Of the session, and of those before it in this process.
        self.handlers: list[Handlers] = []

    def adopt(self, link: Link, queue_limit: int) -> None:
        self.link = link
        handlers = Handlers(self, link, queue_limit)
        link.dispatcher = handlers
        self.handlers.append(handlers)

    def started(self, incoming: Incoming) -> bool:
        return self._started(self, incoming)


class Line:
    """A connection between two sides. The client has said hello on it; the welcome takes until `welcome` is called, or never comes."""

    def __init__(self, client: Side, server: Side, failed: Callable[[Side, ProtocolError], None]) -> None:
        wires = Wire(4, server.limits.lane_window), Wire(1, client.limits.lane_window)
        wires[0].other, wires[1].other = wires[1], wires[0]
        self.sides = (client, server)
        self.carriers = Carrier(client, wires[0], failed), Carrier(server, wires[1], failed)

    def step(self, random: random.Random) -> bool:
        """Let something pass, in either direction, on any stream; return False when there is nothing."""
        moves: list[tuple[Wire, Carrier, int, Half]] = []
        for sender, receiver in (self.carriers, self.carriers[::-1]):
            for stream_id, half in sender.wire.halves.items():
                if half.grants or (half.data and half.passed < half.limit):
                    moves.append((sender.wire, receiver, stream_id, half))
        if not moves:
            return False
        _, receiver, stream_id, half = random.choice(moves)
        if half.grants and (random.random() < 0.5 or not half.data or half.passed >= half.limit):
            # The newest: QUIC repeats no older one.
            half.limit = max(half.limit, half.grants.pop())
            half.grants.clear()
            return True
        most = min(len(half.data), half.limit - half.passed)
        size = random.choice((1, most, random.randint(1, most), min(most, 1100)))
        data = bytes(half.data[:size])
        del half.data[:size]
        receiver.take(StreamData(stream_id, data, False))
        return True

    def flush(self) -> None:
        for carrier in self.carriers:
            carrier.flush()


def terms(limits: Limits) -> Terms:
    return Terms(payload=limits.payload, lanes=limits.lanes, heartbeat_interval=15.0, revision=REVISION)
