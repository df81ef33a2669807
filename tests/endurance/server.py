"""The server process: `python -m tests.endurance.server JSON`, see `main`. SIGTERM drains it, as `quicflow serve`; EOF stops it."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import trio

from quicflow_trio import Message, Peer, QuicFlowError, Server, ServerConfig, TLSConfig, serve
from quicflow_trio.errors import ClientNotConnected
from quicflow_trio.simulate.history import History
from quicflow_trio.simulate.inspect import all_tasks, defects, left_by_dead, left_by_idle
from quicflow_trio.simulate.process import Conditions, Process
from tests.endurance.ledger import Ledger
from tests.endurance.program import Work, held, obey, prepare, say
from tests.endurance.traffic import Caller, Mix, make_router

GRACE = 10.0


class ServerProgram:
    """What the conductor may ask of a server."""

    def __init__(self, server: Server, ledger: Ledger, nursery: trio.Nursery) -> None:
        self._server = server
        self._ledger = ledger
        self._nursery = nursery
        self._work: Work | None = None
        self._caller: Caller | None = None
        self._random = random.Random("server")
        self._flood: trio.CancelScope | None = None
        self._refused: Counter[str] = Counter()
        self.process = Process("server", 0, History(), Conditions())
        self.process.server = server

    async def figures(self, *, collect: bool = False) -> Mapping[str, Any]:
        """Return what it has counted; with ``collect`` also what the process holds."""
        statistics = self._server.statistics()
        return {
            **self._server.metrics().as_json(),
            "connection_ids": statistics.endpoint.connection_ids,
            "tasks": len(all_tasks()),
            **(held() if collect else {}),
            "calls": 0 if self._caller is None else self._caller.done,
            "errors": {} if self._caller is None else dict(self._caller.errors),
            "refused": dict(self._refused),
        }

    async def talk(self, *, tasks: int, mix: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call clients at random until `hush`."""
        self._work = work = Work()
        self._caller = caller = Caller(self._ledger, Mix(**mix), "server")
        self._nursery.start_soon(work.run, [partial(caller.repeat, self._anybody, lambda: work.goes_on)] * tasks)
        return {}

    async def hush(self) -> Mapping[str, Any]:
        """Make no more calls, and wait until the last has ended."""
        if self._work is not None:
            await self._work.hush()
        return {}

    def _anybody(self) -> Peer:
        sessions = self._server.known_sessions()
        if not sessions:
            raise ClientNotConnected("anybody")
        return self._random.choice(sessions)

    async def flood(
        self, *, victim: str, every: float, size: int, broadcast_every: float, broadcast_size: int
    ) -> Mapping[str, Any]:
        """Broadcast to everybody, and send to one client more than all others get, until `ebb`."""
        self._flood = scope = trio.CancelScope()

        async def pour() -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._drench, victim, every, bytes(size))
                    nursery.start_soon(self._broadcast, broadcast_every, bytes(broadcast_size))

        self._nursery.start_soon(pour)
        return {}

    async def ebb(self) -> Mapping[str, Any]:
        """Stop the flood."""
        assert self._flood is not None, "there is a flood"
        self._flood.cancel()
        return {}

    async def _drench(self, victim: str, every: float, payload: bytes) -> None:
        while True:
            try:
                self._server.session(victim).send_nowait(Message.event(payload))
            except (trio.WouldBlock, QuicFlowError) as exc:
                # Its outbox is full, or it was thrown out: the others are what is looked at.
                self._refused[type(exc).__name__] += 1
            await trio.sleep(every)

    async def _broadcast(self, every: float, payload: bytes) -> None:
        while True:
            await self._server.broadcast(Message.event(payload))
            await trio.sleep(every)

    async def left(self) -> Mapping[str, Any]:
        """Say what is left that an idle server should not have."""
        return {"left": [*left_by_idle(self.process), *defects(self.process)]}


async def main(settings: Mapping[str, Any]) -> None:
    """Serve until standard input ends or SIGTERM comes.

    Args:
        settings: ``cert``, ``key``, ``port``, ``ledger`` (a path), ``config`` (fields of `ServerConfig`).
    """
    prepare()
    config = ServerConfig(**settings["config"])
    tls = TLSConfig.server(settings["cert"], settings["key"])
    before = all_tasks()
    with (
        Ledger(Path(settings["ledger"])) as ledger,
        trio.open_signal_receiver(signal.SIGTERM) as signals,
    ):
        async with trio.open_nursery() as nursery:
            start = partial(serve, make_router(ledger), host="127.0.0.1", port=settings["port"], tls=tls, config=config)
            server: Server = await nursery.start(start)
            program = ServerProgram(server, ledger, nursery)
            say(event="ready", port=server.address[1])

            async def until_eof() -> None:
                names = [name for name in vars(ServerProgram) if not name.startswith("_")]
                await obey({name: getattr(program, name) for name in names})
                await server.aclose()
                nursery.cancel_scope.cancel()

            async def until_told() -> None:
                await anext(signals)
                await server.drain(grace=GRACE)
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_eof)
            nursery.start_soon(until_told)
        # Trio has a task for signals' entry, and for each worker thread's none.
        left = [*left_by_dead(program.process), *(f"task {task.name}" for task in all_tasks() - before)]
        say(event="ended", left=left, figures=dataclasses.asdict(server.metrics())["messages_received"])


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
