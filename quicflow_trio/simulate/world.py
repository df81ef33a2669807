"""The simulated world: a server, clients, the network between them, and the faults that happen to all three."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

import trio

from ..credentials import CredentialsSource
from ..message import MessageType
from ..testing.network import MemoryNetwork
from ..testing.path import PathFaults
from .clocks import VirtualClock, WallClock
from .history import Happened, History, Record
from .inspect import all_tasks, defects, left_by_dead, left_by_idle
from .lives import be_client, be_server
from .process import Conditions, Process
from .rules import Promise
from .schedule import SERVER, Fault, Scenario, client_name, make_schedule
from .settings import Settings, credentials_for
from .traffic import Call, Caller

__all__ = ["World"]

_DELAY = 0.02
_JITTER = 0.005
_RECONNECTED_AFTER = 90.0
_IN_THE_MIDST = 0.03
"""Seconds from the beginning of calls to what happens at once: some are answered by then, some on their way."""
_FLOOD = 30
_FLOOD_SIZE = 1500

# Fault: which figure of which direction of a client's path it sets.
_UP = {"loss to the server": "loss", "loss both ways": "loss"}
_DOWN = {"loss to the client": "loss", "loss both ways": "loss"}
_BOTH = {"delay": "delay", "jitter": "jitter", "duplication": "duplicate", "reordering": "reorder", "corruption": "corrupt"}
_AILMENTS = {"slow handlers": "slow", "stuck handlers": "stuck", "slow reader": "reading", "cancelled callers": "impatience"}


@final
class World:
    """Everything of one simulation that lives in virtual time.

    Args:
        scenario: what to simulate.
        settings: how the programs are set up.
        promise: for how long to wait for what.
        clock: virtual time.
        wall: the wall clock that faults lead astray.
        reset_key: file that the server may keep its key of stateless resets in.
    """

    def __init__(
        self, scenario: Scenario, settings: Settings, promise: Promise, clock: VirtualClock, wall: WallClock, reset_key: Path
    ) -> None:
        self.history: History = History()
        self.network: MemoryNetwork = MemoryNetwork(seed=scenario.seed)
        self._scenario = scenario
        self._promise = promise
        self._clock = clock
        self._wall = wall
        self._clients = [client_name(number) for number in range(scenario.clients)]
        self._hosts = [SERVER, *self._clients]
        self._conditions = {host: Conditions() for host in self._hosts}
        self._processes: dict[str, Process] = {}
        self._callers: dict[str, Caller] = {}
        self._active: dict[str, list[Fault]] = {host: [] for host in self._hosts}
        self._over = False
        self._settings = settings
        self._reset_key = reset_key

    # -- the run -----------------------------------------------------------------------------------------------------
    async def run(self) -> History:
        """Let it all happen, and look at what is left."""
        before = all_tasks()
        for client in self._clients:
            self._make_weather(client)
        async with trio.open_nursery() as nursery:
            for number, host in enumerate(self._hosts):
                nursery.start_soon(self._live, host, number)
            await self._faults()
            await self._settle()
            self._over = True
            # Clients first: a server that stops would send them away.
            for host in reversed(self._hosts):
                self._processes[host].stopping.set()
                if host != SERVER:
                    await trio.sleep(1.0)
        for what, number in (("tasks", len(all_tasks() - before)), ("sockets", len(self.network.open_sockets()))):
            if number:
                self._note_world(Happened.LEFT, f"{number} {what}")
        return self.history

    async def _faults(self) -> None:
        """Let the faults of the schedule happen, each in a task of its own, until the time of traffic is over."""
        with trio.move_on_after(self._scenario.seconds):
            async with trio.open_nursery() as nursery:
                for fault in make_schedule(self._scenario):
                    await trio.sleep_until(fault.start)
                    nursery.start_soon(self._happen, fault)
                await trio.sleep_forever()

    async def _settle(self) -> None:
        """Stop the traffic, and see everybody come back and become quiet."""
        for process in self._processes.values():
            process.talking.cancel()
        await trio.sleep(_RECONNECTED_AFTER)
        for host, caller in self._callers.items():
            process = self._processes[host]
            if process.callers is None or process.stopping.is_set():
                self._note_world(Happened.LEFT, f"{process.name} is not up {_RECONNECTED_AFTER:g} s after the last fault")
                continue
            for peer in self._peers_of(host):
                process.callers.start_soon(caller.make, Call(peer, MessageType.COMMAND, wants_answer=True, ack_timeout=30.0))
        await trio.sleep(self._promise.settle_seconds - _RECONNECTED_AFTER)
        for process in self._processes.values():
            self._note_left(process, left_by_idle(process))

    def _note_left(self, process: Process, found: Iterable[str]) -> None:
        for what in found:
            self.history.add(Record(trio.current_time(), Happened.LEFT, process.name, detail=what))

    def _note_world(self, what: Happened, detail: str) -> None:
        self.history.add(Record(trio.current_time(), what, "world", detail=detail))

    # -- lives -------------------------------------------------------------------------------------------------------
    def _peers_of(self, host: str) -> list[str]:
        return self._clients if host == SERVER else [SERVER]

    async def _live(self, host: str, number: int) -> None:
        """Run one life of a host's program after the other."""
        life = 0
        while not self._over:
            life += 1
            process = self._processes[host] = Process(host, life, self.history, self._conditions[host])
            process.note(Happened.BORN)
            caller = self._callers[host] = self._make_caller(process)
            with process.scope:
                if host == SERVER:
                    config = self._settings.server(self._promise, self._reset_key)
                    await be_server(process, caller, config, guarded=self._settings.valid_for is not None, network=self.network)
                else:
                    seed = self._scenario.seed + number * 1000 + life
                    await be_client(
                        process, caller, self._settings.client(self._promise, seed), self._credentials_of(host), self.network
                    )
            if not process.dead:
                process.note(Happened.DIED, detail="stopped")
            self._note_left(process, left_by_dead(process))
            self._note_left(process, defects(process))
            process.client = process.server = None
            if not self._over:
                await trio.sleep(process.downtime)

    def _credentials_of(self, client: str) -> CredentialsSource:
        valid_for = self._settings.valid_for
        return b"" if valid_for is None else credentials_for(client, valid_for)

    def _make_caller(self, process: Process) -> Caller:
        gap = 3600 / self._scenario.level.bursts
        if process.host == SERVER:
            gap /= len(self._clients)
        return Caller(
            process,
            self._peers_of(process.host),
            process.find,
            seed=f"{self._scenario.seed} {process.name}",
            gap=gap,
            settings=self._settings,
        )

    # -- faults ------------------------------------------------------------------------------------------------------
    async def _happen(self, fault: Fault) -> None:
        self._note_world(Happened.FAULT, str(fault))
        at_once: Callable[[Fault], None] | None = {
            "new address": self._readdress,
            "kill": self._kill,
            "stop": self._stop,
            "wall clock jump": self._jump_wall,
            "pause": self._pause,
        }.get(fault.kind)
        if at_once is not None:
            self._provoke(fault)
            await trio.sleep(_IN_THE_MIDST)
            at_once(fault)
            self._note_calm()
            return
        active = self._active[fault.host]
        active.append(fault)
        self._apply(fault.host)
        if fault.kind == "slow reader":
            self._flood(fault.host)
        try:
            # A fault that no call meets shows nothing.
            self._provoke(fault)
            await trio.sleep(fault.seconds / 2)
            self._provoke(fault)
            await trio.sleep(fault.seconds / 2)
        finally:
            active.remove(fault)
            self._apply(fault.host)
            self._note_calm()

    def _note_calm(self) -> None:
        if not any(self._active.values()):
            self._note_world(Happened.CALM, "")

    def _apply(self, host: str) -> None:
        """Bring the network and a host's conditions up to date with the faults that are active now."""
        active = self._active[host]
        if any(fault.kind == "partition" for fault in active):
            self.network.partition(host)
        else:
            self.network.heal(host)
        conditions = self._conditions[host]
        for kind, name in _AILMENTS.items():
            setattr(conditions, name, max((fault.value for fault in active if fault.kind == kind), default=0.0))
        if host != SERVER:
            self._make_weather(host)

    def _make_weather(self, client: str) -> None:
        for source, destination, table in ((client, SERVER, _UP | _BOTH), (SERVER, client, _DOWN | _BOTH)):
            figures = {"delay": _DELAY, "jitter": _JITTER}
            for fault in self._active[client]:
                name = table.get(fault.kind)
                if name is not None:
                    figures[name] = max(figures.get(name, 0.0), fault.value)
            self.network.set_path(source, destination, PathFaults(**figures))

    def _readdress(self, fault: Fault) -> None:
        self.network.readdress(fault.host)

    def _kill(self, fault: Fault) -> None:
        process = self._processes[fault.host]
        if not process.dead and not process.stopping.is_set():
            process.note(Happened.DIED, detail="killed")
            process.dead = True
            process.downtime = fault.value
            self.network.kill(fault.host)
            process.scope.cancel()

    def _stop(self, fault: Fault) -> None:
        process = self._processes[fault.host]
        process.downtime = fault.value
        process.stopping.set()

    def _jump_wall(self, fault: Fault) -> None:
        self._wall.offset += fault.value

    def _pause(self, fault: Fault) -> None:
        self._clock.jump(fault.value)
        self._note_world(Happened.JUMPED, repr(fault.value))

    def _provoke(self, fault: Fault) -> None:
        """Let both ends of a path begin calls: the host that the fault hits and, as the other, the server or one of the clients."""
        hit = (
            client_name(fault.number % len(self._clients))
            if fault.host not in self._active or fault.host == SERVER
            else fault.host
        )
        for host, peer in ((hit, SERVER), (SERVER, hit)):
            if self._is_talking(host):
                self._callers[host].burst(peer)

    def _flood(self, host: str) -> None:
        for peer in self._peers_of(host):
            if self._is_talking(peer):
                self._callers[peer].flood(host, _FLOOD, _FLOOD_SIZE)

    def _is_talking(self, host: str) -> bool:
        process = self._processes[host]
        return process.callers is not None and not (process.dead or process.stopping.is_set() or process.talking.cancel_called)
