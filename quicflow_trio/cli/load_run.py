"""The load generator: many clients, each with a number of tasks that send, wait and send again.

It shares a core or two with what it measures, so its loop does little beside the call: two readings of the clock, one append to
an array, one step of a counter.
"""

from __future__ import annotations

import math
import operator
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import final

import trio

from ..client import Client, open_client
from ..config import Protocol, TLSConfig
from ..errors import QuicFlowError
from ..message import Message, MessageType
from ..observe.metrics import MetricsSnapshot
from .common import Address, wait_connected
from .metrics_sum import add_metrics

__all__ = ["Load", "Report", "Run", "percentile"]

CONNECTING = 32
"""Clients that connect at a time: more would only measure how handshakes queue for one core."""
STREAMS = 2
"""Tasks per client that send one way: while one waits for its receipt, the other sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to do.

    Attributes:
        clients: how many clients.
        messages: how many messages, all clients together.
        depth: messages that each client has under way at a time.
        payload: what each carries.
        type: what they are.
        one_way: wait for receipts instead of answers.
        id: the clients' ids start with this.
        timeout: seconds for the connections, and for each answer.
        protocol: what the clients speak; see `open_client`.
    """

    clients: int
    messages: int
    depth: int
    payload: bytes
    type: MessageType
    one_way: bool
    id: str
    timeout: float
    protocol: Protocol = "auto"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it.

    Attributes:
        plan: what was asked for.
        completed: messages answered (one way: received and kept by the server).
        seconds: from the first message to the last answer.
        latencies: of the messages answered, sorted, seconds.
        connects: how long each client took from its opening to its connection, sorted, seconds.
        errors: messages that were not answered, by the error's type.
        metrics: what the clients counted, all together.
    """

    plan: Load
    completed: int
    seconds: float
    latencies: Sequence[float]
    connects: Sequence[float]
    errors: dict[str, int]
    metrics: MetricsSnapshot

    @property
    def messages_per_second(self) -> float:
        """Messages answered per second."""
        return self.completed / self.seconds if self.seconds > 0 else 0.0

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Latency in milliseconds at some percentiles; None when nothing was answered."""
        return _in_ms(self.latencies, {"P50": 0.5, "P95": 0.95, "P99": 0.99, "max": 1.0})

    @property
    def connect_ms(self) -> dict[str, float | None]:
        """Time to connect in milliseconds, the median and the longest."""
        return _in_ms(self.connects, {"P50": 0.5, "max": 1.0})

    def as_json(self) -> dict[str, object]:
        """Return it as what `json.dumps` takes."""
        plan = self.plan
        return {
            "clients": plan.clients,
            "messages": plan.messages,
            "depth": plan.depth,
            "size": len(plan.payload),
            "type": plan.type.name.lower(),
            "one_way": plan.one_way,
            "completed": self.completed,
            "seconds": self.seconds,
            "messages_per_second": self.messages_per_second,
            "latency_ms": {name.lower(): value for name, value in self.latency_ms.items()},
            "connect_ms": {name.lower(): value for name, value in self.connect_ms.items()},
            "errors": self.errors,
            "metrics": self.metrics.as_json(),
        }


