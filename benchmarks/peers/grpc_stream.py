"""grpcio: its asyncio API, one bidirectional stream over TLS, on one channel.

Messages are handed over as bytes, without (de)serialisers, which gRPC allows and which spares it protobuf. One write at a time may be under
way on a call, so the coroutines share a lock. Tried as well: an async iterator of requests behind a queue, and a generator on the server;
both made half as many one-way messages and no more acked ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.peers.on_asyncio import Answers, Waiters, background, count_of, main
from benchmarks.peers.work import Conversation, Files, Hello

SERVICE, METHOD = "peers.Peers", "Talk"


async def answer_all(_: AsyncIterator[bytes], context: Any) -> None:
    """Answer what a client sends, until it ends."""
    answers = Answers()
    while (message := await context.read()) is not grpc.aio.EOF:
        reply = answers.answer(message)
        if reply is not None:
            await context.write(reply)


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Listen on TCP."""
    server = grpc.aio.server()
    methods: dict[str, Any] = {METHOD: grpc.stream_stream_rpc_method_handler(answer_all)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield {"port": port}
    finally:
        await server.stop(0)


class Talk:
    """One call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._waiters = Waiters()
        self._writing = asyncio.Lock()

    async def receive(self) -> None:
        """Give replies to their waiters, until the call ends."""
        while (reply := await self._call.read()) is not grpc.aio.EOF:
            self._waiters.settle(reply)

    async def _write(self, message: bytes) -> None:
        async with self._writing:
            await self._call.write(message)

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""
        message, reply = self._waiters.request(payload)
        await self._write(message)
        await reply

    async def send(self, payload: bytes) -> None:
        """Send a message that gets no reply."""
        await self._write(self._waiters.one_way(payload))

    async def confirm(self) -> None:
        """Ask how many messages have come: the stream is in order, so the answer comes after the last."""
        await self.counted()

    async def counted(self) -> int:
        """Ask how many messages have come."""
        message, reply = self._waiters.ask_count()
        await self._write(message)
        return count_of(await reply)


def trusting(hello: Hello) -> grpc.ChannelCredentials:
    """Return what verifies the server's certificate and its address."""
    return grpc.ssl_channel_credentials(Path(hello["ca"]).read_bytes())


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect, start the call and keep reading."""
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{hello['port']}", trusting(hello), options) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        talk = Talk(call)
        async with background(talk.receive()):
            yield talk
        await call.done_writing()


if __name__ == "__main__":
    main(serving, connected)
