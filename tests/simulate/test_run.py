"""One seed is one history: here, again, and in processes with other hashes; and each fault does what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from quicflow_trio.simulate import PROMISE, Scenario, simulate
from quicflow_trio.simulate.history import Happened
from quicflow_trio.simulate.pool import open_pool
from quicflow_trio.simulate.schedule import KINDS, Fault
from quicflow_trio.simulate.world import World

ROOT = Path(__file__).resolve().parents[2]
SHORT = Scenario(seed=5, hours=0.08, clients=3, faults="heavy")


def test_a_seed_replays_and_another_does_not() -> None:
    first = simulate(SHORT)
    assert first.held, first.violations
    assert first.figures.messages > 100
    assert simulate(SHORT).digest == first.digest
    assert simulate(replace(SHORT, seed=6)).digest != first.digest


@pytest.mark.realtime
@pytest.mark.parametrize("hash_seed", ["1", "4242"])
def test_in_another_process_with_another_hash_seed(hash_seed: str, tmp_path: Path) -> None:
    order = {"seed": 5, "hours": 0.08, "clients": 3, "faults": "heavy", "keep": None, "history": str(tmp_path / "history.txt")}
    done = subprocess.run(
        [sys.executable, "-m", "quicflow_trio.simulate.worker"],
        input=json.dumps(order) + "\n",
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    here = simulate(SHORT)
    assert json.loads(done.stdout)["digest"] == here.digest
    assert (tmp_path / "history.txt").read_text(encoding="utf-8").splitlines() == [str(record) for record in here.history]


def test_the_clock_on_the_wall_is_as_before() -> None:
    before = time.time, time.time_ns
    simulate(Scenario(seed=1, hours=0.05, clients=1))
    assert (time.time, time.time_ns) == before
    assert abs(time.time() - time.time_ns() / 1e9) < 60


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_alone_is_survived_and_leaves_a_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longest, host = KINDS[kind].longest, {"world": "world"}.get(KINDS[kind].hosts, "client-0")
    faults = tuple(
        Fault(number, 100.0 + 300 * number, min(longest, 90.0), kind, host, {"kill": 5.0, "pause": 50.0}.get(kind, 0.3))
        for number in range(2)
    )
    monkeypatch.setattr("quicflow_trio.simulate.world.make_schedule", lambda _: faults)
    worlds: list[World] = []
    real = World.__init__

    def keep_world(world: World, *arguments: object) -> None:
        worlds.append(world)
        real(world, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(World, "__init__", keep_world)
    verdict = simulate(Scenario(seed=2, hours=0.3, clients=2, faults="none"))
    assert verdict.held, verdict.violations
    happened = [record for record in verdict.history if record.what is Happened.FAULT]
    assert [record.detail for record in happened] == [str(fault) for fault in faults]
    network = worlds[0].network.statistics()
    traces = {
        "loss to the server": network.lost,
        "loss to the client": network.lost,
        "loss both ways": network.lost,
        "duplication": network.duplicated,
        "reordering": network.reordered,
        "corruption": network.corrupted,
        "partition": network.cut,
        "new address": network.unroutable,
        "kill": verdict.figures.kills,
        "stop": sum(record.what is Happened.BORN for record in verdict.history) - 3,
        "cancelled callers": 1,
        "stuck handlers": sum(record.detail == "cancelled" for record in verdict.history),
        "pause": sum(record.what is Happened.JUMPED for record in verdict.history),
    }
    assert traces.get(kind, 1) > 0


def test_an_exception_that_escapes_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(world: World, fault: Fault) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(World, "_happen", fail)
    verdict = simulate(Scenario(seed=1, hours=0.2, clients=1, faults="heavy"))
    assert [violation.rule for violation in verdict.violations] == ["crashed"]
    assert "ZeroDivisionError" in verdict.violations[0].text


# -- in other processes --------------------------------------------------------------------------------------------------
@pytest.mark.realtime
async def test_one_worker_after_another_simulation_is_as_good_as_new() -> None:
    scenario = Scenario(seed=4, hours=0.1, clients=1, faults="heavy")
    async with open_pool(1) as pool:
        first = await pool.simulate(scenario)
        await pool.simulate(Scenario(seed=5, hours=0.05, clients=1))
        again = await pool.simulate(scenario)
    assert first.scenario == scenario
    assert first.figures.client_hours == pytest.approx(0.1)
    assert (again.digest, again.figures) == (first.digest, first.figures)


@pytest.mark.realtime
async def test_a_worker_that_ends_is_a_breach_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(seed=4, hours=0.05, clients=1)
    async with open_pool(1) as pool:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            verdict = await pool.simulate(scenario)
        assert [violation.rule for violation in verdict.violations] == ["crashed"]
        assert (await pool.simulate(scenario)).held


@pytest.mark.realtime
async def test_a_worker_that_hangs_is_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicflow_trio.simulate.pool._BASE_SECONDS", 0.0)
    monkeypatch.setattr("quicflow_trio.simulate.pool._SECONDS_PER_CLIENT_HOUR", 1.0)
    async with open_pool(1) as pool:
        verdict = await pool.simulate(Scenario(seed=4, hours=0.05, clients=1))
    assert [violation.rule for violation in verdict.violations] == ["stuck"]


@pytest.mark.realtime
async def test_cancelled_it_leaves_no_process() -> None:
    async with open_pool(2) as pool:
        with trio.move_on_after(1.0):
            async with trio.open_nursery() as nursery:
                for seed in (1, 2):
                    nursery.start_soon(pool.simulate, Scenario(seed=seed, hours=500, clients=4))
    children = trio.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if await children.exists():
        assert await children.read_text(encoding="utf-8") == ""


def test_the_promise_is_the_one_of_the_readme() -> None:
    assert PROMISE.survives_reconnect
    assert PROMISE.starts_per_session == 1
