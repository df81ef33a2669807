"""One seed, one verdict: `simulate`."""

from __future__ import annotations

import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from ..testing.determinism import seeded
from .checker import Violation, check
from .clocks import VirtualClock, simulated_wall_clock
from .figures import Figures, measure
from .history import History
from .rules import PROMISE, Promise
from .schedule import Scenario
from .settings import make_settings
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
        seconds: processor time that it took.
        history: all records; empty when it was simulated in another process.
    """

    scenario: Scenario
    digest: str
    violations: tuple[Violation, ...]
    figures: Figures
    seconds: float
    history: History = field(default_factory=History, repr=False)

    @property
    def held(self) -> bool:
        """True when the promise held."""
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        """Return it without its history, for another process or for a program that reads JSON."""
        return {
            "scenario": asdict(self.scenario),
            "command": self.scenario.command,
            "digest": self.digest,
            "violations": [violation._asdict() for violation in self.violations],
            "figures": asdict(self.figures),
            "seconds": self.seconds,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Verdict:
        """Return what `as_json` made a dictionary of."""
        scenario = dict(said["scenario"])
        if scenario["keep"] is not None:
            scenario["keep"] = tuple(scenario["keep"])
        return cls(
            scenario=Scenario(**scenario),
            digest=said["digest"],
            violations=tuple(Violation(**entry) for entry in said["violations"]),
            figures=Figures(**said["figures"]),
            seconds=said["seconds"],
        )


def simulate(scenario: Scenario, promise: Promise = PROMISE) -> Verdict:
    """Run one simulation in this process; nothing else of the process may use Trio meanwhile, see `testing.seeded`.

    An exception that escapes from the library is a breach of the promise like any other.
    """
    started = time.process_time()
    clock = VirtualClock()
    settings = make_settings(scenario.seed)
    promise = replace(promise, guarded=settings.valid_for is not None, session_ttl=settings.session_ttl)
    with TemporaryDirectory() as keys, seeded(scenario.seed), simulated_wall_clock(clock) as wall:
        world = World(scenario, settings, promise, clock, wall, Path(keys) / "reset.key")
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
        seconds=time.process_time() - started,
        history=history,
    )
