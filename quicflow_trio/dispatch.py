"""The dispatcher: messages of all lanes of one peer to handlers, in order, bounded, with a deadline each.

Workers start on demand. A worker takes the next message and awaits its handler in its own task; while it is blocked there, another
worker follows, up to the limit. When no handler blocks, one worker handles a whole batch without a task switch. A worker keeps one
cancel scope over many messages and renews it only when it was cancelled: a scope per message costs 4-5 us of a 14 us budget.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial

import trio

from .crew import Crew, Watch, Worker
from .deadlines import Deadlines
from .errors import ProtocolError
from .gate import Gate, Refusal, Rest
from .link import Link
from .message import AckStatus, Delivery, Message, MessageType, type_name
from .observe.events import MessageReceivedEvent
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .peer import Peer
from .protocol.lane_receiver import Incoming, LaneReceiver
from .router import Request, Router

__all__ = ["Dispatcher", "run_handlers"]

log: Logger = get_logger(__name__)

DECODE_BATCH = 64
"""Frames decoded at once when a lane's queue has run empty."""
YIELD_AFTER = 64
"""Messages that one worker handles before it lets the other tasks run: handlers that never block must not starve the pump."""
REASON_BYTES = 512
"""Longest error text that goes back to the sender."""

_TYPES = {int(value): value for value in MessageType}


