"""One seed, one trace: every datagram of a whole program, again and again, in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.connections.trace_program import Trace, trace

ROOT = Path(__file__).parents[2]


def difference(first: Trace, second: Trace) -> str:
    """Say where two traces part."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return f"datagram {index} of {len(first)} and {len(second)}: {one} and {other}"
    return "" if len(first) == len(second) else f"{len(first)} and {len(second)} datagrams"


def test_twice_in_a_row() -> None:
    first = trace(3)
    assert len(first) > 500
    assert not difference(first, trace(3))


def test_another_seed_is_another_run() -> None:
    assert difference(trace(3), trace(4))


@pytest.mark.realtime
@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_in_another_process_with_another_hash_seed(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.connections.trace_program", "3"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not difference(trace(3), json.loads(done.stdout))
