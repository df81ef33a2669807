"""Pauses of the machine, seen by a process that does nothing but sleep a millisecond at a time.

A virtual machine is stopped now and then, for 20 to 60 ms here. What was measured meanwhile says nothing about the program.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

__all__ = ["Hiccup", "HiccupLog", "find_overrun", "watch_hiccups"]

NAP = 0.001
AT_LEAST = 0.010
"""Overruns of a nap that count, seconds: the kernel makes a process wait that long only when there is no processor for it at all."""
DONE = "."


class Hiccup(NamedTuple):
    """One pause.

    Attributes:
        start: when the watcher should have woken, on `time.monotonic`'s clock, which all processes of a machine share.
        length: seconds until it did.
    """

    start: float
    length: float

    @property
    def end(self) -> float:
        """When the pause was over."""
        return self.start + self.length


class HiccupLog:
    """The pauses so far. Without a watcher behind it, it is a plain list of them."""

    def __init__(self, hiccups: list[Hiccup] | None = None, watcher: subprocess.Popen[str] | None = None) -> None:
        self._hiccups = hiccups or []
        self._watcher = watcher

    def between(self, start: float, end: float) -> list[Hiccup]:
        """Return the pauses that touch this stretch of `time.monotonic`, oldest first."""
        self._ask()
        return [hiccup for hiccup in self._hiccups if hiccup.start < end and hiccup.end > start]

    def longest(self, start: float, end: float) -> float:
        """Return the seconds of the longest pause that touches this stretch of `time.monotonic`; 0.0 when there was none."""
        return max((hiccup.length for hiccup in self.between(start, end)), default=0.0)

    def undisturbed(self, spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Return those of the (start, end) that no pause touches."""
        if not spans:
            return []
        # The pauses of one watcher do not overlap, so the first that ends after a start is the only one that need be looked at.
        hiccups = self.between(min(start for start, _ in spans), max(end for _, end in spans))
        ends = [hiccup.end for hiccup in hiccups]
        kept = []
        for start, end in spans:
            index = bisect_left(ends, start)
            if index == len(hiccups) or hiccups[index].start >= end:
                kept.append((start, end))
        return kept

    def _ask(self) -> None:
        """Take what the watcher has seen. It answers between two naps, so a pause that lasts up to this moment is in the answer."""
        if self._watcher is None:
            return
        asking, answers = _pipes(self._watcher)
        asking.write("\n")
        asking.flush()
        for line in answers:
            if line.strip() == DONE:
                return
            start, length = line.split()
            self._hiccups.append(Hiccup(float(start), float(length)))
        raise SystemExit("the process that watches for pauses has ended; its error stands above")


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@contextmanager
def watch_hiccups() -> Iterator[HiccupLog]:
    """Watch for pauses of the machine for the length of the block, from a process of its own."""
    command = [sys.executable, "-m", __spec__.name]
    # A process group of its own: a Ctrl-C is for the session, which closes the watcher's input.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        log = HiccupLog(watcher=process)
        try:
            # The first answer says that it watches.
            log.between(0.0, 0.0)
            yield log
        finally:
            _pipes(process)[0].close()
            # Before its output is closed: interrupted in the middle of a question, it still answers.
            process.wait()


def find_overrun(before: float, now: float) -> Hiccup | None:
    """Return the pause in a nap that began and ended at these times, None when it was no longer than naps are."""
    overrun = now - before - NAP
    return Hiccup(before + NAP, overrun) if overrun >= AT_LEAST else None


def main() -> None:
    """Nap and look at the clock; for each line of input print the pauses since the last, `start length` each, and a full stop."""
    pending: list[Hiccup] = []
    before = time.monotonic()
    while True:
        asked, _, _ = select.select([sys.stdin], [], [], NAP)
        now = time.monotonic()
        # A question ends the nap early; a late answer is a pause all the same.
        if hiccup := find_overrun(before, now):
            pending.append(hiccup)
        before = now
        if asked:
            if not sys.stdin.readline():
                return
            for start, length in pending:
                print(f"{start:.6f} {length:.6f}")
            pending.clear()
            print(DONE, flush=True)


if __name__ == "__main__":
    main()
