"""Half an hour of traffic both ways under faults: memory stays flat, and at the end nothing is left over."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import trio
from cyclopts import Parameter

from benchmarks.harness.process import cpu_seconds, rss_bytes
from quicflow_trio.testing import PathFaults
from tests.endurance.children import Child, open_crowd, open_server
from tests.endurance.conduct import Bar, balance
from tests.endurance.proxy import Door, open_proxy
from tests.endurance.reconnects import KINDS, Stalled, Watch, force
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Slope", "Soak", "prove", "slope"]

FAULTS = PathFaults(loss=0.02, delay=0.002, jitter=0.005, reorder=0.02, duplicate=0.01)
SAMPLE = 5.0
"""Seconds between two looks at the memory in use."""
PATIENCE = 300.0
"""Seconds that a client may take to be back. Long: on a machine that others use as well, one with a low priority may starve for a minute."""
COUNT = 60.0
"""Seconds between two looks at what is held; each collects the garbage first, which costs."""
WARM_UP = 0.5
"""Share of the time that is not looked at. What each connection keeps up to a bound fills up in it: packet numbers seen, acks not
confirmed, histories, and the holes that these leave in the heap."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Soak:
    """A long run at moderate load.

    Attributes:
        minutes: of traffic.
        clients: that stay, in processes of 50 at most.
        guests: that come and go beside.
        pause: seconds between two calls of a client, on average; the server makes as many.
        cuts: seconds between two forced reconnects, on average.
        silence: seconds of it after which a connection counts as lost.
        ttl: seconds that the server keeps the session of a client that it has lost.
        flat: KB a minute that memory may seem to grow, what its error allows taken off.
        seed: of everything random.
    """

    minutes: float = 30.0
    clients: int = 90
    guests: int = 10
    pause: float = 2.0
    cuts: float = 5.0
    silence: float = 8.0
    ttl: float = 60.0
    flat: float = 50.0
    seed: int = 1

    @property
    def heartbeats(self) -> dict[str, float]:
        """When a connection counts as lost, for either side."""
        return {"heartbeat_interval": self.silence / 3, "heartbeat_timeout": self.silence}

    @property
    def forgotten(self) -> float:
        """Seconds until the server has let go of a client whose last word the proxy has lost."""
        return self.silence + self.ttl + 2.0

    @property
    def mix(self) -> Mix:
        """What either side calls."""
        return Mix(size=3000, slow=0.1, seconds=2.0, sends=0.2, redeliver=0.3, hasty=0.1, patience=0.05, pause=self.pause)


class Slope(NamedTuple):
    """How fast something grows.

    Attributes:
        value: in its unit per minute.
        error: two standard errors of it.
    """

    value: float
    error: float


def slope(samples: list[tuple[float, float]]) -> Slope:
    """Return the slope of (minute, value) by least squares over the means of each minute.

    Of the means: neighbouring samples hardly differ, so that an error from single ones would promise too much.
    """
    by_minute: dict[int, list[float]] = {}
    for minute, value in samples:
        by_minute.setdefault(int(minute), []).append(value)
    times = [minute + 0.5 for minute in sorted(by_minute)]
    means = [statistics.fmean(by_minute[minute]) for minute in sorted(by_minute)]
    line = statistics.linear_regression(times, means)
    middle = statistics.fmean(times)
    spread = sum((time - middle) ** 2 for time in times)
    residual = sum((value - line.intercept - line.slope * time) ** 2 for time, value in zip(times, means, strict=True))
    return Slope(line.slope, 2 * (residual / (len(times) - 2) / spread) ** 0.5)


class Memory:
    """What the processes hold, sampled.

    Args:
        children: by name.
    """

    def __init__(self, children: Mapping[str, Child]) -> None:
        self._children = children
        self._started = trio.current_time()
        self.rss: dict[str, list[tuple[float, float]]] = {name: [] for name in children}
        self.blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in children}
        self.malloced: dict[str, list[tuple[float, float]]] = {name: [] for name in children}

    async def sample(self) -> None:
        """Look at the memory in use, for ever."""
        while True:
            for name, child in self._children.items():
                self.rss[name].append((self._minute(), rss_bytes(child.pid) / 1024))
            await trio.sleep(SAMPLE)

    async def count(self) -> None:
        """Ask what is held, for ever."""
        while True:
            for name, child in self._children.items():
                figures = await child.ask("figures", collect=True)
                self.blocks[name].append((self._minute(), figures["blocks"]))
                self.malloced[name].append((self._minute(), figures["malloced"] / 1024))
            await trio.sleep(COUNT)

    def _minute(self) -> float:
        return (trio.current_time() - self._started) / 60

    def judge(self, report: Report, warm_up: float, flat: float) -> None:
        """Report how fast it grows after so many minutes."""
        for name in self._children:
            rss = [sample for sample in self.rss[name] if sample[0] >= warm_up]
            blocks = [sample for sample in self.blocks[name] if sample[0] >= warm_up]
            malloced = [sample for sample in self.malloced[name] if sample[0] >= warm_up]
            grows, counted, given = slope(rss), slope(blocks), slope(malloced)
            report.series |= {f"{name}: memory, KB": self.rss[name], f"{name}: blocks": self.blocks[name]}
            report.series |= {f"{name}: given out by malloc, KB": self.malloced[name]}
            report.at_most(f"{name}: memory grows, KB/min, less its error", grows.value - grows.error, flat)
            report.at_most(f"{name}: what malloc has given out grows, KB/min, less its error", given.value - given.error, flat)
            report.figures |= {
                f"{name}: memory grows, KB/min": grows.value,
                f"{name}: two standard errors of that": grows.error,
                f"{name}: memory after the warm-up, MB": rss[0][1] / 1024,
                f"{name}: memory at the end, MB": rss[-1][1] / 1024,
                f"{name}: blocks of Python's memory grow, 1/min": counted.value,
                f"{name}: two standard errors of these": counted.error,
                f"{name}: blocks at the end": blocks[-1][1],
                f"{name}: given out by malloc grows, KB/min": given.value,
                f"{name}: two standard errors of this": given.error,
                f"{name}: given out by malloc at the end, MB": malloced[-1][1] / 1024,
            }


