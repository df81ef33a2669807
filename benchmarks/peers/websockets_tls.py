"""websockets: its asyncio implementation over TLS, without compression: random bytes gain nothing by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.peers.on_asyncio import Answers, Waiters, background, client_context, count_of, main, server_context
from benchmarks.peers.work import Conversation, Files, Hello


async def answer_all(connection: ServerConnection) -> None:
    """Answer what a client sends, until it ends."""
    answers = Answers()
    async for message in connection:
        assert isinstance(message, bytes)
        reply = answers.answer(message)
        if reply is not None:
            await connection.send(reply)


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Listen on TCP."""
    async with serve(answer_all, "127.0.0.1", 0, ssl=server_context(files), compression=None) as server:
        yield {"port": next(iter(server.sockets)).getsockname()[1]}


class Talk:
    """One connection."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._waiters = Waiters()

    async def receive(self) -> None:
        """Give replies to their waiters, until the connection closes."""
        async for reply in self._connection:
            assert isinstance(reply, bytes)
            self._waiters.settle(reply)

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""
        message, reply = self._waiters.request(payload)
        await self._connection.send(message)
        await reply

    async def send(self, payload: bytes) -> None:
        """Send a message that gets no reply."""
        await self._connection.send(self._waiters.one_way(payload))

    async def confirm(self) -> None:
        """Ask how many messages have come: the connection is in order, so the answer comes after the last."""
        await self.counted()

    async def counted(self) -> int:
        """Ask how many messages have come."""
        message, reply = self._waiters.ask_count()
        await self._connection.send(message)
        return count_of(await reply)


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect and keep reading."""
    uri = f"wss://127.0.0.1:{hello['port']}"
    async with connect(uri, ssl=client_context(hello), compression=None, proxy=None) as connection:
        talk = Talk(connection)
        async with background(talk.receive()):
            yield talk


if __name__ == "__main__":
    main(serving, connected)
