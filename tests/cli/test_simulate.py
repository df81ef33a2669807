"""`quicflow simulate`: what it prints, what it returns, and how it ends."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from quicflow_trio.simulate import Scenario, Verdict, Violation, make_schedule
from quicflow_trio.simulate.figures import Figures
from quicflow_trio.simulate.pool import Pool

from .conftest import Child, Quicflow

pytestmark = pytest.mark.realtime

SHORT = ("--hours", "0.05", "--clients", "1", "--jobs", "2")


def test_a_table_of_what_was_simulated(quicflow: Quicflow) -> None:
    ran = quicflow("simulate", "--seeds", "3", "--hours", "0.1", "--clients", "1")
    assert (ran.code, ran.err) == (0, "")
    rows = [" ".join(line.replace("│", " ").split()) for line in ran.out.splitlines()]
    assert {"seeds 3 of 3", "client-hours 0.3", "seeds that broke the promise 0"} <= set(rows)


def test_json_and_a_history_file(quicflow: Quicflow, tmp_path: Path) -> None:
    file = tmp_path / "history.txt"
    ran = quicflow("simulate", "--seed", "9", *SHORT, "--history", str(file), "--json")
    said = json.loads(ran.out)
    assert (ran.code, said["seeds"], said["broken"], [*said["digests"]]) == (0, 1, [], ["9"])
    assert said["availability"] > 0.9
    assert "born" in file.read_text(encoding="utf-8")


def break_on(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async def simulate(pool: Pool, scenario: Scenario, *, history: Path | None = None) -> Verdict:
        found = [Violation("left over", fault.start, str(fault)) for fault in make_schedule(scenario) if fault.kind == kind]
        return Verdict(scenario, "abc", tuple(found[:1]), Figures(), 0.0)

    monkeypatch.setattr(Pool, "simulate", simulate)


def test_a_broken_promise_is_shown_with_the_commands_that_replay_it(quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch) -> None:
    break_on(monkeypatch, "kill")
    ran = quicflow("simulate", "--seed", "3", "--clients", "2", "--hours", "2")
    scenario = Scenario(seed=3, hours=2, clients=2)
    first = next(fault for fault in make_schedule(scenario) if fault.kind == "kill")
    assert ran.code == 1
    assert f"seed 3 broke the promise; replay: {scenario.command}\n" in ran.out
    assert f"these 1 faults are enough; replay: {scenario.command} --keep {first.number}\n    {first}" in ran.out
    said = json.loads(quicflow("simulate", "--seed", "3", "--clients", "2", "--hours", "2", "--json").out)
    assert said["broken"][0]["shortest"].endswith(f"--keep {first.number}")
    assert said["broken"][0]["violations"][0]["rule"] == "left over"


@pytest.mark.parametrize(
    "options", [("--keep", "a,b"), ("--history", "x", "--seeds", "2"), ("--hours", "0"), ("--clients", "0"), ("--faults", "some")]
)
def test_wrong_options_are_exit_code_2(quicflow: Quicflow, options: tuple[str, ...]) -> None:
    assert quicflow("simulate", *options).code == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the workers are looked for in /proc")
def test_a_signal_ends_it_and_shows_what_was_done(start: Callable[..., Child]) -> None:
    child = start("simulate", "--seeds", "100000", *SHORT)
    pid = child.process.pid
    workers: list[str] = []
    while not workers:
        time.sleep(0.05)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        # By name: what is imported may start processes of its own, and a signal in that time meets no command yet.
        workers = [
            child
            for child in children
            if "quicflow_trio.simulate.worker" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8")
        ]
    child.process.send_signal(signal.SIGINT)
    ended = child.end()
    assert (ended.code, ended.err) == (130, "")
    assert "of 100,000" in ended.out
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
