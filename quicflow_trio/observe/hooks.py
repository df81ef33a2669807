"""Callbacks for events: `Hooks`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, TypeVar, final

import trio

from ..background import open_background
from ..errors import ConfigurationError
from .events import EVENTS, Event, EventHub, EventStream
from .logs import Logger, get_logger

__all__ = ["Hooks", "open_hooks"]

log: Logger = get_logger(__name__)

E = TypeVar("E", bound=Event)

BUFFER = 1024
"""Events that may wait for one hook; more are dropped and counted."""

GRACE = 1.0
"""Seconds that hooks have, when the server or client has ended, to take the events of its end."""


@final
class Hooks:
    """Async functions to be called on events. One object may serve any number of servers and clients::

    hooks = Hooks()

    @hooks.on(ConnectEvent)
    async def greet(event: ConnectEvent) -> None:
        print("welcome", event.client_id)

    Each function has a task of its own, in a nursery of the server or client, and gets its events one after the other. When it is
    slower than they come, at most 1,024 wait for it and further ones are dropped and counted. What it raises is logged and counted,
    and hurts nobody.
    """

    def __init__(self) -> None:
        self._hooks: list[tuple[type[Event], Callable[[Any], Awaitable[None]]]] = []

    def on(self, kind: type[E]) -> Callable[[Callable[[E], Awaitable[None]]], Callable[[E], Awaitable[None]]]:
        """Register the decorated function for a kind of event; see `add`."""

        def register(hook: Callable[[E], Awaitable[None]]) -> Callable[[E], Awaitable[None]]:
            self.add(kind, hook)
            return hook

        return register

    def add(self, kind: type[E], hook: Callable[[E], Awaitable[None]]) -> None:
        """Call ``hook`` with every event of this kind, from the next `serve` or `open_client` on.

        Raises:
            ConfigurationError: ``kind`` is no kind of event, or the hook cannot be called.
        """
        if kind not in EVENTS:
            raise ConfigurationError(f"Hooks: kind = {kind!r}: expected a class of events, such as ConnectEvent")
        if not callable(hook):
            raise ConfigurationError(f"Hooks: hook = {hook!r}: expected an async function")
        self._hooks.append((kind, hook))


@asynccontextmanager
async def open_hooks(hooks: Hooks | None, hub: EventHub, failed: Callable[[], None]) -> AsyncIterator[None]:
    """Run the hooks beside the block. When the block ends normally they get a second for the events that are still buffered.

    Args:
        hooks: what to run; None runs nothing.
        hub: where the events come from; closed when the block ends normally.
        failed: called when a hook has raised.
    """
    if hooks is None or not hooks._hooks:
        yield
        return
    with ExitStack() as stack:
        # Subscribed before the block begins, so that no event of its beginning is missed.
        pairs = [(stack.enter_context(hub.subscribe({kind}, BUFFER)), hook) for kind, hook in hooks._hooks]
        async with open_background() as background:
            ended = trio.Event()
            background.start_soon(_run_all, pairs, failed, ended)
            yield
            # Again where the owner did it already: what ends here are the hooks' streams.
            hub.close()
            with trio.move_on_after(GRACE):
                await ended.wait()


async def _run_all(
    pairs: list[tuple[EventStream, Callable[[Any], Awaitable[None]]]], failed: Callable[[], None], ended: trio.Event
) -> None:
    async with trio.open_nursery() as nursery:
        for stream, hook in pairs:
            nursery.start_soon(_run, stream, hook, failed, name=hook)
    ended.set()


async def _run(stream: EventStream, hook: Callable[[Any], Awaitable[None]], failed: Callable[[], None]) -> None:
    async for event in stream:
        try:
            await hook(event)
        except Exception:
            failed()
            log.exception("hook failed", hook=getattr(hook, "__qualname__", hook), kind=event.kind, client_id=event.client_id)
