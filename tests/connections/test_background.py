"""The nursery behind a block: how exceptions leave it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio.background import open_background


async def raise_when_cancelled(exc: BaseException) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise exc


async def test_background_tasks_end_with_the_block(autojump_clock: MockClock) -> None:
    async with open_background() as background:
        background.start_soon(trio.sleep_forever)
    assert not background.child_tasks


@pytest.mark.parametrize("exc", [ValueError("mine"), KeyboardInterrupt(), ExceptionGroup("mine", [ValueError()])])
async def test_the_blocks_exception_is_the_same_object(autojump_clock: MockClock, exc: BaseException) -> None:
    # A group too: users open nurseries in their blocks.
    with pytest.raises(type(exc)) as caught:
        async with open_background() as background:
            background.start_soon(trio.sleep_forever)
            await trio.sleep(1)
            raise exc
    assert caught.value is exc


async def test_a_failing_background_task_leaves_as_a_group(autojump_clock: MockClock) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with open_background() as background:
            background.start_soon(raise_when_cancelled, ZeroDivisionError())
    assert caught.group_contains(ZeroDivisionError, depth=1)


async def test_both_failures_are_reported(autojump_clock: MockClock) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_background() as background:
            background.start_soon(raise_when_cancelled, KeyboardInterrupt())
            await trio.sleep(1)
            raise ValueError
    assert caught.group_contains(ValueError, depth=1)
    assert caught.group_contains(KeyboardInterrupt)


async def test_cancellation_from_outside_is_that(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_background() as background:
            background.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_the_blocks_exception_wins_over_a_cancellation(autojump_clock: MockClock) -> None:
    async def slow_to_end() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 5, shield=True):
                await trio.sleep(2)

    with pytest.raises(ValueError, match="mine"), trio.move_on_after(2):
        async with open_background() as background:
            background.start_soon(slow_to_end)
            await trio.sleep(1)
            raise ValueError("mine")
