"""One program over a bad network; run as a script it prints the trace of its datagrams as JSON."""

from __future__ import annotations

import contextlib
import json
import sys

import trio
import trio.testing

from quicflow_trio import AckTimeout, ClientState, HandlerFailed, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.testing import MemoryNetwork, open_world, seeded

Trace = list[list[object]]


def handlers() -> Router:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def work(request: Request) -> bytes:
        await trio.sleep(0.01)
        return request.message.payload

    @router.on(MessageType.QUERY)
    async def hang(request: Request) -> None:
        await trio.sleep_forever()

    @router.on(MessageType.EVENT, serial=True)
    async def take(request: Request) -> None:
        await trio.lowlevel.checkpoint()

    return router


async def program(network: MemoryNetwork) -> None:
    """Requests, events, lanes, a broadcast, time-outs, a partition with reconnects, a drain: all at once where that is possible."""
    config = ServerConfig(handler_timeout=3.0)
    async with open_world(
        clients=4, router=handlers(), client_router=handlers(), network=network, seed=11, server_config=config
    ) as world:
        clients = list(world.clients.values())

        async def talk(number: int) -> None:
            client = clients[number]
            for turn in range(10):
                await client.request(Message.command(bytes(100 * number + turn)), ack_timeout=200)
                await client.lane(f"lane-{turn % 3}").send(Message.event(bytes(700)))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(talk, number)
        # Handlers that run out of time together, so that the order in which they are cancelled would show.
        async with trio.open_nursery() as nursery:

            async def hang(client_number: int) -> None:
                with contextlib.suppress(HandlerFailed):
                    await clients[client_number].request(Message.query(b""), ack_timeout=20)

            for _ in range(8):
                for number in range(4):
                    nursery.start_soon(hang, number)
        await world.server.broadcast(Message.command(b"all"), ack_timeout=100)
        network.partition("client-1")
        network.partition("client-2", "server")
        try:
            await clients[1].request(Message.command(b"lost"), ack_timeout=100)
        except AckTimeout:
            network.heal()
        for client in clients:
            await client.wait_connected()
        await clients[2].state.wait_value(ClientState.CONNECTED)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(talk, number)
        await trio.sleep(40)


def trace(seed: int) -> Trace:
    """Run the program under one seed and return (time, from, to, length) of each datagram sent."""
    network = MemoryNetwork(seed=seed, loss=0.1, delay=0.02, jitter=0.01, duplicate=0.05, reorder=0.1)
    recording = network.record()
    with seeded(seed):
        trio.run(program, network, clock=trio.testing.MockClock(autojump_threshold=0))
    return [[one.at, list(one.source), list(one.destination), one.length] for one in recording]


if __name__ == "__main__":
    print(json.dumps(trace(int(sys.argv[1]))))
