"""Messages per second over one connection, 200-byte payload: `python -m benchmarks.throughput --help`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Annotated

import trio
from cyclopts import Parameter

from benchmarks.harness.hiccups import watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import ServerProcess, server_process
from benchmarks.harness.results import Report, Row
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, Count, finish, make_app, rounds_text, run_app
from benchmarks.server import DATAGRAM, ENGINE, client_config, server_arguments
from quicflow_trio import Client, Message, open_client

__all__ = ["PAYLOAD", "acked", "acked_timed", "acked_within", "in_flight", "one_way", "sequential"]

PAYLOAD = bytes(200)
JUMBO = 8192
DEADLINE = 5.0
WARM_UP = 512
"""Messages before the clock starts: a new connection begins with a small congestion window."""

app = make_app("throughput")

Work = Callable[[Client, int], Awaitable[None]]


async def acked(client: Client, count: int) -> None:
    """Make requests one after the other."""
    for _ in range(count):
        await client.request(Message.command(PAYLOAD))


async def acked_timed(client: Client, count: int) -> None:
    """Make requests one after the other, each with its own patience."""
    for _ in range(count):
        await client.request(Message.command(PAYLOAD), ack_timeout=DEADLINE)


async def acked_within(client: Client, count: int) -> None:
    """Make requests one after the other, each under the caller's own deadline."""
    for _ in range(count):
        with trio.fail_after(DEADLINE):
            await client.request(Message.command(PAYLOAD))


async def one_way(client: Client, count: int) -> None:
    """Send events; return when the peer has confirmed the last, and with it all."""
    for _ in range(count):
        sent = await client.send(Message.event(PAYLOAD))
    await sent.delivered()


async def in_flight(work: Work, tasks: int, client: Client, count: int) -> None:
    """Share the messages out to so many tasks that run ``work`` at once."""
    async with trio.open_nursery() as nursery:
        for number in range(tasks):
            nursery.start_soon(work, client, count // tasks + (number < count % tasks))


sequential: Work = acked


@dataclass(frozen=True)
class Side:
    """One row.

    Attributes:
        work: what is measured.
        count: messages.
        datagram_size: of both sides.
        engine: of both sides.
    """

    work: Work
    count: int
    datagram_size: int = DATAGRAM
    engine: str = ENGINE

    def measure(self, servers: dict[tuple[int, str], ServerProcess]) -> float:
        """Run it over a new connection; return messages per second."""
        server = servers[self.datagram_size, self.engine]
        config = client_config(self.datagram_size, self.engine)

        async def run() -> float:
            async with open_client("127.0.0.1", server.port, client_id="bench", tls=server.tls, config=config) as client:
                await in_flight(acked, min(64, self.count), client, WARM_UP)
                start = perf_counter()
                await self.work(client, self.count)
                return self.count / (perf_counter() - start)

        return trio.run(run)


def sides_of(tasks: int, count: int, engine: str) -> dict[str, Side]:
    """Return the rows of one engine, the first being what the others are compared with."""
    flow = partial(in_flight, acked, tasks)
    tail = "" if engine == ENGINE else f", engine {engine}"
    sides = {
        f"acked, {tasks} in flight": Side(flow, count),
        "the same, ack_timeout on each": Side(partial(in_flight, acked_timed, tasks), count),
        "the same, fail_after around each": Side(partial(in_flight, acked_within, tasks), count),
        f"acked, datagrams of {JUMBO:,}": Side(flow, count, JUMBO),
        "one way": Side(one_way, count),
        "sequential": Side(sequential, max(1, count // 20)),
    }
    return {name + tail: Side(side.work, side.count, side.datagram_size, engine) for name, side in sides.items()}


@app.default
def throughput(
    *,
    tasks: Count = 256,
    messages: Count = 100_000,
    engine: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure messages per second over one connection, 200-byte payload, server and client in processes of their own.

    Args:
        tasks: tasks that each await `request()` at once.
        messages: of each row and round; a twentieth for the sequential one.
        engine: a further QUIC engine to measure, qh3 for instance; may be given several times.
        common: of all sessions.
    """
    sides: dict[str, Side] = {}
    for name in (ENGINE, *engine):
        sides |= sides_of(tasks, common.scaled(messages), name)
    rounds = common.rounds_or(5)
    with ExitStack() as stack:
        servers = {
            (size, name): stack.enter_context(server_process(*server_arguments(size, name)))
            for size, name in {(side.datagram_size, side.engine): None for side in sides.values()}
        }
        log = stack.enter_context(watch_hiccups())
        found = run_rounds({name: partial(side.measure, servers) for name, side in sides.items()}, rounds, log=log)
    report = Report(
        session="throughput",
        title=f"one connection, {len(PAYLOAD)}-byte payload, two processes over loopback, {rounds_text(rounds)}",
        rows=tuple(Row(name, "msg/s", tuple(samples)) for name, samples in found.items()),
        settings={"tasks": tasks, "messages": common.scaled(messages), "engines": list(engine), "rounds": rounds},
        machine=machine(),
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
