"""What both sides say to each other: `make_router`, the handlers, and `Caller`, which makes calls and notes how each ends."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import trio

from quicflow_trio import Delivery, Message, MessageType, Peer, QuicFlowError, Request, Router
from tests.endurance.ledger import Ledger, What

__all__ = ["Caller", "Mix", "answer_to", "make_router"]

_MS = 4
"""Bytes at the head of a payload: how long its handler takes, ms."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What callers send.

    Attributes:
        size: bytes of a payload at most.
        slow: share of the messages whose handlers take their time.
        seconds: that those take at most.
        least: and at least.
        sends: share of the calls that are a send until delivered, and no request.
        redeliver: share of the messages that go out again after a restart of the other side.
        hasty: share of the calls that their caller takes back.
        patience: seconds until then at most.
        pause: seconds between two calls of one task, on average.
        ack_timeout: seconds that a request may take.
        timed: whether the time of each request is kept until somebody asks for it.
    """

    size: int = 200
    slow: float = 0.0
    seconds: float = 0.0
    least: float = 0.0
    sends: float = 0.0
    redeliver: float = 0.0
    hasty: float = 0.0
    patience: float = 0.05
    pause: float = 0.0
    ack_timeout: float = 120.0
    timed: bool = False


def answer_to(payload: bytes) -> bytes:
    """Return the result of the one message with this payload: who gets another message's result sees it."""
    return blake2b(payload, digest_size=12).digest()


def make_payload(body: bytes, seconds: float = 0.0) -> bytes:
    """Return a payload whose handler takes so many seconds."""
    return round(seconds * 1000).to_bytes(_MS, "big") + body


def make_router(ledger: Ledger) -> Router:
    """Return handlers that note when they begin and end, and answer."""

    async def handle(request: Request) -> bytes:
        payload, id = request.message.payload, request.message.id
        ledger.note(What.STARTED_AGAIN if request.redelivered else What.STARTED, id)
        if takes := int.from_bytes(payload[:_MS], "big"):
            await trio.sleep(takes / 1000)
        ledger.note(What.ENDED, id)
        return answer_to(payload)

    async def take(_: Request) -> None:
        """Events are the load beside, of which nobody keeps an account."""

    router = Router()
    router.add(MessageType.COMMAND, handle)
    router.add(MessageType.EVENT, take)
    return router


class Caller:
    """Makes calls of a mix and notes each from its beginning to its end.

    Attributes:
        errors: calls that raised, by the name of the error.
        done: calls that have ended.
        slowest: seconds of the longest call that was acked.
        times: when each of them began and ended (`time.monotonic`), where the mix wants it.
    """

    def __init__(self, ledger: Ledger, mix: Mix, seed: str) -> None:
        self.errors: Counter[str] = Counter()
        self.done = 0
        self.slowest = 0.0
        self.times: list[tuple[float, float]] = []
        self._ledger = ledger
        self._mix = mix
        self._random = random.Random(seed)

    async def repeat(self, find: Callable[[], Peer], more: Callable[[], bool]) -> None:
        """Make one call after the other while ``more()``, each with the peer that ``find`` returns at that moment."""
        pause = self._mix.pause
        while more():
            await self.call(find)
            if pause:
                await trio.sleep(self._random.expovariate(1 / pause))

    async def call(self, find: Callable[[], Peer]) -> None:
        """Make one call."""
        mix, rng = self._mix, self._random
        seconds = rng.uniform(mix.least, mix.seconds) if rng.random() < mix.slow else 0.0
        payload = make_payload(rng.randbytes(rng.randint(16, max(16, mix.size))), seconds)
        redeliver = rng.random() < mix.redeliver
        message = Message.command(payload, delivery=Delivery.REDELIVER if redeliver else Delivery.AT_MOST_ONCE)
        patience = rng.uniform(0, mix.patience) if rng.random() < mix.hasty else float("inf")
        end = What.CANCELLED
        self._ledger.note(What.BEGUN_REDELIVER if redeliver else What.BEGUN, message.id)
        try:
            with trio.move_on_after(patience):
                end = await self._make(find, message, is_send=rng.random() < mix.sends)
        finally:
            self.done += 1
            self._ledger.note(end, message.id)

    async def _make(self, find: Callable[[], Peer], message: Message, *, is_send: bool) -> What:
        started = time.monotonic()
        try:
            if is_send:
                await (await find().send(message)).delivered()
                return What.DELIVERED
            ack = await find().request(message, ack_timeout=self._mix.ack_timeout)
        except QuicFlowError as exc:
            self.errors[type(exc).__name__] += 1
            return What.FAILED
        ended = time.monotonic()
        self.slowest = max(self.slowest, ended - started)
        if self._mix.timed:
            self.times.append((started, ended))
        return What.ACKED if ack.result == answer_to(message.payload) else What.MIXED_UP
