"""Figures as people read them: counts, rates, sizes, times; and charts made of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

__all__ = ["NONE", "ago", "clock", "count", "day_and_clock", "milliseconds", "rate", "size", "span", "tower"]

NONE = "-"
"""Stands for a figure that is not known."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def count(value: float | None) -> str:
    """Return a whole number in at most seven characters: 12,345, 123.4k, 12.3M."""
    if value is None:
        return NONE
    if value < 99_999.5:
        return f"{value:,.0f}"
    return _scaled(value, 1000, ("k", "M", "G", "T", "P"))


def rate(value: float | None) -> str:
    """Return a number per second; below ten with one place."""
    if value is None:
        return NONE
    return f"{value:.1f}" if 0 < value < 9.95 else count(value)


def size(value: float | None) -> str:
    """Return a number of bytes: 512, 1.5K, 12.0M (of 1,024)."""
    if value is None:
        return NONE
    return f"{value:.0f}" if value < 1024 else _scaled(value, 1024, ("K", "M", "G", "T", "P"))


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    index = 0
    value /= step
    # Rounded as it will be shown, so that 999.96k is 1.0M and not 1000.0k.
    while round(value, 1) >= 1000 and index < len(units) - 1:
        value /= step
        index += 1
    return f"{value:.1f}{units[index]}"


def milliseconds(value: float | None) -> str:
    """Return milliseconds, without the unit, with three figures or so."""
    if value is None:
        return NONE
    if value < 9.995:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def span(seconds: float | None) -> str:
    """Return a length of time in at most seven characters: 42s, 3m 05s, 2h 07m, 3d 04h, 1234d."""
    if seconds is None:
        return NONE
    whole = max(int(seconds), 0)
    if whole < _MINUTE:
        return f"{whole}s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}m {whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h {whole % _HOUR // _MINUTE:02}m"
    days = whole // _DAY
    return f"{days}d {whole % _DAY // _HOUR:02}h" if days < 100 else f"{days}d"


def ago(now: float, at: float | None) -> float | None:
    """Return how long ago something was, seconds; None when it never was."""
    return None if at is None else max(now - at, 0.0)


def _local(at: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(at).astimezone()
    except (OverflowError, OSError, ValueError):
        # A time that no calendar has; the server's business.
        return None


def clock(at: float | None) -> str:
    """Return a time of day, local: 14:03:22."""
    moment = None if at is None else _local(at)
    return NONE if moment is None else f"{moment:%H:%M:%S}"


def day_and_clock(at: float | None) -> str:
    """Return a date and time, local: 2026-03-01 14:03:22."""
    moment = None if at is None else _local(at)
    return NONE if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


# -- charts ------------------------------------------------------------------------------------------------------------
UNICODE_BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII_BLOCKS = " .:|"


def tower(value: float | None, top: float, rows: int, blocks: str = UNICODE_BLOCKS) -> str:
    """Return a column of a chart as one character for each of its rows, from the bottom up.

    Args:
        value: how high; what is more than nothing shows at least the lowest block. None leaves the column empty.
        top: the value that fills the column.
        rows: how many rows.
        blocks: characters from empty to full.
    """
    steps = len(blocks) - 1
    filled = 0
    if value is not None and value > 0 and top > 0:
        filled = min(max(math.floor(value / top * rows * steps + 0.5), 1), rows * steps)
    return "".join(blocks[min(max(filled - row * steps, 0), steps)] for row in range(rows))
