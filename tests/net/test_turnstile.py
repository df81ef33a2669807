"""The turnstile: one handshake at a time, after the work of others, but not for ever."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio.net.turnstile import Turnstile
from quicflow_trio.quic.aioquic_engine import AioquicEngine
from quicflow_trio.testing import MemoryNetwork, open_world

STEP = 0.005


async def taught(turnstile: Turnstile, clock: MockClock) -> None:
    """Let a step take its time, so that the next waits as long for others."""
    async with turnstile.step():
        clock.jump(STEP)


async def test_a_step_waits_for_the_work_of_others(mock_clock: MockClock) -> None:
    turnstile = Turnstile()
    await taught(turnstile, mock_clock)
    order: list[str] = []

    async def work() -> None:
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        order.append("work")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with turnstile.step():
            order.append("step")
    assert order == ["work", "step"]


async def test_it_waits_no_longer_than_the_last_step_took(mock_clock: MockClock) -> None:
    turnstile = Turnstile()
    await taught(turnstile, mock_clock)
    began = trio.current_time()

    async def work() -> None:
        for _ in range(100):
            mock_clock.jump(STEP / 5)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        async with turnstile.step():
            assert trio.current_time() - began < 2 * STEP
        nursery.cancel_scope.cancel()


async def test_one_step_at_a_time(mock_clock: MockClock) -> None:
    turnstile = Turnstile()
    order: list[str] = []

    async def stranger(name: str) -> None:
        async with turnstile.step():
            order.append(name)

    async def message() -> None:
        for _ in range(40):
            order.append(".")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(stranger, name)
        nursery.start_soon(message)
    between = "".join(order)
    first, second, third = (between.index(name) for name in sorted("abc", key=between.index))
    assert "." in between[first:second]
    assert "." in between[second:third]


async def test_a_step_that_is_cancelled_lets_the_next_go_on(mock_clock: MockClock) -> None:
    turnstile = Turnstile()
    await taught(turnstile, mock_clock)
    with trio.CancelScope() as scope:
        scope.cancel()
        async with turnstile.step():
            raise AssertionError("it must not get here")
    with trio.CancelScope() as inside:
        async with turnstile.step():
            inside.cancel()
    with trio.fail_after(1):
        await taught(turnstile, mock_clock)


class Passes(trio.abc.Instrument):
    """Counts passes of the scheduler."""

    def __init__(self) -> None:
        self.number = 0

    def after_io_wait(self, timeout: float) -> None:
        """Begin one more."""
        self.number += 1


async def test_strangers_do_not_come_in_a_row(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty connections begin in one instant: no pass of the scheduler has the handshakes of two."""
    passes = Passes()
    trio.lowlevel.add_instrument(passes)
    steps: dict[int, set[int]] = {}
    begun: set[int] = set()
    feed = AioquicEngine.receive_datagram

    def watched(engine: AioquicEngine, data: bytes, address: tuple[str, int], now: float) -> None:
        if address[0] != "server" and engine.rtt is None:
            steps.setdefault(passes.number, set()).add(id(engine))
            begun.add(id(engine))
        feed(engine, data, address, now)

    monkeypatch.setattr(AioquicEngine, "receive_datagram", watched)
    async with open_world(clients=20, network=MemoryNetwork(delay=0.01)):
        trio.lowlevel.remove_instrument(passes)
    assert len(begun) == 20
    assert max(map(len, steps.values())) == 1
