"""What the simulated programs send: `Caller`, random calls in bursts, each noted from its beginning to its end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import trio

from ..errors import QuicFlowError
from ..message import Ack, Delivery, Message, MessageType
from ..peer import Peer
from .handlers import answer_to, make_payload
from .history import BROADCAST_LANE, Happened
from .process import Process
from .rules import FORBIDDEN_LANE
from .settings import Settings

__all__ = ["Call", "Caller"]

_LANES = ("", "", "", "bulk", "control")
_SIZES = (*(0,) * 6, *(50,) * 3, *(200,) * 5, *(1000,) * 3, *(3000,) * 2, 20_000)
_FORBIDDEN = 0.1
_LARGEST_BURST = 6
_BROADCASTS = 0.1
_ANSWERS_WITHIN = 60.0


class Call(NamedTuple):
    """One call to be made.

    Attributes:
        peer: the host at the other end.
        type: of the message.
        wants_answer: a request, or a send.
        lane: which lane.
        size: of the payload, bytes.
        ack_timeout: of a request, seconds.
        patience: seconds after which the caller takes it back, infinity for never.
        redeliver: whether it may be handled again by a process that was restarted.
    """

    peer: str
    type: MessageType
    wants_answer: bool
    lane: str = ""
    size: int = 0
    ack_timeout: float = _ANSWERS_WITHIN
    patience: float = math.inf
    redeliver: bool = False


@final
class Caller:
    """Makes calls for one process, in the process's nursery of callers.

    Args:
        process: whose.
        peers: the hosts that it may call.
        find: returns the session with a host, or raises as the library does.
        seed: decides what it calls and when.
        gap: seconds between two bursts, on average.
        settings: of the simulation.
    """

    def __init__(
        self,
        process: Process,
        peers: Sequence[str],
        find: Callable[[str], Peer],
        *,
        seed: str,
        gap: float,
        settings: Settings,
    ) -> None:
        self._process = process
        self._peers = peers
        self._find = find
        self._random = random.Random(seed)
        self._gap = gap
        self._settings = settings

    async def talk(self) -> None:
        """Begin calls until ``process.talking`` is cancelled."""
        with self._process.talking:
            while True:
                await trio.sleep(self._random.expovariate(1 / self._gap))
                self.burst(self._random.choice(self._peers))

    def burst(self, peer: str) -> None:
        """Begin a few calls to a peer; a server now and then a broadcast before them."""
        if self._process.server is not None and self._random.random() < _BROADCASTS:
            self._start(self._broadcast, self._random.choice((None, _ANSWERS_WITHIN)))
        for _ in range(self._random.randint(1, _LARGEST_BURST)):
            self._start(self.make, self._draw(peer))

    def flood(self, peer: str, count: int, size: int) -> None:
        """Send many events to a peer that reads slowly."""
        for _ in range(count):
            self._start(self.make, Call(peer, MessageType.EVENT, wants_answer=False, lane="bulk", size=size))

    def _start(self, function: Callable[..., object], *arguments: object) -> None:
        callers = self._process.callers
        assert callers is not None, "a process that talks is up"
        callers.start_soon(function, *arguments)  # type: ignore[arg-type]

    def _draw(self, peer: str) -> Call:
        rng = self._random
        impatience = self._process.conditions.impatience
        guarded = self._settings.valid_for is not None and self._process.client is not None
        return Call(
            peer,
            rng.choice((MessageType.COMMAND, MessageType.COMMAND, MessageType.QUERY, MessageType.EVENT)),
            rng.random() < 0.7,
            FORBIDDEN_LANE if guarded and rng.random() < _FORBIDDEN else rng.choice(_LANES),
            rng.choice(_SIZES),
            rng.uniform(3.0, _ANSWERS_WITHIN),
            rng.uniform(0.0, impatience) if impatience else math.inf,
            rng.random() < self._settings.redeliver,
        )

    async def make(self, call: Call) -> None:
        """Make one call and note how it ends."""
        process = self._process
        number = process.history.new_message()
        delivery = Delivery.REDELIVER if call.redeliver else Delivery.AT_MOST_ONCE
        message = Message(call.type, make_payload(number, call.size), delivery=delivery)
        process.note(
            Happened.ASKED if call.wants_answer else Happened.SENT,
            number,
            peer=call.peer,
            lane=call.lane,
            detail=repr(call.ack_timeout) if call.wants_answer else "",
            redeliver=call.redeliver,
        )
        with trio.move_on_after(call.patience) as scope:
            try:
                peer = self._find(call.peer)
                lane = peer.lane(call.lane) if call.lane else peer
                if call.wants_answer:
                    self._note_ack(number, call.peer, await lane.request(message, ack_timeout=call.ack_timeout))
                else:
                    await (await lane.send(message)).delivered()
                    process.note(Happened.DELIVERED, number, peer=call.peer)
            except QuicFlowError as exc:
                process.note(Happened.FAILED, number, peer=call.peer, detail=type(exc).__name__)
        if scope.cancelled_caught:
            process.note(Happened.CANCELLED, number, peer=call.peer)

    def _note_ack(self, number: int, peer: str, ack: Ack) -> None:
        right = ack.result == answer_to(number)
        what = Happened.ACKED if right else Happened.MIXED_UP
        self._process.note(what, number, peer=peer, detail="" if right else ack.result.hex())

    async def _broadcast(self, ack_timeout: float | None) -> None:
        process = self._process
        assert process.server is not None, "servers broadcast"
        number = process.history.new_message()
        asked = ack_timeout is not None
        what = Happened.ASKED if asked else Happened.SENT
        process.note(what, number, peer="*", lane=BROADCAST_LANE, detail=repr(ack_timeout) if asked else "")
        message = Message(MessageType.COMMAND, make_payload(number, 20))
        try:
            report = await process.server.broadcast(message, ack_timeout=ack_timeout)
        except QuicFlowError as exc:
            process.note(Happened.FAILED, number, detail=type(exc).__name__)
            return
        for client_id, ack in report.acked.items():
            self._note_ack(number, client_id, ack)
        for client_id, error in report.failed.items():
            process.note(Happened.FAILED, number, peer=client_id, detail=type(error).__name__)
