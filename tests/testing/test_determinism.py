"""One seed, one run: in this process, again in this process, and in another with other hashes."""

from __future__ import annotations

import inspect
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

import quicflow_trio
from quicflow_trio.net.udp import DatagramSocket
from quicflow_trio.testing.determinism import seeded
from quicflow_trio.testing.network import MemoryNetwork


async def ping_pong() -> list[list[object]]:
    """Some clients that ping a server through faults, each waiting as `random` and `os.urandom` say, and their trace."""
    network = MemoryNetwork(seed=3, loss=0.1, delay=0.02, jitter=0.01, duplicate=0.1, reorder=0.1)
    recording = network.record()

    async def serve(sock: DatagramSocket) -> None:
        while True:
            for data, source in await sock.receive():
                sock.send_nowait([(data + os.urandom(1), source)])

    async def ping(name: str) -> None:
        sock = await network.host(name).bind_for(("server", 1))
        for _ in range(10):
            sock.send_nowait([(os.urandom(1 + os.urandom(1)[0] % 20), ("server", 1))])
            with trio.move_on_after(0.05 + random.random() / 100):
                await sock.receive()

    server = await network.bind("::", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server)
        async with trio.open_nursery() as clients:
            for number in range(8):
                clients.start_soon(ping, f"client-{number}")
        nursery.cancel_scope.cancel()
    return [list(line) for line in recording]


def trace(seed: int) -> list[list[object]]:
    with seeded(seed):
        return json.loads(json.dumps(trio.run(ping_pong, clock=MockClock(autojump_threshold=0))))  # type: ignore[no-any-return]


async def order_of_steps() -> list[int]:
    """In which order Trio steps ready tasks."""
    steps: list[int] = []

    async def step(number: int) -> None:
        for _ in range(5):
            steps.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(step, number)
    return steps


# -- repeatable --------------------------------------------------------------------------------------------------------
def test_one_seed_gives_one_trace() -> None:
    first = trace(11)
    assert len(first) > 100
    assert trace(11) == first
    assert trace(12) != first


@pytest.mark.realtime
def test_another_process_with_other_hashes_gives_the_same_trace() -> None:
    root = Path(quicflow_trio.__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, __file__, "11"], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == trace(11)


def test_the_order_of_tasks_follows_the_seed() -> None:
    def order(seed: int) -> list[int]:
        with seeded(seed):
            return trio.run(order_of_steps)

    assert order(1) == order(1)
    assert order(1) != order(2)


async def test_it_holds_from_there_on_when_trio_runs_already() -> None:
    orders = []
    for _ in range(2):
        with seeded(1):
            orders.append(await order_of_steps())
    assert orders[0] == orders[1]


def test_it_seeds_the_randomness_with_different_streams() -> None:
    with seeded(4):
        first = os.urandom(8), random.randbytes(8), trio_run._r.randbytes(8)
    with seeded(4):
        assert (os.urandom(8), random.randbytes(8), trio_run._r.randbytes(8)) == first
    assert len(set(first)) == 3


# -- put back ----------------------------------------------------------------------------------------------------------
def state() -> tuple[object, ...]:
    return os.urandom, random.getstate(), trio_run._r.getstate(), trio_run._ALLOW_DETERMINISTIC_SCHEDULING


def use_all() -> None:
    os.urandom(1)
    random.random()
    trio.run(order_of_steps)


def test_everything_is_put_back() -> None:
    before = state()
    with seeded(1):
        assert os.urandom is not before[0]
        use_all()
    assert state() == before


def test_everything_is_put_back_after_an_exception() -> None:
    @seeded(1)
    def fail() -> None:
        use_all()
        raise ZeroDivisionError

    before = state()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert state() == before


def test_blocks_nest_and_one_object_may_be_entered_again() -> None:
    before = state()
    block = seeded(1)
    with block:
        outer = state()
        with seeded(2):
            use_all()
        assert state() == outer
        with block:
            use_all()
        assert state() == outer
    assert state() == before


def test_overlapping_blocks_are_all_undone_and_reported() -> None:
    # Left unnoticed, the second block would put the predictable os.urandom of the first back for the rest of the process.
    before = state()
    first, second = seeded(1), seeded(2)
    first.__enter__()
    second.__enter__()
    with pytest.raises(RuntimeError, match="overlap"):
        first.__exit__(None, None, None)
    assert state() == before
    second.__exit__(None, None, None)
    assert state() == before


# -- as a decorator ----------------------------------------------------------------------------------------------------
@seeded(5)
def draw(count: int) -> bytes:
    """Some bytes."""
    return os.urandom(count)


def test_a_decorated_function_starts_from_the_seed_at_each_call() -> None:
    assert draw(4) == draw(4)
    assert draw.__name__ == "draw"


@seeded(5)
async def test_a_decorated_async_test_runs_inside(autojump_clock: MockClock) -> None:
    assert trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    await trio.sleep(1)
    assert os.urandom(4) == draw(4)


def test_a_decorated_async_function_is_put_back_when_it_ends() -> None:
    before = state()[0]
    trio.run(seeded(5)(order_of_steps))
    assert os.urandom is before


def test_generator_functions_are_refused() -> None:
    # Their bodies would run after the block has ended, and nothing would tell.
    def generator() -> Iterator[int]:
        yield 1

    @asynccontextmanager
    async def manager() -> AsyncIterator[int]:
        await trio.lowlevel.checkpoint()
        yield 1
        await trio.lowlevel.checkpoint()

    with pytest.raises(TypeError, match="generator function"):
        seeded(1)(generator)
    with pytest.raises(TypeError, match="generator function"):
        seeded(1)(inspect.unwrap(manager))


# -- when Trio changes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["_ALLOW_DETERMINISTIC_SCHEDULING", "_r"])
def test_a_trio_without_the_switch_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(trio_run, name)
    urandom = os.urandom
    with pytest.raises(RuntimeError, match=f"{name}.* cannot be made deterministic"), seeded(1):
        pass
    assert os.urandom is urandom


def test_a_trio_whose_switch_became_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio_run, "_r", object())
    with pytest.raises(RuntimeError, match="cannot be made deterministic"), seeded(1):
        pass


if __name__ == "__main__":
    print(json.dumps(trace(int(sys.argv[1]))))
