"""What watching costs: the same traffic of many clients with the ops side on, polled as a page and a scraper do, and with it off.

Both servers run at the same time and take turns, so that a slow minute of the machine hits both. Run ``python -m benchmarks.ops``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx2
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.measure import PAYLOAD, percentile
from benchmarks.process import ServerProcess, server_process
from quicflow_trio import Client, Message, open_client
from quicflow_trio.observe.instruments import Instruments

POLLED = {"/samples?seconds=300": 1, "/metrics.json": 2, "/clients?limit=100": 2, "/metrics": 5}
"""What an open page asks for, and a scraper, each with its interval, seconds."""


@dataclass
class Side:
    """One of the two servers.

    Attributes:
        name: for the table.
        server: its process.
        clients: connected to it.
        rates: acked requests per second, one per round.
        cpu: CPU time of the server per request, us, one per round.
    """

    name: str
    server: ServerProcess
    clients: list[Client] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@asynccontextmanager
async def connected(side: Side, count: int, progress: Progress) -> AsyncIterator[None]:
    """Open the clients of a side."""
    task = progress.add_task(f"connecting, {side.name}", total=count)
    async with AsyncExitStack() as stack:
        for number in range(count):
            one = open_client("127.0.0.1", side.server.port, client_id=f"client-{number}", tls=side.server.tls)
            side.clients.append(await stack.enter_async_context(one))
            await side.clients[-1].wait_connected()
            progress.advance(task)
        yield


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, from the operating system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def traffic(side: Side, requests: int) -> None:
    """Let every client make its share of the requests, one after the other, all clients at once."""
    share = requests // len(side.clients)

    async def work(client: Client) -> None:
        for _ in range(share):
            await client.request(Message.command(PAYLOAD))

    cpu, start = cpu_seconds(side.server.pid), time.perf_counter()
    async with trio.open_nursery() as nursery:
        for client in side.clients:
            nursery.start_soon(work, client)
    done = share * len(side.clients)
    side.rates.append(done / (time.perf_counter() - start))
    side.cpu.append((cpu_seconds(side.server.pid) - cpu) / done * 1e6)


async def poll(url: str) -> None:
    """Ask as an open page and a scraper do, and follow the events; print how long each answer takes, ms, a line each."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http, trio.open_nursery() as nursery:

        async def follow() -> None:
            async with http.stream("GET", "/events") as response:
                async for _ in response.aiter_bytes():
                    pass

        nursery.start_soon(follow)
        for second in itertools.count():
            for path in (path for path, interval in POLLED.items() if second % interval == 0):
                start = time.perf_counter()
                response = await http.get(path)
                response.raise_for_status()
                print(json.dumps([path, (time.perf_counter() - start) * 1e3]), flush=True)
            await trio.sleep(1)


@asynccontextmanager
async def polled(side: Side, answers: dict[str, list[float]]) -> AsyncIterator[None]:
    """Poll a side from a process of its own: the busy clients of this one would be measured as well."""
    if side.server.ops_url is None:
        yield
        return
    command = [sys.executable, "-m", "benchmarks.ops", "--poll", side.server.ops_url]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
            started = trio.Event()

            async def read() -> None:
                text = b""
                async for piece in process.stdout:
                    *lines, text = (text + piece).split(b"\n")
                    for path, milliseconds in map(json.loads, lines):
                        answers.setdefault(path, []).append(milliseconds)
                    started.set()

            nursery.start_soon(read)
            # Not while the interpreter of the other process starts: there may be no third processor for that.
            await started.wait()
            yield
            scope.cancel()


def counting_nanoseconds() -> float:
    """Return what counting adds to an acked request, both sides together: a histogram entry, increments, two looks for listeners."""

    async def measure() -> float:
        instruments = Instruments()
        counters, events = instruments.counters, instruments.events
        timer = timeit.Timer(
            "latency.observe(now - started); counters.messages_received += 1\n"
            "if events.messages: pass\n"
            "counters.messages_sent += 1; counters.bytes_sent += 200; counters.bytes_received += 200",
            globals={"latency": counters.latency, "counters": counters, "events": events, "now": 1.0007, "started": 1.0},
        )
        empty = timeit.Timer("pass")
        return (min(timer.repeat(5, 200_000)) - min(empty.repeat(5, 200_000))) / 200_000 * 1e9

    return trio.run(measure)


async def measure(sides: list[Side], options: argparse.Namespace, progress: Progress) -> dict[str, list[float]]:
    """Run the rounds, the sides in turn; return the milliseconds of the ops side's answers, by path."""
    answers: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        for side in sides:
            await stack.enter_async_context(connected(side, options.clients, progress))
        task = progress.add_task("measuring", total=options.rounds * len(sides))
        for number in range(options.rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                async with polled(side, answers):
                    await traffic(side, options.requests)
                progress.advance(task, 1 if number else 0)
        for side in sides:
            # The first round only warms up.
            del side.rates[0], side.cpu[0]
    return answers


def show(sides: list[Side], answers: dict[str, list[float]], options: argparse.Namespace, console: Console) -> None:
    """Print medians, and the ratio of each pair."""
    on, off = sides
    table = Table(title=f"{options.clients:,} clients with traffic, 200-byte payload, {options.rounds} rounds in turn")
    for heading in ("measured", on.name, off.name, "ratio of pairs: median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "measured" else "right")
    for name, with_ops, without, digits in (
        ("acked requests per second", on.rates, off.rates, ",.0f"),
        ("server CPU per request, us", on.cpu, off.cpu, ".1f"),
    ):
        ratios = [a / b for a, b in zip(with_ops, without, strict=True)]
        medians = (format(statistics.median(values), digits) for values in (with_ops, without))
        table.add_row(name, *medians, *(f"{value:.3f}" for value in (statistics.median(ratios), min(ratios), max(ratios))))
    console.print(table)
    table = Table(title="answers of the ops side under that traffic, ms")
    for heading in ("path", "asked", "median", "P95", "max"):
        table.add_column(heading, justify="left" if heading == "path" else "right")
    for path, times in answers.items():
        table.add_row(
            path, str(len(times)), *(f"{v:.1f}" for v in (statistics.median(times), percentile(times, 0.95), max(times)))
        )
    console.print(table)
    nanoseconds = counting_nanoseconds()
    share = nanoseconds / 10 / statistics.median(off.cpu)
    console.print(
        f"counting: {nanoseconds:.0f} ns per acked request, both sides together; {share:.2f} % of the server's CPU time for it"
    )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="clients of each server (default 1000)")
    parser.add_argument("--requests", type=int, default=20_000, help="requests per round, all clients together (default 20000)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each server, in turn (default 9)")
    parser.add_argument("--poll", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.poll is not None:
        trio.run(poll, options.poll)
        return
    # A socket for each client, twice.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, options.clients * 2 + 200)), hard))
    with (
        server_process("--ops") as on,
        server_process() as off,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        sides = [Side("ops on", on), Side("ops off", off)]
        answers = trio.run(partial(measure, sides, options, progress))
    show(sides, answers, options, Console())


if __name__ == "__main__":
    main()
