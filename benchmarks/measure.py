"""What is measured, each as an async function from an open connection (or an address) to figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from quicflow_trio import Client, Message, TLSConfig, open_client

PAYLOAD = bytes(200)
WARM_UP = 50


@dataclass(frozen=True)
class Figure:
    """One line of the result.

    Attributes:
        name: what was measured.
        unit: of the values.
        values: one per round, in order.
    """

    name: str
    unit: str
    values: tuple[float, ...]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


async def connect_times(port: int, tls: TLSConfig, count: int) -> list[float]:
    """Return the milliseconds from ``open_client`` to connected, for ``count`` clients one after the other."""
    times = []
    for number in range(count):
        start = time.perf_counter()
        async with open_client("127.0.0.1", port, client_id=f"connect-{number}", tls=tls) as client:
            await client.wait_connected()
            times.append((time.perf_counter() - start) * 1e3)
    return times


async def round_trips(client: Client, count: int) -> list[float]:
    """Return the milliseconds of ``count`` requests made one after the other."""
    times = []
    for number in range(WARM_UP + count):
        start = time.perf_counter()
        await client.request(Message.command(PAYLOAD))
        if number >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    return times


async def acked_rate(client: Client, count: int, depth: int) -> float:
    """Return acked requests per second with ``depth`` tasks that each await one after the other."""

    async def work(share: int) -> None:
        for _ in range(share):
            await client.request(Message.command(PAYLOAD))

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for number in range(depth):
            nursery.start_soon(work, count // depth + (number < count % depth))
    return count / (time.perf_counter() - start)


async def one_way_rate(client: Client, count: int) -> float:
    """Return messages per second from the first send until the peer has confirmed the last."""
    start = time.perf_counter()
    for _ in range(count):
        sent = await client.send(Message.event(PAYLOAD))
    await sent.delivered()
    return count / (time.perf_counter() - start)
