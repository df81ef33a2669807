"""Settings of the interpreter that suit a process with many connections. They are the program's to choose, so nothing here is done unasked."""

from __future__ import annotations

import gc

__all__ = ["tune_garbage_collector"]

YOUNG = 10_000
"""Objects made and not freed before the youngest are looked at; Python's own 700 suits small programs."""
MIDDLE = 20
OLD = 100


def tune_garbage_collector() -> None:
    """Make the pauses of Python's garbage collector rare: call it once at the start of a program that serves many clients.

    A full collection walks over everything that lives. With 1,000 connected clients that took 300 ms, during which nobody is answered,
    every few seconds under load. This keeps what was imported out of it for good (`gc.freeze`) and lets full collections come a
    hundred times more seldom; messages and ended connections need none, they are freed at once. The price is memory: what your
    program leaves behind that refers to itself in a circle stays until the next full collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
