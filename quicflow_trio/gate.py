"""What stands between a received message and its handler: permissions and rate limits. There is none where nothing is configured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .message import AckStatus, type_name
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger
from .observe.metrics import count
from .permissions import Permissions
from .protocol.lane_receiver import Incoming, LaneReceiver
from .rates import Meter, TokenBucket
from .wire import encode_retry_hint

__all__ = ["Gate", "Refusal", "Rest"]

log: Logger = get_logger(__name__)

REFUSALS_PER_SECOND = 100.0
"""Refusals that one client gets in a second. A lane that would get more rests, undecoded and without credit: refusing takes a tenth of
the time of handling, but a sender that does not heed it could have a hundred thousand refusals a second."""


class Refusal(NamedTuple):
    """Why a message gets no handler, and what its sender is told.

    Attributes:
        status: of the ack.
        result: of the ack: when to try again.
        error: of the ack: for people.
        rest: seconds that nothing more is taken from the lane.
    """

    status: AckStatus
    result: bytes
    error: str
    rest: float


class Gate:
    """Lets messages of one client through or says why not.

    Args:
        permissions: what it may send; None lets it send everything.
        meter: measures how much; None lets it send any amount.
        client_id: the client.
        instruments: where refusals are counted and reported.
    """

    __slots__ = ("_client_id", "_instruments", "_logged", "_meter", "_permissions", "_refusals")

    def __init__(self, permissions: Permissions | None, meter: Meter | None, client_id: str, instruments: Instruments) -> None:
        self._permissions = permissions
        self._meter = meter
        self._client_id = client_id
        self._instruments = instruments
        self._refusals = TokenBucket(REFUSALS_PER_SECOND, 1.0)
        self._logged: set[str] = set()

    def refusal(self, incoming: Incoming, now: float) -> Refusal | None:
        """Return None for a message that may have its handler now."""
        frame = incoming.frame
        lane = incoming.lane.name or ""
        if self._permissions is not None and not self._permissions.allows(frame.type, lane):
            where = f"lane {lane!r}" if lane else "the default lane"
            return self._refuse("permission", AckStatus.DENIED, f"{type_name(frame.type)} on {where} is not permitted", b"", now)
        if self._meter is not None:
            wait = self._meter.take(len(frame.payload), now)
            if wait:
                text = f"over the rate limit, try again in {wait:.3g} s"
                return self._refuse("rate", AckStatus.RATE_LIMITED, text, encode_retry_hint(wait), now)
        return None

    def _refuse(self, reason: str, status: AckStatus, text: str, result: bytes, now: float) -> Refusal:
        count(self._instruments.counters.messages_refused, reason)
        self._instruments.report_error(self._client_id, f"refused_{reason}", text)
        if reason not in self._logged:
            # Once for each connection: the counter says how many there are.
            self._logged.add(reason)
            log.warning("message refused", client_id=self._client_id, reason=text)
        self._refusals.take(1, now)
        return Refusal(status, result, text, self._refusals.wait(1, now))


class Rest:
    """A lane that nothing is taken from for a while (`Deadlines` ends it)."""

    __slots__ = ("_lane", "_resume", "live")

    def __init__(self, lane: LaneReceiver, ready: deque[LaneReceiver], resume: Callable[[LaneReceiver], None]) -> None:
        self.live: bool = True
        self._lane = lane
        self._resume = resume
        lane.held_back = True
        if lane.scheduled:
            lane.scheduled = False
            ready.remove(lane)

    def expire(self, now: float) -> None:
        """Go on with the lane, or let the one after it begin."""
        self.live = False
        self._lane.held_back = False
        self._resume(self._lane)
        self._lane.pass_on()
