"""Messages on a stream of bytes: each behind its length, as asyncio's stream reader and writer carry them."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator

from benchmarks.peers.on_asyncio import Answers, Waiters, count_of

__all__ = ["StreamTalk", "answer_all", "frame"]

LENGTH = struct.Struct(">I")
CHUNK = 65536


def frame(message: bytes) -> bytes:
    """Return a message behind its length."""
    return LENGTH.pack(len(message)) + message


class Parser:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are complete now."""
        data = self._rest + data if self._rest else data
        position, end = 0, len(data)
        while end - position >= 4:
            (length,) = LENGTH.unpack_from(data, position)
            after = position + 4 + length
            if after > end:
                break
            yield data[position + 4 : after]
            position = after
        self._rest = data[position:]


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what a client sends, until it ends: all messages of one read with one write."""
    answers, parser = Answers(), Parser()
    while data := await reader.read(CHUNK):
        replies = [frame(reply) for message in parser.feed(data) if (reply := answers.answer(message)) is not None]
        if replies:
            writer.writelines(replies)
            await writer.drain()
    writer.close()


class StreamTalk:
    """The client's side of such a stream.

    Args:
        reader: of the stream.
        writer: of the stream.
        yield_after: one-way messages written in a row before the other tasks run once; None for a transport whose ``drain()`` waits.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, yield_after: int | None = None) -> None:
        self._reader, self._writer = reader, writer
        self._waiters = Waiters()
        self._yield_after = yield_after
        self._since_yield = 0

    async def receive(self) -> None:
        """Give replies to their waiters, until the stream ends."""
        parser = Parser()
        while data := await self._reader.read(CHUNK):
            for reply in parser.feed(data):
                self._waiters.settle(reply)

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""
        message, reply = self._waiters.request(payload)
        self._writer.write(frame(message))
        await self._writer.drain()
        await reply

    async def send(self, payload: bytes) -> None:
        """Send a message that gets no reply."""
        self._writer.write(frame(self._waiters.one_way(payload)))
        await self._writer.drain()
        if self._yield_after is not None:
            self._since_yield += 1
            if self._since_yield >= self._yield_after:
                self._since_yield = 0
                await asyncio.sleep(0)

    async def confirm(self) -> None:
        """Ask how many messages have come: the stream is in order, so the answer comes after the last."""
        await self.counted()

    async def counted(self) -> int:
        """Ask how many messages have come."""
        message, reply = self._waiters.ask_count()
        self._writer.write(frame(message))
        await self._writer.drain()
        return count_of(await reply)
