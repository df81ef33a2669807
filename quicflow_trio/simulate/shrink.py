"""The fewest faults that still break the promise: delta debugging over a schedule."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from .run import Verdict
from .schedule import Scenario, make_schedule

__all__ = ["minimize", "shrink"]


async def minimize(items: Sequence[int], fails: Callable[[tuple[int, ...]], Awaitable[bool]], tries: int) -> tuple[int, ...]:
    """Return a part of ``items``, in order, that still fails and, given tries enough, fails no more without any one of them.

    Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002), with complements only.

    Args:
        items: what fails as a whole.
        fails: says whether a part fails.
        tries: how often it may be asked.
    """
    left = tuple(items)
    if left and tries and await fails(()):
        return ()
    tries -= 1
    parts = 2
    while len(left) > 1 and tries > 0:
        size = -(-len(left) // parts)
        for start in range(0, len(left), size):
            rest = left[:start] + left[start + size :]
            if tries <= 0:
                break
            tries -= 1
            if await fails(rest):
                left, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(left):
                break
            parts = min(parts * 2, len(left))
    return left


async def shrink(verdict: Verdict, simulate: Callable[[Scenario], Awaitable[Verdict]], *, tries: int = 60) -> Scenario:
    """Return the scenario of a broken promise with fewer faults, by which the same rule is broken.

    Args:
        verdict: of the simulation that failed.
        simulate: runs one.
        tries: how many simulations it may take.
    """
    scenario = verdict.scenario
    rule = verdict.violations[0].rule

    async def fails(keep: tuple[int, ...]) -> bool:
        again = await simulate(replace(scenario, keep=keep))
        return any(violation.rule == rule for violation in again.violations)

    # What came after the breach did not cause it; but what was left over shows only at the end.
    before = [fault.number for fault in make_schedule(scenario) if fault.start <= verdict.violations[0].at]
    first = tuple(before) if await fails(tuple(before)) else tuple(fault.number for fault in make_schedule(scenario))
    return replace(scenario, keep=await minimize(first, fails, tries - 1))
