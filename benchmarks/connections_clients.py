"""The client process of `benchmarks.connections`: many clients on one endpoint. Prints a JSON line for each thing that happens.

Arguments: port, CA file, number of clients, attempts at once, heartbeat interval. It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path

import trio

from quicflow_trio import (
    Client,
    ClientConfig,
    ClientState,
    MessageType,
    Request,
    Router,
    TLSConfig,
    open_client,
    open_endpoint,
    tune_garbage_collector,
)

REPORT = 0.25
"""Seconds between two lines of progress."""

SILENCE = 4.0
"""Seconds after the last reception of a broadcast from which on nobody else is waited for."""

OpenClient = Callable[[], AbstractAsyncContextManager[Client]]


def tell(**what: object) -> None:
    """Print one line for the parent."""
    print(json.dumps(what), flush=True)


class Fleet:
    """All clients of this process.

    Args:
        number: how many there will be.
        at_once: how many may be connecting at the same time.

    Attributes:
        router: their handlers: they tell when the last one has got a broadcast.
    """

    def __init__(self, number: int, at_once: int) -> None:
        self.router: Router = Router()
        self.router.add(MessageType.EVENT, self._take)
        self._number = number
        self._gate = trio.CapacityLimiter(at_once)
        self._clients: list[Client] = []
        self._received = 0
        self._last = 0.0

    async def _take(self, _: Request) -> None:
        self._received += 1
        self._last = time.monotonic()
        if self._received == self._number:
            self._told()

    def _told(self) -> None:
        missing, self._received = self._number - self._received, 0
        tell(last=self._last, missing=missing)

    async def report_missing(self) -> None:
        """Tell of a broadcast that some clients will not get, having lost their connection; for ever."""
        while True:
            await trio.sleep(SILENCE / 4)
            if self._received and time.monotonic() - self._last > SILENCE:
                self._told()

    async def run(self, open_one: OpenClient) -> None:
        """Connect one client, and keep it until cancelled."""
        async with AsyncExitStack() as stack:
            async with self._gate:
                client = await stack.enter_async_context(open_one())
                await client.wait_connected()
            self._clients.append(client)
            await trio.sleep_forever()

    async def report_connecting(self) -> None:
        """Tell how many are connected, until all are."""
        started = time.monotonic()
        while len(self._clients) < self._number:  # noqa: ASYNC110  the lines shall come at a steady pace
            tell(connected=len(self._clients))
            await trio.sleep(REPORT)
        tell(connected=self._number, seconds=time.monotonic() - started)

    def away(self) -> int:
        """Return how many are not connected, or were not at some time."""
        return sum(
            client.state.value is not ClientState.CONNECTED or client.statistics().connects != 1 for client in self._clients
        )


async def main() -> None:
    """Connect all clients, tell when they are, and keep them until the parent has had enough."""
    tune_garbage_collector()
    port, ca_file, number, at_once, interval = sys.argv[1:]
    fleet = Fleet(int(number), int(at_once))
    config = ClientConfig(heartbeat_interval=float(interval), heartbeat_timeout=float(interval) * 3)
    open_one = partial(
        open_client, "127.0.0.1", int(port), tls=TLSConfig.client(Path(ca_file)), config=config, router=fleet.router
    )
    async with open_endpoint() as endpoint, trio.open_nursery() as nursery:
        nursery.start_soon(fleet.report_connecting)
        nursery.start_soon(fleet.report_missing)
        for index in range(int(number)):
            nursery.start_soon(fleet.run, partial(open_one, client_id=f"client-{index}", network=endpoint))
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        drops = endpoint.statistics().socket.receive_drops
        tell(away=fleet.away(), kernel_drops=drops)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
