"""A latency histogram: fixed buckets, one increment per observation, quantiles by interpolation."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

__all__ = ["LADDER", "Histogram", "HistogramSnapshot"]

LADDER: tuple[float, ...] = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 100e-3, 200e-3, 500e-3),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
)
"""Upper bounds that are shown to the outside, seconds: few enough for a time series each."""

STEPS = 18
"""Finer buckets between two bounds of the ladder: 4-5 % wide, so that a quantile near 1 ms is known to 0.05 ms."""


def _fine_bounds() -> tuple[float, ...]:
    bounds = [LADDER[0]]
    for low, high in pairwise(LADDER):
        bounds += [low * (high / low) ** (step / STEPS) for step in range(1, STEPS)]
        bounds.append(high)  # Exactly: the counts of the ladder are read off the fine ones.
    return tuple(bounds)


BOUNDS: tuple[float, ...] = _fine_bounds()


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """Durations counted by size.

    Attributes:
        counts: observations per bucket; the first holds what is at most `BOUNDS[0]`, the last what is over 60 s.
        total: the sum of the observations, seconds.
    """

    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Their mean, seconds; 0.0 when there were none."""
        count = self.count
        return self.total / count if count else 0.0

    def quantile(self, share: float) -> float:
        """Return the duration that this share (0 to 1) of the observations stays within, seconds; 0.0 when there were none.

        Interpolated within a bucket; what is over 60 s counts as 60 s.
        """
        count = self.count
        if not count:
            return 0.0
        rank = share * count
        seen = 0
        for index, number in enumerate(self.counts):
            if number and seen + number >= rank:
                if index == len(BOUNDS):
                    break
                low = BOUNDS[index - 1] if index else 0.0
                return low + (BOUNDS[index] - low) * (rank - seen) / number
            seen += number
        return BOUNDS[-1]

    def ladder(self) -> list[tuple[float, int]]:
        """Return for each bound of `LADDER` how many observations are at most that long; cumulative."""
        cumulated = list(accumulate(self.counts))
        return [(bound, cumulated[index * STEPS]) for index, bound in enumerate(LADDER)]

    def since(self, earlier: HistogramSnapshot) -> HistogramSnapshot:
        """Return what was observed after ``earlier`` was taken of the same histogram."""
        counts = tuple(now - before for now, before in zip(self.counts, earlier.counts, strict=True))
        return HistogramSnapshot(counts, self.total - earlier.total)


class Histogram:
    """Counts durations; 50 us to 60 s are told apart to 5 %.

    Attributes:
        counts: see `HistogramSnapshot`.
        total: the sum of the observations, seconds.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)
        self.total: float = 0.0

    def observe(self, seconds: float, _bounds: Sequence[float] = BOUNDS) -> None:
        """Count one duration. It is called for every ack: a binary search in C and two additions."""
        self.counts[bisect_left(_bounds, seconds)] += 1
        self.total += seconds

    def snapshot(self) -> HistogramSnapshot:
        """Return the counts so far."""
        return HistogramSnapshot(tuple(self.counts), self.total)
