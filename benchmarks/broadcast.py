"""How long until the last client has a broadcast: `python -m benchmarks.broadcast --help`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from benchmarks.harness.hiccups import watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import Child, ServerProcess, child_process, cpu_seconds, server_process
from benchmarks.harness.results import Report, Row, percentile
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, Count, finish, make_app, rounds_text, run_app

PATIENCE = 30.0
"""Seconds after which a broadcast that has not reached everybody is a failure."""
REPEATS = 10

app = make_app("broadcast")


def broadcasts(
    server: ServerProcess, crowd: Child, clients: int, size: int, repeats: int, numbers: count[int]
) -> dict[str, float]:
    """Broadcast several times; return the medians, ms, and the server's CPU time per client, us.

    Both processes stamp with `time.monotonic`, whose clock a machine has only one of.
    """
    last, queued = [], []
    cpu = cpu_seconds(server.pid)
    for number in (next(numbers) for _ in range(repeats)):
        crowd.ask(expect=number)
        sent = server.child.ask(broadcast=number, size=size)
        arrived = crowd.ask(collect=PATIENCE)
        if arrived["count"] < clients:
            raise SystemExit(f"a broadcast to {clients:,} clients reached {arrived['count']:,} in {PATIENCE:.0f} s")
        queued.append((sent["queued"] - sent["start"]) * 1e3)
        last.append((arrived["last"] - sent["start"]) * 1e3)
    cpu = cpu_seconds(server.pid) - cpu
    return {
        "the last has it": percentile(last, 0.5),
        "broadcast() returned": percentile(queued, 0.5),
        "server CPU per client": cpu / repeats / clients * 1e6,
    }


@app.default
def broadcast(
    *,
    clients: Annotated[tuple[Count, ...], Parameter(negative=())] = (100, 1_000),
    size: Annotated[int, Parameter()] = 200,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure the time from `broadcast()` until the handler of the last client has the message.

    The server is one process, all clients of a row another, each client with a connection and a socket of its own.

    Args:
        clients: how many; may be given several times, for rows.
        size: payload, bytes, at least 8.
        common: of all sessions.
    """
    rounds = common.rounds_or(5)
    repeats = max(2, common.scaled(REPEATS * 2) // 2) if common.quick else REPEATS
    rows: list[Row] = []
    numbers = count(1)
    console = Console(stderr=True)
    for number in clients:
        # One crowd at a time: the heartbeats of another would be in the way.
        with ExitStack() as stack:
            server = stack.enter_context(server_process())
            console.print(f"connecting {number:,} clients", highlight=False)
            crowd = stack.enter_context(child_process("benchmarks.crowd", str(server.port), server.ca, str(number)))
            log = stack.enter_context(watch_hiccups())
            side = partial(broadcasts, server, crowd, number, size, repeats, numbers)
            found = run_rounds({f"{number:,} clients": side}, rounds, log=log)
        rows += (Row(name, "us" if "CPU" in name else "ms", tuple(samples), better="lower") for name, samples in found.items())
    report = Report(
        session="broadcast",
        title=f"broadcast of {size} bytes, clients in one process, server in another, {rounds_text(rounds)} of {repeats}",
        rows=tuple(rows),
        settings={"clients": list(clients), "size": size, "repeats": repeats, "rounds": rounds},
        machine=machine(),
        notes=("Each value is the median of a round's broadcasts.",),
        compared=False,
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
