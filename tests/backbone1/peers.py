"""Trio's end of a peer in a process of its own: `open_peer` for the original's, `open_ours` for ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from quicflow_trio.testing import throwaway_tls

ROOT = Path(__file__).resolve().parents[2]
GOODBYE = 20.0
"""Seconds that a peer may take to end once its input is closed."""


class PeerFailed(Exception):
    """A command could not be carried out, or the process is gone; its error stands on standard error."""


class PeerProcess:
    """A peer that takes commands; see `tests.backbone1.original` and `tests.backbone1.ours`.

    Attributes:
        port: where a server listens.
        events: what has happened, oldest first.
    """

    def __init__(self, process: trio.Process) -> None:
        self.port = 0
        self.events: list[dict[str, Any]] = []
        self._process = process
        self._number = 0
        self._replies: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._news = trio.Condition()
        self._gone = False

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return the reply.

        Raises:
            PeerFailed: it could not be carried out: not connected, no answer in time, or the process has ended.
        """
        assert self._process.stdin is not None
        if self._gone:
            raise PeerFailed("the process has ended")
        self._number += 1
        number = self._number
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._replies[number] = send
        try:
            line = json.dumps({"id": number, "do": do, **arguments}).encode() + b"\n"
            await self._process.stdin.send_all(line)
            words = await receive.receive()
        finally:
            del self._replies[number]
        if "error" in words:
            raise PeerFailed(words["error"])
        reply: dict[str, Any] = words["reply"]
        return reply

    async def wait(self, event: str, *, count: int = 1, seconds: float = 20.0) -> dict[str, Any]:
        """Wait until an event has happened so many times, since the start; return the last of them."""
        with trio.fail_after(seconds):
            async with self._news:
                while len(found := [words for words in self.events if words["event"] == event]) < count:
                    if self._gone:
                        raise PeerFailed(f"the process has ended; it said {self.events}")
                    await self._news.wait()
        return found[count - 1]

    async def stop(self) -> None:
        """Close its input, upon which it closes its connections, and wait until it has ended."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        with trio.fail_after(GOODBYE):
            code = await self._process.wait()
        assert code == 0, f"exit code {code}"

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()

    async def read(self) -> None:
        """Read what it says until it has ended."""
        assert self._process.stdout is not None
        rest = b""
        async for chunk in self._process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                words = json.loads(line)
                if "id" in words and "event" not in words:
                    if words["id"] in self._replies:
                        self._replies[words["id"]].send_nowait(words)
                    continue
                self.port = words.get("port", self.port)
                async with self._news:
                    self.events.append(words)
                    self._news.notify_all()
        self._gone = True
        for waiter in self._replies.values():
            waiter.send_nowait({"error": "the process has ended"})
        async with self._news:
            self._news.notify_all()

    async def end(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        await self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            await pipe.aclose()


def open_peer(role: str, **settings: Any) -> AbstractAsyncContextManager[PeerProcess]:
    """Run a peer of the original's for the length of the block; a server listens then, a client has been told to connect.

    Args:
        role: ``client``, with ``id`` and ``port``, or ``server``.
        **settings: see `tests.backbone1.original.roles`; certificates are throw-away ones if none are given.
    """
    return _open("tests.backbone1.original", role, settings)


def open_ours(role: str, **settings: Any) -> AbstractAsyncContextManager[PeerProcess]:
    """Run a server or a client of ours in the same way.

    Args:
        role: ``client``, with ``id`` and ``port``, or ``server``.
        **settings: see `tests.backbone1.ours`.
    """
    return _open("tests.backbone1.ours", role, settings)


@asynccontextmanager
async def _open(module: str, role: str, settings: Mapping[str, Any]) -> AsyncIterator[PeerProcess]:
    tls, trusting = throwaway_tls()
    own = {"cert": str(tls.cert_file), "key": str(tls.key_file)} if role == "server" else {"ca": str(trusting.ca_file)}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, json.dumps({"role": role, **own, **settings})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        process_group=0,
    )
    peer = PeerProcess(process)
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(peer.read)
            if role == "server":
                await peer.wait("serving")
            yield peer
        finally:
            with trio.move_on_after(GOODBYE, shield=True):
                await peer.end()
            nursery.cancel_scope.cancel()
