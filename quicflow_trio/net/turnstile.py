"""The turnstile: handshakes one at a time, and after everybody else's work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import wait_all_tasks_blocked

__all__ = ["Turnstile"]


class Turnstile:
    """Where the connections of one socket wait to go on with their handshakes.

    A step of a handshake takes milliseconds of signatures and key exchange, and anybody can ask for one; a message takes microseconds.
    Were all steps that are due taken in one pass of the scheduler, each message would wait for them. So a step begins when no other
    task has anything to do, or at the latest after as long as the step before took: strangers get half of a busy server at most, and
    no less when they need it.
    """

    __slots__ = ("_lock", "_patience")

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._patience = 0.0

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """Hold the turnstile for one step, which must not wait. Cancelled, the others go on."""
        async with self._lock:
            with trio.move_on_after(self._patience):
                await wait_all_tasks_blocked()
            began = trio.current_time()
            try:
                yield
            finally:
                self._patience = trio.current_time() - began
