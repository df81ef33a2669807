"""What watching costs: the same traffic of many clients with the ops side on, polled as a page and a scraper do, and with it off."""

from __future__ import annotations

import json
import sys
import time
import timeit
from collections import defaultdict
from contextlib import nullcontext
from itertools import count
from typing import Literal

import httpx2
import trio
from rich.console import Console

from benchmarks.harness.hiccups import watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import Child, ServerProcess, child_process, cpu_seconds, server_process
from benchmarks.harness.results import Report, Row, Sample, percentile
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, Count, finish, make_app, rounds_text, run_app
from quicflow_trio.observe.instruments import Instruments

POLLED = {"/samples?seconds=300": 1, "/metrics.json": 2, "/clients?limit=100": 2, "/metrics": 5}
"""What an open page asks for, and a scraper, each with its interval, seconds."""

Answers = dict[str, list[float]]

app = make_app("ops")


def traffic(server: ServerProcess, crowd: Child, requests: int, answers: Answers) -> dict[str, float]:
    """Let the crowd make the requests; return their rate and the server's CPU time for each, us."""
    # The poller has a process of its own, since the busy clients of the crowd's would be measured as well, and is up before the
    # clock starts: there may be no third processor for an interpreter that starts.
    polling = nullcontext() if server.ops_url is None else child_process("benchmarks.ops", "poll", server.ops_url)
    with polling as poller:
        cpu = cpu_seconds(server.pid)
        done = crowd.ask(requests=requests)
        cpu = cpu_seconds(server.pid) - cpu
        if poller is not None:
            for path, times in poller.ask(report=True).items():
                answers[path] += times
    return {"acked": done["requests"] / done["seconds"], "server CPU per request": cpu / done["requests"] * 1e6}


@app.command(show=False)
async def poll(url: str, /) -> None:
    """Ask as an open page and a scraper do, and follow the events; print how long each answer took, ms, at the first line of input."""
    answers: Answers = defaultdict(list)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as http, trio.open_nursery() as nursery:

        async def follow() -> None:
            async with http.stream("GET", "/events") as response:
                async for _ in response.aiter_bytes():
                    pass

        async def ask(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            for second in count():
                for path in (path for path, interval in POLLED.items() if second % interval == 0):
                    start = time.perf_counter()
                    response = await http.get(path)
                    response.raise_for_status()
                    answers[path].append((time.perf_counter() - start) * 1e3)
                if second == 0:
                    task_status.started()
                await trio.sleep(1)

        nursery.start_soon(follow)
        await nursery.start(ask)
        print(json.dumps({}), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(answers), flush=True)
        nursery.cancel_scope.cancel()


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


def rows_of(found: dict[str, list[Sample]], answers: Answers) -> tuple[Row, ...]:
    """Return the rows: what is measured on both sides, the one with the ops side off first, then the answers."""
    rows = []
    measured: tuple[tuple[str, str, Literal["higher", "lower"]], ...] = (
        ("acked", "msg/s", "higher"),
        ("server CPU per request", "us", "lower"),
    )
    for name, unit, better in measured:
        for side in ("ops off", "ops on"):
            samples = tuple(found[f"{side}: {name}"])
            rows.append(Row(f"{name}, {side}", unit, samples, better, against=f"{name}, ops off"))
    for path, times in answers.items():
        rows.append(Row(f"GET {path}", "ms", tuple(map(Sample, times)), "lower"))
    return tuple(rows)


@app.default
def ops(
    *,
    clients: Count = 1_000,
    requests: Count = 20_000,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure what watching costs: the same traffic with the ops side on, polled as a page and a scraper do, and with it off.

    Args:
        clients: of each server.
        requests: per round, all clients together.
        common: of all sessions.
    """
    rounds, clients = common.rounds_or(9), common.scaled(clients)
    answers: Answers = defaultdict(list)
    console = Console(stderr=True)
    with server_process("--ops") as on, server_process() as off:
        console.print(f"connecting {clients:,} clients, twice", highlight=False)
        with (
            child_process("benchmarks.crowd", str(on.port), on.ca, str(clients)) as crowd_on,
            child_process("benchmarks.crowd", str(off.port), off.ca, str(clients)) as crowd_off,
            watch_hiccups() as log,
        ):
            sides = {
                "ops on": lambda: traffic(on, crowd_on, common.scaled(requests), answers),
                "ops off": lambda: traffic(off, crowd_off, common.scaled(requests), answers),
            }
            found = run_rounds(sides, rounds, log=log)
    nanoseconds = counting_nanoseconds()
    rows = rows_of(found, answers)
    share = nanoseconds / 10 / next(row.median for row in rows if row.name == "server CPU per request, ops off")
    slowest = ", ".join(f"{path} {percentile(times, 0.95):.1f}" for path, times in answers.items())
    counting = f"counting: {nanoseconds:.0f} ns per acked request, both sides; {share:.2f} % of the server's CPU time for it"
    report = Report(
        session="ops",
        title=f"{clients:,} clients with traffic, 200-byte payload, {rounds_text(rounds)}",
        rows=rows,
        settings={"clients": clients, "requests": common.scaled(requests), "rounds": rounds},
        machine=machine(),
        notes=(f"P95 of the answers, ms: {slowest}", counting),
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
