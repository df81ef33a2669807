"""`Peer`: what a client and a server's session share: send, request, lanes."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from typing import final

import outcome
import trio

from .errors import (
    AckTimeout,
    ConfigurationError,
    HandlerFailed,
    LaneLimitReached,
    PermissionDenied,
    QuicFlowError,
    RateLimited,
)
from .link import Link
from .message import Ack, AckStatus, Message
from .observe.events import AckTimeoutEvent
from .protocol.handshake import check_lane_name
from .protocol.lane_sender import LaneSender
from .protocol.outgoing import Outgoing, OutgoingRequest, OutgoingState
from .wire import AckFrame, retry_hint

__all__ = ["Peer", "PeerStatistics", "Sent", "check_ack_timeout", "failure", "report_ack_timeout"]

_SUCCESS = int(AckStatus.SUCCESS)
_ACKED = Ack(AckStatus.SUCCESS, b"")

YIELD_AFTER = 64
"""Messages that one lane takes from senders who never wait before it makes one yield to the other tasks."""


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """One peer in figures, since its session began.

    Attributes:
        messages_sent: messages written to the wire.
        messages_received: messages whose handler was started.
        messages_failed: messages received whose handler failed or ran out of time.
        handlers_running: handlers that run now.
        requests_waiting: requests of this side that wait for their ack now.
        outbox_messages: messages that wait here to be written.
        outbox_bytes: what they hold, bytes.
        unreceipted: messages written that the peer has not confirmed to have received and kept.
        unacked_bytes: bytes written to QUIC that the peer has not acknowledged.
        held_bytes: bytes received here whose handlers have not ended.
        bytes_sent: stream bytes written.
        bytes_received: stream bytes received.
        lanes: lanes that this side has opened.
    """

    messages_sent: int
    messages_received: int
    messages_failed: int
    handlers_running: int
    requests_waiting: int
    outbox_messages: int
    outbox_bytes: int
    unreceipted: int
    unacked_bytes: int
    held_bytes: int
    bytes_sent: int
    bytes_received: int
    lanes: int


@final
class Sent:
    """A message that was taken into the outbox.

    Attributes:
        id: the message's id.
    """

    __slots__ = ("_outgoing",)

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing

    @property
    def id(self) -> bytes:
        """The id of the message, 16 bytes."""
        return self._outgoing.message.id

    async def delivered(self) -> None:
        """Wait until the peer has received the message and keeps it for a handler. May be called again, and by several tasks.

        It holds over reconnects, and a message that may be redelivered also waits for the server's next life: on a client for as long as
        there is no server, that is for ever where none returns. ``with trio.fail_after(60)`` puts an end to that; it changes nothing
        about the message, which may still go out. On a server it ends with ``ServerConfig.session_ttl`` at the latest. A message that
        was received is not told to be lost later on, unless it is to be redelivered: then a further call waits for the next peer.

        Raises:
            ConnectionLost: the session ended before the peer confirmed; it may have the message or not.
            ConnectionClosed: this side closed before that.
            PayloadTooLarge, LaneLimitReached: the peer accepts less than this side, which was not known when the message was taken.
        """
        outgoing = self._outgoing
        if outgoing.state < OutgoingState.RECEIVED:
            settled = trio.Event()
            if outgoing.watchers is None:
                outgoing.watchers = []
            outgoing.watchers.append(settled.set)
            try:
                await settled.wait()
            finally:
                # A settled message has dropped its watchers already.
                if outgoing.watchers is not None:
                    outgoing.watchers.remove(settled.set)
        else:
            await trio.lowlevel.checkpoint()
        if outgoing.error is not None:
            raise outgoing.error()


class Peer:
    """The other side of a session, or one lane of it. The library makes it: see `open_client` and `Server.sessions`."""

    def __init__(self, link: Link, lane: LaneSender, family: dict[str, Peer] | None = None) -> None:
        self._link = link
        self._lane = lane
        # All lanes of one session by name, this one included; every one of them can find the others.
        self._family = {} if family is None else family
        self._family[lane.name] = self
        self._since_yield = 0

    def _release(self) -> None:
        """Give back what the session still holds, once it has ended and no handler runs any more."""
        self._link.release()
        # Peers that know each other would wait for the garbage collector.
        self._family.clear()

    async def send(self, message: Message) -> Sent:
        """Queue a message for the peer, in order on this lane, and return once it is in the bounded outbox.

        From there it goes out on this connection or the next one; see `Delivery` for what happens when the session ends before that.
        Waits while the outbox is full; on a client also until the very first connection stands. Always a point of cancellation; it
        yields to other tasks when it waits and once in 64 messages, so that messages sent in a row leave in one packet. Cancelled
        while it waits, the message is not sent.

        Raises:
            PayloadTooLarge: over ``Limits.payload`` of this side or the peer.
            ClientNotConnected: on a server: the session has ended, or has no connection and ``ServerConfig.away`` is "refuse".
            ConnectionRefused, SessionReplaced: the client was refused for good.
            ConnectionClosed: this side has closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        outgoing = Outgoing(self._lane, message)
        self._link.submit(outgoing)
        if outgoing.state is OutgoingState.BLOCKED or not self._link.opened.is_set():
            await self._wait_admitted(outgoing)
        else:
            self._since_yield += 1
            if self._since_yield >= YIELD_AFTER:
                self._since_yield = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
        return Sent(outgoing)

    async def _wait_admitted(self, outgoing: Outgoing) -> None:
        try:
            if outgoing.state is OutgoingState.BLOCKED:
                await _park(outgoing)
            # Not once the message may have left: a cancellation that comes then is for the caller's next checkpoint.
            if not self._link.opened.is_set():
                await self._link.opened.wait()
        except BaseException:
            outgoing.lane.withdraw(outgoing)
            raise
        if outgoing.state is OutgoingState.FAILED:
            assert outgoing.error is not None
            raise outgoing.error()

    def send_nowait(self, message: Message) -> Sent:
        """Queue a message like `send`, or refuse at once when the outbox is full.

        Raises:
            trio.WouldBlock: the outbox is full; nothing was queued.
            PayloadTooLarge, ClientNotConnected, ConnectionRefused, SessionReplaced, ConnectionClosed: as for `send`.
        """
        if not self._lane.has_room:
            self._link.check(message)
            raise trio.WouldBlock
        outgoing = Outgoing(self._lane, message)
        self._link.submit(outgoing)
        return Sent(outgoing)

    async def request(self, message: Message, *, ack_timeout: float | None = None) -> Ack:
        """Send a message and wait until the peer's handler has ended; return its result.

        Args:
            message: what to send.
            ack_timeout: seconds to wait for the ack; None takes ``config.ack_timeout``, ``math.inf`` waits for ever.

        The wait ends with the ack, the time-out, the caller's own cancellation (``trio.fail_after`` works as everywhere) or the
        session. It does not end with the connection: on the session's next one the message, or the ack, goes out again if it was lost,
        and the handler runs once. On cancellation and time-out the peer is told, after a reconnect if need be, and cancels the handler,
        if it still runs; nothing stays behind.

        Raises:
            HandlerFailed: the handler raised, or ran past the peer's ``handler_timeout``.
            PermissionDenied, RateLimited: the peer does not take this from this side, or not now; no handler was started.
            AckTimeout: no ack came in time.
            WaitingTableFull: too many requests wait already; nothing was sent.
            ConnectionLost: the session ended after the message was written: the handler may have run or not. Not with
                `Delivery.REDELIVER` on a client: that request is asked again in its next session.
            PayloadTooLarge, ClientNotConnected, ConnectionRefused, SessionReplaced, ConnectionClosed: as for `send`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        link = self._link
        timeout = link.ack_timeout if ack_timeout is None else check_ack_timeout(ack_timeout)
        now = trio.current_time()
        with OutgoingRequest(self._lane, message, link.share, link.deadlines, now, timeout) as request:
            link.submit(request)
            await _park(request)
            ack = request.ack
            if ack is not None:
                if ack.status == _SUCCESS:
                    return Ack(AckStatus.SUCCESS, ack.result) if ack.result else _ACKED
                raise failure(ack)
            if request.ack_error is not None:
                raise request.ack_error()
            report_ack_timeout(link, message, timeout)
            if link.connection is None:
                raise AckTimeout(f"no ack within {timeout:g} s: there is no connection{link.trouble}")
        raise AckTimeout(f"no ack within {timeout:g} s")

    def lane(self, name: str) -> Peer:
        """Return the lane of this name: its messages keep their order among themselves and wait for no other lane.

        The empty name is the default lane. A lane lives as long as its session; asking again returns the same one.

        Raises:
            LaneLimitReached: one more would pass ``Limits.lanes`` of this side or of the peer.
            ConfigurationError: the name is longer than 128 bytes or not printable.
        """
        link = self._link
        peer = self._family.get(name)
        if peer is None:
            problem = check_lane_name(name)
            if problem is not None:
                raise ConfigurationError(f"lane name {problem}")
            # A session can have lanes that nobody asked for yet: those with messages that an earlier one left to be redelivered.
            lane = link.lanes.get(name)
            if lane is None:
                if len(link.lanes) >= link.lane_limit:
                    raise LaneLimitReached(f"{len(link.lanes)} lanes are open already, the limit is {link.lane_limit}")
                lane = link.add_lane(name)
            peer = Peer(link, lane, self._family)
        return peer

    def statistics(self) -> PeerStatistics:
        """Return the session's figures, all lanes together."""
        link = self._link
        lanes = link.lanes.values()
        return PeerStatistics(
            messages_sent=link.messages_sent,
            messages_received=link.dispatcher.received,
            messages_failed=link.dispatcher.failed,
            handlers_running=link.dispatcher.running,
            requests_waiting=link.share.active,
            outbox_messages=sum(lane.unwritten for lane in lanes),
            outbox_bytes=sum(lane.outbox_bytes for lane in lanes),
            unreceipted=sum(lane.unreceipted for lane in lanes),
            unacked_bytes=link.unacked_bytes,
            held_bytes=link.held_bytes,
            bytes_sent=link.bytes_sent,
            bytes_received=link.bytes_received,
            lanes=len(lanes),
        )


