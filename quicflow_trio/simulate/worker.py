"""A process that simulates what it is told: one JSON line in, one JSON line out, until its standard input ends."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from ..observe.logs import configure_logging
from .run import Verdict, simulate
from .schedule import Scenario

__all__ = ["main"]


def main() -> None:
    """Work until the end of standard input."""
    # Failing handlers, lost connections: what the faults do would fill the log, and is in the history.
    configure_logging("off")
    # A history only grows: looking through it for garbage again and again is a twentieth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        keep = order.pop("keep")
        history = order.pop("history")
        verdict = simulate(Scenario(keep=None if keep is None else tuple(keep), **order))
        if history is not None:
            _write_history(Path(history), verdict)
        sys.stdout.write(json.dumps(verdict.as_json()) + "\n")
        sys.stdout.flush()


def _write_history(path: Path, verdict: Verdict) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{record}\n" for record in verdict.history)


if __name__ == "__main__":
    main()
