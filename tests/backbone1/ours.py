"""Our server or client in a process that takes the commands of an original peer: `python -m tests.backbone1.ours JSON`.

So that memory and speed are those of our side alone. Settings: ``role``, ``port``; a server's ``cert`` and ``key``; a client's ``id`` and
``ca``; ``protocol`` (a client's), ``config`` (fields of `ServerConfig` or `ClientConfig`). Every message is answered with its payload.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import trio

from quicflow_trio import (
    Client,
    ClientConfig,
    ConnectionLost,
    Message,
    MessageType,
    Peer,
    QuicFlowError,
    Request,
    Router,
    Server,
    ServerConfig,
    TLSConfig,
    open_client,
    serve,
)
from quicflow_trio.errors import ClientNotConnected
from tests.backbone1.original.tally import Tally
from tests.endurance.program import prepare, say

CUT_OFF = (ConnectionLost, ClientNotConnected)
RESULT_SHOWN = 64


def resident() -> int:
    """Return the bytes of memory this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Program:
    """What it may be asked for."""

    def __init__(self, side: Server | Client, received: Tally) -> None:
        self._side = side
        self._received = received

    def _peer(self, to: str, number: int) -> Peer:
        side = self._side
        if isinstance(side, Client):
            return side
        if to:
            return side.session(to)
        names = list(side.sessions)
        if not names:
            raise ClientNotConnected("anybody")
        return side.sessions[names[number % len(names)]]

    async def send(
        self,
        count: int,
        *,
        to: str = "",
        size: int = 16,
        wait_ack: bool = True,
        inflight: int = 64,
        first: int = 0,
        again: bool = False,
        patience: float = 20.0,
        ack_timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Send messages numbered from ``first``, so many at once; as the original peer's, but ``patience`` is for all of them."""
        numbers = iter(range(first, first + count))
        outcome: Counter[str] = Counter()
        done = 0

        async def one(number: int) -> str:
            payload = number.to_bytes(8, "big") + bytes(max(0, size - 8))
            while True:
                try:
                    message = Message.command(payload)
                    peer = self._peer(to, number)
                    if wait_ack:
                        ack = await peer.request(message, ack_timeout=ack_timeout)
                        return "done" if ack.result == payload else f"another result: {ack.result[:RESULT_SHOWN]!r}"
                    sent = await peer.send(message)
                    await sent.delivered()
                    return "done"
                except CUT_OFF as error:
                    if not again:
                        return f"lost: {type(error).__name__}"
                    outcome["cut"] += isinstance(error, ConnectionLost)
                    await trio.sleep(0.02)
                except QuicFlowError as error:
                    return f"{type(error).__name__}: {error}"

        async def work() -> None:
            nonlocal done
            for number in numbers:
                outcome[await one(number)] += 1
                done += 1

        began = time.monotonic()
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for _ in range(min(inflight, count)):
                    nursery.start_soon(work)
        return {"outcome": dict(outcome), "stuck": count - done, "seconds": time.monotonic() - began}

    async def figures(self) -> dict[str, Any]:
        """Reply with what was counted, the memory in bytes, and the CPU time in seconds."""
        memory = resident()
        side = self._side
        return {
            "received": dict(self._received.counts),
            "memory": memory,
            "cpu": time.process_time(),
            "blocks": sys.getallocatedblocks(),
            "clients": sorted(side.sessions) if isinstance(side, Server) else [],
            "metrics": dict(side.metrics().as_json()),
        }


async def obey(program: Program, nursery: trio.Nursery) -> None:
    """Run commands, each in a task of its own, until standard input ends."""

    async def run(words: dict[str, Any]) -> None:
        number, do = words.pop("id"), words.pop("do")
        say(id=number, reply=await getattr(program, do)(**words))

    rest = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                nursery.start_soon(run, json.loads(line))


def make_router(received: Tally) -> Router:
    """Return what answers every message with its payload."""
    router = Router()

    async def echo(request: Request) -> bytes:
        received.note(request.message.sender, request.message.payload)
        return request.message.payload

    for kind in MessageType:
        if kind is not getattr(MessageType, "RESPONSE", None):
            router.on(kind)(echo)
    return router


async def run_server(settings: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    received = Tally()
    tls = TLSConfig.server(settings["cert"], settings["key"])
    config = ServerConfig(**settings.get("config", {}))
    async with trio.open_nursery() as nursery:
        start = partial(serve, make_router(received), host="127.0.0.1", port=settings.get("port", 0), tls=tls, config=config)
        server: Server = await nursery.start(start)
        say(event="serving", port=server.address[1])
        await obey(Program(server, received), nursery)
        await server.aclose()
        nursery.cancel_scope.cancel()


async def run_client(settings: dict[str, Any]) -> None:
    """Stay connected until standard input ends."""
    received = Tally()
    async with open_client(
        "127.0.0.1",
        settings["port"],
        client_id=settings["id"],
        tls=TLSConfig.client(settings["ca"]),
        router=make_router(received),
        config=ClientConfig(**settings.get("config", {})),
        **({"protocol": settings["protocol"]} if "protocol" in settings else {}),
    ) as client:
        await client.wait_connected()
        say(event="connected")
        async with trio.open_nursery() as nursery:
            await obey(Program(client, received), nursery)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    prepare()
    given = json.loads(sys.argv[1])
    trio.run(run_server if given["role"] == "server" else run_client, given)