def _in_ms(ordered: Sequence[float], shares: dict[str, float]) -> dict[str, float | None]:
    return {name: percentile(ordered, share) * 1000 if ordered else None for name, share in shares.items()}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` (0 to 1) of the sorted values do not exceed (nearest rank)."""
    return ordered[max(math.ceil(len(ordered) * share) - 1, 0)]


@final
class Run:
    """One run of a `Load` against a server.

    Attributes:
        plan: what to do.
        connected: clients connected so far.
    """

    def __init__(self, plan: Load, target: Address, tls: TLSConfig) -> None:
        self.plan: Load = plan
        self.connected: int = 0
        self._target = target
        self._tls = tls
        self._go = trio.Event()
        # Shared by all workers: taking the next number is one C call and no lock, since only one task runs at a time.
        self._numbers = iter(range(plan.messages))
        # An array and not a list: eight bytes each, and no objects for the garbage collector to walk over.
        self._latencies = array("d")
        self._connects: list[float] = []
        self._errors: Counter[str] = Counter()
        # Added up as clients end: ten thousand snapshots would be kept for one sum.
        self._metrics: MetricsSnapshot = MetricsSnapshot()
        self._began = self._finished = 0.0

    @property
    def started(self) -> bool:
        """True when all clients are connected and messages flow."""
        return self._go.is_set()

    @property
    def taken(self) -> int:
        """Messages that were begun."""
        return self.plan.messages - operator.length_hint(self._numbers)

    async def run(self) -> Report:
        """Connect, send everything, and report.

        Raises:
            CommandFailed: a client was not connected in time.
            QuicFlowError: a client was refused.
        """
        connecting = trio.CapacityLimiter(CONNECTING)
        # Ids of a second generator on the same server must differ: the newest connection of an id wins.
        prefix = f"{self.plan.id}-{os.getpid()}"
        async with trio.open_nursery() as nursery:
            for number in range(self.plan.clients):
                nursery.start_soon(self._client, f"{prefix}-{number}", connecting)
        latencies = sorted(self._latencies)
        return Report(
            plan=self.plan,
            completed=len(latencies),
            seconds=max(self._finished - self._began, 0.0),
            latencies=latencies,
            connects=sorted(self._connects),
            errors=dict(self._errors.most_common()),
            metrics=self._metrics,
        )

    async def _client(self, client_id: str, connecting: trio.CapacityLimiter) -> None:
        plan, target = self.plan, self._target
        async with AsyncExitStack() as stack:
            async with connecting:
                began = perf_counter()
                manager = open_client(target.host, target.port, client_id=client_id, tls=self._tls, protocol=plan.protocol)
                client = await stack.enter_async_context(manager)
                await wait_connected(client, target, plan.timeout)
                self._connects.append(perf_counter() - began)
            self.connected += 1
            if self.connected == plan.clients:
                self._began = perf_counter()
                self._go.set()
            await self._go.wait()
            work, tasks = (self._stream, min(STREAMS, plan.depth)) if plan.one_way else (self._ask, plan.depth)
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(work, client)
            # The last client to get here leaves the time that counts; saying goodbye is not part of it.
            self._finished = perf_counter()
            self._metrics = add_metrics(self._metrics, client.metrics())

    async def _ask(self, client: Client) -> None:
        """Send the next message, wait for its answer, and again; `Load.depth` of these run for each client."""
        plan, latencies, request = self.plan, self._latencies, client.request
        for _ in self._numbers:
            began = perf_counter()
            try:
                await request(Message(plan.type, plan.payload), ack_timeout=plan.timeout)
            except QuicFlowError as exc:
                await self._failed(exc, 1)
            else:
                latencies.append(perf_counter() - began)

    async def _stream(self, client: Client) -> None:
        """Send a batch, wait for the receipt of its last message, and again; two of these keep a client busy.

        Receipts come in sending order, so the last one stands for its batch. To wait for each would cost more than to send it.
        """
        plan, latencies = self.plan, self._latencies
        size = max(plan.depth // STREAMS, 1)
        while batch := len(list(islice(self._numbers, size))):
            began = []
            try:
                for _ in range(batch):
                    began.append(perf_counter())
                    sent = await client.send(Message(plan.type, plan.payload))
                await sent.delivered()
            except QuicFlowError as exc:
                await self._failed(exc, batch)
            else:
                now = perf_counter()
                latencies.extend(now - at for at in began)

    async def _failed(self, error: QuicFlowError, count: int) -> None:
        self._errors[type(error).__name__] += count
        # Most errors are raised at once: without a pause, one task would run through all messages that are left.
        await trio.lowlevel.checkpoint()
