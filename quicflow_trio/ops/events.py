"""Events as they come, as server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.

A reader costs the traffic little, whatever it asks for: it gets at most 128 events ten times a second, what does not fit into the
buffer is dropped and said to be, and it is a subscriber for exactly as long as its HTTP exchange lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..observe.events import EVENTS, Event, EventStream, MessageReceivedEvent, MessageSentEvent
from .jsontext import SLICE, dump
from .refusals import Refusal, bad_request
from .view import ServerView

__all__ = ["EventFeed", "EventQuery"]

BUFFER = 256
"""Events that may wait for one reader."""
BATCH = 128
"""Events written at once."""
PACE = 0.1
"""Seconds between two writes: with 16 readers of every message, a write for each event would take the processor from the messages."""
COMMENT_EVERY = 15.0
"""Seconds of silence after which a comment shows that the stream is alive: proxies close silent ones, and readers time out."""

KINDS: dict[str, type[Event]] = {kind.kind: kind for kind in EVENTS}
SHOWN_UNASKED = frozenset(EVENTS) - {MessageSentEvent, MessageReceivedEvent}

HEADERS = ((b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no"))


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events a reader wants.

    Attributes:
        kinds: their kinds.
        client_id: the client that they are about; None takes all.
    """

    kinds: frozenset[type[Event]]
    client_id: str | None

    @classmethod
    def of(cls, request: Request) -> EventQuery:
        """Take it out of the parameters; ``kind`` may come several times.

        Raises:
            Refusal: a parameter or a kind is unknown.
        """
        parameters = request.query_params
        for name in parameters:
            if name not in ("kind", "client_id"):
                raise bad_request(f"{name}: there is no such field here")
        names = parameters.getlist("kind")
        for name in names:
            if name not in KINDS:
                raise bad_request(f"kind: expected one of {', '.join(KINDS)}")
        return cls(frozenset(KINDS[name] for name in names) or SHOWN_UNASKED, parameters.get("client_id"))


@final
class EventFeed:
    """All open event streams.

    Attributes:
        open: how many there are.
    """

    def __init__(self, view: ServerView, limit: int) -> None:
        self._view = view
        self._limit = limit
        self._waiting: set[trio.CancelScope] = set()
        self._ending = False
        self.open: int = 0

    def answer(self, query: EventQuery) -> ASGIApp:
        """Return the answer to a reader."""

        async def stream(scope: Scope, _: Receive, send: Send) -> None:
            with self._counted():
                # Subscribed before the head is sent: who has read it misses nothing from then on.
                async with self._view.open_events(max_buffer_size=BUFFER, kinds=query.kinds, client_id=query.client_id) as events:
                    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
                    if scope["method"] != "HEAD":
                        await self._write_all(_Batches(events), send)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

        return stream

    def end(self) -> None:
        """Let every stream end properly, as soon as it has written what it is writing."""
        self._ending = True
        for scope in self._waiting:
            scope.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self.open >= self._limit:
            raise Refusal(503, "TooManyStreams", f"{self.open} event streams are open already", {"Retry-After": "5"})
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    async def _write_all(self, batches: _Batches, send: Send) -> None:
        await send({"type": "http.response.body", "body": b": events follow\n\n", "more_body": True})
        while not (batches.ended or self._ending):
            # Only the wait is cut short at the end, never a write.
            with trio.CancelScope() as waiting:
                self._waiting.add(waiting)
                try:
                    await batches.gather()
                finally:
                    self._waiting.remove(waiting)
            text = await batches.take()
            if text:
                await send({"type": "http.response.body", "body": text, "more_body": True})


class _Batches:
    """Events of one reader, gathered for one write after the other.

    Attributes:
        ended: true when no further event will come.
    """

    def __init__(self, events: EventStream) -> None:
        self._events = events
        self._batch: list[Event] = []
        self._number = 0
        self._dropped = 0
        self._written_at = self._taken_at = trio.current_time()
        self.ended: bool = False

    async def gather(self) -> None:
        """Wait for events until they are worth a write, or until it is time for a comment. Cancelled, it has lost none."""
        batch = self._batch
        try:
            with trio.move_on_at(self._written_at + COMMENT_EVERY):
                batch.append(await anext(self._events))
            if batch:
                # The first after a silence goes at once; the others wait for company.
                due = self._taken_at + PACE
                with trio.move_on_at(due):
                    while len(batch) < BATCH:
                        batch.append(await anext(self._events))
                await trio.sleep_until(due)
        except StopAsyncIteration:
            self.ended = True

    async def take(self) -> bytes:
        """Return what is to be written, and start a new batch."""
        batch, self._batch = self._batch, []
        pieces: list[bytes] = []
        for event in batch:
            self._number += 1
            pieces.append(_record(event.kind, event.as_json(), self._number))
            if len(pieces) % SLICE == 0:
                await trio.lowlevel.checkpoint()
        dropped = self._events.dropped - self._dropped
        if dropped:
            self._dropped += dropped
            pieces.append(_record("dropped", {"dropped": dropped}, None))
        self._taken_at = now = trio.current_time()
        if not pieces and now >= self._written_at + COMMENT_EVERY:
            pieces.append(b": nothing happened\n\n")
        if pieces:
            self._written_at = now
        return b"".join(pieces)


def _record(kind: str, data: object, number: int | None) -> bytes:
    first = b"" if number is None else b"id: %d\n" % number
    return first + b"event: %b\ndata: %b\n\n" % (kind.encode("ascii"), dump(data))
