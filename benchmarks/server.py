"""The server process of the benchmarks: answers requests with nothing, takes events; runs until its standard input closes."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from typing import Any

import trio

from benchmarks.harness.session import Count, Flag, make_app, run_app
from quicflow_trio import ClientConfig, Message, MessageType, Request, Router, Server, ServerConfig, serve, tune_garbage_collector
from quicflow_trio.testing import throwaway_tls

__all__ = ["DATAGRAM", "ENGINE", "HEARTBEAT", "client_config", "server_arguments"]

DATAGRAM = 1200
"""What everybody may send, bytes: the default of either side."""
ENGINE = "aioquic"
HEARTBEAT = 15.0
"""Seconds: the default as well."""

app = make_app("server")


def client_config(datagram_size: int = DATAGRAM, engine: str = ENGINE, heartbeat: float = HEARTBEAT) -> ClientConfig:
    """Return the configuration of a client of a server with these arguments."""
    return ClientConfig(datagram_size=datagram_size, engine=engine, heartbeat_interval=heartbeat, heartbeat_timeout=3 * heartbeat)


def server_arguments(datagram_size: int = DATAGRAM, engine: str = ENGINE) -> tuple[str, ...]:
    """Return the arguments of a server process, for `benchmarks.harness.process.server_process`."""
    return ("--datagram-size", str(datagram_size), "--engine", engine)


def _router() -> Router:
    router = Router()

    async def take(_: Request) -> None:
        return None

    router.add(MessageType.COMMAND, take)
    router.add(MessageType.EVENT, take)
    return router


@app.default
async def run(*, ops: Flag = False, datagram_size: Count = DATAGRAM, engine: str = ENGINE, heartbeat: float = HEARTBEAT) -> None:
    """Serve on a free port; print port and CA file as one JSON line, then answer commands.

    Args:
        ops: its ops side listens as well.
        datagram_size: UDP payload of the packets it sends, bytes.
        engine: which QUIC engine.
        heartbeat: seconds between pings.
    """
    tune_garbage_collector()
    config = ServerConfig(
        datagram_size=datagram_size, engine=engine, heartbeat_interval=heartbeat, heartbeat_timeout=3 * heartbeat
    )
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        address = "127.0.0.1:0" if ops else None
        start = partial(serve, _router(), host="127.0.0.1", port=0, tls=server_tls, config=config, ops=address)
        server: Server = await nursery.start(start)
        where = {"port": server.address[1], "ca": str(client_tls.ca_file), "ops_url": server.ops_url}
        _say({"pid": os.getpid(), **where})
        # The parent holds the other end: when it is gone, however it went, so is this process.
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            _say(await _obey(server, json.loads(line)))
        await server.aclose()


async def _obey(server: Server, command: dict[str, Any]) -> dict[str, Any]:
    """Run ``{"broadcast": number, "size": bytes}``: the number as the first 8 bytes of a payload, to all that are connected."""
    message = Message.event(command["broadcast"].to_bytes(8, "big") + bytes(command["size"] - 8))
    start = time.monotonic()
    report = await server.broadcast(message)
    return {"start": start, "queued": time.monotonic(), "failed": len(report.failed)}


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    run_app(app)
