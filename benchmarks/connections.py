"""What ten thousand connected clients cost a server: `python -m benchmarks.connections --help`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.harness.hiccups import HiccupLog, watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import Child, child_process, cpu_seconds, rss_bytes
from benchmarks.harness.results import Report, Row, Sample
from benchmarks.harness.session import Common, Count, Flag, finish, make_app, run_app

AT_ONCE = 64
"""Clients that connect at a time: more only wait in line for the server's processor."""
INTERVAL = 15.0
"""Seconds between a client's heartbeats."""
SETTLE = 3.0
"""Seconds after the last handshake, or broadcast, in which the acks of acks pass by."""
FULL = 10_000
SIZE = 200

app = make_app("connections")


@dataclass
class Findings:
    """Samples by row.

    Attributes:
        log: marks those that a pause of the machine hit.
        rows: name, unit and which way is better, in the order of the table; with the samples.
    """

    log: HiccupLog
    rows: dict[tuple[str, str], list[Sample]] = field(default_factory=dict)

    def note(self, name: str, unit: str, value: float, since: float | None = None) -> None:
        """Add a sample; ``since`` is when it began to be taken, None for what no pause can change."""
        pause = 0.0 if since is None else self.log.longest(since, time.monotonic()) * 1e3
        self.rows.setdefault((name, unit), []).append(Sample(value, pause))

    def as_rows(self) -> tuple[Row, ...]:
        """Return the rows of the table."""
        return tuple(
            Row(name, unit, tuple(samples), better="higher" if unit == "1/s" else "lower")
            for (name, unit), samples in self.rows.items()
        )


def connect(crowd: Child, clients: int, progress: Progress) -> float:
    """Wait until all clients are connected; return the seconds that it took."""
    task = progress.add_task("connecting", total=clients)
    while True:
        news = crowd.answer()
        progress.update(task, completed=news["connected"], refresh=True)
        if "seconds" in news:
            progress.remove_task(task)
            return float(news["seconds"])


def pause(seconds: float, what: str, progress: Progress) -> None:
    """Let time pass, visibly."""
    task = progress.add_task(what, total=round(seconds))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 1.0))
        progress.update(task, advance=1, refresh=True)
    progress.remove_task(task)


def broadcasts(server: Child, crowd: Child, number: int, found: Findings, progress: Progress) -> None:
    """Broadcast a few times, with time to rest in between."""
    task = progress.add_task("broadcasts", total=number)
    for _ in range(number):
        began = time.monotonic()
        sent = server.ask(broadcast=SIZE)
        news = crowd.answer()
        last = float(news["last"])
        found.note("did not get a broadcast", "clients", float(news["missing"]))
        found.note("broadcast until the last has it", "ms", (last - sent["started"]) * 1e3, began)
        found.note("broadcast() returned", "ms", (sent["queued"] - sent["started"]) * 1e3, began)
        time.sleep(SETTLE / 2)
        progress.update(task, advance=1, refresh=True)
    progress.remove_task(task)


def heartbeats(server: Child, seconds: float, found: Findings, progress: Progress) -> None:
    """Do nothing for a while but what heartbeats want; first without a look, then counting what wakes up."""
    began, cpu = time.monotonic(), cpu_seconds(server.pid)
    pause(seconds, "heart-beating", progress)
    found.note("CPU, heart-beating", "% of a core", (cpu_seconds(server.pid) - cpu) / (time.monotonic() - began) * 100, began)
    counted = server.ask(idle=INTERVAL)
    beats = counted["heartbeats"]
    found.note("heartbeats received", "1/s", beats)
    found.note("pump turns per heartbeat", "", counted["turns"] / beats if beats else 0.0)
    found.note("task steps per heartbeat", "", counted["steps"] / beats if beats else 0.0)


def run(server: Child, clients: int, found: Findings, quick: bool, progress: Progress) -> None:
    """Connect clients, and measure what they cost."""
    memory, cpu, began = rss_bytes(server.pid), cpu_seconds(server.pid), time.monotonic()
    arguments = (str(server.hello["port"]), server.hello["ca"], str(clients), str(AT_ONCE), str(INTERVAL))
    with child_process("benchmarks.connections_clients", *arguments) as crowd:
        seconds = connect(crowd, clients, progress)
        found.note("connect all", "s", seconds, began)
        found.note("handshakes", "1/s", clients / seconds, began)
        found.note("server CPU per handshake", "ms", (cpu_seconds(server.pid) - cpu) / clients * 1e3, began)
        pause(SETTLE, "settling", progress)
        found.note("memory per client, connected", "KB", (rss_bytes(server.pid) - memory) / clients / 1024)
        heartbeats(server, INTERVAL if quick else INTERVAL * 2, found, progress)
        broadcasts(server, crowd, 2 if quick else 5, found, progress)
        found.note("memory per client, after broadcasts", "KB", (rss_bytes(server.pid) - memory) / clients / 1024)
        state: dict[str, Any] = server.ask(figures=1)
        found.note("timed out or lost", "", state["timeouts"] + state["disconnects"] + clients - state["connected"])


@app.default
def connections(
    *,
    clients: Annotated[Count, Parameter()] = 1_000,
    full: Flag = False,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Connect many clients to one server and measure time, memory, CPU, wake-ups and broadcasts.

    The server is one process; all clients share one endpoint (`open_endpoint`) in another. Memory and CPU are the server's, read from the
    operating system. A run with 1,000 clients takes a minute, a full one with 10,000 three.

    Args:
        clients: how many.
        full: 10,000 clients.
        common: of all sessions.
    """
    clients = FULL if full else clients
    rounds = common.rounds_or(1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        found = Findings(stack.enter_context(watch_hiccups()))
        # Drawn when something happens only: a thread that draws ten times a second would be measured as well.
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False))
        for _ in range(rounds):
            # A fresh server for each round: memory that is free in a process is not given back to the system.
            with child_process("benchmarks.connections_server", str(INTERVAL)) as server:
                run(server, clients, found, common.quick, progress)
    report = Report(
        session="connections",
        title=f"{clients:,} clients of one server, a heartbeat each {INTERVAL:g} s",
        rows=found.as_rows(),
        settings={"clients": clients, "interval": INTERVAL, "at_once": AT_ONCE, "size": SIZE, "rounds": rounds},
        machine=machine(),
        notes=("Memory, CPU, pump turns and task steps are those of the server process.",),
        compared=False,
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
