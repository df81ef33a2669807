"""pyzmq: zmq.asyncio, a DEALER to a ROUTER over TCP, with CURVE: the client knows the server's public key, and both sides encrypt.

Whoever receives waits once, by ``poll()``, and then takes what there is without waiting, by the plain socket below: half the CPU time of
``await recv()`` for each message, which pyzmq's examples have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import zmq
import zmq.asyncio

from benchmarks.peers.on_asyncio import Answers, Waiters, background, count_of, main
from benchmarks.peers.work import Conversation, Files, Hello

SHARE = 256
"""Messages that are taken in a row."""


async def arrivals(socket: zmq.asyncio.Socket) -> AsyncIterator[list[list[bytes]]]:
    """Yield what has come, many messages at a time, each a list of parts."""
    plain: zmq.Socket[bytes] = zmq.Socket.shadow(socket)
    while True:
        await socket.poll()
        messages = []
        # A share at a time: a sender that never rests must not keep the other tasks from running.
        for _ in range(SHARE):
            try:
                messages.append(plain.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
        yield messages


async def answer_all(socket: zmq.asyncio.Socket) -> None:
    """Answer what clients send; each has an identity of its own."""
    clients: dict[bytes, Answers] = {}
    async for messages in arrivals(socket):
        for identity, message in messages:
            reply = clients.setdefault(identity, Answers()).answer(message)
            if reply is not None:
                await socket.send_multipart([identity, reply])


@asynccontextmanager
async def serving(_: Files) -> AsyncIterator[Hello]:
    """Listen on TCP. CURVE has keys and no certificates."""
    public, secret = zmq.curve_keypair()
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.curve_server = True
        socket.curve_secretkey, socket.curve_publickey = secret, public
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        async with background(answer_all(socket)):
            yield {"port": port, "ca": None, "key": public.decode("ascii")}


class Talk:
    """One DEALER."""

    def __init__(self, socket: zmq.asyncio.Socket) -> None:
        self._socket = socket
        self._waiters = Waiters()

    async def receive(self) -> None:
        """Give replies to their waiters."""
        async for messages in arrivals(self._socket):
            for (reply,) in messages:
                self._waiters.settle(reply)

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""
        message, reply = self._waiters.request(payload)
        await self._socket.send(message)
        await reply

    async def send(self, payload: bytes) -> None:
        """Send a message that gets no reply. It waits at the high-water mark."""
        await self._socket.send(self._waiters.one_way(payload))

    async def confirm(self) -> None:
        """Ask how many messages have come: the pipe is in order, so the answer comes after the last."""
        await self.counted()

    async def counted(self) -> int:
        """Ask how many messages have come."""
        message, reply = self._waiters.ask_count()
        await self._socket.send(message)
        return count_of(await reply)


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect and keep reading."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_serverkey = hello["key"].encode("ascii")
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.connect(f"tcp://127.0.0.1:{hello['port']}")
        talk = Talk(socket)
        async with background(talk.receive()):
            yield talk


if __name__ == "__main__":
    main(serving, connected)
