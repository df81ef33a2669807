"""A world in virtual time that tries to break the promise: `quicflow simulate`.

One `Scenario` (a seed, hours, clients, how many faults) gives one schedule of faults, one traffic, one history, every time. The layers,
left to right, none looks back::

    history, schedule <- rules <- index <- checker           what happened; what may happen; what must hold (no IO)
    settings, clocks, handlers, traffic, inspect <- world    the library under test in a network in memory
    world, checker <- run <- shrink              one seed to one verdict; the fewest faults that still break it
    run <- worker <- pool <- report              many seeds over the cores
"""

from __future__ import annotations

from .checker import Violation, check
from .history import History, Record
from .rules import PROMISE, Promise
from .run import Verdict, simulate
from .schedule import Fault, Scenario, make_schedule
from .settings import Settings, make_settings

__all__ = [
    "PROMISE",
    "Fault",
    "History",
    "Promise",
    "Record",
    "Scenario",
    "Settings",
    "Verdict",
    "Violation",
    "check",
    "make_schedule",
    "make_settings",
    "simulate",
]
