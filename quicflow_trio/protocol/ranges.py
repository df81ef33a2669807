"""Numbers that come out of order, kept as runs: as many as there are gaps, however many numbers."""

from __future__ import annotations

import bisect

__all__ = ["add_number"]


def add_number(runs: list[list[int]], number: int) -> None:
    """Add a number that is not among them to runs of first and last, in order; one that closes a gap joins its neighbours."""
    index = bisect.bisect(runs, [number])
    joins_last = index > 0 and runs[index - 1][1] == number - 1
    joins_next = index < len(runs) and runs[index][0] == number + 1
    if joins_last and joins_next:
        runs[index - 1][1] = runs.pop(index)[1]
    elif joins_last:
        runs[index - 1][1] = number
    elif joins_next:
        runs[index][0] = number
    else:
        runs.insert(index, [number, number])
