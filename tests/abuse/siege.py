"""What every row of the abuse list checks, in one place: `besieged`.

The conditions, whatever the attack: the process lives and no exception reaches a nursery; memory stays under a cap; a well-behaved client
on the same server is served all the time, its P99 at most twice the quiet value; a counter with a reason goes up, by exactly as much as the
row says; and once the attacker is gone nothing is left in the table of connection ids, the waiting table, the timers, the tasks or the
bytes held. That the culprit is closed or throttled within a second of the limit is for each row to show, with `closed_soon`.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from quicflow_trio import ClientConfig, ClientState, Message, MessageType, Router, Server, ServerConfig
from quicflow_trio.observe.metrics import MetricsSnapshot
from quicflow_trio.quic.engine import ConnectionEnded
from quicflow_trio.testing import MemoryNetwork, World, echo_router, open_world
from tests.connections.raw import Raw
from tests.messages.harness import task_names, until

MIB = 1 << 20
DELAY = 0.01
QUIET_REQUESTS = 20
GONE = 45.0
"""Seconds after which nothing of an attack may be left: beyond the time-outs of handlers (30 s) and of packets to a closed connection."""

_STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of memory that the process has in use; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def p99(values: list[float]) -> float:
    """Return the value that 99 % do not exceed."""
    return sorted(values)[math.ceil(len(values) * 0.99) - 1]


def flat(figures: MetricsSnapshot) -> dict[str, float]:
    """Return the counters by name, those by reason as ``name:reason``."""
    plain: dict[str, float] = {}
    for name, value in figures.as_json().items():
        if isinstance(value, Mapping):
            plain |= {f"{name}:{reason}": number for reason, number in value.items()}
        else:
            plain[name] = value  # type: ignore[assignment]  # plain data: a number
    return plain


class Siege:
    """A server under attack, and the well-behaved client beside the attacker.

    Attributes:
        world: the server, the client and their network.
        latencies: seconds that each request of that client took, those before the attack left out.
        most: bytes that the process grew by, at most.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.latencies: list[float] = []
        self.most = 0
        self._before = flat(world.server.metrics())

    @property
    def server(self) -> Server:
        return self.world.server

    @property
    def network(self) -> MemoryNetwork:
        return self.world.network

    def risen(self, name: str) -> float:
        """Return by how much a counter has gone up since the attack began; ``name:reason`` for one by reason."""
        return flat(self.server.metrics()).get(name, 0) - self._before.get(name, 0)


def live_timers(server: Server) -> int:
    """Entries of the heap of deadlines that still mean something."""
    return sum(entry.live for _, _, entry in server._admission.deadlines._entries)


def _remains(server: Server) -> dict[str, int]:
    figures = server.statistics()
    return {
        "connected": figures.connected,
        "away": figures.away,
        "half open": figures.half_open,
        "connection ids": figures.endpoint.connection_ids,
        "waiting requests": figures.requests_waiting,
        "held bytes": figures.held_bytes,
        "tasks of the server": figures.tasks,
        "timers": live_timers(server),
    }


def with_handler_for(router: Router | None) -> Router:
    """Return a router that answers the queries of the client beside, whatever else the row's handlers do."""
    made = echo_router() if router is None else router
    if made.route(int(MessageType.QUERY)) is None:
        echo = echo_router().route(int(MessageType.QUERY))
        assert echo is not None
        made.add(MessageType.QUERY, echo.handler)
    return made


async def _ask(world: World) -> float:
    started = trio.current_time()
    with trio.fail_after(5):
        assert (await world.clients["client-0"].request(Message.query(b"well?"))).result == b"well?"
    return trio.current_time() - started


@asynccontextmanager
async def besieged(
    *,
    expect: Mapping[str, float] | None = None,
    memory: int = 32 * MIB,
    router: Router | None = None,
    server_config: ServerConfig | None = None,
    client_config: ClientConfig | None = None,
    every: float = 0.1,
    **world_options: Any,
) -> AsyncIterator[Siege]:
    """Run an attack, the body of the block, and check the common conditions around it.

    Args:
        expect: counters, as `Siege.risen` names them, and by how much the attack must have raised each.
        memory: bytes that the process may grow by meanwhile; attacker and server share it here, so the server alone takes less.
        router: the server's handlers; queries are left to the client beside unless the row needs them.
        server_config: its session's time to live is made one second, so that what is left shows early.
        client_config: of the client beside.
        every: seconds between two requests of the client beside.
        world_options: for `open_world`.
    """
    network = world_options.pop("network", None) or MemoryNetwork(delay=DELAY)
    config = replace(server_config or ServerConfig(), session_ttl=1.0)
    async with open_world(
        clients=1,
        network=network,
        router=with_handler_for(router),
        server_config=config,
        client_config=client_config,
        **world_options,
    ) as world:
        quiet = p99([await _ask(world) for _ in range(QUIET_REQUESTS)])
        await trio.sleep(1)
        gc.collect()
        before, tasks, rest = resident(), task_names(), _remains(world.server)
        siege = Siege(world)

        async def beside() -> None:
            while True:
                siege.latencies.append(await _ask(world))
                siege.most = max(siege.most, resident() - before)
                await trio.sleep(every)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(beside)
            await trio.lowlevel.checkpoint()
            yield siege
            await trio.sleep(every)
            siege.most = max(siege.most, resident() - before)
            nursery.cancel_scope.cancel()
        _check_bystander(siege, quiet)
        assert siege.most <= memory, f"grew by {siege.most / MIB:.1f} MiB"
        await _check_nothing_left(siege, rest, tasks)
        for name, number in (expect or {}).items():
            assert siege.risen(name) == number, f"{name}: {siege.risen(name)}"
        assert siege.risen("internal_errors") == 0


def _check_bystander(siege: Siege, quiet: float) -> None:
    client = siege.world.clients["client-0"]
    assert client.state.value is ClientState.CONNECTED
    assert client.statistics().connects == 1, "the client beside was never thrown out"
    assert siege.latencies, "the client beside was served at all"
    assert p99(siege.latencies) <= 2 * quiet, f"P99 {p99(siege.latencies):.3f} s, quiet {quiet:.3f} s"


async def _check_nothing_left(siege: Siege, rest: dict[str, int], tasks: Mapping[str, int]) -> None:
    def left() -> dict[str, int]:
        # Fewer than before is no leak: a pump has a timer of its own only while it waits for less than another of its side does.
        return {name: number for name, number in _remains(siege.server).items() if number > rest[name]}

    with trio.move_on_after(GONE):
        await until(lambda: not left(), step=0.25)
    leak = left()
    assert not leak, f"left behind: {leak}, before: {rest}"
    await trio.testing.wait_all_tasks_blocked()
    assert task_names() == tasks


async def closed_soon(raw: Raw, *, within: float = 1.0) -> ConnectionEnded:
    """Return how the server ended a connection; it must do so within a second of the offence that has just left."""
    started = trio.current_time()
    with trio.fail_after(within + 4 * DELAY):
        ended = await raw.ended()
    assert ended.by_peer, "the server closes, not the attacker"
    assert trio.current_time() - started <= within + 4 * DELAY
    return ended
