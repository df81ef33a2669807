"""All sessions in turn, in short form: `python -m benchmarks --help`."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from cyclopts import App
from rich.console import Console

from benchmarks.harness.session import Common, run_app

SESSIONS = ("throughput", "latency", "broadcast", "connections", "growth", "codec", "ops", "peers")
"""All but `profile`, which measures nothing that could be compared."""
ROUNDS = 3
INTERRUPTED = 130

app = App(name="python -m benchmarks", help_format="plaintext", version_flags=(), suppress_keyboard_interrupt=False)


@app.default
def main(*, common: Common = Common()) -> None:  # noqa: B008 - frozen
    """Run all sessions in short form, one after the other: a tenth of the work, three rounds.

    Args:
        common: of all sessions; --quick makes it one round.
    """
    console = Console()
    failed = []
    for name in SESSIONS:
        module = f"benchmarks.{name}"
        if find_spec(module) is None:
            continue
        console.rule(f"python -m {module}")
        # A process for each: none measures in what another has left behind.
        arguments = ("--quick", "--rounds", str(common.rounds_or(ROUNDS)), "--results", str(common.results))
        code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
        if code == INTERRUPTED:
            sys.exit(code)
        if code:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    run_app(app)
