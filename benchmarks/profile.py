"""Where the time of a message goes, by function, in both processes: `python -m benchmarks.profile --help`."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from os import getpid
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal

import trio
from rich.console import Console
from rich.table import Table

from benchmarks.harness.machine import machine
from benchmarks.harness.process import child_process, cpu_seconds, server_process
from benchmarks.harness.results import Report, Row, Sample
from benchmarks.harness.session import Common, Count, finish, make_app, run_app
from benchmarks.server import DATAGRAM, ENGINE, client_config, server_arguments
from benchmarks.throughput import WARM_UP, Work, acked, acked_timed, acked_within, in_flight, one_way
from quicflow_trio import TLSConfig, open_client

WORKS: dict[str, Work] = {"acked": acked, "timed": acked_timed, "within": acked_within, "one-way": one_way}
WorkName = Literal["acked", "timed", "within", "one-way"]
PER_SECOND = 500
"""Samples. Each stops the process for some 100 us, so more would be seen in what is measured."""
GROUPS = {"quicflow_trio/": "ours", "benchmarks/": "the benchmark", "aioquic/": "aioquic", "qh3/": "qh3", "trio/": "trio"}
REST = "standard library, others"
LEFT_OUT = ("_find_and_load", "throwaway_tls", "tune_garbage_collector", "WorkerThread._work")
"""Functions of the start, which is in the recording, and of the thread that waits for input: no part of a message."""

app = make_app("profile")

Function = tuple[str, str]
"""A group and what the profiler calls the function: ``name (file:line)``."""


def group_of(function: str) -> str:
    """Return whose function it is."""
    path = function.partition(" (")[2]
    return next((group for part, group in GROUPS.items() if part in path), REST)


def own_samples(stacks: Iterable[str]) -> Counter[Function]:
    """Count the samples that ended in each function; a line is ``outermost;...;innermost count``."""
    own: Counter[Function] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if frames[-1] and not any(frame.startswith(LEFT_OUT) for frame in frames):
            own[group_of(frames[-1]), frames[-1]] += int(count)
    return own


@app.command(show=False)
async def client(port: int, ca: str, work: WorkName, tasks: int, datagram_size: int, engine: str, /) -> None:
    """Connect, warm up, say so; for each line of input, a number, send as many messages and print the seconds and the CPU time."""
    config = client_config(datagram_size, engine)
    async with open_client("127.0.0.1", port, client_id="bench", tls=TLSConfig.client(ca), config=config) as connected:
        await in_flight(acked, 64, connected, WARM_UP)
        print(json.dumps({}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            count = json.loads(line)["messages"]
            start, cpu = perf_counter(), cpu_seconds(getpid())
            await in_flight(WORKS[work], 1 if work == "one-way" else tasks, connected, count)
            print(json.dumps({"seconds": perf_counter() - start, "client": cpu_seconds(getpid()) - cpu}), flush=True)


def record(
    folder: Path, work: WorkName, tasks: int, messages: int, datagram_size: int, engine: str
) -> tuple[dict[str, Counter[Function]], dict[str, float]]:
    """Run both processes under the profiler; return the samples of each, and the seconds: elapsed, CPU time of client and server."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise SystemExit("py-spy is missing: pip install 'quicflow_trio[bench]'")
    files = {side: folder / f"{side}.txt" for side in ("client", "server")}
    # It starts what it watches: looking into a stranger's process takes rights that only root has.
    before = {
        side: (spy, "record", "--rate", str(PER_SECOND), "--format", "raw", "--function", "--output", str(path), "--")
        for side, path in files.items()
    }
    with server_process(*server_arguments(datagram_size, engine), before=before["server"]) as server:
        arguments = ["client", str(server.port), server.ca, work, str(tasks), str(datagram_size), engine]
        with child_process("benchmarks.profile", *arguments, before=before["client"]) as child:
            cpu = cpu_seconds(server.pid)
            seconds = child.ask(messages=messages)
            seconds["server"] = cpu_seconds(server.pid) - cpu
    return {side: own_samples(path.read_text(encoding="utf-8").splitlines()) for side, path in files.items()}, seconds


def table_of(side: str, group: str, costs: dict[Function, float], top: int) -> Table:
    """Return the hottest functions of one group in one process."""
    table = Table(title=f"{side}, {group}", title_justify="left")
    table.add_column("us per message", justify="right")
    table.add_column("function")
    chosen = ((function, cost) for (owner, function), cost in costs.items() if owner == group)
    for function, cost in islice(sorted(chosen, key=lambda pair: -pair[1]), top):
        table.add_row(f"{cost:.2f}", function)
    return table


@app.default
def profile(
    *,
    work: WorkName = "acked",
    tasks: Count = 256,
    messages: Count = 400_000,
    datagram_size: Count = DATAGRAM,
    engine: str = ENGINE,
    top: Count = 15,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Run the throughput benchmark under a sampling profiler (py-spy); print the hot functions of both processes by their own time.

    What a function calls in C, encryption and sockets for instance, is its own time. Neither waiting nor the start is in it. The
    sum of each process is its CPU time by the operating system.

    Args:
        work: acked requests, the same with ack_timeout on each, the same within the caller's fail_after, or one way.
        tasks: tasks that each await `request()` at once.
        messages: how many.
        datagram_size: UDP payload of the packets of both sides, bytes.
        engine: which QUIC engine.
        top: functions to print, of each side and owner.
        common: of all sessions.
    """
    count = common.scaled(messages)
    console = Console()
    with TemporaryDirectory() as folder, console.status(f"{count:,} messages under the profiler"):
        samples, seconds = record(Path(folder), work, tasks, count, datagram_size, engine)
    rows, functions = [], {}
    for side, own in samples.items():
        # The shares are the profiler's, the sum is the operating system's: a process that waits for a processor is sampled as well.
        scale = seconds[side] / count * 1e6 / max(1, own.total())
        costs = {function: number * scale for function, number in own.items()}
        functions[side] = {f"{group}: {name}": cost for (group, name), cost in sorted(costs.items(), key=lambda item: -item[1])}
        groups: defaultdict[str, float] = defaultdict(float)
        for (group, _), cost in costs.items():
            groups[group] += cost
        for group, cost in sorted(groups.items(), key=lambda item: -item[1]):
            console.print(table_of(side, group, costs, top))
            rows.append(Row(f"{side}: {group}", "us per message", (Sample(cost),), "lower"))
        rows.append(Row(f"{side}: all", "us per message", (Sample(sum(costs.values())),), "lower"))
    report = Report(
        session="profile",
        title=f"{work}, {tasks} tasks, 200-byte payload: own time by owner",
        rows=tuple(rows),
        settings={"work": work, "tasks": tasks, "messages": count, "datagram_size": datagram_size, "engine": engine},
        machine=machine(),
        notes=(f"{count / seconds['seconds']:,.0f} messages per second under the profiler",),
        compared=False,
        extra={"functions": functions},
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
