"""The pieces that the screens of `quicflow top` are made of: lines of an exact width, rules, boxes with a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from ..remote.figures import ASCII_BLOCKS, UNICODE_BLOCKS, tower

__all__ = ["ASCII", "UNICODE", "Band", "Glyphs", "boxes", "fit", "rule", "split_width"]


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters of a drawing."""

    blocks: str
    dot: str
    ring: str
    across: str
    down: str
    corners: str
    rising: str
    falling: str
    arrows: str
    enter: str
    ellipsis: str


UNICODE = Glyphs(UNICODE_BLOCKS, "●", "○", "─", "│", "╭╮╰╯", "▲", "▼", "↑↓", "⏎", "…")
ASCII = Glyphs(ASCII_BLOCKS, "*", "o", "-", "|", "++++", "^", "v", "up/down", "enter", "~")
"""For a terminal that knows no others."""


@dataclass(frozen=True, slots=True)
class Band:
    """A chart in a box.

    Attributes:
        title: what it shows.
        value: the figures now, styled.
        lower: the values from the oldest to the newest; the lower part where there are two.
        upper: the whole height of each, where that is more than the lower part.
        styles: the styles of the lower part and of what is above it.
    """

    title: str
    value: Text
    lower: Sequence[float | None]
    upper: Sequence[float | None]
    styles: tuple[str, str]


def fit(line: Text, width: int, glyphs: Glyphs = UNICODE) -> Text:
    """Return a line of exactly this width: cut, or filled up with spaces."""
    line.no_wrap = True
    if line.cell_len > width:
        line.truncate(max(width - 1, 0))
        if width:
            line.append(glyphs.ellipsis, style="dim")
    line.pad_right(max(width - line.cell_len, 0))
    return line


def rule(parts: Sequence[Text | str], width: int, glyphs: Glyphs) -> Text:
    """Return a line across the screen with some words in it."""
    line = Text(glyphs.across * 2 + " ", style="bright_black")
    for index, part in enumerate(parts):
        if index:
            line.append(f" {glyphs.across} ", style="bright_black")
        line.append_text(part if isinstance(part, Text) else Text(part, style="default"))
    if line.cell_len < width - 1:
        line.append(" " + glyphs.across * (width - line.cell_len - 1), style="bright_black")
    return fit(line, width, glyphs)


def split_width(width: int, count: int) -> list[int]:
    """Return the widths of so many boxes side by side."""
    return [width // count + (index < width % count) for index in range(count)]


def boxes(bands: Sequence[Band], width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """Return boxes side by side, each with its value and a chart of so many rows."""
    drawn = [_box(band, each, rows, glyphs) for band, each in zip(bands, split_width(width, len(bands)), strict=True)]
    return [fit(Text.assemble(*pieces), width, glyphs) for pieces in zip(*drawn, strict=True)]


def _box(band: Band, width: int, rows: int, glyphs: Glyphs) -> list[Text]:
    inner = width - 2
    left_top, right_top, left_low, right_low = tuple(glyphs.corners)
    head = Text(f"{left_top}{glyphs.across} ", style="bright_black")
    head.append(band.title, style="bold default")
    head.append(" " + glyphs.across * (inner - len(band.title) - 3) + right_top, style="bright_black")
    lines = [fit(head, width, glyphs)]
    lines.append(_framed(Text.assemble(" ", band.value), inner, glyphs))
    lines += [_framed(line, inner, glyphs) for line in _chart(band, inner - 2, rows, glyphs)]
    lines.append(Text(left_low + glyphs.across * inner + right_low, style="bright_black"))
    return lines


def _framed(content: Text, inner: int, glyphs: Glyphs) -> Text:
    side = (glyphs.down, "bright_black")
    return Text.assemble(side, fit(content, inner, glyphs), side)


def _chart(band: Band, columns: int, rows: int, glyphs: Glyphs) -> list[Text]:
    """Return the rows of a chart, the newest value at the right; its highest value fills it."""
    columns = max(columns, 0)
    lower, upper = list(band.lower)[-columns:] if columns else [], list(band.upper)[-columns:] if columns else []
    top = max((value for value in upper if value is not None), default=0.0)
    lines = [Text(" " * (1 + columns - len(upper))) for _ in range(rows)]
    for low, high in zip(lower, upper, strict=True):
        column = tower(high, top, rows, glyphs.blocks)
        height, share = ((value or 0.0) / top * rows if top else 0.0 for value in (high, low))
        for row in range(rows):
            # A cell has one colour: that of the part which reaches the middle of what is filled of it.
            middle = row + min(height - row, 1.0) / 2
            lines[rows - 1 - row].append(column[row], style=band.styles[0 if share >= middle else 1])
    return lines
