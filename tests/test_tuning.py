"""`tune_garbage_collector`: in a process of its own, since it is for good."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from quicflow_trio import tune_garbage_collector

full = []
gc.callbacks.append(lambda phase, info: full.append(1) if phase == "start" and info["generation"] == 2 else None)
{tune}
full.clear()
kept = []
for _ in range(300_000):
    kept.append([])  # as connections do, they stay
print(len(full), gc.get_freeze_count() > 10_000)
"""


@pytest.mark.realtime
@pytest.mark.parametrize(("tune", "expected"), [("tune_garbage_collector()", "0 True"), ("", None)])
def test_full_collections_become_rare(tune: str, expected: str | None) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(tune=tune)], capture_output=True, text=True, check=True)
    if expected is not None:
        assert done.stdout.strip() == expected
    else:
        # What it is for: untuned, the same objects cause full collections.
        assert int(done.stdout.split()[0]) > 0
