"""Background tasks are a detail: whatever the block raises leaves as itself, and what they raise is not lost."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio.background import open_background


async def fail(error: BaseException) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def test_the_tasks_end_with_the_block() -> None:
    ended = False

    async def task() -> None:
        nonlocal ended
        try:
            await trio.sleep_forever()
        finally:
            ended = True

    async with open_background() as nursery:
        nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
    assert ended


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, trio.TooSlowError])
async def test_an_exception_of_the_block_leaves_as_itself(kind: type[BaseException]) -> None:
    error = kind("of the block")
    with pytest.raises(kind) as caught:  # noqa: PT012 - how the block is left is what is tested
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert caught.value is error


async def test_a_group_of_the_block_leaves_as_itself() -> None:
    group = ExceptionGroup("own", [ValueError("a"), KeyError("b")])
    with pytest.raises(ExceptionGroup) as caught:
        async with open_background():
            raise group
    assert caught.value is group


async def test_a_failing_task_ends_the_block_and_is_what_leaves() -> None:
    with pytest.RaisesGroup(KeyboardInterrupt):
        async with open_background() as nursery:
            nursery.start_soon(fail, KeyboardInterrupt())
            await trio.sleep_forever()


async def test_both_leave_when_both_fail() -> None:
    with pytest.RaisesGroup(ValueError, KeyError, flatten_subgroups=True):
        async with open_background() as nursery:

            async def fail_at_the_end() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise KeyError

            nursery.start_soon(fail_at_the_end)
            await trio.testing.wait_all_tasks_blocked()
            raise ValueError


async def test_a_cancellation_from_outside_passes_through(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_an_error_of_a_cancelled_block_leaves_as_itself(autojump_clock: MockClock) -> None:
    """The tasks behind it are cancelled from outside then; that is no second error."""
    error = ValueError("of the block")
    with pytest.raises(ValueError, match="of the block") as caught, trio.CancelScope() as scope:  # noqa: PT012 - as above
        async with open_background() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            raise error
    assert caught.value is error


async def test_a_cancellation_mixed_with_an_error_of_the_block_loses_neither(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True), trio.move_on_after(1) as scope:
        async with open_background(), trio.open_nursery() as inner:

            async def fail_when_cancelled() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError

            inner.start_soon(fail_when_cancelled)
            inner.start_soon(trio.sleep_forever)
    assert scope.cancel_called


async def test_a_failing_task_in_a_cancelled_block_is_what_leaves(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ValueError, flatten_subgroups=True), trio.move_on_after(1):
        async with open_background() as nursery:

            async def fail_at_the_end() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError

            nursery.start_soon(fail_at_the_end)
            await trio.sleep_forever()
