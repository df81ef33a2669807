"""The conductor's end of the child processes: `Child`, and `open_server` and `open_crowd`, which start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from quicflow_trio.testing import throwaway_tls

__all__ = ["Child", "Event", "open_crowd", "open_server"]

ROOT = Path(__file__).resolve().parents[2]
GOODBYE = 30.0
"""Seconds that a child may take to end once its input is closed."""

Event = Mapping[str, Any]


class ChildDied(Exception):
    """A child process has ended though nobody had asked it to; its error stands on standard error."""


class Child:
    """A process that takes commands.

    Attributes:
        hello: what it said when it was ready.
        last_word: what it said when it ended by itself.
    """

    def __init__(self, process: trio.Process, heard: Callable[[Event], None]) -> None:
        self.hello: Event = {}
        self.last_word: Event = {}
        self._process = process
        self._heard = heard
        self._replies_in, self._replies = trio.open_memory_channel[Event](1)
        self._may_end = False
        self._asking = trio.Lock()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def ask(self, do: str, **arguments: Any) -> Event:
        """Give a command and return the reply. Cancelled, the child is of no more use: the reply stands in the next one's place."""
        async with self._asking:
            assert self._process.stdin is not None
            await self._process.stdin.send_all(json.dumps({"do": do, **arguments}).encode() + b"\n")
            return await self._replies.receive()

    def signal(self, number: int) -> None:
        """Send a signal after which it may end."""
        self._may_end = True
        self._process.send_signal(number)

    def pause(self, number: int) -> None:
        """Send SIGSTOP or SIGCONT."""
        self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait until it has ended and return its exit code."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Close its input and wait until it has ended, in good order."""
        self._may_end = True
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.fail_after(GOODBYE):
            code = await self._process.wait()
        if code:
            raise ChildDied(f"exit code {code}")

    async def read(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Read what it says until it has ended; started once it is ready."""
        assert self._process.stdout is not None
        rest = b""
        async for chunk in self._process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                words: Event = json.loads(line)
                if "reply" in words:
                    await self._replies_in.send(words["reply"])
                elif words["event"] == "ready":
                    self.hello = words
                    task_status.started()
                elif words["event"] == "ended":
                    self.last_word = words
                else:
                    self._heard(words)
        if not self._may_end:
            raise ChildDied(f"exit code {await self._process.wait()}")

    async def end(self) -> None:
        """Make sure that it is gone."""
        self._may_end = True
        self._process.kill()
        await self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            await pipe.aclose()


def _ignore(_: Event) -> None:
    """Nobody wants to know."""


@asynccontextmanager
async def _open_child(module: str, settings: Event, heard: Callable[[Event], None]) -> AsyncIterator[Child]:
    """Run a module for the length of the block, from its first line of output on. At its end it is killed, if it still runs."""
    # A session of its own: a Ctrl-C is for the conductor, which ends its children; and where the scheduler shares the processors out
    # among sessions, a server and its clients are not to be one.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    child = Child(process, heard)
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(child.read)
            yield child
        finally:
            with trio.move_on_after(GOODBYE, shield=True):
                await child.end()
            nursery.cancel_scope.cancel()


def open_server(folder: Path, config: Event, *, port: int = 0) -> AbstractAsyncContextManager[Child]:
    """Run a server whose ledger is ``server.ledger`` in the folder."""
    tls = throwaway_tls()[0]
    settings = {
        "cert": str(tls.cert_file),
        "key": str(tls.key_file),
        "port": port,
        "ledger": str(folder / "server.ledger"),
        "config": dict(config),
    }
    return _open_child("tests.endurance.server", settings, _ignore)


def open_crowd(
    folder: Path,
    name: str,
    ports: Sequence[int],
    config: Event,
    heard: Callable[[Event], None] = _ignore,
    *,
    seed: int = 0,
) -> AbstractAsyncContextManager[Child]:
    """Run a client for each port, ``name-0`` and so on, whose ledger is ``name.ledger`` in the folder."""
    settings = {
        "ids": [f"{name}-{number}" for number in range(len(ports))],
        "ports": list(ports),
        "ca": str(throwaway_tls()[1].ca_file),
        "ledger": str(folder / f"{name}.ledger"),
        "config": dict(config),
        "seed": seed,
    }
    return _open_child("tests.endurance.crowd", settings, heard)
