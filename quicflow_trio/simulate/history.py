"""What happened in a simulation, in order: `History`, made of `Record`."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from typing import NamedTuple, final

__all__ = ["BROADCAST_LANE", "Happened", "History", "Record"]

BROADCAST_LANE = "(broadcast)"
"""Stands where other messages have their lane: broadcasts keep their order among themselves."""


class Happened(enum.StrEnum):
    """What a record tells."""

    ASKED = "asked"
    """A caller begins a request; ``detail`` is its ack timeout."""
    SENT = "sent"
    """A caller begins a send."""
    ACKED = "acked"
    """A request returned the result that its handler gives."""
    MIXED_UP = "mixed up"
    """A request returned the result of something else."""
    DELIVERED = "delivered"
    """``delivered()`` returned."""
    FAILED = "failed"
    """A request, send or ``delivered()`` raised; ``detail`` names the error."""
    CANCELLED = "cancelled"
    """The caller took it back."""
    STARTED = "started"
    """A handler began; ``detail`` is "redelivered" where the request says so."""
    ENDED = "ended"
    """A handler returned, or raised; ``detail`` is "ok", "failed" or "cancelled"."""
    BORN = "born"
    """A process started."""
    DIED = "died"
    """A process ended; ``detail`` says how: "killed" or "stopped"."""
    CONNECTED = "connected"
    """A process saw the connection with ``peer`` begin."""
    DISCONNECTED = "disconnected"
    """A process saw the connection with ``peer`` end; ``detail`` says why."""
    FAULT = "fault"
    """A fault began; ``detail`` tells it."""
    CALM = "calm"
    """No fault is active any more."""
    JUMPED = "jumped"
    """All clocks stood still and then jumped, by ``detail`` seconds."""
    LEFT = "left"
    """Something was found that should be gone; ``detail`` names it."""


class Record(NamedTuple):
    """One line of a history.

    Attributes:
        at: virtual time, seconds.
        what: what happened.
        process: whose doing it is: a host and which of its lives, ``client-2#1``; a bare host for the world itself.
        message: number of the message it is about, 0 for none.
        peer: the host at the other end; empty where that means nothing.
        lane: the lane of a message, as its sender says.
        detail: see `Happened`.
        redeliver: true where the sender of a message asked that it be redelivered.
    """

    at: float
    what: Happened
    process: str
    message: int = 0
    peer: str = ""
    lane: str = ""
    detail: str = ""
    redeliver: bool = False

    @property
    def host(self) -> str:
        """The host of the process."""
        return self.process.partition("#")[0]

    def __str__(self) -> str:
        number = f" message {self.message}" if self.message else ""
        peer = f" {self.peer}" if self.peer else ""
        lane = f" on lane {self.lane!r}" if self.lane else ""
        again = " to be redelivered" if self.redeliver else ""
        return f"{self.at:12.3f}  {self.process:<12} {self.what}{number}{peer}{lane}{again} {self.detail}".rstrip()


@final
class History:
    """All records of one simulation, oldest first."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._messages = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def add(self, record: Record) -> None:
        """Note what happened now."""
        self._records.append(record)

    def new_message(self) -> int:
        """Return the number of one more message; they count from 1."""
        self._messages += 1
        return self._messages

    @property
    def messages(self) -> int:
        """How many messages were given a number."""
        return self._messages

    def about(self, message: int) -> list[Record]:
        """Return the records of one message."""
        return [record for record in self._records if record.message == message]

    def digest(self) -> str:
        """Return a hash over all records: equal for two runs in which the same things happened at the same times."""
        sha = hashlib.sha256()
        for record in self._records:
            sha.update(repr(tuple(record)).encode())
        return sha.hexdigest()[:16]
