"""Whether a message costs the same with many clients connected, and after many messages: `python -m benchmarks.growth --help`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from os import getpid
from pathlib import Path
from statistics import median
from typing import Annotated

import trio
from cyclopts import Parameter
from rich.console import Console

from benchmarks.harness.hiccups import HiccupLog, watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.plots import plot_lines
from benchmarks.harness.process import ServerProcess, child_process, cpu_seconds, server_process
from benchmarks.harness.results import Report, Row
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, Count, Flag, finish, make_app, raise_file_limit, rounds_text, run_app
from benchmarks.throughput import WARM_UP, acked, in_flight
from quicflow_trio import open_client

TASKS = 256
BLOCKS = 20
RARELY = 3600.0
"""Seconds between heartbeats: what idle clients cost by themselves is another session's matter, and would come out as messages'."""

app = make_app("growth")


def cost_of_one(server: ServerProcess, count: int) -> float:
    """Return the server's CPU time for an acked request, us, over a new connection."""
    return costs(server, count, 1)["server"][0]


def costs(server: ServerProcess, count: int, blocks: int) -> dict[str, list[float]]:
    """Return the CPU time of both processes for an acked request, us, block after block of one connection."""
    found: dict[str, list[float]] = {"server": [], "client": []}
    pids = {"server": server.pid, "client": getpid()}

    async def run() -> None:
        async with open_client("127.0.0.1", server.port, client_id="busy", tls=server.tls) as client:
            await in_flight(acked, 64, client, WARM_UP)
            for _ in range(blocks):
                before = {side: cpu_seconds(pid) for side, pid in pids.items()}
                await in_flight(acked, TASKS, client, count)
                for side, pid in pids.items():
                    found[side].append((cpu_seconds(pid) - before[side]) / count * 1e6)

    trio.run(run)
    return found


def by_clients(numbers: Sequence[int], messages: int, rounds: int, common: Common, log: HiccupLog) -> None:
    """Measure with so many clients connected, a server and a crowd for each number, all there at once and busy in turn."""
    console = Console(stderr=True)
    with ExitStack() as stack:
        sides = {}
        for number in numbers:
            server = stack.enter_context(server_process("--heartbeat", str(RARELY)))
            if number > 1:
                console.print(f"connecting {number:,} clients", highlight=False)
                arguments = (str(server.port), server.ca, str(number - 1), "--heartbeat", str(RARELY))
                stack.enter_context(child_process("benchmarks.crowd", *arguments))
            sides[f"{number:,} connected"] = partial(cost_of_one, server, messages)
        found = run_rounds(sides, rounds, log=log)
    rows = tuple(Row(name, "us", tuple(samples), better="lower") for name, samples in found.items())
    report = Report(
        session="growth-clients",
        title=f"server CPU per acked request, by connected clients, one of them busy, {rounds_text(rounds)}",
        rows=rows,
        settings={"clients": list(numbers), "messages": messages, "rounds": rounds, "heartbeat": RARELY},
        machine=machine(),
    )
    points = [(float(number), row.median) for number, row in zip(numbers, rows, strict=True)]
    finish(report, common, picture=partial(draw, report, {"server": points}, "connected clients", True))


def by_messages(messages: int, rounds: int, common: Common, log: HiccupLog) -> None:
    """Measure block after block of one connection that carries all messages."""
    size = max(1, messages // BLOCKS)
    names = [f"{size * number + 1:,} to {size * (number + 1):,}" for number in range(BLOCKS)]
    taken: dict[str, list[list[float]]] = {"server": [], "client": []}
    with server_process() as server:

        def side() -> dict[str, float]:
            values = costs(server, size, BLOCKS)
            for name, blocks in values.items():
                taken[name].append(blocks)
            return dict(zip(names, values["server"], strict=True))

        found = run_rounds({"messages": side}, rounds, log=log, warm_up=False)
    report = Report(
        session="growth-messages",
        title=f"server CPU per acked request, by messages so far on one connection, {rounds_text(rounds)}",
        rows=tuple(Row(name, "us", tuple(samples), better="lower") for name, samples in found.items()),
        settings={"messages": size * BLOCKS, "rounds": rounds},
        machine=machine(),
        notes=("A mark tells of a pause somewhere in the round, not in that very block.",),
    )
    series = {
        name: [(size * (number + 0.5), median(block)) for number, block in enumerate(zip(*values, strict=True))]
        for name, values in taken.items()
    }
    finish(report, common, picture=partial(draw, report, series, "messages so far", False))


def draw(report: Report, series: dict[str, list[tuple[float, float]]], xlabel: str, logx: bool, path: Path) -> None:
    """Draw the picture of a report."""
    plot_lines(path, series, title=report.title, xlabel=xlabel, ylabel="CPU us per message", logx=logx, machine=report.machine)


@app.default
def growth(
    *,
    clients: Annotated[tuple[Count, ...], Parameter(negative=())] = (1, 10, 100, 1_000),
    messages: Count = 200_000,
    full: Flag = False,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure the CPU time that the server spends on a message, by connected clients and by messages so far.

    200-byte payload, 256 requests in flight over one connection; the other clients are connected and silent.

    Args:
        clients: connected clients; may be given several times.
        messages: on one connection.
        full: 10,000 clients as well, and 1,000,000 messages.
        common: of all sessions.
    """
    rounds = common.rounds_or(3)
    numbers = (*clients, 10_000) if full else clients
    raise_file_limit(max(numbers))
    with watch_hiccups() as log:
        by_clients(numbers, common.scaled(50_000), rounds, common, log)
        by_messages(common.scaled(1_000_000 if full else messages), rounds, common, log)


if __name__ == "__main__":
    run_app(app)
