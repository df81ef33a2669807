"""What each process did, written down before anybody can kill it: `Ledger`; and what all ledgers together say: `Account`."""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

__all__ = ["Account", "Ledger", "What"]

ID = 16
RECORD = 1 + ID


class What(enum.IntEnum):
    """What became of a message."""

    BEGUN = 1
    """A caller begins a request, or a send that it wants to see delivered."""
    BEGUN_REDELIVER = 2
    """The same, and the message may be delivered again after a restart."""
    ACKED = 3
    """The request returned its own result."""
    DELIVERED = 4
    """``delivered()`` returned."""
    MIXED_UP = 5
    """The request returned something else."""
    FAILED = 6
    """The call raised."""
    CANCELLED = 7
    """The caller took it back."""
    STARTED = 8
    """A handler began."""
    STARTED_AGAIN = 9
    """A handler began, and was told that an earlier process may have handled the message."""
    ENDED = 10
    """A handler is about to return."""


ENDS = (What.ACKED, What.DELIVERED, What.MIXED_UP, What.FAILED, What.CANCELLED)


class Ledger:
    """An append-only file of what one process, or several in turn, did.

    Each note is one write to the operating system: what was noted stays noted when the process is killed right after.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def note(self, what: What, id: bytes) -> None:
        """Add a record; short writes do not happen to so few bytes."""
        os.write(self._file, what.to_bytes(1, "big") + id)


class Account:
    """What the ledgers of all sides say together, by message id.

    Attributes:
        counts: how often each thing was noted.
        begun: whether each message that a caller began may be delivered again.
    """

    def __init__(self, ledgers: Iterable[Path]) -> None:
        self.counts: Counter[What] = Counter()
        self.begun: dict[bytes, bool] = {}
        self._ended: dict[What, Counter[bytes]] = {end: Counter() for end in ENDS}
        self._first: Counter[bytes] = Counter()
        self._again: Counter[bytes] = Counter()
        self._handled: set[bytes] = set()
        for path in ledgers:
            data = path.read_bytes()
            for start in range(0, len(data) - RECORD + 1, RECORD):
                self._take(What(data[start]), data[start + 1 : start + RECORD])

    def _take(self, what: What, id: bytes) -> None:
        self.counts[what] += 1
        if what in self._ended:
            self._ended[what][id] += 1
        elif what is What.STARTED:
            self._first[id] += 1
        elif what is What.STARTED_AGAIN:
            self._again[id] += 1
        elif what is What.ENDED:
            self._handled.add(id)
        else:
            self.begun[id] = what is What.BEGUN_REDELIVER

    @property
    def runs(self) -> int:
        """How often a handler was started."""
        return self.counts[What.STARTED] + self.counts[What.STARTED_AGAIN]

    @property
    def distinct(self) -> int:
        """How many messages a handler was started for."""
        return len(self._first.keys() | self._again.keys())

    def acked_and_lost(self) -> int:
        """Return how many messages were acked to their caller without a handler that came to its end."""
        return sum(id not in self._handled for id in self._ended[What.ACKED])

    def delivered_and_lost(self) -> int:
        """Return how many messages were delivered by their sender's account and never handled. A killed receiver may lose some."""
        return sum(id not in self._handled for id in self._ended[What.DELIVERED])

    def handled_twice(self) -> int:
        """Return how many messages were handled twice without a word that they may have been handled before."""
        return sum(runs > 1 for runs in self._first.values())

    def again_unasked(self) -> int:
        """Return how many messages were delivered again though their sender had not chosen so."""
        return sum(not self.begun.get(id, False) for id in self._again)

    def unheard_of(self) -> int:
        """Return how many messages were handled that nobody had sent."""
        return len((self._first.keys() | self._again.keys()) - self.begun.keys())

    def without_end(self) -> int:
        """Return how many calls have not ended, or more than once."""
        ends: Counter[bytes] = Counter()
        for ended in self._ended.values():
            ends.update(ended)
        return sum(ends[id] != 1 for id in self.begun) + len(ends.keys() - self.begun.keys())

    def redeliver_lost(self) -> int:
        """Return how many messages that go out again were never handled, other than those that their caller took back."""
        spared = self._ended[What.CANCELLED]
        return sum(again and id not in self._handled and id not in spared for id, again in self.begun.items())

    def failed_though_redeliver(self) -> int:
        """Return how many calls failed though their message goes out again."""
        return sum(self.begun[id] for id in self._ended[What.FAILED])