def failure(ack: AckFrame) -> QuicFlowError:
    """Return the error that an ack of any status but success stands for."""
    if ack.status == AckStatus.DENIED:
        return PermissionDenied(ack.error)
    if ack.status == AckStatus.RATE_LIMITED:
        return RateLimited(ack.error, retry_hint(ack.result))
    return HandlerFailed(ack.error, timed_out=ack.status == AckStatus.TIMEOUT)


def report_ack_timeout(link: Link, message: Message, timeout: float) -> None:
    """Report a request whose ack did not come in time."""
    events = link.instruments.events
    if events.active:
        events.emit(AckTimeoutEvent(at=events.now(), client_id=link.client_id, message_id=message.id, ack_timeout=timeout))


def check_ack_timeout(timeout: float) -> float:
    """Return ``timeout`` if it is a time to wait, seconds.

    Raises:
        ConfigurationError: it is zero, negative or not a number.
    """
    if timeout > 0:
        return timeout
    raise ConfigurationError(f"ack_timeout = {timeout!r}: expected more than 0 seconds")


class _Nothing(outcome.Value[None]):  # type: ignore[misc]  # final for type checkers, and one for all wakes must be usable twice
    """What a woken task gets. Trio would make an outcome for each, which costs as much as the rest of a wake-up."""

    def unwrap(self) -> None:
        """Return nothing, any number of times."""


_wake = partial(trio.lowlevel.reschedule, next_send=_Nothing(None))


def _park(outgoing: Outgoing) -> Awaitable[None]:
    """Sleep until the message's fate is decided. The cheapest wait that Trio has: no event, no scope."""
    outgoing.task = trio.lowlevel.current_task()
    outgoing.wake = _wake

    def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        outgoing.wake = None
        return trio.lowlevel.Abort.SUCCEEDED

    return trio.lowlevel.wait_task_rescheduled(abort)  # noqa: ASYNC105  (awaited by the caller: one coroutine less in each wait)
