"""The clients' process: `python -m tests.endurance.crowd JSON`, see `main`. It ends when its standard input does."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benchmarks.harness.session import raise_file_limit
from quicflow_trio import (
    Client,
    ClientConfig,
    DisconnectEvent,
    ReconnectEvent,
    TLSConfig,
    open_client,
)
from quicflow_trio.simulate.history import History
from quicflow_trio.simulate.inspect import all_tasks, defects, left_by_dead, left_by_idle
from quicflow_trio.simulate.process import Conditions, Process
from tests.endurance.ledger import Ledger
from tests.endurance.program import Work, held, obey, prepare, say
from tests.endurance.traffic import Caller, Mix, make_router

LEAVE = 15.0
"""Seconds: more than a client takes that says goodbye within its ``close_grace``."""
CONNECTING = 32
"""Clients that connect at a time: more only wait in line for the server's processor."""


class Crowd:
    """Many clients, and what the conductor may ask of them.

    Attributes:
        remains: what clients that have left did leave behind.
    """

    def __init__(self, settings: Mapping[str, Any], ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._tls = TLSConfig.client(settings["ca"])
        self._config = ClientConfig(**settings["config"])
        self._clients: dict[str, Client] = {}
        self._callers: dict[str, Caller] = {}
        self._work: Work | None = None
        self._guests: Work | None = None
        self._visits = 0
        self._over = trio.Event()
        self._gathered = False
        self._nursery: trio.Nursery
        self.remains: list[str] = []

    # -- the clients -------------------------------------------------------------------------------------------------
    async def gather(self, nursery: trio.Nursery) -> None:
        """Connect all of them, and say so."""
        self._nursery = nursery
        waiting = iter(zip(self._settings["ids"], self._settings["ports"], strict=True))

        async def connect() -> None:
            for client_id, port in waiting:
                await nursery.start(self._live, client_id, port)

        async with trio.open_nursery() as connecting:
            for _ in range(CONNECTING):
                connecting.start_soon(connect)
        self._gathered = True
        say(event="ready", clients=len(self._settings["ids"]))

    async def _live(self, client_id: str, port: int, task_status: trio.TaskStatus[None]) -> None:
        async with self._open(client_id, port) as client, client.open_events(kinds=[DisconnectEvent, ReconnectEvent]) as events:
            await client.wait_connected()
            self._clients[client_id] = client
            task_status.started()
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    async for event in events:
                        now = time.monotonic()
                        if isinstance(event, DisconnectEvent):
                            say(event="lost", client=client_id, at=now, reason=event.reason.value)
                        else:
                            say(event="back", client=client_id, at=now)

                nursery.start_soon(watch)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        self.remains += left_by_dead(_process(client))

    def _open(self, client_id: str, port: int) -> Any:
        router = make_router(self._ledger)
        return open_client("127.0.0.1", port, client_id=client_id, tls=self._tls, router=router, config=self._config)

    def disperse(self) -> None:
        """Let all clients leave, and nobody begin another call. Who is in the middle of one has `LEAVE` seconds."""
        self._over.set()
        for work in (self._work, self._guests):
            if work is not None:
                work.goes_on = False
        # Whoever had started this may be gone, and the server with it: before all were connected nobody waits at all.
        self._nursery.cancel_scope.deadline = trio.current_time() + (LEAVE if self._gathered else 0)

    # -- commands ----------------------------------------------------------------------------------------------------
    async def work(self, *, tasks: int, mix: Mapping[str, Any], calls: int | None = None) -> Mapping[str, Any]:
        """Let each client make calls in so many tasks: so many in all, or until `hush`. Says ``done`` at the end."""
        self._work = work = Work()
        jobs: list[Callable[[], Awaitable[None]]] = []
        for client_id, client in self._clients.items():
            self._callers[client_id] = caller = Caller(self._ledger, Mix(**mix), f"{client_id} {self._settings['seed']}")
            more = partial(_more, work, None if calls is None else iter(range(calls)))
            jobs += [partial(caller.repeat, partial(_same, client), more)] * tasks
        self._nursery.start_soon(work.run, jobs, partial(say, event="done"))
        return {}

    async def hush(self) -> Mapping[str, Any]:
        """Make no more calls, and wait until the last has ended; guests leave for good."""
        for work in (self._work, self._guests):
            if work is not None:
                await work.hush()
        return {}

    async def invite(
        self, *, ids: list[str], ports: list[int], stay: float, away: float, mix: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Let further clients come, talk and go again, until `hush`."""
        self._guests = guests = Work()

        async def visit(client_id: str, port: int) -> None:
            rng = random.Random(client_id)
            self._callers[client_id] = caller = Caller(self._ledger, Mix(**mix), client_id)
            while guests.goes_on:
                async with self._open(client_id, port) as client:
                    until = trio.current_time() + rng.expovariate(1 / stay)
                    await caller.repeat(partial(_same, client), partial(_stays, guests, until))
                self.remains += left_by_dead(_process(client))
                self._visits += 1
                await trio.sleep(rng.expovariate(1 / away) if guests.goes_on else 0)

        jobs = [partial(visit, client_id, port) for client_id, port in zip(ids, ports, strict=True)]
        self._nursery.start_soon(guests.run, jobs)
        return {}

    async def figures(self, *, collect: bool = False) -> Mapping[str, Any]:
        """Return what all have counted; with ``collect`` also what the process holds."""
        errors: Counter[str] = Counter()
        sums: Counter[str] = Counter()
        for caller in self._callers.values():
            errors.update(caller.errors)
        for client in self._clients.values():
            metrics = client.metrics()
            for name in (
                "messages_resent",
                "messages_redelivered",
                "packets_lost",
                "sessions_resumed",
                "stateless_resets_received",
            ):
                sums[name] += getattr(metrics, name)
        return {
            **sums,
            "done": {client_id: caller.done for client_id, caller in self._callers.items()},
            "connects": {client_id: client.statistics().connects for client_id, client in self._clients.items()},
            "slowest": max((caller.slowest for caller in self._callers.values()), default=0.0),
            "errors": dict(errors),
            "visits": self._visits,
            **(held() if collect else {}),
        }

    async def times(self) -> Mapping[str, Any]:
        """Return when the requests since the last time began and ended."""
        taken = [span for caller in self._callers.values() for span in caller.times]
        for caller in self._callers.values():
            caller.times.clear()
        return {"times": taken}

    async def left(self) -> Mapping[str, Any]:
        """Say what is left that idle clients should not have."""
        found = list(self.remains)
        for client in self._clients.values():
            process = _process(client)
            found += [*left_by_idle(process), *defects(process)]
        return {"left": found}


def _same(client: Client) -> Client:
    return client


def _stays(work: Work, until: float) -> bool:
    return work.goes_on and trio.current_time() < until


def _more(work: Work, tickets: Any) -> bool:
    return work.goes_on and (tickets is None or next(tickets, None) is not None)


def _process(client: Client) -> Process:
    process = Process(client.client_id, 0, History(), Conditions())
    process.client = client
    return process


async def main(settings: Mapping[str, Any]) -> None:
    """Connect the clients, then obey until standard input ends.

    Args:
        settings: ``ids`` and as many ``ports``, ``ca``, ``ledger`` (a path), ``config`` (fields of `ClientConfig`), ``seed``.
    """
    prepare()
    raise_file_limit(2 * len(settings["ids"]))
    before = all_tasks()
    with Ledger(Path(settings["ledger"])) as ledger:
        crowd = Crowd(settings, ledger)
        async with trio.open_nursery() as nursery:
            # Beside the commands: who starts this and ends before it is ready takes it along.
            nursery.start_soon(crowd.gather, nursery)
            commands = (crowd.work, crowd.hush, crowd.invite, crowd.figures, crowd.times, crowd.left)
            await obey({command.__name__: command for command in commands})
            crowd.disperse()
        if nursery.cancel_scope.cancelled_caught:
            crowd.remains.append(f"a client was not gone within {LEAVE:g} s")
        say(event="ended", left=[*crowd.remains, *(f"task {task.name}" for task in all_tasks() - before)])


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
