"""The stage of the demo: what happens is told here, and what was said is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

__all__ = ["NotAsSaid", "Stage"]

WIDEST = 1000
"""More characters than any table has."""


class NotAsSaid(Exception):
    """Something came out differently from what the demo says."""


@final
class Stage:
    """Tells the story on standard output; plain text when that is not a terminal.

    Attributes:
        number: the present step, from 1.
        title: what it is called.
    """

    def __init__(self) -> None:
        self.number: int = 0
        self.title: str = ""
        # No markup and no highlighting: much of what is printed comes from elsewhere.
        self._console = Console(highlight=False, markup=False, soft_wrap=True)

    def open_step(self, title: str, explanation: str) -> None:
        """Begin the next step."""
        self.number += 1
        self.title = title
        self._console.print(f"\n{self.number}. {title}", style="bold cyan")
        self._console.print(f"   {explanation}", style="dim")

    def say(self, text: str) -> None:
        """Tell what happens."""
        self._console.print(f"   {text}")

    def check(self, holds: bool, claim: str) -> None:
        """Tell what has been seen to hold.

        Raises:
            NotAsSaid: it does not.
        """
        if not holds:
            raise NotAsSaid(claim)
        self._console.print("   ok ", style="green", end="")
        self._console.print(claim)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table; all but its first column hold figures. Where it is too wide, the last columns are left out."""
        table = _table(title, columns, rows)
        # Rich would fit it in by cutting figures, which makes them wrong.
        for count in range(len(columns), 0, -1):
            if self._fits(table):
                break
            # With its headings on several lines first.
            table = _table(title, [column.replace(" ", "\n") for column in columns[:count]], [row[:count] for row in rows])
        self._console.print()
        self._console.print(table)

    def _fits(self, table: Table) -> bool:
        return (
            Measurement.get(self._console, self._console.options.update(max_width=WIDEST), table).maximum <= self._console.width
        )

    def close(self, text: str) -> None:
        """Say the last word."""
        self._console.print(f"\n{text}", style="bold green")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
