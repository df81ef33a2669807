"""What a lane does for a protocol that has a stream for each message: messages go out one by one, and come through in any order."""

from __future__ import annotations

from collections import deque

from ..observe.histogram import Histogram
from ..wire import AckFrame
from .outgoing import ErrorFactory, Outbox, Outgoing, OutgoingRequest, OutgoingState

__all__ = ["OneByOne"]


class OneByOne:
    """A part of `lane_sender.LaneSender`, which sets the attributes. Used instead of ``next_batch`` and ``handle_return``."""

    __slots__ = (
        "_blocked",
        "_cancelled",
        "_cancels",
        "_kept_bytes",
        "_latency",
        "_outbox",
        "_unreceipted",
        "_waiting",
        "acks_ignored",
    )

    acks_ignored: int
    _blocked: Outbox
    _cancels: list[int]
    _cancelled: dict[int, None]
    _kept_bytes: int
    _latency: Histogram
    _outbox: Outbox
    _unreceipted: deque[Outgoing]
    _waiting: dict[int, OutgoingRequest]

    def _number(self, outgoing: Outgoing) -> None:
        raise NotImplementedError

    def _admit(self) -> None:
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """True when there is a message to be taken."""
        return self._outbox.size > 0

    def take(self) -> Outgoing:
        """Take the next message out, to be written now; only while the lane is `ready`."""
        outgoing = self._outbox.popleft()
        self._number(outgoing)
        if self._blocked.size:
            self._admit()
        return outgoing

    def withdrawn(self) -> set[int]:
        """Return the numbers of requests that nobody waits for any more, each once; there are no cancellations to be written."""
        if not self._cancels:
            return set()
        numbers = {*self._cancels}
        self._cancels.clear()
        self._cancelled.clear()
        return numbers

    def settle(self, outgoing: Outgoing) -> None:
        """Note that the peer has received a message. No effect the second time, or once the lane has begun anew."""
        try:
            self._unreceipted.remove(outgoing)
        except ValueError:
            return
        self._kept_bytes -= outgoing.size
        outgoing.state = OutgoingState.RECEIVED
        if outgoing.watchers is not None:
            outgoing.settle(OutgoingState.RECEIVED)

    def lose(self, outgoing: Outgoing, error: ErrorFactory) -> int:
        """Note that the peer will not take a message, and count it. No effect once it is settled."""
        try:
            self._unreceipted.remove(outgoing)
        except ValueError:
            return 0
        self._kept_bytes -= outgoing.size
        outgoing.settle(OutgoingState.FAILED, error)
        return 1

    def answer(self, outgoing: Outgoing, frame: AckFrame, now: float) -> None:
        """Give a request its answer, which is a receipt as well; ``now`` measures how long it took."""
        request = self._waiting.get(outgoing.seq)
        if request is outgoing and request is not None:
            del self._waiting[outgoing.seq]
            self._latency.observe(now - request.started)
            request.acknowledge(frame)
        else:
            # It timed out, or was cancelled.
            self.acks_ignored += 1
        self.settle(outgoing)
