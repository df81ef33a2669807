"""A raw TLS stream of asyncio: StreamReader and StreamWriter with length-prefixed messages and ``drain()``.

The server answers all messages of one read with one write. Tried as well: `readexactly` for each length and message, by which a tenth
fewer acked messages went through, and as many others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.frames import StreamTalk, answer_all
from benchmarks.peers.on_asyncio import background, client_context, main, server_context
from benchmarks.peers.work import Conversation, Files, Hello


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Listen on TCP."""
    async with await asyncio.start_server(answer_all, "127.0.0.1", 0, ssl=server_context(files)) as server:
        yield {"port": server.sockets[0].getsockname()[1]}


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect and keep reading."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hello["port"], ssl=client_context(hello))
    talk = StreamTalk(reader, writer)
    async with background(talk.receive()):
        yield talk
    writer.close()


if __name__ == "__main__":
    main(serving, connected)
