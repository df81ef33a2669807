"""One seed, one verdict: `simulate`."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from ..testing.determinism import seeded
from .checker import Violation, check
from .clocks import simulated_wall_clock
from .figures import Figures, measure
from .history import History
from .rules import PROMISE, Promise
from .schedule import Scenario
from .world import World

__all__ = ["Verdict", "simulate"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one simulation.

    Attributes:
        scenario: what was simulated.
        digest: hash of its history; the same whenever the same scenario runs on the same version.
        violations: breaches of the promise; empty when it held.
        figures: what it was made of.
        seconds: how long it took, real time.
        history: all records.
    """

    scenario: Scenario
    digest: str
    violations: tuple[Violation, ...]
    figures: Figures
    seconds: float
    history: History = field(repr=False)


def simulate(scenario: Scenario, promise: Promise = PROMISE) -> Verdict:
    """Run one simulation in this process; nothing else of the process may use Trio meanwhile, see `testing.seeded`.

    An exception that escapes from the library is a breach of the promise like any other.
    """
    started = time.perf_counter()
    clock = MockClock(autojump_threshold=0)
    with seeded(scenario.seed), simulated_wall_clock(clock) as wall:
        world = World(scenario, promise, clock, wall)
        try:
            trio.run(world.run, clock=clock)
            crashes = []
        except Exception:  # noqa: BLE001  whatever it is, it is the result
            crashes = [Violation("crashed", clock.current_time(), traceback.format_exc())]
    history = world.history
    return Verdict(
        scenario=scenario,
        digest=history.digest(),
        # After a crash the rest of the history is missing, and every rule would say so.
        violations=tuple(crashes or check(history, promise)),
        figures=measure(history, scenario, world.network.statistics()),
        seconds=time.perf_counter() - started,
        history=history,
    )
