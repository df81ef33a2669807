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
            except BaseException as exc:  # noqa: ASYNC103  raised again below, outside the nursery
                if _is_cancelled(exc):
                    # For the nursery to judge: when a background task fails, it is the nursery that cancels the block.
                    raise
                # Kept out of the nursery: it would come back in a group, and an ExceptionGroup of the block's own as a copy of itself.
                failure = exc
            finally:
                nursery.cancel_scope.cancel()
    except (trio.Cancelled, BaseExceptionGroup) as exc:  # noqa: ASYNC103  only a cancellation that the nursery has dealt with ends here
        if failure is None:
            raise
        others = exc.split(trio.Cancelled)[1] if isinstance(exc, BaseExceptionGroup) else None
        if others is not None:
            raise BaseExceptionGroup("the block failed, and so did tasks behind it", [failure, others]) from None  # noqa: ASYNC104
    if failure is not None:
        raise failure


def _is_cancelled(exc: BaseException) -> bool:
    return isinstance(exc, trio.Cancelled) or (isinstance(exc, BaseExceptionGroup) and exc.subgroup(trio.Cancelled) is not None)
