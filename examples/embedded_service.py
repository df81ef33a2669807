"""A service of your own with the backbone inside: a registry of sensors. Run it: ``python examples/embedded_service.py``.

The service owns one nursery. In it run the server, which takes readings and answers queries, and a task of its own, which tells
everybody about averages. Nothing here is a framework: `Registry` knows no network, and `run_service` puts the parts together.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import trio

from quicflow_trio import Client, Message, MessageType, Request, Router, Server, TLSConfig, open_client, serve
from quicflow_trio.testing import throwaway_tls


# -- the business: plain Python, tested without a network --------------------------------------------------------------
@dataclass
class Registry:
    """The last readings of each sensor, at most ten."""

    readings: dict[str, deque[float]] = field(default_factory=dict)

    def add(self, sensor: str, value: float) -> None:
        """Take a reading."""
        self.readings.setdefault(sensor, deque(maxlen=10)).append(value)

    def averages(self) -> dict[str, float]:
        """Return the mean of each sensor's readings."""
        return {sensor: round(sum(values) / len(values), 2) for sensor, values in sorted(self.readings.items())}


# -- the border: messages to calls and back ----------------------------------------------------------------------------
def make_router(registry: Registry) -> Router:
    router = Router()

    @router.on(MessageType.EVENT)
    async def reading(request: Request) -> None:
        # The sender is the client id of the connection: nobody can report under another name within the message.
        registry.add(request.message.sender, float(request.message.payload))

    @router.on(MessageType.QUERY)
    async def averages(_: Request) -> bytes:
        return json.dumps(registry.averages()).encode()

    return router


async def report_for_ever(server: Server, registry: Registry, every: float) -> None:
    """Tell all clients the averages, again and again."""
    while True:
        await trio.sleep(every)
        await server.broadcast(Message.event(json.dumps(registry.averages()).encode()))


# -- the service: one nursery, one way in, one way out -----------------------------------------------------------------
async def run_service(
    tls: TLSConfig, *, port: int = 8474, task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the service until its server is drained or it is cancelled. Start it in a nursery: `start` gives the server."""
    registry = Registry()
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(_serve_then_stop, nursery, make_router(registry), tls, port))
        nursery.start_soon(report_for_ever, server, registry, 0.2)
        task_status.started(server)


async def _serve_then_stop(
    nursery: trio.Nursery, router: Router, tls: TLSConfig, port: int, *, task_status: trio.TaskStatus[Server]
) -> None:
    await serve(router, host="127.0.0.1", port=port, tls=tls, task_status=task_status)
    # The server was drained: the service's other tasks have nobody left to talk to.
    nursery.cancel_scope.cancel()


# -- a few sensors to see it work --------------------------------------------------------------------------------------
async def sensor(client: Client, values: list[float]) -> None:
    for value in values:
        await client.send(Message.event(str(value).encode()))


async def main() -> None:
    # In production: TLSConfig.server("server.pem", "server.key") and TLSConfig.client("ca.pem"); `quicflow certs` makes the files.
    server_tls, client_tls = throwaway_tls()
    news = trio.Event()
    router = Router()

    @router.on(MessageType.EVENT)
    async def listen(request: Request) -> None:
        averages = json.loads(request.message.payload)
        # The news come every 0.2 s, also while readings are still on their way.
        if averages == {"cellar": 11.6, "roof": 31.0} and not news.is_set():
            print(f"news from the service: {averages}")
            news.set()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(run_service, server_tls, port=0))
        host, port = server.address
        async with (
            open_client(host, port, client_id="cellar", tls=client_tls) as cellar,
            open_client(host, port, client_id="roof", tls=client_tls, router=router) as roof,
        ):
            await sensor(cellar, [11.5, 11.7])
            await sensor(roof, [30.0, 31.0, 32.0])
            ack = await roof.request(Message.query())
            print(f"roof asks, and sees itself: {json.loads(ack.result)['roof']}")
            await news.wait()
        await server.drain(grace=5)
    print("done")


if __name__ == "__main__":
    trio.run(main)
