"""The proofs in short form, seconds each, with real processes over real UDP; the long one is `nox -s endure`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.endurance import drain, kill, original, reconnects, rolling, soak, stuck
from tests.endurance.children import ROOT, open_crowd, open_server
from tests.endurance.conduct import Bar, Common, conduct
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

pytestmark = pytest.mark.realtime

SHORT: dict[str, tuple[Callable[..., Awaitable[None]], Any]] = {
    "reconnects": (reconnects.prove, reconnects.Reconnects(requests=2000, cuts=4, clients=4)),
    "kill": (kill.prove, kill.Kill(kills=1, clients=5)),
    "drain": (drain.prove, drain.Drain(drains=1, requests=200, clients=10, seconds=0.5)),
    "rolling": (rolling.prove, rolling.Rolling(turns=1, clients=5, tasks=10)),
}


# How fast it is, and what a few messages leave behind, is for the long run to say.
V1 = original.Original(messages=600, cuts=2, warm=100, unacked=600, timed=300, rate=1, growth=10_000)


async def run(proof: Callable[..., Awaitable[None]], settings: Any, folder: Path) -> Report:
    report = Report("short", asdict(settings))
    with trio.fail_after(100):
        await proof(settings, folder, Bar(), report)
    return report


@pytest.mark.parametrize("name", SHORT)
async def test_the_promise_holds_between_real_processes(name: str, tmp_path: Path) -> None:
    report = await run(*SHORT[name], tmp_path)
    assert report.held, [check for check in report.checks if not check.held] + report.notes


async def test_the_original_s_protocol_with_a_peer_of_its_own(tmp_path: Path) -> None:
    report = await run(original.prove, V1, tmp_path)
    assert report.held, [check for check in report.checks if not check.held] + report.notes


async def test_nothing_is_left_after_a_while_of_faults_and_guests(tmp_path: Path) -> None:
    settings = soak.Soak(minutes=0.1, clients=6, guests=2, pause=0.1, cuts=2.0, silence=1.5, ttl=2.0)
    report = await run(soak.prove, settings, tmp_path)
    assert report.held, [check for check in report.checks if not check.held] + report.notes
    assert report.figures["reconnects forced"] >= 1


async def test_a_client_that_stops_reading_is_held_for_within_bounds(tmp_path: Path) -> None:
    # How fast the others are served is for the long run to say: a test says nothing about the speed of the machine.
    settings = stuck.Stuck(clients=10, pairs=1, seconds=2.0, settle=1.0, flood_every=0.005, pause=0.05, slower=1000)
    report = await run(stuck.prove, settings, tmp_path)
    assert report.held, [check for check in report.checks if not check.held] + report.notes


async def test_a_breach_ends_the_program_with_one_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(_: drain.Drain, folder: Path, bar: Bar, report: Report) -> None:
        report.exactly("requests answered", 999, 1000)

    with pytest.raises(SystemExit) as ended:
        await conduct("broken", broken, drain.Drain(), Common(results=tmp_path))
    assert ended.value.code == 1
    assert "BROKEN" in capsys.readouterr().out
    written = json.loads((tmp_path / "broken.json").read_text())
    assert (written["held"], written["checks"][0]["found"], written["settings"]["requests"]) == (False, 999, 1000)


def test_an_interrupted_proof_takes_its_processes_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.endurance", "drain", "--results", str(tmp_path), "--keep", str(tmp_path / "ledgers")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        deadline = time.monotonic() + 60
        # Both children have their ledgers open, so both run.
        while len(list((tmp_path / "ledgers").glob("*.ledger"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert running(str(tmp_path / "ledgers"))
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (130, "interrupted\n")
    assert not running(str(tmp_path / "ledgers"))


def running(argument: str) -> list[str]:
    """Return the processes that were called with this."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if argument in line and "tests.endurance" in line]


async def test_processes_end_with_a_conductor_that_was_killed(tmp_path: Path) -> None:
    # Nobody hushes them: all they get is the end of their standard input, in the middle of work.
    with trio.fail_after(60):
        async with open_server(tmp_path, {}) as server, open_crowd(tmp_path, "one", [server.hello["port"]], {}) as crowd:
            await crowd.ask("work", tasks=2, mix=asdict(Mix(pause=0.01)))
            await server.ask("talk", tasks=2, mix=asdict(Mix(pause=0.01)))
            await crowd.ask(
                "invite", ids=["guest"], ports=[server.hello["port"]], stay=0.5, away=0.5, mix=asdict(Mix(pause=0.01))
            )
            await trio.sleep(0.5)
            await server.stop()
            await crowd.stop()
