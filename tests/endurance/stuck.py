"""A thousand clients, one of which stops reading: what that costs the server in memory, and the others in time.

Phases with it reading and with it stopped take turns within one run, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import signal
import statistics
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import trio
from cyclopts import Parameter

from benchmarks.harness.hiccups import HiccupLog, watch_hiccups
from benchmarks.harness.process import cpu_seconds, rss_bytes
from tests.endurance.children import Child, open_crowd, open_server
from tests.endurance.conduct import Bar, balance, quantiles
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Stuck", "prove"]

MIB = 1 << 20
VICTIM = "stuck-0"
SAMPLE = 0.25


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Stuck:
    """One client that stops reading among many.

    Attributes:
        clients: it included.
        pairs: of phases, one with it reading, one with it stopped.
        seconds: of a phase.
        settle: seconds before each that are not looked at: the one that was stopped has a lot to read first.
        pause: seconds between two requests of each of the others, on average.
        broadcast_every: seconds between two broadcasts to everybody.
        broadcast_size: bytes of each.
        flood_every: seconds between two messages to the one alone.
        flood_size: bytes of each.
        most: MB that the server may hold more while it is stopped.
        slower: how many times the others' P99 may be what it is while it reads.
    """

    clients: int = 1000
    pairs: int = 10
    seconds: float = 10.0
    settle: float = 3.0
    pause: float = 4.0
    broadcast_every: float = 4.0
    broadcast_size: int = 1000
    flood_every: float = 0.1
    flood_size: int = 16_000
    most: float = 8.0
    slower: float = 1.2


@dataclass
class Phase:
    """What one phase showed.

    Attributes:
        kind: whether the one was reading.
        memory: of the server at most, bytes.
        times: of the others' requests, seconds.
        calm: of those alone that no pause of the machine touched.
        cpu: of the server, seconds.
        outbox: bytes that waited in the server to be written, at the end.
        unacked: bytes that it had written and nobody had acknowledged, at the end.
    """

    kind: Literal["reading", "stopped"]
    memory: int = 0
    times: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    cpu: float = 0.0
    outbox: int = 0
    unacked: int = 0


async def prove(settings: Stuck, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    with watch_hiccups() as log:
        async with open_server(folder, {}) as server:
            port = server.hello["port"]
            async with (
                open_crowd(folder, "client", [port] * (settings.clients - 1), {}) as crowd,
                open_crowd(folder, "stuck", [port], {}) as one,
            ):
                await crowd.ask("work", tasks=1, mix=asdict(Mix(pause=settings.pause, timed=True)))
                await server.ask(
                    "flood",
                    victim=VICTIM,
                    every=settings.flood_every,
                    size=settings.flood_size,
                    broadcast_every=settings.broadcast_every,
                    broadcast_size=settings.broadcast_size,
                )
                stage = Stage(settings, server, crowd, one, log)
                # What a server holds for so many busy clients at all it holds from here on.
                await stage.phase("reading")
                phases = [await stage.phase("reading")]
                for number in range(settings.pairs):
                    # The order turns round, so that what grows by itself is not taken for the one's doing.
                    for kind in ("reading", "stopped") if number % 2 == 0 else ("stopped", "reading"):
                        bar.show(2 * number + (kind == "stopped"), 2 * settings.pairs, f"{kind}, pair {number + 1}")
                        phases.append(await stage.phase(kind))
                held = await server.ask("figures")
                for child in (server, crowd):
                    await child.ask("ebb" if child is server else "hush")
                figures = await crowd.ask("figures")
                await trio.sleep(2.0)
                report.nothing_left("on the server", (await server.ask("left"))["left"])
                for child in (crowd, one, server):
                    await child.stop()
    balance(report, folder, errors=figures["errors"])
    report.exactly("clients connected at the end", held["connected_clients"], settings.clients)
    _judge(settings, report, phases)


def p99(times: list[float]) -> float:
    """Return the time that 99 % do not exceed."""
    return quantiles(times)["P99"]


def added(phases: list[Phase], kind: str) -> float:
    """Return what all phases of a kind together have added to the memory of the server, MB."""
    return sum(after.memory - before.memory for before, after in pairwise(phases) if after.kind == kind) / MIB


def _judge(settings: Stuck, report: Report, phases: list[Phase]) -> None:
    reading = [phase for phase in phases[1:] if phase.kind == "reading"]
    stopped = [phase for phase in phases[1:] if phase.kind == "stopped"]
    ratios = [p99(b.times) / p99(a.times) for a, b in zip(reading, stopped, strict=True)]
    calm = [p99(b.calm) / p99(a.calm) for a, b in zip(reading, stopped, strict=True) if a.calm and b.calm]
    # What a process has taken it seldom gives back: so not what it holds in either phase, but what it took in them.
    more = added(phases, "stopped") - added(phases, "reading")
    report.at_most("memory that the server took while it was stopped, less while it read, MB", more, settings.most)
    report.at_most("P99 of the others, stopped : reading, median of the pairs", statistics.median(ratios), settings.slower)
    report.figures["P99 of requests that no pause of the machine touched, stopped : reading"] = (
        statistics.median(calm) if calm else 0
    )
    report.at_least(
        "bytes held for it while stopped, the least", min(phase.outbox + phase.unacked for phase in stopped), MIB // 2
    )
    for name, some in (("reading", reading), ("stopped", stopped)):
        everything = quantiles([value for phase in some for value in phase.times])
        report.figures |= {f"others' requests, {name}, {what}, ms": value * 1000 for what, value in everything.items()}
        calm_ones = [value for phase in some for value in phase.calm]
        report.figures |= {
            f"others' requests, {name}": sum(len(phase.times) for phase in some),
            f"others' requests, {name}, no pause of the machine": len(calm_ones),
            f"others' requests, {name}, no pause of the machine, P99, ms": p99(calm_ones or [0.0]) * 1000,
            f"memory of the server, {name}, MB": max(phase.memory for phase in some) / MIB,
            f"memory that the server took, {name}, MB": added(phases, name),
            f"processor of the server, {name}, %": sum(phase.cpu for phase in some) / len(some) / settings.seconds * 100,
            f"bytes waiting in the server, {name}": max(phase.outbox for phase in some),
            f"bytes not acknowledged, {name}": max(phase.unacked for phase in some),
        }
    report.notes.append("P99 stopped : reading, each pair: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))
    report.notes.append("memory, MB, phase by phase: " + ", ".join(f"{phase.kind} {phase.memory / MIB:.1f}" for phase in phases))


class Stage:
    """Where the phases are played."""

    def __init__(self, settings: Stuck, server: Child, crowd: Child, one: Child, log: HiccupLog) -> None:
        self._log = log
        self._settings = settings
        self._server = server
        self._crowd = crowd
        self._one = one

    async def phase(self, kind: Literal["reading", "stopped"]) -> Phase:
        """Play one phase; the one reads again after it."""
        phase = Phase(kind)
        if kind == "stopped":
            self._one.pause(signal.SIGSTOP)
        try:
            await trio.sleep(self._settings.settle)
            await self._crowd.ask("times")
            started = cpu_seconds(self._server.pid)
            until = time.monotonic() + self._settings.seconds
            while time.monotonic() < until:
                phase.memory = max(phase.memory, rss_bytes(self._server.pid))
                await trio.sleep(SAMPLE)
            phase.cpu = cpu_seconds(self._server.pid) - started
            spans = [(start, end) for start, end in (await self._crowd.ask("times"))["times"]]
            phase.times = [end - start for start, end in spans]
            phase.calm = [end - start for start, end in self._log.undisturbed(spans)]
            held = await self._server.ask("figures")
            phase.outbox, phase.unacked = held["outbox_bytes"], held["unacked_bytes"]
        finally:
            self._one.pause(signal.SIGCONT)
        return phase
