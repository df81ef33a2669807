"""The schedule: from the seed alone, in its bounds, and its parts unchanged when others are left out."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from quicflow_trio.errors import ConfigurationError
from quicflow_trio.simulate import Scenario, Verdict, Violation, make_schedule
from quicflow_trio.simulate.figures import Figures
from quicflow_trio.simulate.schedule import KINDS, SERVER
from quicflow_trio.simulate.shrink import minimize, shrink

SCENARIO = Scenario(seed=5, hours=40, clients=4)
_T = TypeVar("_T")


def at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run what awaits nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("it waits")


def test_every_kind_of_fault_happens_within_its_bounds() -> None:
    faults = make_schedule(SCENARIO)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert len(faults) == 8 * 40 * 4
    for fault in faults:
        assert 0 <= fault.start <= SCENARIO.seconds
        assert fault.seconds <= KINDS[fault.kind].longest
        if "loss" in fault.kind:
            assert 0 < fault.value <= 0.5
    hosts = {fault.host for fault in faults if fault.kind == "kill"}
    assert hosts == {SERVER, "client-0", "client-1", "client-2", "client-3"}


def test_another_seed_is_another_schedule() -> None:
    assert make_schedule(SCENARIO) == make_schedule(SCENARIO)
    assert make_schedule(SCENARIO) != make_schedule(replace(SCENARIO, seed=6))


def test_what_is_kept_is_as_it_was() -> None:
    whole = make_schedule(SCENARIO)
    assert make_schedule(replace(SCENARIO, keep=(3, 11))) == (whole[3], whole[11])
    assert make_schedule(replace(SCENARIO, keep=())) == ()


def test_the_command_says_all() -> None:
    command = "quicflow simulate --seed 5 --hours 40 --clients 4 --faults normal"
    assert SCENARIO.command == command
    assert replace(SCENARIO, keep=(3, 11)).command == f"{command} --keep 3,11"
    assert replace(SCENARIO, keep=()).command == f"{command} --keep none"


@pytest.mark.parametrize("change", [{"hours": 0}, {"clients": 0}, {"faults": "some"}])
def test_a_scenario_refuses_what_cannot_be(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"Scenario.{next(iter(change))} = "):
        replace(SCENARIO, **change)


@pytest.mark.parametrize("culprits", [{4}, {4, 5}, {0, 31}, {2, 9, 30}, set()])
def test_minimize_finds_the_culprits(culprits: set[int]) -> None:
    asked = 0

    async def fails(part: tuple[int, ...]) -> bool:
        nonlocal asked
        asked += 1
        return culprits <= {*part}

    assert at_once(minimize(range(32), fails, 200)) == tuple(sorted(culprits))
    assert asked <= 80


def test_minimize_stops_when_its_tries_are_used_up() -> None:
    asked = 0

    async def fails(part: tuple[int, ...]) -> bool:
        nonlocal asked
        asked += 1
        return {2, 9, 30} <= {*part}

    left = at_once(minimize(range(32), fails, 5))
    assert asked == 5
    assert {2, 9, 30} <= {*left}


def test_shrink_keeps_to_the_rule_that_was_broken() -> None:
    scenario = replace(SCENARIO, hours=1)
    faults = make_schedule(scenario)
    culprit, other = faults[3], faults[5]

    async def simulate(tried: Scenario) -> Verdict:
        rules = [fault.number for fault in make_schedule(tried)]
        found = [Violation("left over", faults[6].start, "")] if culprit.number in rules else []
        found += [Violation("handled twice", other.start, "")] if other.number in rules else []
        return Verdict(tried, "", tuple(found), Figures(), 0.0)

    verdict = at_once(simulate(scenario))
    assert at_once(shrink(verdict, simulate)).keep == (culprit.number,)
