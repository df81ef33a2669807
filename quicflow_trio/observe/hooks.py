"""Callbacks for events: `Hooks`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
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
        self._hooks: list[tuple[frozenset[type[Event]], Callable[[Any], Awaitable[None]]]] = []

    def on(self, *kinds: type[E]) -> Callable[[Callable[[E], Awaitable[None]]], Callable[[E], Awaitable[None]]]:
        """Register the decorated function for one kind of event or several; see `add`."""

        def register(hook: Callable[[E], Awaitable[None]]) -> Callable[[E], Awaitable[None]]:
            self.add(hook, *kinds)
            return hook

        return register

    def add(self, hook: Callable[[E], Awaitable[None]], *kinds: type[E]) -> None:
        """Call ``hook`` with every event of these kinds, from the next `serve` or `open_client` on.

        Raises:
            ConfigurationError: a kind is no kind of event, or none is given, or the hook is not an async function.
        """
        if not kinds or not set(kinds) <= set(EVENTS):
            raise ConfigurationError(f"Hooks: kinds = {kinds!r}: expected classes of events, such as ConnectEvent")
        # An object with an async __call__ is as good as a function, and so is a partial of either.
        called = hook.func if isinstance(hook, partial) else hook
        if not (inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None))):  # noqa: B004
            raise ConfigurationError(f"Hooks: hook = {hook!r}: expected an async function")
        self._hooks.append((frozenset(kinds), hook))


@asynccontextmanager
async def open_hooks(hooks: Hooks | None, hub: EventHub, failed: Callable[[], None]) -> AsyncIterator[None]:
    """Run the hooks beside the block. When it ends, however it ends, they get a second for the events that are still buffered.

    Args:
        hooks: what to run; None runs nothing.
        hub: where the events come from; closed when the block ends.
        failed: called when a hook has raised.
    """
    if hooks is None or not hooks._hooks:
        yield
        return
    with ExitStack() as stack:
        # Subscribed before the block begins, so that no event of its beginning is missed.
        pairs = [(stack.enter_context(hub.subscribe(kinds, BUFFER)), hook) for kinds, hook in hooks._hooks]
        # A cancellation from outside must not take the hooks first: then nobody would see the end that it causes.
        scope = trio.CancelScope(shield=True)
        async with open_background() as background:
            background.start_soon(_run_all, pairs, failed, scope)
            try:
                yield
            finally:
                hub.close()
                scope.deadline = trio.current_time() + GRACE


async def _run_all(
    pairs: list[tuple[EventStream, Callable[[Any], Awaitable[None]]]], failed: Callable[[], None], scope: trio.CancelScope
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            for stream, hook in pairs:
                nursery.start_soon(_run, stream, hook, failed, name=hook)


async def _run(stream: EventStream, hook: Callable[[Any], Awaitable[None]], failed: Callable[[], None]) -> None:
    async for event in stream:
        try:
            await hook(event)
        except Exception:
            failed()
            log.exception("hook failed", hook=getattr(hook, "__qualname__", hook), kind=event.kind, client_id=event.client_id)
