"""What is left of programs that are idle, or gone: waiters, sessions, timers, connection ids, tasks."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from ..client import Client
from ..client_state import ClientState
from ..crew import Watch
from ..deadlines import Deadlines
from ..observe.metrics import MetricsSnapshot
from ..server import Server
from .process import Process

__all__ = ["all_tasks", "defects", "left_by_dead", "left_by_idle"]

_IDS_PER_CONNECTION = 10
_TIMERS_PER_CONNECTION = 4


def all_tasks() -> set[trio.lowlevel.Task]:
    """Return every task that there is."""
    root = trio.lowlevel.current_root_task()
    found: set[trio.lowlevel.Task] = set()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        found.add(task)
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def left_by_idle(process: Process) -> Iterator[str]:
    """Yield what a connected process without traffic should not have."""
    client, server = process.client, process.server
    if client is not None:
        yield from _held_by_client(client)
        if client.state.value is not ClientState.CONNECTED:
            yield f"not connected: {client.statistics().history[-1].reason}"
        yield from _timers(client._deadlines, _TIMERS_PER_CONNECTION)
    if server is not None:
        yield from _held_by_server(server)
        figures = server.statistics()
        known = len(server.known_sessions()) - figures.connected
        if figures.away or figures.half_open or known:
            yield f"{figures.away} sessions away, {known} more known than connected, {figures.half_open} connections half open"
        if figures.endpoint.connection_ids > _IDS_PER_CONNECTION * (figures.connected + 1):
            yield f"{figures.endpoint.connection_ids} connection ids for {figures.connected} clients"
        yield from _timers(server._admission.deadlines, _TIMERS_PER_CONNECTION * (figures.connected + 1))
        for session in server.sessions.values():
            counts = session.statistics()
            held = counts.outbox_messages + counts.unreceipted + counts.handlers_running + counts.requests_waiting
            if held or counts.held_bytes:
                yield f"session of {session.client_id}: {counts}"


def left_by_dead(process: Process) -> Iterator[str]:
    """Yield what a process that has ended should not have."""
    client, server = process.client, process.server
    if client is not None:
        yield from _held_by_client(client)
        yield from _timers(client._deadlines, 0)
    if server is not None:
        yield from _held_by_server(server)
        figures = server.statistics()
        if figures.tasks or figures.connected or figures.away or figures.half_open or figures.endpoint.connection_ids:
            yield f"of a server: {figures}"
        yield from _timers(server._admission.deadlines, 0)


def defects(process: Process) -> Iterator[str]:
    """Yield what a process counted that no fault of a network explains."""
    for program in (process.client, process.server):
        if program is not None:
            yield from _defects(program.metrics())


def _defects(metrics: MetricsSnapshot) -> Iterator[str]:
    for name in ("internal_errors", "decoding_errors", "encoding_errors", "hook_failures"):
        if number := getattr(metrics, name):
            yield f"{number} {name.replace('_', ' ')}"


def _held_by_client(client: Client) -> Iterator[str]:
    counts = client.statistics()
    held = counts.outbox_messages + counts.unreceipted + counts.handlers_running + counts.requests_waiting
    if held or counts.held_bytes:
        yield f"of a client: {counts}"


def _held_by_server(server: Server) -> Iterator[str]:
    figures = server.statistics()
    if figures.requests_waiting or figures.held_bytes:
        yield f"{figures.requests_waiting} waiting requests, {figures.held_bytes} bytes held for handlers"


def _timers(deadlines: Deadlines, most: int) -> Iterator[str]:
    """Yield a line when more than ``most`` timers are live; handlers' is kept for a while on purpose, see `Watch`."""
    entries = [entry for _at, _order, entry in deadlines._heap._entries if entry.live and not isinstance(entry, Watch)]
    if len(entries) > most:
        yield f"{len(entries)} live timers: {sorted({type(entry).__name__ for entry in entries})}"
