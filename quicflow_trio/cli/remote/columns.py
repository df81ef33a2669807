"""Lists for a terminal and for pipes: aligned columns without lines, as `ps` prints them, so that `grep` and `awk` read them too."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

__all__ = ["print_columns", "print_pairs"]

GAP = 2


def _console() -> Console:
    # No markup and no highlighting: much of what is printed comes from elsewhere. Soft: what is too wide is not broken up.
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> None:
    """Print a table. On a terminal that is too narrow the last columns are left out; a pipe gets them all.

    Args:
        headings: names of the columns.
        rows: what stands in them.
        left: how many columns, from the first, hold text; the others hold figures and are aligned to the right.
    """
    console = _console()
    widths = [max(cell_len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    shown = len(widths)
    if sys.stdout.isatty():
        while shown > 1 and sum(widths[:shown]) + GAP * (shown - 1) > console.width:
            shown -= 1
    for row in (headings, *rows):
        line = (" " * GAP).join(_cell(row[index], widths[index], right=index >= left) for index in range(shown))
        console.print(Text(line.rstrip(), style="bold" if row is headings else ""))


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    console = _console()
    width = max(cell_len(name) for name, _ in pairs)
    for name, value in pairs:
        console.print(Text.assemble((_cell(name, width, right=False), "bold"), " " * GAP, value))


def _cell(content: str, width: int, *, right: bool) -> str:
    padding = " " * (width - cell_len(content))
    return padding + content if right else content + padding
