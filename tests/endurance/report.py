"""What a proof found: `Check`, what must hold; `Report`, all of them with figures, as a table and a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import results
from benchmarks.harness.machine import machine

__all__ = ["Check", "Report"]


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        what: it.
        found: the figure.
        wanted: what it must be, in words.
        held: whether it is.
    """

    what: str
    found: float
    wanted: str
    held: bool


def show(figure: float) -> str:
    """Return a count as it is, a measured value with about four digits that count."""
    return f"{figure:,.0f}" if float(figure).is_integer() else results.show(figure)


@dataclass
class Report:
    """What one proof found.

    Attributes:
        name: of the proof.
        settings: what it was run with.
        checks: in order.
        figures: what was measured beside.
        series: what was sampled over time, (minute, value) each; for the file only.
        notes: findings in words: what was left over, which errors there were.
        machine: where and from which commit, as it began.
    """

    name: str
    settings: Mapping[str, Any]
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: Mapping[str, Any] = field(default_factory=lambda: {**machine(), "load": os.getloadavg()})

    def exactly(self, what: str, found: float, wanted: float) -> None:
        """Want a figure to be this one."""
        self.checks.append(Check(what, found, show(wanted), found == wanted))

    def at_most(self, what: str, found: float, most: float) -> None:
        """Want a figure to be no larger."""
        self.checks.append(Check(what, found, f"at most {show(most)}", found <= most))

    def at_least(self, what: str, found: float, least: float) -> None:
        """Want a figure to be no smaller."""
        self.checks.append(Check(what, found, f"at least {show(least)}", found >= least))

    def nothing_left(self, what: str, left: list[str]) -> None:
        """Want nothing to be left over; what is, goes to the notes."""
        self.exactly(f"left over {what}", len(left), 0)
        self.notes += [f"left over {what}: {line}" for line in left[:20]]

    @property
    def held(self) -> bool:
        """Whether everything holds. A report without a check proves nothing."""
        return bool(self.checks) and all(check.held for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {**asdict(self), "held": self.held, "load at the end": os.getloadavg()}

    def finish(self, folder: Path) -> None:
        """Print the table, and write ``NAME.json``."""
        table = Table("", "found", "wanted", "", title=f"{self.name}: {'held' if self.held else 'BROKEN'}", title_justify="left")
        for check in self.checks:
            table.add_row(check.what, show(check.found), check.wanted, "ok" if check.held else "BROKEN")
        table.add_section()
        for what, figure in self.figures.items():
            table.add_row(what, show(figure), "", "")
        console = Console()
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {path}", highlight=False, markup=False)
