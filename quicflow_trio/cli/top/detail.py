"""One client alone on the screen of `quicflow top`: its figures, what it did while it was looked at, and its history."""

from __future__ import annotations

from rich.text import Text

from ..client import summary
from ..common import shown
from ..remote.figures import day_and_clock, milliseconds, rate
from ..remote.records import Change, number
from .draw import Band, Glyphs, boxes, fit, rule
from .view import Detail, View

__all__ = ["detail_lines"]

CHANGE_STYLES = {"connected": "green", "disconnected": "yellow", "replaced": "cyan", "closed": "bright_black"}
LEAST_HISTORY = 3
"""Changes that a chart must leave room for."""


def detail_lines(view: View, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the client that is looked at, in at most so many lines."""
    detail = view.data.detail
    lines = [rule([Text.assemble(("client ", "bold"), (shown(view.client or ""), "bold cyan"))], width, glyphs)]
    if detail.problem:
        lines.append(fit(Text(f"   {detail.problem}", style="yellow"), width, glyphs))
    elif detail.figures is not None:
        pairs = summary(detail.figures, number(view.data.metrics, "timestamp") or 0.0)
        lines += [fit(Text.assemble((f"   {name:12}", "dim"), value), width, glyphs) for name, value in pairs]
        # Below its figures; charts only where the history has room left.
        rows = 3 if height >= 24 else 1
        if detail.rtts and height - len(lines) - (rows + 3) - 1 >= LEAST_HISTORY:
            lines += boxes(_bands(detail), width, rows, glyphs)
    lines += _history(view, width, height - len(lines), glyphs)
    return lines[:height]


def _bands(detail: Detail) -> list[Band]:
    rates = list(detail.rates)
    received = [each.received for each in rates]
    both = [each.received + each.sent for each in rates]
    last = rates[-1] if rates else None
    return [
        Band(
            "messages/s",
            Text.assemble(
                ("from it ", "dim"),
                (rate(last.received if last else None), "bold cyan"),
                ("  to it ", "dim"),
                (rate(last.sent if last else None), "bold blue"),
            ),
            received,
            both,
            ("cyan", "blue"),
        ),
        Band(
            "round trip ms",
            Text(milliseconds(detail.rtts[-1] if detail.rtts else None), style="bold green"),
            list(detail.rtts),
            list(detail.rtts),
            ("green", "green"),
        ),
    ]


def _history(view: View, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    """Return the latest changes, or those before them that were scrolled to."""
    history = view.data.detail.history
    rows = max(height - 1, 0)
    view.scroll = min(view.scroll, max(len(history) - rows, 0))
    last = len(history) - view.scroll
    chosen = history[max(last - rows, 0) : last]
    title = Text.assemble(("history ", "bold"), f"{len(history):,} changes")
    parts: list[Text | str] = [title]
    if view.scroll:
        parts.append(f"{view.scroll:,} later ones below")
    return [rule(parts, width, glyphs), *(fit(_change(change), width, glyphs) for change in chosen)]


def _change(change: Change) -> Text:
    line = Text.assemble("   ", (day_and_clock(change.at), "dim"), "  ")
    line.append(f"{shown(change.change):13}", style=CHANGE_STYLES.get(change.change, ""))
    return line.append(f" {shown(change.detail)}")
