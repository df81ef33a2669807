"""A value that can be watched."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from quicflow_trio.observe.state import Observable, set_value


async def test_waiting_for_the_value_it_has_returns_at_once() -> None:
    with trio.fail_after(1):
        assert await Observable(3).wait_value(3) == 3
        assert await Observable(3).wait_value(lambda value: value > 2) == 3


async def test_waiting_ends_with_the_value_asked_for(autojump_clock: trio.testing.MockClock) -> None:
    observable = Observable("a")
    seen: list[str] = []

    async def watch() -> None:
        seen.append(await observable.wait_value("c"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for value in "bc":
            await trio.sleep(1)
            set_value(observable, value)
    assert seen == ["c"]


async def test_a_value_that_was_there_for_a_moment_is_not_missed(autojump_clock: trio.testing.MockClock) -> None:
    # A waiter for CONNECTED must wake even if the connection is lost again before it runs.
    observable = Observable("idle")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(observable.wait_value, "connected")
        await trio.testing.wait_all_tasks_blocked()
        set_value(observable, "connected")
        set_value(observable, "idle")


async def test_transitions_give_new_and_old(autojump_clock: trio.testing.MockClock) -> None:
    observable = Observable(1)
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        async for change in observable.transitions():
            seen.append(change)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        for value in (2, 3, 3):
            await trio.testing.wait_all_tasks_blocked()
            set_value(observable, value)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert seen == [(2, 1), (3, 2)]


async def test_it_is_read_only_for_those_who_watch() -> None:
    observable = Observable(1)
    with pytest.raises(AttributeError):
        observable.value = 2  # type: ignore[misc]
    assert repr(observable) == "<Observable 1>"
