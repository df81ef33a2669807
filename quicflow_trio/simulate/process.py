"""One life of a simulated program, and what may be wrong with its host: `Process`, `Conditions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import trio

from ..client import Client
from ..peer import Peer
from ..server import Server
from .history import Happened, History, Record

__all__ = ["Conditions", "Process"]


@dataclass(slots=True)
class Conditions:
    """What ails the programs of one host now; 0 where nothing does.

    Attributes:
        slow: seconds that its handlers take at most.
        stuck: some of its handlers never end.
        reading: seconds that each event takes, one after the other on its lane.
        impatience: seconds after which its callers take their calls back, at most.
    """

    slow: float = 0.0
    stuck: float = 0.0
    reading: float = 0.0
    impatience: float = 0.0


@final
class Process:
    """One life of a host's program.

    Attributes:
        host: the host.
        name: host and number of the life.
        history: where it notes what it does.
        conditions: of its host.
        dead: true once it was killed: what its tasks do from then on did not happen.
        downtime: seconds until the next life.
        scope: around everything it does.
        stopping: set when it is asked to stop.
        talking: around what begins new calls.
        callers: the calls under way; they must end by themselves.
        client: on a client's host, once it is open.
        server: on the server's host, once it listens.
    """

    def __init__(self, host: str, life: int, history: History, conditions: Conditions) -> None:
        self.host: str = host
        self.name: str = f"{host}#{life}"
        self.history: History = history
        self.conditions: Conditions = conditions
        self.dead: bool = False
        self.downtime: float = 0.0
        self.scope: trio.CancelScope = trio.CancelScope()
        self.stopping: trio.Event = trio.Event()
        self.talking: trio.CancelScope = trio.CancelScope()
        self.callers: trio.Nursery | None = None
        self.client: Client | None = None
        self.server: Server | None = None

    def find(self, host: str) -> Peer:
        """Return the session with a host.

        Raises:
            ClientNotConnected: a server has none with that client.
        """
        if self.server is not None:
            return self.server.session(host)
        assert self.client is not None, "a process that calls is up"
        return self.client

    def note(
        self,
        what: Happened,
        message: int = 0,
        *,
        peer: str = "",
        lane: str = "",
        detail: str = "",
        redeliver: bool = False,
    ) -> None:
        """Note that it did something now; the dead do nothing."""
        if not self.dead:
            self.history.add(Record(trio.current_time(), what, self.name, message, peer, lane, detail, redeliver))
