"""A nursery for the background tasks of one block: it ends with the block, and the block's exception leaves as itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_background"]


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery whose tasks are cancelled when the block ends, however it ends.

    An exception of the block leaves as itself, not wrapped in an ExceptionGroup: to the caller the background tasks are a detail.
    When they raise too (a handler's KeyboardInterrupt, a defect), the group leaves whole.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is None or _has_others(group, failure):
            raise
    if failure is not None:
        raise failure


def _has_others(group: BaseExceptionGroup[BaseException], failure: BaseException) -> bool:
    """Return True when the nursery raised more than the block's own failure and cancellations."""
    for exc in group.exceptions:
        if exc is failure or isinstance(exc, trio.Cancelled):
            continue
        if isinstance(exc, BaseExceptionGroup) and exc.split(trio.Cancelled)[1] is None:
            continue
        return True
    return False
