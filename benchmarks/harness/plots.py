"""Plain pictures of results. Matplotlib is an optional dependency (extra ``bench``); without it there are tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Report, Row

__all__ = ["available", "plot_lines", "plot_report"]

DPI = 120


def available() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot_report(path: Path, report: Report) -> None:
    """Draw a bar per row, with a whisker from its smallest to its largest value; rows of one unit share a panel."""
    from .results import show

    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        panels.setdefault(row.unit, []).append(row)
    figure = _figure(1.6 + sum(0.9 + 0.36 * len(rows) for rows in panels.values()))
    heights = [1.5 + len(rows) for rows in panels.values()]
    # A title that does not mean a formula by its dollars and underscores is drawn as it stands.
    figure.suptitle(report.title, parse_math=False, fontsize=11)
    for axes, (unit, rows) in zip(
        figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels.items(), strict=True
    ):
        medians = [row.median for row in rows]
        whiskers = [
            [max(0.0, median - row.low) for row, median in zip(rows, medians, strict=True)],
            [max(0.0, row.high - median) for row, median in zip(rows, medians, strict=True)],
        ]
        bars = axes.barh([row.name for row in rows], medians, xerr=whiskers, color="#4878a8", ecolor="#303030", capsize=3)
        axes.bar_label(bars, [show(median) for median in medians], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, max(row.high for row in rows) * 1.15 or 1)
        better = {row.better for row in rows}
        axes.set_xlabel(f"{unit} ({better.pop()} is better)" if len(better) == 1 else unit)
    _save(figure, path, report.machine)


def plot_lines(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    logx: bool = False,
    machine: Mapping[str, object] | None = None,
) -> None:
    """Draw a line per series, from zero up: a cost that stays flat looks flat."""
    figure = _figure(4.5)
    axes = figure.subplots()
    for name, points in series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)
    if logx:
        axes.set_xscale("log")
    axes.set_ylim(0, max(y for points in series.values() for _, y in points) * 1.2 or 1)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend()
    figure.suptitle(title, parse_math=False, fontsize=11)
    _save(figure, path, machine or {})


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not pyplot, which would look for a display and keep every figure.
    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, machine: Mapping[str, object]) -> None:
    line = ", ".join(
        f"{key} {machine[key]}" for key in ("cpu", "cores", "python", "aioquic", "commit", "date") if machine.get(key)
    )
    figure.supxlabel(line, fontsize=6, color="#606060", parse_math=False)
    figure.savefig(path, dpi=DPI)
