"""A process with many clients: makes requests with all, notes when each has a broadcast. It runs until its standard input closes."""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

import trio

from benchmarks.harness.session import Count, make_app, raise_file_limit, run_app
from benchmarks.server import HEARTBEAT, client_config
from benchmarks.throughput import acked
from quicflow_trio import Client, MessageType, Request, Router, TLSConfig, open_client, tune_garbage_collector

CONNECTING = 32
"""Clients that connect at a time: more only wait in line for the server's processor."""

app = make_app("crowd")


class Arrivals:
    """When the clients had the last broadcast.

    Attributes:
        number: of the broadcast that is counted.
        times: `time.monotonic` in each client's handler.
    """

    def __init__(self, clients: int) -> None:
        self.number = -1
        self.times: list[float] = []
        self._clients = clients
        self._complete = trio.Event()

    def expect(self, number: int) -> None:
        """Count broadcast ``number`` from now on."""
        self.number, self.times, self._complete = number, [], trio.Event()

    async def take(self, request: Request) -> None:
        """Note the time: the handler of every client."""
        if int.from_bytes(request.message.payload[:8], "big") == self.number:
            self.times.append(time.monotonic())
            if len(self.times) == self._clients:
                self._complete.set()

    async def wait(self, patience: float) -> list[float]:
        """Return the times, once all clients have it or so many seconds are over."""
        with trio.move_on_after(patience):
            await self._complete.wait()
        return self.times


@app.default
async def run(port: int, ca: str, count: Count, /, *, heartbeat: float = HEARTBEAT) -> None:
    """Connect all clients, print a JSON line, then answer commands.

    Args:
        port: of the server, on this machine.
        ca: file of the authority that it is verified against.
        count: clients.
        heartbeat: seconds between pings, unless the server wants them more often.
    """
    raise_file_limit(count)
    tune_garbage_collector()
    arrivals = Arrivals(count)
    router = Router()
    router.add(MessageType.EVENT, arrivals.take)
    start = time.monotonic()
    over = trio.Event()
    connected: list[Client] = []
    tls, config = TLSConfig.client(ca), client_config(heartbeat=heartbeat)

    async def live(number: int, task_status: trio.TaskStatus[None]) -> None:
        opened = open_client("127.0.0.1", port, client_id=f"crowd-{number}", tls=tls, router=router, config=config)
        async with opened as client:
            await client.wait_connected()
            connected.append(client)
            task_status.started()
            await over.wait()

    async with trio.open_nursery() as clients:
        numbers = iter(range(count))

        async def connect() -> None:
            for number in numbers:
                await clients.start(live, number)

        async with trio.open_nursery() as nursery:
            for _ in range(min(CONNECTING, count)):
                nursery.start_soon(connect)
        gc.collect()
        _say({"connected": count, "seconds": time.monotonic() - start})
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            _say(await _obey(connected, arrivals, json.loads(line)))
        over.set()


async def _obey(clients: list[Client], arrivals: Arrivals, command: dict[str, Any]) -> dict[str, Any]:
    """Run ``{"requests": number}``, all clients together; ``{"expect": number}`` before a broadcast and ``{"collect": seconds}`` after."""
    if "requests" in command:
        return await _traffic(clients, command["requests"])
    if "expect" in command:
        arrivals.expect(command["expect"])
        return {}
    times = await arrivals.wait(command["collect"])
    return {"count": len(times), "last": max(times, default=0.0)}


async def _traffic(clients: list[Client], requests: int) -> dict[str, Any]:
    """Let every client make its share of the requests, one after the other, all clients at once."""
    share = max(1, requests // len(clients))
    start = time.monotonic()
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(acked, client, share)
    return {"requests": share * len(clients), "seconds": time.monotonic() - start}


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    run_app(app)