class Dispatcher:
    """Runs handlers for one peer. It outlives the peer's connections.

    Args:
        router: the handlers.
        peer: what handlers get as ``request.peer``.
        sender: what received messages get as ``message.sender``.
        workers: handlers at once; each lane may always run one.
        handler_timeout: seconds a handler may run.
        payload_limit: longest handler result, bytes.
        queue_limit: decoded messages that may wait per lane.
        ack_limit: bytes of unwritten acks beyond which a lane starts no further handler.
        deadlines: where the handler deadline is kept.
        progress: called with a lane when one of its messages is done with, or decoded late, unless it is `noted` already.
        broken: called with a lane and the error when its bytes make no sense.
        instruments: where it counts and reports.
        client_id: the client's id, on either side.
        crew: shared with the dispatchers of earlier sessions of the same client; None starts one.

    Attributes:
        crew: as given.
        gate: what each message has to pass before its handler starts; None lets all pass.
        payload_limit: as given; lowered when the peer accepts less.
        received: messages whose handler was started.
        failed: handlers that did not succeed, for whatever reason.
        timeouts: handlers that ran past their deadline.
        cancelled: messages taken back by their sender before their handler ended.
    """

    def __init__(
        self,
        router: Router,
        *,
        peer: Peer,
        sender: str,
        workers: int,
        handler_timeout: float,
        payload_limit: int,
        queue_limit: int,
        ack_limit: int,
        deadlines: Deadlines,
        progress: Callable[[LaneReceiver], None],
        broken: Callable[[LaneReceiver, ProtocolError], None],
        instruments: Instruments,
        client_id: str,
        crew: Crew | None = None,
    ) -> None:
        self._router = router
        self._peer = peer
        self._sender = sender
        self._limit = workers
        self._handler_timeout = handler_timeout
        self.payload_limit: int = payload_limit
        self._queue_limit = queue_limit
        self._ack_limit = ack_limit
        self._deadlines = deadlines
        self._progress = progress
        self._broken = broken
        self._instruments = instruments
        self._counters = instruments.counters
        self._events = instruments.events
        self._client_id = client_id
        self.crew: Crew = Crew() if crew is None else crew
        self.gate: Gate | None = None
        self._nursery: trio.Nursery | None = None
        self._ready: deque[LaneReceiver] = deque()
        self._workers: set[Worker] = set()
        self._running = 0
        self._pending = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._follower_starting = False
        self._watch = Watch(self._workers, handler_timeout, deadlines)
        self.received: int = 0
        self.failed: int = 0
        self.timeouts: int = 0
        self.cancelled: int = 0

    # -- life ----------------------------------------------------------------------------------------------------
    def start(self, nursery: trio.Nursery) -> None:
        """Run handlers in this nursery from now on."""
        self._nursery = nursery
        self.follow()

    def stop(self) -> None:
        """Start no further handler; those that run are ended by their nursery."""
        self._nursery = None
        self.crew.blocked.pop(self, None)
        self._watch.stop()

    def release(self) -> None:
        """Stop once no handler runs, for good: only the figures are left. The peer holds this dispatcher, and would not be freed at once."""
        self.stop()
        del self._peer, self._progress, self._broken

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return self._running

    @property
    def depth(self) -> int:
        """Messages decoded whose handlers have not ended."""
        return self._pending

    async def wait_idle(self) -> None:
        """Wait until no handler runs and no decoded message waits for one."""
        while self._pending:
            await self._idle.park()

    @property
    def idle(self) -> bool:
        """True when no handler runs and no decoded message waits for one."""
        return self._pending == 0

    # -- input ---------------------------------------------------------------------------------------------------
    def receive(self, lane: LaneReceiver) -> None:
        """Take what a lane has received: decode as far as its queue has room, and see that somebody works on it.

        Raises:
            ProtocolError: the bytes make no sense.
        """
        self._decode(lane, max(self._queue_limit - len(lane.queue), 0))
        self.resume(lane)

    def resume(self, lane: LaneReceiver) -> None:
        """Look at a lane again, after it received something or wrote its acks."""
        if not lane.scheduled and not lane.held_back and lane.queue and lane.ack_bytes <= self._ack_limit:
            lane.scheduled = True
            self._ready.append(lane)
        if self._ready:
            self.follow()

    def follow(self) -> None:
        """Start one more worker if there is something that it could start."""
        nursery = self._nursery
        if nursery is None or self._follower_starting or not self._ready:
            return
        if self.crew.running >= self._limit and all(lane.running or lane.still_behind() for lane in self._ready):
            self.crew.blocked[self] = None
            return
        self._follower_starting = True
        nursery.start_soon(self._work, name="handler of " + self._sender)

    def _next(self) -> Incoming | None:
        """Take the next message that may start: lanes in turn, each in its order."""
        ready = self._ready
        full = self.crew.running >= self._limit
        for _ in range(len(ready)):
            lane = ready.popleft()
            older = lane.older
            if older is not None and older.waiting:
                lane.scheduled = False
                lane.follow(older, partial(self.resume, lane))  # Once more: it may have passed on, and rest since then.
                continue
            if full and (lane.running or lane.still_behind()):
                # The limit is reached and this lane has its share of it. Another lane may still start its first.
                ready.append(lane)
                self.crew.blocked[self] = None
                continue
            lane.scheduled = False
            if lane.ack_bytes > self._ack_limit:
                continue  # Looked at again when its acks are written.
            queue = lane.queue
            incoming = queue.popleft()
            if not queue and lane.undecoded:
                self._decode_more(lane)
            route = self._router.route(incoming.frame.type)
            if route is not None and route.serial:
                lane.held_back = incoming.serial = True
            elif queue:
                lane.scheduled = True
                ready.append(lane)
            if lane.newer is not None:
                lane.pass_on()
            return incoming
        return None

    def _decode(self, lane: LaneReceiver, limit: int) -> None:
        before = len(lane.queue)
        try:
            lane.decode(limit)
        finally:
            # Not what `decode` returns: messages in front of nonsense are queued, and will be counted down, although it raises.
            self._pending += len(lane.queue) - before

    def _decode_more(self, lane: LaneReceiver) -> None:
        try:
            self._decode(lane, min(DECODE_BATCH, self._queue_limit))
        except ProtocolError as exc:
            self._broken(lane, exc)
            return
        if not lane.noted:
            # Its sender waits for the receipts, and not for the next handler to end.
            self._progress(lane)

    # -- workers -------------------------------------------------------------------------------------------------
    async def _work(self) -> None:
        self._follower_starting = False
        if len(self._workers) > self._running:
            # A worker without a handler has only let other tasks run, and goes on: handlers that never wait need no second one.
            return
        worker = Worker()
        self._workers.add(worker)
        try:
            more = True
            while more:
                with worker.renew():
                    more = await self._work_in_scope(worker)
                if worker.incoming is not None:
                    self._conclude_cancelled(worker)
        finally:
            self._workers.discard(worker)
            if worker.incoming is not None:
                # The session ends under the handler: give back what it holds, there is nobody to tell.
                self._finish(worker, AckStatus.FAILURE, b"", "the session ended")

    async def _work_in_scope(self, worker: Worker) -> bool:
        """Handle messages until there are none (return False) or the scope was cancelled and must be renewed (True)."""
        since_yield = 0
        while self._nursery is not None:
            incoming = self._next()
            if incoming is None:
                return False
            if incoming.cancelled:
                self._skip(incoming)
                continue
            refusal = None if self.gate is None else self.gate.refusal(incoming, trio.current_time())
            if refusal is not None:
                self._refuse(incoming, refusal)
            else:
                if self._ready:
                    self.follow()
                await self._handle(worker, incoming)
                if worker.cancelled:
                    return True
            since_yield += 1
            if since_yield >= YIELD_AFTER:
                since_yield = 0
                await trio.lowlevel.checkpoint()
        return False

    async def _handle(self, worker: Worker, incoming: Incoming) -> None:
        frame = incoming.frame
        self.received += 1
        self._counters.messages_received += 1
        if self._events.messages:
            self._report_received(incoming)
        self._running += 1
        self.crew.running += 1
        incoming.lane.running += 1
        incoming.cancel = worker.cancel
        worker.incoming = incoming
        worker.started = trio.current_time()
        if not self._watch.live:
            self._watch.begin(worker.started)
        type = _TYPES.get(frame.type)
        route = None if type is None else self._router.route(frame.type)
        if type is None or route is None:
            what = f"message type {frame.type}" if type is None else type.name
            self._finish(worker, AckStatus.FAILURE, b"", f"no handler for {what}")
            return
        message = Message(
            type,
            frame.payload,
            delivery=Delivery.REDELIVER if frame.redeliver else Delivery.AT_MOST_ONCE,
            id=frame.id,
            sender=self._sender,
            timestamp=frame.timestamp,
        )
        try:
            result = await route.handler(Request(message, self._peer, frame.redelivered))
        except Exception as exc:  # noqa: BLE001  any failure of a handler is an answer to its sender
            self._fail(worker, exc)
        except BaseExceptionGroup as group:
            # A handler's nursery mixes its error with a cancellation. The error stays here, also when the whole session ends.
            errors, others = group.split(Exception)
            if errors is not None:
                self._fail(worker, errors)
            if others is not None:
                raise others from None
        else:
            if result is None:
                self._finish(worker, AckStatus.SUCCESS, b"")
            elif result.__class__ is bytes and len(result) <= self.payload_limit:
                self._finish(worker, AckStatus.SUCCESS, result)
            else:
                self._finish_odd(worker, result)

    def _finish_odd(self, worker: Worker, result: object) -> None:
        """Answer for a result that is not plain bytes within the limit."""
        if not isinstance(result, (bytes, bytearray, memoryview)):
            self._counters.encoding_errors += 1
            self._fail(worker, TypeError(f"the handler returned {type(result).__name__}, expected bytes or None"))
            return
        plain = bytes(result)
        if len(plain) > self.payload_limit:
            self._counters.encoding_errors += 1
            self._fail(worker, ValueError(f"the handler returned {len(plain):,} bytes, the limit is {self.payload_limit:,}"))
        else:
            self._finish(worker, AckStatus.SUCCESS, plain)

    # -- ends ----------------------------------------------------------------------------------------------------
    def _finish(self, worker: Worker, status: int, result: bytes, error: str = "") -> None:
        incoming = worker.incoming
        assert incoming is not None, "a handler ends once"
        worker.incoming = None
        worker.started = math.inf
        incoming.cancel = None
        lane = incoming.lane
        lane.running -= 1
        self._running -= 1
        self.crew.running -= 1
        if incoming.cancelled and status is not AckStatus.SUCCESS:
            # Taken back: nobody waits for it, and nothing of the handler's has failed.
            self.cancelled += 1
            self._counters.messages_cancelled += 1
        elif status is not AckStatus.SUCCESS:
            self.failed += 1
            self._counters.handlers_failed += 1
        self._done(incoming, status, result, error)

    def _skip(self, incoming: Incoming) -> None:
        """Pass over a message that was taken back before its handler started."""
        self.cancelled += 1
        self._counters.messages_cancelled += 1
        self._done(incoming, AckStatus.FAILURE, b"", "cancelled")

    def _refuse(self, incoming: Incoming, refusal: Refusal) -> None:
        self._done(incoming, refusal.status, refusal.result, refusal.error)
        if refusal.rest:
            self._deadlines.add(trio.current_time() + refusal.rest, Rest(incoming.lane, self._ready, self.resume))

    def _done(self, incoming: Incoming, status: int, result: bytes, error: str) -> None:
        lane = incoming.lane
        lane.finish(incoming, status, result, error)
        self._pending -= 1
        if not self._pending:
            self._idle.unpark_all()
        if not lane.queue and lane.undecoded:
            # What its handlers held kept them from being decoded.
            self._decode_more(lane)
            self.resume(lane)
        if incoming.serial:
            lane.held_back = False
            self.resume(lane)
        if lane.newer is not None:
            lane.pass_on()
        if self.crew.blocked:
            self._unblock()
        if not lane.noted:
            self._progress(lane)

    def _unblock(self) -> None:
        """Let the other dispatchers of the crew use what has become free; this one's own worker goes on by itself."""
        blocked, self.crew.blocked = self.crew.blocked, {}
        for dispatcher in blocked:
            if dispatcher is not self:
                dispatcher.follow()

    def _fail(self, worker: Worker, exc: Exception) -> None:
        incoming = worker.incoming
        assert incoming is not None, "a handler fails once"
        frame = incoming.frame
        log.error("handler failed", client_id=self._client_id, type=_TYPES[frame.type], message_id=frame.id, exc_info=exc)
        reason = _reason(exc)
        self._instruments.report_error(self._client_id, "handler_failed", reason)
        self._finish(worker, AckStatus.FAILURE, b"", reason)

    def _conclude_cancelled(self, worker: Worker) -> None:
        """Answer for a handler that was cancelled: by its sender, who knows, or by its deadline."""
        incoming = worker.incoming
        assert incoming is not None
        if incoming.cancelled:
            self._finish(worker, AckStatus.FAILURE, b"", "cancelled")
        else:
            self.timeouts += 1
            frame = incoming.frame
            log.error(
                "handler ran past its deadline and was cancelled",
                client_id=self._client_id,
                type=_TYPES[frame.type],
                message_id=frame.id,
                handler_timeout=self._handler_timeout,
            )
            reason = f"the handler ran past its deadline of {self._handler_timeout:g} s"
            self._counters.handlers_timed_out += 1
            self._instruments.report_error(self._client_id, "handler_timeout", reason)
            self._finish(worker, AckStatus.TIMEOUT, b"", reason)

    # -- events ----------------------------------------------------------------------------------------------------
    def _report_received(self, incoming: Incoming) -> None:
        frame = incoming.frame
        self._events.emit(
            MessageReceivedEvent(
                at=self._events.now(),
                client_id=self._client_id,
                message_id=frame.id,
                type=type_name(frame.type),
                size=len(frame.payload),
                lane=incoming.lane.name or "",
                wants_ack=frame.wants_ack,
            )
        )


