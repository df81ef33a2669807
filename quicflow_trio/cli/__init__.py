"""The `quicflow` command. `main` is its entry point; each command has a module of its own, which is imported when it is called."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quicflow` with these arguments, or the process's own, and return its exit code."""
    try:
        # Imported in here: it takes a while, in which a Ctrl-C must not end in a traceback either.
        from .app import main as run

        return run(argv)
    except KeyboardInterrupt:
        # Only outside the event loop: the commands watch for the signal themselves. A number, since `ExitCode` is not imported yet.
        return 130
