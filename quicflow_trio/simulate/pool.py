"""Many simulations over the cores: `open_pool`, worker processes that each run one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import final

import trio

from .checker import Violation
from .figures import Figures
from .run import Verdict
from .schedule import Scenario

__all__ = ["Pool", "open_pool"]

_CHUNK = 65_536
_LONGEST_LINE = 64 * 1024 * 1024
_KILL_SECONDS = 5.0
_BASE_SECONDS = 120.0
_SECONDS_PER_CLIENT_HOUR = 120.0


@final
class Pool:
    """Simulates in other processes: a simulation takes the whole of its process, clocks and randomness included.

    Args:
        jobs: simulations at once.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._idle: list[trio.Process] = []
        self._room = trio.CapacityLimiter(jobs)

    async def simulate(self, scenario: Scenario, *, history: Path | None = None) -> Verdict:
        """Run one simulation in a worker, which is killed when this is cancelled; waits while all are busy.

        A worker that dies, or takes two minutes for each client-hour, is a breach of the promise like any other.

        Args:
            scenario: what to simulate.
            history: file to write all records to; None writes none.
        """
        async with self._room:
            worker = self._idle.pop() if self._idle else await _start_worker()
            reusable = False
            try:
                order = {**asdict(scenario), "history": None if history is None else str(history)}
                with trio.move_on_after(_patience(scenario)) as scope:
                    line = await _ask(worker, json.dumps(order).encode() + b"\n")
                if scope.cancelled_caught:
                    return _without_verdict(scenario, "stuck", f"no end after {_patience(scenario):g} s of real time")
                if not line:
                    return _without_verdict(scenario, "crashed", f"the worker process ended: exit code {await worker.wait()}")
                reusable = True
                return Verdict.from_json(json.loads(line))
            finally:
                if reusable:
                    self._idle.append(worker)
                else:
                    await _end_worker(worker)  # noqa: ASYNC102  it is shielded inside, with a deadline

    async def aclose(self) -> None:
        """End the workers that wait for work."""
        while self._idle:
            await _end_worker(self._idle.pop())


@asynccontextmanager
async def open_pool(jobs: int) -> AsyncIterator[Pool]:
    """Open a pool of at most ``jobs`` processes; they are started when they are needed, and killed when the block ends."""
    pool = Pool(jobs)
    try:
        yield pool
    finally:
        await pool.aclose()


def _patience(scenario: Scenario) -> float:
    return _BASE_SECONDS + _SECONDS_PER_CLIENT_HOUR * scenario.hours * scenario.clients


def _without_verdict(scenario: Scenario, rule: str, text: str) -> Verdict:
    return Verdict(scenario, "", (Violation(rule, 0.0, text),), Figures(), 0.0)


async def _start_worker() -> trio.Process:
    # In a session of its own: a Ctrl-C at the terminal is for the program, which ends its workers itself.
    return await trio.lowlevel.open_process(
        [sys.executable, "-m", f"{__package__}.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


async def _end_worker(worker: trio.Process) -> None:
    """Kill a worker; also when cancelled, for it would go on computing for minutes."""
    worker.kill()
    with trio.move_on_after(_KILL_SECONDS, shield=True):
        await worker.wait()
        for stream in (worker.stdin, worker.stdout):
            assert stream is not None, "both are pipes"
            await stream.aclose()


async def _ask(worker: trio.Process, order: bytes) -> bytes:
    """Return the worker's line; empty when it has ended."""
    assert worker.stdin is not None, "both are pipes"
    assert worker.stdout is not None, "both are pipes"
    line = bytearray()
    try:
        await worker.stdin.send_all(order)
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            chunk = await worker.stdout.receive_some(_CHUNK)
            if not chunk:
                return b""
            line += chunk
    except trio.BrokenResourceError:
        return b""
    return bytes(line)
