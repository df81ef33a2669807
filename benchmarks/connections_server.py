"""The server process of `benchmarks.connections`: takes a JSON object a line on its standard input and answers each with another.

``{"broadcast": 200}`` sends one event of so many bytes to every client, ``{"figures": 1}`` tells what there is, ``{"idle": 5}`` counts
for so many seconds what wakes up. It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from functools import partial
from typing import Any

import trio

from quicflow_trio import Message, Router, Server, ServerConfig, serve, tune_garbage_collector
from quicflow_trio.testing import throwaway_tls


class StepCounter(trio.abc.Instrument):
    """Counts how often each kind of task is scheduled, and how often the loop looks at its descriptors."""

    def __init__(self) -> None:
        self.steps: Counter[str] = Counter()
        self.polls: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step, by the task's name without its module."""
        self.steps[task.name.rpartition(".")[2]] += 1

    def before_io_wait(self, timeout: float) -> None:
        """Count one turn of the loop."""
        self.polls += 1


async def broadcast(server: Server, size: int) -> dict[str, Any]:
    """Send to all who are connected; tell when that began (`time.monotonic`) and how many outboxes took it."""
    message = Message.event(payload=bytes(size))
    started = time.monotonic()
    report = await server.broadcast(message)
    return {"started": started, "queued": time.monotonic(), "sent": report.sent, "failed": len(report.failed)}


async def figures(server: Server) -> dict[str, Any]:
    """Tell how many are connected, and what has gone wrong so far."""
    await trio.lowlevel.checkpoint()
    statistics, metrics = server.statistics(), server.metrics()
    return {
        "connected": statistics.connected,
        "tasks": statistics.tasks,
        "timeouts": metrics.heartbeat_timeouts,
        "disconnects": metrics.total_disconnects,
        "refused": sum(metrics.connections_refused.values()),
        "packets_lost": metrics.packets_lost,
        "kernel_drops": metrics.kernel_drops,
        "heartbeats": metrics.heartbeats_received,
        "turns": pump_turns(server),
        "packets_in": statistics.endpoint.socket.datagrams_in,
        "packets_out": statistics.endpoint.socket.datagrams_out,
    }


def pump_turns(server: Server) -> int:
    """Return the turns of all pumps so far."""
    return sum(connection.pump.turns for connection in server._admission.connections)


async def idle(server: Server, seconds: float) -> dict[str, Any]:
    """Count for a while what wakes up: pump turns, task steps, polls and heartbeats, all per second."""
    turns, heartbeats = pump_turns(server), server.metrics().heartbeats_received
    counter = StepCounter()
    trio.lowlevel.add_instrument(counter)
    await trio.sleep(seconds)
    trio.lowlevel.remove_instrument(counter)
    return {
        "turns": (pump_turns(server) - turns) / seconds,
        "heartbeats": (server.metrics().heartbeats_received - heartbeats) / seconds,
        "steps": sum(counter.steps.values()) / seconds,
        "polls": counter.polls / seconds,
        "tasks": {name: round(number / seconds, 1) for name, number in counter.steps.most_common(8)},
    }


async def obey(server: Server) -> None:
    """Answer orders until there are no more."""
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        match json.loads(line):
            case {"broadcast": size}:
                answer = await broadcast(server, size)
            case {"idle": seconds}:
                answer = await idle(server, seconds)
            case _:
                answer = await figures(server)
        print(json.dumps(answer), flush=True)


async def main() -> None:
    """Serve on a free port; print port and CA file as one JSON line; obey."""
    tune_garbage_collector()
    interval = float(sys.argv[1])
    config = ServerConfig(heartbeat_interval=interval, heartbeat_timeout=interval * 3)
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        run = partial(serve, Router(), host="127.0.0.1", port=0, tls=server_tls, config=config)
        server: Server = await nursery.start(run)
        print(json.dumps({"port": server.address[1], "ca": str(client_tls.ca_file)}), flush=True)
        await obey(server)
        await server.aclose()


if __name__ == "__main__":
    trio.run(main)
