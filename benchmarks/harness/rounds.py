"""Rounds: every side once in each, so that a slow minute of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import Progress

from .hiccups import HiccupLog
from .results import Sample

__all__ = ["Measured", "run_rounds"]

Measured = float | Sample | Mapping[str, float | Sample]
"""What one run of a side finds: a value, or several by name. A `Sample` is taken with its own mark."""


def run_rounds(
    sides: Mapping[str, Callable[[], Measured]],
    rounds: int,
    *,
    log: HiccupLog,
    title: str = "measuring",
    warm_up: bool = True,
) -> dict[str, list[Sample]]:
    """Run each side once per round; return the samples by name, in the order of the sides.

    Args:
        sides: what to run, by name. Each blocks until it is done, in a client process or a `trio.run` of its own.
        rounds: how often.
        log: marks the samples that a pause of the machine hit.
        title: what the progress bar says.
        warm_up: run each side once before, and forget what it found.

    A side that finds one value gives its own name to it; of one that finds several each is called ``side: name``, or, where the name
    is empty, like the side. The order of the sides turns round from round to round.
    """
    found: dict[str, dict[str, list[Sample]]] = {name: {} for name in sides}
    # Drawn between measurements only: a thread that draws ten times a second would be measured as well.
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task(title, total=len(sides) * (rounds + warm_up))
        for number in range(-warm_up, rounds):
            for name in sides if number % 2 == 0 else reversed(list(sides)):
                progress.update(task, description=f"{title}: {name}", refresh=True)
                start = time.monotonic()
                measured = sides[name]()
                pause = log.longest(start, time.monotonic()) * 1e3
                if number >= 0:
                    _note(found[name], name, measured, pause)
                progress.update(task, advance=1, refresh=True)
    return {name: samples for values in found.values() for name, samples in values.items()}


def _note(found: dict[str, list[Sample]], side: str, measured: Measured, pause: float) -> None:
    values = measured if isinstance(measured, Mapping) else {"": measured}
    for name, value in values.items():
        sample = value if isinstance(value, Sample) else Sample(value, pause)
        found.setdefault(f"{side}: {name}" if name else side, []).append(sample)