async def prove(settings: Soak, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    watch = Watch()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_server(folder, settings.heartbeats | {"session_ttl": settings.ttl}))
        address = ("127.0.0.1", server.hello["port"])
        doors = settings.clients + settings.guests
        proxy = await stack.enter_async_context(open_proxy(address, doors, FAULTS, settings.seed))
        ports = [door.port for door in proxy.doors]
        config = settings.heartbeats | {"backoff_initial": 0.2, "backoff_max": 2.0}
        residents = {
            f"clients{start // 50}": ports[start : min(start + 50, settings.clients)] for start in range(0, settings.clients, 50)
        }
        crowds = {
            name: await stack.enter_async_context(open_crowd(folder, name, some, config, watch.hear, seed=settings.seed))
            for name, some in residents.items()
        }
        names = [f"{name}-{number}" for name, some in residents.items() for number in range(len(some))]
        memory = Memory({"server": server, **crowds})
        mix = asdict(settings.mix)
        for crowd in crowds.values():
            await crowd.ask("work", tasks=1, mix=mix)
        guests = [f"guest-{number}" for number in range(settings.guests)]
        await next(iter(crowds.values())).ask("invite", ids=guests, ports=ports[settings.clients :], stay=20.0, away=5.0, mix=mix)
        await server.ask("talk", tasks=max(1, settings.clients // 5), mix=mix | {"pause": settings.pause / 5})
        cuts = await _go_on(settings, watch, dict(zip(names, proxy.doors, strict=False)), memory, bar, report)
        cpu = {name: cpu_seconds(child.pid) for name, child in {"server": server, **crowds}.items()}
        errors = await _end(settings, report, server, crowds)
    balance(report, folder, errors=errors)
    if settings.minutes >= 5:
        memory.judge(report, settings.minutes * WARM_UP, settings.flat)
    report.figures |= {
        "reconnects forced": cuts,
        **{f"{name}: share of a core, %": seconds / settings.minutes / 60 * 100 for name, seconds in cpu.items()},
        **{f"datagrams {what}": count for what, count in sorted(proxy.counts.items())},
    }


async def _go_on(settings: Soak, watch: Watch, doors: Mapping[str, Door], memory: Memory, bar: Bar, report: Report) -> int:
    """Cut connections and look at the memory until the time is over; return how many were cut."""
    rng = random.Random(settings.seed)
    free = list(doors)
    cuts = 0
    stalled: list[str] = []
    started = trio.current_time()
    until = started + settings.minutes * 60

    async def cut(client: str) -> None:
        nonlocal cuts
        try:
            await force(watch, doors[client], client, rng.choice(KINDS), PATIENCE)
        except Stalled as exc:
            # A breach, but what the memory does is worth knowing all the same.
            stalled.append(str(exc))
            return
        free.append(client)
        cuts += 1

    async with trio.open_nursery() as nursery:
        looking = trio.CancelScope()

        async def look() -> None:
            with looking:
                async with trio.open_nursery() as looks:
                    looks.start_soon(memory.sample)
                    looks.start_soon(memory.count)

        nursery.start_soon(look)
        while (now := trio.current_time()) < until:
            bar.show(now - started, until - started, f"soaking, {cuts} reconnects")
            await trio.sleep(min(rng.expovariate(1 / settings.cuts), until - now))
            if free:
                nursery.start_soon(cut, free.pop(rng.randrange(len(free))))
        looking.cancel()
    report.exactly("clients that have not noticed a cut, or not come back", len(stalled), 0)
    report.notes += stalled
    return cuts


async def _end(settings: Soak, report: Report, server: Child, crowds: Mapping[str, Child]) -> dict[str, int]:
    """Let all traffic end, and look at what is left; return which errors calls raised."""
    errors: dict[str, int] = {}
    programs = {"server": server, **crowds}
    async with trio.open_nursery() as nursery:
        for child in programs.values():
            nursery.start_soon(child.ask, "hush")
    for name, child in programs.items():
        figures = await child.ask("figures")
        for error, count in figures["errors"].items():
            errors[error] = errors.get(error, 0) + count
        for what in ("visits", "sessions_resumed", "messages_resent"):
            if what in figures:
                report.figures[f"{name}: {what.replace('_', ' ')}"] = figures[what]
    await trio.sleep(settings.forgotten)
    for name, child in programs.items():
        report.nothing_left(f"in {name}, idle", (await child.ask("left"))["left"])
    for child in crowds.values():
        await child.stop()
    await trio.sleep(settings.forgotten)
    empty = await server.ask("figures")
    for what in ("connected_clients", "sessions_away", "half_open", "connection_ids", "promise_active", "held_bytes"):
        report.exactly(f"server, when all have left: {what.replace('_', ' ')}", empty[what], 0)
    await server.stop()
    for name, child in programs.items():
        report.nothing_left(f"by {name}, ended", child.last_word["left"])
    return errors
