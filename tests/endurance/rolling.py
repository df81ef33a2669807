"""SIGTERM in the middle of traffic, and the next server on the same port, again and again: no caller notices."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from cyclopts import Parameter

from tests.endurance.children import open_crowd
from tests.endurance.conduct import Bar, balance, quantiles
from tests.endurance.kill import Lives
from tests.endurance.ledger import What
from tests.endurance.reconnects import Watch
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Rolling", "prove"]

LONGEST = 10.0
PATIENCE = 60.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Rolling:
    """Servers that take turns while clients talk.

    Attributes:
        turns: how often the server is stopped.
        clients: that talk all the time.
        tasks: of each client, which make one call after the other.
        seconds: that handlers take at most.
        seed: of everything random.
    """

    turns: int = 20
    clients: int = 20
    tasks: int = 50
    seconds: float = 0.5
    seed: int = 1


async def prove(settings: Rolling, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    rng = random.Random(settings.seed)
    watch = Watch()
    ends: list[float] = []
    codes: list[int] = []
    mix = Mix(slow=1.0, seconds=settings.seconds, sends=0.1, redeliver=0.3)
    names = [f"client-{number}" for number in range(settings.clients)]
    async with trio.open_nursery() as nursery:
        lives = Lives(folder, {}, nursery)
        port = await lives.begin()
        async with open_crowd(folder, "client", [port] * settings.clients, {}, watch.hear, seed=settings.seed) as crowd:
            await crowd.ask("work", tasks=settings.tasks, mix=asdict(mix))
            for turn in range(1, settings.turns + 1):
                bar.show(turn - 1, settings.turns, f"turn {turn}")
                await trio.sleep(rng.uniform(0.5, 2.0))
                told = time.monotonic()
                lives.server.signal(signal.SIGTERM)
                codes.append(await lives.server.wait())
                ends.append(time.monotonic() - told)
                await lives.begin(port)
                await watch.until(lambda: all(watch.returns.get(name, 0) >= turn for name in names), PATIENCE)  # noqa: B023
            await crowd.ask("hush")
            figures = await crowd.ask("figures")
            await trio.sleep(1.0)
            report.nothing_left("on the clients", (await crowd.ask("left"))["left"])
            await crowd.stop()
            await lives.server.stop()
            report.nothing_left("by the processes", [*crowd.last_word["left"], *lives.server.last_word["left"]])
    report.exactly("exits with code 0", codes.count(0), settings.turns)
    report.at_most("slowest exit after the signal, s", max(ends), LONGEST)
    account = balance(report, folder, errors=figures["errors"])
    report.exactly("calls that failed", account.counts[What.FAILED], 0)
    report.exactly("calls acked or delivered", account.counts[What.ACKED] + account.counts[What.DELIVERED], len(account.begun))
    report.figures |= {f"exit after the signal, {name}, s": value for name, value in quantiles(ends).items()}
    report.figures["slowest request, s"] = figures["slowest"]
