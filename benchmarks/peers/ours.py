"""This library, by its public API, nothing switched off: requests with acks, one-way messages with receipts."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from benchmarks.peers.work import Conversation, Files, Hello, Runtime, run_peer
from quicflow_trio import Client, Message, MessageType, Request, Router, Sent, Server, TLSConfig, open_client, serve


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Answer commands with nothing, count events, tell the count to queries."""
    router = Router()
    counts: dict[str, int] = {}

    @router.on(MessageType.COMMAND)
    async def take(_: Request) -> None:
        return None

    @router.on(MessageType.EVENT)
    async def count(request: Request) -> None:
        sender = request.message.sender
        counts[sender] = counts.get(sender, 0) + 1

    @router.on(MessageType.QUERY)
    async def tell(request: Request) -> bytes:
        return str(counts.get(request.message.sender, 0)).encode()

    tls = TLSConfig.server(files.certificate, files.key)
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=tls))
        yield {"port": server.address[1]}
        await server.aclose()


class Talk:
    """One client. The ack finds its request inside the library; a reply of another would fail there."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._last: Sent | None = None

    async def request(self, payload: bytes) -> None:
        """Send a command and wait for its ack."""
        await self._client.request(Message.command(payload))

    async def send(self, payload: bytes) -> None:
        """Send an event."""
        self._last = await self._client.send(Message.event(payload))

    async def confirm(self) -> None:
        """Wait for the receipt of the last event: the lane is in order, so it stands for all."""
        if self._last is not None:
            await self._last.delivered()

    async def counted(self) -> int:
        """Ask the server's handlers."""
        return int((await self._client.request(Message.query())).result)


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Open a client whose id no other run has: the server counts by it."""
    name = f"peer-{trio.current_time():.9f}"
    async with open_client("127.0.0.1", hello["port"], client_id=name, tls=TLSConfig.client(hello["ca"])) as client:
        await client.wait_connected()
        yield Talk(client)


async def together(workers: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run coroutine functions as tasks until all have ended."""
    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(worker)


async def until_stdin_closes() -> None:
    """Wait for the end of the standard input: the parent is done, or gone."""
    await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def at_most(seconds: float, function: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function; fail when it takes longer."""
    with trio.fail_after(seconds):
        await function()


if __name__ == "__main__":
    run_peer(serving, connected, Runtime(trio.run, together, until_stdin_closes, at_most))
