"""What a simulation was made of, in numbers that add up over seeds: `Figures`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ..testing.network import NetworkStatistics
from .history import Happened, History
from .schedule import SERVER, Scenario

__all__ = ["Figures", "add", "measure"]


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over one simulation, or over many.

    Attributes:
        client_hours: simulated.
        faults: that happened.
        messages: requests, sends and broadcasts begun.
        acked: requests answered.
        delivered: sends confirmed.
        failed: calls that ended with an error.
        cancelled: calls taken back by their caller.
        handled: handlers started.
        connects: connections of clients that were opened.
        kills: processes killed.
        datagrams: sent.
        lost: datagrams that did not arrive.
        alive_seconds: in which a client's process ran.
        connected_seconds: of them, in which it was connected, as far as it could know.
    """

    client_hours: float = 0.0
    faults: int = 0
    messages: int = 0
    acked: int = 0
    delivered: int = 0
    failed: int = 0
    cancelled: int = 0
    handled: int = 0
    connects: int = 0
    kills: int = 0
    datagrams: int = 0
    lost: int = 0
    alive_seconds: float = 0.0
    connected_seconds: float = 0.0

    @property
    def availability(self) -> float:
        """Share of the time in which clients that ran were connected, 0 to 1."""
        return self.connected_seconds / self.alive_seconds if self.alive_seconds else 0.0


def add(parts: Iterable[Figures]) -> Figures:
    """Return the sums."""
    parts = list(parts)
    return Figures(**{entry.name: sum(getattr(part, entry.name) for part in parts) for entry in fields(Figures)})


def measure(history: History, scenario: Scenario, network: NetworkStatistics) -> Figures:
    """Return the figures of one simulation."""
    counts = dict.fromkeys(Happened, 0)
    kills = connects = 0
    alive = connected = 0.0
    born: dict[str, float] = {}
    since: dict[str, float] = {}
    for record in history:
        counts[record.what] += 1
        kills += record.what is Happened.DIED and record.detail == "killed"
        process = record.process
        if record.host == SERVER:
            continue
        if record.what is Happened.BORN:
            born[process] = record.at
        elif record.what is Happened.CONNECTED:
            connects += 1
            since.setdefault(process, record.at)
        elif record.what in (Happened.DISCONNECTED, Happened.DIED):
            connected += record.at - since.pop(process, record.at)
            if record.what is Happened.DIED:
                alive += record.at - born.pop(process)
    return Figures(
        client_hours=scenario.hours * scenario.clients,
        faults=counts[Happened.FAULT],
        messages=history.messages,
        acked=counts[Happened.ACKED],
        delivered=counts[Happened.DELIVERED],
        failed=counts[Happened.FAILED],
        cancelled=counts[Happened.CANCELLED],
        handled=counts[Happened.STARTED],
        connects=connects,
        kills=kills,
        datagrams=network.sent,
        lost=network.lost + network.cut,
        alive_seconds=alive,
        connected_seconds=connected,
    )
