"""Round trips, connect times, and latency under a steady load: `python -m benchmarks.latency --help`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Annotated

import trio
from cyclopts import Parameter

from benchmarks.harness.hiccups import HiccupLog, watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import ServerProcess, server_process
from benchmarks.harness.results import Report, Row, Sample, percentile
from benchmarks.harness.rounds import Measured, run_rounds
from benchmarks.harness.session import Common, Count, finish, make_app, rounds_text, run_app
from benchmarks.throughput import PAYLOAD
from quicflow_trio import Client, Message, open_client, tune_garbage_collector

WARM_UP = 200
SETTLING = 0.5
CLEAN = "P99 without pauses"

app = make_app("latency")

Span = tuple[float, float]
"""When a request was due and when it was answered, on `time.monotonic`'s clock."""


async def round_trips(client: Client, count: int) -> list[Span]:
    """Make requests one after the other."""
    spans = []
    for number in range(WARM_UP + count):
        start = monotonic()
        await client.request(Message.command(PAYLOAD))
        if number >= WARM_UP:
            spans.append((start, monotonic()))
    return spans


async def steady(client: Client, rate: float, count: int) -> list[Span]:
    """Make requests at this rate, whether or not earlier ones are answered; each is late from the moment it was due.

    Half a second of the same comes before, uncounted: a new connection begins with a small congestion window.

    A load that waits for answers would make no requests while the server hangs, and so never notice that it did.
    """
    spans: list[Span] = []

    async def one(due: float) -> None:
        await client.request(Message.command(PAYLOAD))
        if due >= counted_from:
            spans.append((due, monotonic()))

    async with trio.open_nursery() as nursery:
        start = monotonic()
        counted_from = start + SETTLING
        made, count = 0, count + int(SETTLING * rate)
        while made < count:
            while made < count and (due := start + made / rate) <= monotonic():
                nursery.start_soon(one, due)
                made += 1
            # Trio's timers have a grain of a millisecond: that lateness counts as well.
            await trio.sleep(max(0.0, start + made / rate - monotonic()))
    return spans


def milliseconds(spans: list[Span]) -> list[float]:
    """Return how long each took."""
    return [(end - start) * 1e3 for start, end in spans]


def connects(server: ServerProcess, count: int) -> float:
    """Return the median milliseconds from `open_client` to connected, clients one after the other."""

    async def run() -> list[float]:
        times = []
        for number in range(count):
            start = monotonic()
            async with open_client("127.0.0.1", server.port, client_id=f"connect-{number}", tls=server.tls) as client:
                await client.wait_connected()
                times.append((monotonic() - start) * 1e3)
        return times

    return percentile(trio.run(run), 0.5)


def sequential(server: ServerProcess, count: int) -> dict[str, float]:
    """Return the percentiles of round trips over a new connection."""

    async def run() -> list[Span]:
        async with open_client("127.0.0.1", server.port, client_id="bench", tls=server.tls) as client:
            return await round_trips(client, count)

    times = milliseconds(trio.run(run))
    return {"P50": percentile(times, 0.5), "P99": percentile(times, 0.99)}


def at_rate(server: ServerProcess, log: HiccupLog, rate: int, seconds: float) -> dict[str, float | Sample]:
    """Return the percentiles of the latency under a steady load over a new connection."""

    async def run() -> list[Span]:
        async with open_client("127.0.0.1", server.port, client_id="bench", tls=server.tls) as client:
            return await steady(client, rate, max(1, int(rate * seconds)))

    spans = trio.run(run)
    times = milliseconds(spans)
    values: dict[str, float | Sample] = {"P50": percentile(times, 0.5), "P99": percentile(times, 0.99), "max": max(times)}
    if clean := milliseconds(log.undisturbed(spans)):
        # Marked as undisturbed, since what a pause touched has been left out; without any such request there is no such figure.
        values[CLEAN] = Sample(percentile(clean, 0.99))
    return values


@app.default
def latency(
    *,
    requests: Count = 5_000,
    rate: Annotated[tuple[Count, ...], Parameter(negative=())] = (1_000, 5_000, 10_000),
    seconds: float = 5.0,
    connections: Count = 20,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure round trips, connect times, and latency under a steady load, server and client in processes of their own.

    Args:
        requests: round trips of each round, one after the other.
        rate: steady load, requests per second; may be given several times.
        seconds: how long each load lasts.
        connections: connections of each round, one after the other.
        common: of all sessions.
    """
    rounds, seconds = common.rounds_or(5), seconds / 10 if common.quick else seconds
    # The client's collections are pauses like any other, and its requests are tasks: this is how a busy program is run.
    tune_garbage_collector()
    with server_process() as server, watch_hiccups() as log:
        sides: dict[str, Callable[[], Measured]] = {
            "round trip": partial(sequential, server, common.scaled(requests)),
            "connect P50": partial(connects, server, max(5, common.scaled(connections))),
            **{f"at {load:,}/s": partial(at_rate, server, log, load, seconds) for load in rate},
        }
        found = run_rounds(sides, rounds, log=log)
    report = Report(
        session="latency",
        title=f"latency over one connection, {len(PAYLOAD)}-byte payload, two processes over loopback, {rounds_text(rounds)}",
        rows=tuple(Row(name, "ms", tuple(samples), better="lower") for name, samples in found.items()),
        settings={"requests": common.scaled(requests), "rates": list(rate), "seconds": seconds, "rounds": rounds},
        machine=machine(),
        notes=(
            "At a steady load each request counts from the moment it was due. Trio's timers have a grain of 1 ms, which is in it.",
            f'"{CLEAN}" leaves out the requests that were under way during a pause of the machine of 10 ms or more.',
        ),
        compared=False,
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
