"""What a session found: samples, rows of them, and the report that is printed and written."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

__all__ = ["Report", "Row", "Sample", "percentile", "write"]


def percentile(values: list[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


@dataclass(frozen=True)
class Sample:
    """One measured value.

    Attributes:
        value: in the unit of its row.
        hiccup: the longest pause of the machine while it was measured, ms; 0 for none.
    """

    value: float
    hiccup: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what was measured.
        unit: of the values.
        samples: one per round, in order.
        better: which way is good.
        against: the row that this one is compared with; see `Report` for None.
    """

    name: str
    unit: str
    samples: tuple[Sample, ...]
    better: Literal["higher", "lower"] = "higher"
    against: str | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.name}: a row needs a sample")

    @property
    def values(self) -> list[float]:
        """All values, in the order of the rounds."""
        return [sample.value for sample in self.samples]

    @property
    def hiccups(self) -> int:
        """How many samples were hit by a pause of the machine."""
        return sum(sample.hiccup > 0 for sample in self.samples)

    @property
    def median(self) -> float:
        """The median of the samples without a pause when they are at least half of all, else of all."""
        clean = [sample.value for sample in self.samples if not sample.hiccup]
        return statistics.median(clean if 2 * len(clean) >= len(self.samples) else self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)


@dataclass(frozen=True)
class Report:
    """Everything that one session found.

    Attributes:
        session: its name, which the files get.
        title: what was measured on, for table and picture.
        rows: in order. Those that name no row to be compared with are compared with the first when all have its unit.
        settings: what the session was called with.
        machine: where it ran, see `benchmarks.harness.machine`.
        notes: lines to stand below the table.
        compared: false when the rows are no sides of a comparison.
        extra: more for the file.
    """

    session: str
    title: str
    rows: tuple[Row, ...]
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    compared: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)

    def base_of(self, row: Row) -> Row | None:
        """Return the row that this one is compared with, None for none."""
        if not self.compared:
            return None
        if row.against is not None:
            return next(other for other in self.rows if other.name == row.against)
        alike = len({(other.unit, other.against) for other in self.rows}) == 1
        return self.rows[0] if alike and len(self.rows) > 1 else None

    def ratio(self, row: Row) -> float | None:
        """Return how many times its base a row is: the median over the rounds, whose pairs shared a minute of the machine."""
        base = self.base_of(row)
        if base is None:
            return None
        if len(base.samples) != len(row.samples):
            return row.median / base.median if base.median else None
        pairs = [
            Sample(ours.value / theirs.value, max(ours.hiccup, theirs.hiccup))
            for ours, theirs in zip(row.samples, base.samples, strict=True)
            if theirs.value
        ]
        return Row(row.name, "", tuple(pairs)).median if pairs else None

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds: every sample, and what the table shows."""
        rows = [
            {
                "name": row.name,
                "unit": row.unit,
                "better": row.better,
                "median": row.median,
                "low": row.low,
                "high": row.high,
                "hiccups": row.hiccups,
                "against": base.name if (base := self.base_of(row)) else None,
                "ratio": self.ratio(row),
                "samples": [{"value": sample.value, "hiccup": sample.hiccup} for sample in row.samples],
            }
            for row in self.rows
        ]
        head = {"session": self.session, "title": self.title, "settings": dict(self.settings), "machine": dict(self.machine)}
        return {**head, "rows": rows, "notes": list(self.notes), **self.extra}

    def table(self) -> Table:
        """Return the table for the terminal."""
        ratios = [self.ratio(row) for row in self.rows]
        table = Table(title=self.title, caption_justify="left")
        for heading in ("measured", "median", "min", "max", "unit"):
            table.add_column(heading, justify="left" if heading in ("measured", "unit") else "right")
        if any(ratio is not None for ratio in ratios):
            table.add_column("ratio", justify="right")
        if marked := sum(row.hiccups for row in self.rows):
            table.add_column("paused", justify="right")
            table.caption = f"{marked} of {sum(len(row.samples) for row in self.rows)} samples were hit by a pause of the machine of 10 ms or more"
        for row, ratio in zip(self.rows, ratios, strict=True):
            cells = [row.name, *(show(value) for value in (row.median, row.low, row.high)), row.unit]
            if any(other is not None for other in ratios):
                cells.append("" if ratio is None else f"{ratio:.2f}")
            if marked:
                cells.append(f"{row.hiccups} of {len(row.samples)}" if row.hiccups else "")
            table.add_row(*cells)
        return table


def show(value: float) -> str:
    """Return a number with as many digits as a reader wants: about four that count."""
    size = abs(value)
    return format(value, ",.0f" if size >= 1000 or not size else ".1f" if size >= 100 else ".2f" if size >= 10 else ".3f")


def write(report: Report, directory: Path, *, picture: Callable[[Path], None] | None = None) -> list[Path]:
    """Write ``<session>.json`` and ``<session>.png``; return their paths. Without matplotlib there is no picture.

    Args:
        report: what to write.
        directory: where to; made when it does not exist.
        picture: draws a picture of its own to a path, in place of the bars.
    """
    from . import plots

    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / f"{report.session}.json"]
    written[0].write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
    if plots.available():
        written.append(directory / f"{report.session}.png")
        if picture is None:
            plots.plot_report(written[1], report)
        else:
            picture(written[1])
    return written
