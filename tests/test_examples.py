"""Every example runs as a newcomer runs it, in a process of its own over real UDP, and prints what it says it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# What must be printed, in this order where one client or one server speaks; see UNORDERED for the rest.
EXPECTED = {
    "echo": ["query   -> hello", "command -> HELLO", "sent    -> delivered", "done"],
    "broadcast": [
        "connected: kitchen, office, workshop",
        "sent to 3: kitchen heard it; office heard it; workshop heard it",
        "  office hears: the parcel has come",
        "failed for attic: client 'attic' is not connected",
        "queued for 3",
        "done",
    ],
    "callback": [
        "answer: sweep the floor: done",
        "failure: ZeroDivisionError: nobody can do that",
        "time-out: no ack within 0.2 s",
        "cancelled: True",
        "side by side: both done",
        "asked back: so you are Worker One",
        "done",
    ],
    "tokens": [
        "refused: the token is for another client id",
        "refused: the token is not accepted",
        "team: kitchen",
        "permitted: SOUP",
        "denied: command on the default lane is not permitted",
        "limited, and then let through",
        "renewed without a reconnect: True",
        "done",
    ],
    "old_and_new": [
        "old asks, and hears: hello",
        "new asks, and hears: hello",
        "old speaks quic-backbone-v1: done: sweep",
        "new speaks quicflow/2: done: sweep",
        "a broadcast reached: new, old",
        "old has no further lane: 1 lanes are open already, the limit is 1",
        "new has: 2 lanes",
        "done",
    ],
    "embedded_service": [
        "roof asks, and sees itself: 31.0",
        "news from the service: {'cellar': 11.6, 'roof': 31.0}",
        "done",
    ],
}
# Several clients, or a handler and its caller, print these in any order: how often each must come.
UNORDERED = {
    "broadcast": {
        f"  {name} hears: {what}": 1 for name in ("kitchen", "office", "workshop") for what in ("lunch is ready", "lights out")
    },
    "callback": {"  server: the oven is off": 2},
}


def test_every_example_has_its_expectation() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(EXPECTED)


@pytest.mark.realtime
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    # From another folder: an example must not depend on where it is started. Warnings are errors there, too.
    command = [sys.executable, "-W", "error", str(path)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert [line for line in lines if line in EXPECTED[path.stem]] == EXPECTED[path.stem]
    for line, count in UNORDERED.get(path.stem, {}).items():
        assert lines.count(line) == count
