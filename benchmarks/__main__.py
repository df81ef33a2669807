"""Measure handshakes, round trips and throughput over loopback; print a table, write JSON with ``--json``."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.measure import Figure, acked_rate, connect_times, one_way_rate, percentile, round_trips
from benchmarks.process import server_process
from quicflow_trio import TLSConfig, open_client


async def measure(port: int, tls: TLSConfig, *, rounds: int, scale: float, progress: Progress) -> list[Figure]:
    """Run every measurement ``rounds`` times, in turn, so that a slow minute of the machine hits all alike."""
    names = ("connect P50", "round trip P50", "round trip P99", "acked, 256 in flight", "one way")
    values: dict[str, list[float]] = {name: [] for name in names}
    task = progress.add_task("measuring", total=rounds * 4)
    async with open_client("127.0.0.1", port, client_id="bench", tls=tls) as client:
        await client.wait_connected()
        for _ in range(rounds):
            values["connect P50"].append(percentile(await connect_times(port, tls, max(5, int(20 * scale))), 0.5))
            progress.advance(task)
            times = await round_trips(client, int(2000 * scale))
            values["round trip P50"].append(percentile(times, 0.5))
            values["round trip P99"].append(percentile(times, 0.99))
            progress.advance(task)
            values["acked, 256 in flight"].append(await acked_rate(client, int(100_000 * scale), 256))
            progress.advance(task)
            values["one way"].append(await one_way_rate(client, int(100_000 * scale)))
            progress.advance(task)
    rates = {"acked, 256 in flight", "one way"}
    return [Figure(name, "msg/s" if name in rates else "ms", tuple(values[name])) for name in names]


def show(figures: list[Figure], console: Console) -> None:
    """Print the table: median, smallest and largest of the rounds."""
    table = Table(title="one connection, 200-byte payload, two processes over loopback")
    for heading in ("measured", "median", "min", "max", "unit"):
        table.add_column(heading, justify="left" if heading in ("measured", "unit") else "right")
    for figure in figures:
        digits = ",.0f" if figure.unit == "msg/s" else ".3f"
        row = (statistics.median(figure.values), min(figure.values), max(figure.values))
        table.add_row(figure.name, *(format(value, digits) for value in row), figure.unit)
    console.print(table)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, one round: is everything in its place?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all measurements, in turn (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round there")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    rounds, scale = (1, 0.1) if options.quick else (options.rounds, 1.0)
    console = Console()
    with server_process() as server, Progress(console=Console(stderr=True), transient=True) as progress:

        async def run() -> list[Figure]:
            return await measure(server.port, server.tls, rounds=rounds, scale=scale, progress=progress)

        figures = trio.run(run)
    show(figures, console)
    console.print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    if options.json is not None:
        options.json.write_text(json.dumps({figure.name: {"unit": figure.unit, "values": figure.values} for figure in figures}))


if __name__ == "__main__":
    main()
