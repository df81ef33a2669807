"""The command line that all sessions share, and how each of them begins and ends."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators
from rich.console import Console

from . import plots
from .results import Report, write

__all__ = ["Common", "Count", "Flag", "finish", "make_app", "raise_file_limit", "rounds_text", "run_app"]

RESULTS = Path(__file__).resolve().parents[1] / "results"

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Flag = Annotated[bool, Parameter(negative=())]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every session takes.

    Attributes:
        quick: a tenth of the work and, unless --rounds says otherwise, one round.
        rounds: how often each side is measured; the session's own number when not given.
        results: folder for the JSON and the picture; benchmarks/results when not given.
    """

    quick: Flag = False
    rounds: Count | None = None
    results: Annotated[Path, Parameter(show_default=False)] = RESULTS

    def rounds_or(self, default: int) -> int:
        """Return how many rounds to run, where a full session has ``default``."""
        if self.rounds is not None:
            return self.rounds
        return 1 if self.quick else default

    def scaled(self, count: int) -> int:
        """Return a count of messages, a tenth of it for a quick run."""
        return max(1, count // 10) if self.quick else count


def make_app(name: str) -> App:
    """Return the command line of ``benchmarks.<name>``; the docstring of its default command is its help."""
    return App(
        name=f"python -m benchmarks.{name}",
        help_format="plaintext",
        version_flags=(),
        backend="trio",
        suppress_keyboard_interrupt=False,
    )


def run_app(app: App) -> None:
    """Run a session's command line and end the process: 130 after a Ctrl-C, with its children ended and no traceback."""
    with interruptible():
        # Said here: without them it warns wherever the environment speaks of a test run.
        app(sys.argv[1:])


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn a Ctrl-C, bare or out of a nursery, into an end with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        code = 130
    except BaseExceptionGroup as group:
        # Beside it may stand what the interrupt led to, requests whose connection was closed for instance.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        code = 130
    else:
        return
    print("interrupted", file=sys.stderr)
    sys.exit(code)


def finish(report: Report, common: Common, *, picture: Callable[[Path], None] | None = None) -> None:
    """Print the table and what it means, write the files and say where.

    Args:
        report: what was found.
        common: where to write.
        picture: draws a picture of its own to a path, in place of the bars.
    """
    console = Console()
    console.print(report.table())
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    written = write(report, common.results, picture=picture)
    console.print("wrote " + " and ".join(shortest(path) for path in written), highlight=False, markup=False)
    if not plots.available():
        console.print("no picture: matplotlib is missing (pip install 'quicflow_trio[bench]')", highlight=False, markup=False)


def rounds_text(rounds: int) -> str:
    """Return the number of rounds, for a title."""
    return "1 round" if rounds == 1 else f"{rounds} rounds"


def shortest(path: Path) -> str:
    """Return the path from the working directory, where it stands below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def raise_file_limit(sockets: int) -> None:
    """Let this process and its children open so many sockets.

    Raises:
        SystemExit: the operating system does not allow that many.
    """
    needed = sockets + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"{needed:,} open files are needed, and {hard:,} allowed: raise the limit (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