def _reason(exc: Exception) -> str:
    """Return what the sender is told about a handler's error."""
    kind = type(exc).__name__
    try:
        text = f"{kind}: {exc}"
    except Exception:  # noqa: BLE001 - whatever a foreign __str__ raises, the handler's own error is what counts
        text = kind
    return text.encode("utf-8", "replace")[:REASON_BYTES].decode("utf-8", "ignore")


def run_handlers(link: Link, router: Router, *, peer: Peer, sender: str, nursery: trio.Nursery, crew: Crew | None = None) -> Crew:
    """Run the handlers of a session in this nursery from now on.

    Args:
        link: the session.
        router: the handlers.
        peer: what they get to answer through.
        sender: what received messages get as their sender.
        nursery: where the handlers' tasks start, on demand.
        crew: of the client's earlier session; None starts one.

    Returns:
        The crew, for the client's next session.
    """
    config = link.config
    link.dispatcher = dispatcher = Dispatcher(
        router,
        peer=peer,
        sender=sender,
        workers=config.workers,
        handler_timeout=config.handler_timeout,
        payload_limit=config.limits.payload,
        queue_limit=config.limits.dispatch_queue,
        ack_limit=config.limits.outbox_bytes,
        deadlines=link.deadlines,
        progress=link.progress,
        broken=link.broken,
        instruments=link.instruments,
        client_id=link.client_id,
        crew=crew,
    )
    dispatcher.start(nursery)
    return dispatcher.crew
