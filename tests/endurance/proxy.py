"""A UDP proxy with faults between clients and a server: `Proxy`, one door for each client.

Each new address that a client sends from becomes a flow with a socket of its own towards the server, as in a NAT.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from quicflow_trio.net.udp import DatagramSocket, UdpNetwork
from quicflow_trio.testing import PathFaults

__all__ = ["Cut", "Door", "Proxy", "open_proxy"]

Address = tuple[str, int]
Cut = Literal["none", "both", "up", "down"]

FLOWS = 3
"""Flows that a door keeps: a client uses one, and has just left one or two."""
QUEUE = 20_000
"""Datagrams on the way at most; further ones are dropped, as a router does."""
LEAST_REORDER = 0.010


@dataclass(eq=False)
class _Flow:
    """One address of a client.

    Attributes:
        client: it.
        back: the socket towards the server.
        gone: true once the proxy has forgotten it: whatever comes from there vanishes.
        scope: around the task that reads ``back``.
    """

    client: Address
    back: DatagramSocket
    gone: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Door:
    """The port of one client.

    Attributes:
        cut: directions in which nothing passes now; ``"up"`` is towards the server.
        next_up: when the client has sent its next datagram since this was set to None (`time.monotonic`).
    """

    def __init__(self, proxy: Proxy, front: DatagramSocket) -> None:
        self.cut: Cut = "none"
        self.next_up: float | None = None
        self._proxy = proxy
        self._front = front
        self._flows: deque[_Flow] = deque()

    @property
    def port(self) -> int:
        """Where the client connects to."""
        return int(self._front.address[1])

    def forget(self) -> None:
        """Let whatever comes over the flows of this moment vanish for good; new ones pass."""
        for flow in self._flows:
            flow.gone = True

    async def run(self) -> None:
        """Read what the client sends."""
        async with trio.open_nursery() as nursery:
            while True:
                batch = await self._front.receive()
                if self.next_up is None:
                    self.next_up = time.monotonic()
                for data, source in batch:
                    flow = self._find((source[0], source[1])) or await self._open((source[0], source[1]), nursery)
                    if not flow.gone:
                        self._proxy.pass_on(data, flow.back, self._proxy.server, hidden=self.cut in ("both", "up"))

    def _find(self, client: Address) -> _Flow | None:
        return next((flow for flow in self._flows if flow.client == client), None)

    async def _open(self, client: Address, nursery: trio.Nursery) -> _Flow:
        flow = _Flow(client, await UdpNetwork().bind_for(self._proxy.server))
        self._flows.append(flow)
        if len(self._flows) > FLOWS:
            self._flows.popleft().scope.cancel()
        nursery.start_soon(self._answers, flow)
        return flow

    async def _answers(self, flow: _Flow) -> None:
        """Read what the server sends over one flow."""
        try:
            with flow.scope:
                while True:
                    for data, _ in await flow.back.receive():
                        if not flow.gone:
                            self._proxy.pass_on(data, self._front, flow.client, hidden=self.cut in ("both", "down"))
        finally:
            flow.gone = True
            flow.back.close()

    def close(self) -> None:
        """Close the front; the flows end with their tasks."""
        self._front.close()


class Proxy:
    """All doors to one server. `open_proxy` makes it.

    Attributes:
        server: where it passes on to.
        faults: of either direction.
        doors: one for each client.
        counts: datagrams ``passed``, ``lost``, ``hidden`` (by a cut), ``doubled``, ``overflowed``.
    """

    def __init__(self, server: Address, faults: PathFaults, seed: int) -> None:
        self.server = server
        self.faults = faults
        self.doors: list[Door] = []
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, bytes, DatagramSocket, Address]] = []
        self._number = 0
        self._scope = trio.CancelScope()

    def pass_on(self, data: bytes, socket: DatagramSocket, to: Address, *, hidden: bool) -> None:
        """Take a datagram: it leaves later, twice, or never."""
        if hidden:
            self.counts["hidden"] += 1
            return
        faults, rng = self.faults, self._random
        if rng.random() < faults.loss:
            self.counts["lost"] += 1
            return
        copies = 1 + (rng.random() < faults.duplicate)
        self.counts["doubled"] += copies - 1
        now = trio.current_time()
        for _ in range(copies):
            due = now + faults.delay + rng.random() * faults.jitter
            if rng.random() < faults.reorder:
                due += rng.random() * max(faults.delay, LEAST_REORDER)
            if len(self._queue) >= QUEUE:
                self.counts["overflowed"] += 1
                return
            self._number += 1
            heapq.heappush(self._queue, (due, self._number, data, socket, to))
            # The scope is the wake-up, as in a `MemoryNetwork`'s sockets.
            self._scope.deadline = min(self._scope.deadline, due)

    async def run(self) -> None:
        """Send what is due."""
        queue = self._queue
        while True:
            with trio.CancelScope(deadline=queue[0][0] if queue else float("inf")) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while queue and queue[0][0] <= now:
                _, _, data, socket, to = heapq.heappop(queue)
                try:
                    socket.send_nowait([(data, to)])
                except trio.ClosedResourceError:
                    # A flow that has ended meanwhile: a datagram to nowhere, like many.
                    self.counts["lost"] += 1
                else:
                    self.counts["passed"] += 1


@asynccontextmanager
async def open_proxy(server: Address, doors: int, faults: PathFaults, seed: int) -> AsyncIterator[Proxy]:
    """Relay for so many clients for the length of the block."""
    proxy = Proxy(server, faults, seed)
    async with trio.open_nursery() as nursery:
        try:
            for _ in range(doors):
                door = Door(proxy, await UdpNetwork().bind("127.0.0.1", 0))
                proxy.doors.append(door)
                nursery.start_soon(door.run)
            nursery.start_soon(proxy.run)
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
            for door in proxy.doors:
                door.close()
