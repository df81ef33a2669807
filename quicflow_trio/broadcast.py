"""Fan-out of one message to many sessions, with a report. It never waits for one slow client."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from .errors import AckTimeout, ClientNotConnected, QuicFlowError, SlowConsumer
from .message import Ack, AckStatus, Message, type_name
from .observe.events import BroadcastEvent
from .observe.instruments import Instruments
from .peer import check_ack_timeout, failure, report_ack_timeout
from .protocol.outgoing import Outgoing, OutgoingRequest, OutgoingState
from .sessions import Session

__all__ = ["BroadcastReport", "broadcast"]

CHUNK = 64
"""Sessions served before the other tasks run: ten thousand in one go would delay every timer by their sum."""

AHEAD = 1024
"""Recipients that a broadcast runs ahead of the receipts: what more a machine full of clients has no room for is lost there."""
PATIENCE = 1.0
"""Seconds after which a recipient that has not confirmed is waited for no longer."""
LOOK = 0.005
"""Seconds between two looks at who has confirmed."""


@dataclass(frozen=True, slots=True)
class BroadcastReport:
    """What became of a broadcast.

    Attributes:
        sent: sessions whose outbox took the message.
        acked: the acks by client id; empty when no acks were wanted.
        failed: why not, by client id: not connected, too slow, handler failed, no ack in time.
    """

    sent: int
    acked: dict[str, Ack]
    failed: dict[str, QuicFlowError]


class _Countdown:
    """Sets its event when as many wake-ups have come as requests were counted."""

    __slots__ = ("done", "left")

    def __init__(self) -> None:
        self.left: int = 0
        self.done: trio.Event = trio.Event()

    def one(self) -> None:
        self.left -= 1
        if not self.left:
            self.done.set()


class _Pace:
    """Lets a broadcast go on when it is not too far ahead of those who read it; see `AHEAD`."""

    def __init__(self) -> None:
        self._under_way: deque[tuple[float, Outgoing]] = deque()

    def sent(self, outgoing: Outgoing) -> None:
        """Note one more recipient."""
        self._under_way.append((trio.current_time(), outgoing))

    async def wait(self) -> None:
        """Let the other tasks run, and wait while the broadcast is too far ahead. Always a checkpoint; a cancellation changes nothing."""
        await trio.lowlevel.checkpoint()
        while len(self._under_way) > AHEAD:
            since = trio.current_time() - PATIENCE
            self._under_way = deque(
                (sent, other) for sent, other in self._under_way if sent > since and other.state < OutgoingState.RECEIVED
            )
            if len(self._under_way) > AHEAD:
                await trio.sleep(LOOK)


def _targets(
    connected: Mapping[str, Session], to: Iterable[str] | None, failed: dict[str, QuicFlowError]
) -> list[tuple[str, Session]]:
    """Return the sessions meant, each once; note the ids that nobody is connected by."""
    if to is None:
        return list(connected.items())
    targets = []
    for client_id in dict.fromkeys(to):
        session = connected.get(client_id)
        if session is None:
            failed[client_id] = ClientNotConnected(client_id)
        else:
            targets.append((client_id, session))
    return targets


async def broadcast(
    connected: Mapping[str, Session],
    message: Message,
    *,
    to: Iterable[str] | None,
    ack_timeout: float | None,
    instruments: Instruments,
) -> BroadcastReport:
    """Send one message, under one id, on the default lane of many sessions; see `Server.broadcast`."""
    if isinstance(to, str):
        raise TypeError(f"to = {to!r}: expected client ids, not one string")
    if ack_timeout is not None:
        check_ack_timeout(ack_timeout)
    # Broadcasts take their places in the outboxes in the order of the calls, as other messages do: nobody else runs until then.
    await trio.lowlevel.checkpoint_if_cancelled()
    failed: dict[str, QuicFlowError] = {}
    targets = _targets(connected, to, failed)
    counters = instruments.counters
    counters.broadcasts_sent += 1
    counters.broadcast_targets += len(targets) + len(failed)
    if ack_timeout is None:
        sent = 0
        pace = _Pace()
        for index, (client_id, session) in enumerate(targets, 1):
            outgoing = Outgoing(session._lane, message)
            error = _submit(session, outgoing)
            if error is None:
                sent += 1
                pace.sent(outgoing)
            else:
                failed[client_id] = error
            if index % CHUNK == 0:
                await pace.wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        _report(instruments, message, sent + len(failed), sent)
        return BroadcastReport(sent, {}, failed)
    return await _broadcast_acked(targets, message, ack_timeout, failed, instruments)


def _report(instruments: Instruments, message: Message, targets: int, sent: int) -> None:
    events = instruments.events
    if events.active:
        events.emit(
            BroadcastEvent(
                at=events.now(),
                client_id="",
                message_id=message.id,
                type=type_name(message.type),
                size=len(message.payload),
                targets=targets,
                sent=sent,
            )
        )


def _submit(session: Session, outgoing: Outgoing) -> QuicFlowError | None:
    """Queue for one session; return why not."""
    if not session._lane.has_room:
        return SlowConsumer(f"the outbox of {session.client_id!r} is full")
    try:
        session._link.submit(outgoing)
    except QuicFlowError as exc:
        return exc
    return None


async def _broadcast_acked(
    targets: list[tuple[str, Session]],
    message: Message,
    ack_timeout: float,
    failed: dict[str, QuicFlowError],
    instruments: Instruments,
) -> BroadcastReport:
    requests: dict[str, OutgoingRequest] = {}
    countdown = _Countdown()
    pace = _Pace()
    # One `with` holds every waiter: however this ends, all of them are out of the table and unanswered handlers are cancelled.
    with ExitStack() as stack:
        for index, (client_id, session) in enumerate(targets, 1):
            link = session._link
            now = trio.current_time()
            request = OutgoingRequest(session._lane, message, link.share, link.deadlines, now, ack_timeout)
            try:
                stack.enter_context(request)
            except QuicFlowError as exc:
                failed[client_id] = exc
                continue
            error = _submit(session, request)
            if error is not None:
                request.fail(lambda error=error: error)  # type: ignore[misc]
                failed[client_id] = error
                continue
            pace.sent(request)
            countdown.left += 1
            request.task = countdown
            request.wake = _Countdown.one
            requests[client_id] = request
            if index % CHUNK == 0:
                # Acks may come in from here on; the one below keeps the count from reaching zero before all were sent.
                countdown.left += 1
                await pace.wait()
                countdown.left -= 1
        _report(instruments, message, len(requests) + len(failed), len(requests))
        if countdown.left:
            await countdown.done.wait()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        acked: dict[str, Ack] = {}
        links = {client_id: session._link for client_id, session in targets}
        for client_id, request in requests.items():
            outcome = _outcome(request, ack_timeout)
            if isinstance(outcome, AckTimeout):
                report_ack_timeout(links[client_id], message, ack_timeout)
            if isinstance(outcome, Ack):
                acked[client_id] = outcome
            else:
                failed[client_id] = outcome
    return BroadcastReport(len(requests), acked, failed)


def _outcome(request: OutgoingRequest, ack_timeout: float) -> Ack | QuicFlowError:
    ack = request.ack
    if ack is not None:
        if ack.status == AckStatus.SUCCESS:
            return Ack(AckStatus.SUCCESS, ack.result)
        return failure(ack)
    if request.ack_error is not None:
        return request.ack_error()
    return AckTimeout(f"no ack within {ack_timeout:g} s")
