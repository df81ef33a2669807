"""What the peers on asyncio share: the runtime, the small message of id and payload, and the table of waiting coroutines."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import struct
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.work import Connect, Files, Hello, Runtime, Serve, run_peer

__all__ = [
    "ASK_COUNT",
    "HEAD",
    "ONE_WAY",
    "REQUEST",
    "Answers",
    "Waiters",
    "background",
    "client_context",
    "count_of",
    "keep",
    "main",
    "server_context",
]

HEAD = struct.Struct(">BQ")
"""A message starts with its kind and its id; the payload follows. An ack is a head alone."""
COUNT = struct.Struct(">BQQ")
ONE_WAY, REQUEST, ASK_COUNT = range(3)


class Answers:
    """The server's part, for one connection: what to say to a message."""

    def __init__(self) -> None:
        self.counted = 0

    def answer(self, message: bytes) -> bytes | None:
        """Return the reply, which carries the message's id; None for a message that gets none."""
        kind, id = HEAD.unpack_from(message)
        if kind == REQUEST:
            return HEAD.pack(REQUEST, id)
        if kind == ONE_WAY:
            self.counted += 1
            return None
        return COUNT.pack(ASK_COUNT, id, self.counted)


class Waiters:
    """The client's part: ids, and who waits for which reply."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()

    def one_way(self, payload: bytes) -> bytes:
        """Return a message that gets no reply."""
        return HEAD.pack(ONE_WAY, next(self._ids)) + payload

    def request(self, payload: bytes, kind: int = REQUEST) -> tuple[bytes, asyncio.Future[bytes]]:
        """Return a message and the future of its reply."""
        id = next(self._ids)
        self._waiting[id] = future = self._loop.create_future()
        return HEAD.pack(kind, id) + payload, future

    def ask_count(self) -> tuple[bytes, asyncio.Future[bytes]]:
        """Return the question how many messages without a reply the server has counted."""
        return self.request(b"", ASK_COUNT)

    def settle(self, reply: bytes) -> None:
        """Wake who waits for a reply; one that nobody waits for raises KeyError."""
        future = self._waiting.pop(HEAD.unpack_from(reply)[1])
        if not future.done():
            future.set_result(reply)


def count_of(reply: bytes) -> int:
    """Return the count in the reply to `Waiters.ask_count`."""
    return int(COUNT.unpack(reply)[2])


def server_context(files: Files) -> ssl.SSLContext:
    """Return TLS settings of a server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    return context


def client_context(hello: Hello) -> ssl.SSLContext:
    """Return TLS settings that verify the server's certificate and its address."""
    return ssl.create_default_context(cafile=hello["ca"])


_kept: set[asyncio.Task[None]] = set()


def keep(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine as a task of its own. The loop alone would let it be collected."""
    task = asyncio.get_running_loop().create_task(work)
    _kept.add(task)
    task.add_done_callback(_kept.discard)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine for the length of the block; when it ends or fails before, so does the block."""

    async def watched() -> None:
        await work
        raise ConnectionError("the server has closed")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(watched())
        yield
        task.cancel()


async def together(workers: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run coroutine functions as tasks until all have ended."""
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker())


async def until_stdin_closes() -> None:
    """Wait for the end of the standard input: the parent is done, or gone."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def read() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(closed.set)

    # A daemon: Ctrl-C ends the process without waiting for the parent.
    threading.Thread(target=read, daemon=True).start()
    await closed.wait()


async def at_most(seconds: float, function: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function; fail when it takes longer."""
    async with asyncio.timeout(seconds):
        await function()


def main(serve: Serve, connect: Connect, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run a peer on asyncio, or on the loop that ``loop_factory`` makes."""

    def run(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(function())

    run_peer(serve, connect, Runtime(run, together, until_stdin_closes, at_most))
