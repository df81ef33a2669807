"""SIGTERM with requests in flight, again and again: all are answered, and the server is gone in time, with exit code 0."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from cyclopts import Parameter

from tests.endurance.children import open_crowd, open_server
from tests.endurance.conduct import Bar, balance, quantiles
from tests.endurance.ledger import What
from tests.endurance.reconnects import Watch
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Drain", "prove"]

LONGEST = 10.0
"""Seconds from the signal to the end of the process."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Drain:
    """A server that is stopped with requests in flight.

    Attributes:
        drains: how often, a server for each.
        requests: in flight.
        clients: that make them.
        seconds: that each handler takes, about.
        seed: of everything random.
    """

    drains: int = 20
    requests: int = 1000
    clients: int = 20
    seconds: float = 1.0
    seed: int = 1


async def prove(settings: Drain, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    rng = random.Random(settings.seed)
    ends: list[float] = []
    codes: list[int] = []
    left: list[str] = []
    errors: dict[str, int] = {}
    in_flight: list[int] = []
    for number in range(settings.drains):
        bar.show(number, settings.drains, f"drain {number + 1}")
        watch = Watch()
        mix = Mix(slow=1.0, least=settings.seconds, seconds=settings.seconds * 1.2)
        async with open_server(folder, {}) as server:
            ports = [server.hello["port"]] * settings.clients
            # The next round's clients are others, in the same ledger.
            async with open_crowd(folder, "client", ports, {}, watch.hear, seed=number) as crowd:
                each = settings.requests // settings.clients
                await crowd.ask("work", calls=each, tasks=each, mix=asdict(mix))
                running = 0
                while running < settings.requests:
                    running = (await server.ask("figures"))["handlers_running"]
                # Some handlers have just begun, or some have just ended.
                await trio.sleep(rng.uniform(0, settings.seconds / 2))
                in_flight.append((await server.ask("figures"))["handlers_running"])
                told = time.monotonic()
                server.signal(signal.SIGTERM)
                codes.append(await server.wait())
                ends.append(time.monotonic() - told)
                await watch.done.wait()
                for error, count in (await crowd.ask("figures"))["errors"].items():
                    errors[error] = errors.get(error, 0) + count
                await crowd.stop()
                left += [*crowd.last_word["left"], *server.last_word["left"]]
    account = balance(report, folder, errors=errors)
    report.exactly("requests in flight at each signal, the fewest", min(in_flight), settings.requests)
    report.exactly("requests answered with success", account.counts[What.ACKED], settings.drains * settings.requests)
    report.at_most("slowest exit after the signal, s", max(ends), LONGEST)
    report.exactly("exits with another code than 0", sum(code != 0 for code in codes), 0)
    report.nothing_left("by the processes", left)
    report.figures |= {f"exit after the signal, {name}, s": value for name, value in quantiles(ends).items()}
