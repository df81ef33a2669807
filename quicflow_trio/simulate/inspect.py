"""What is left of programs that are idle, or gone: waiters, sessions, timers, connection ids, tasks."""

from __future__ import annotations

from collections.abc import Iterator

import trio

from ..client import Client
from ..client_state import ClientState
from ..deadlines import Deadlines
from ..link import Link
from ..observe.metrics import MetricsSnapshot
from ..protocol.lane_sender import CONFIRM_BYTES
from ..server import Server
from .process import Process

__all__ = ["all_tasks", "defects", "left_by_dead", "left_by_idle"]

_IDS_PER_CONNECTION = 10
_TIMERS_PER_CONNECTION = 4
_CONNECTIONS_PER_SESSION = 2
"""The one that carries it, and the task of the one that it began on, where its handlers run."""
_ACKS_UNCONFIRMED = CONFIRM_BYTES + 2 * 1024
"""Bytes of acks that a lane may keep for good: so many are confirmed at once, and one more may be a handler's longest answer."""


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
        yield from _kept_for_resume(client._link)
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
        connections = len(server._admission.connections)
        if connections > _CONNECTIONS_PER_SESSION * figures.connected:
            yield f"{connections} connections of {figures.connected} clients"
        for session in server.sessions.values():
            yield from _kept_for_resume(session._link)
            counts = session.statistics()
            held = counts.outbox_messages + counts.unreceipted + counts.handlers_running + counts.requests_waiting
            if held or counts.held_bytes:
                yield f"session of {session.client_id}: {counts}"


def _kept_for_resume(link: Link) -> Iterator[str]:
    """Yield what an idle session keeps for its next connection although the peer has all of it."""
    for name, lane in link.lanes.items():
        for what in ("_unreceipted", "_unhandled", "_resend", "_waiting", "_cancels", "_kept_bytes"):
            if held := getattr(lane, what):
                yield f"lane {name!r} to {link.client_id}: {what} {held}"
        # Cleared when the peer tells how far it has handled, which is with the next ack or receipt on the lane.
        if not name and lane._cancelled:
            yield f"lane {name!r} to {link.client_id}: {len(lane._cancelled)} cancellations to be repeated"
    for name, receiver in link.session_lanes.items():
        if receiver.waiting or receiver.active or receiver.running or receiver.ack_bytes:
            yield f"lane {name!r} from {link.client_id}: {receiver.active} messages, {receiver.ack_bytes} bytes of acks"
        if receiver.kept_bytes > _ACKS_UNCONFIRMED:
            yield f"lane {name!r} from {link.client_id}: {receiver.kept_bytes} bytes of acks not confirmed"
        if receiver.older is not None and not receiver.still_behind():
            yield f"lane {name!r} from {link.client_id}: the lane of an earlier session"


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
        admission = server._admission
        if admission.connections or admission._gatekeeper._visits:
            yield f"{len(admission.connections)} connections, {len(admission._gatekeeper._visits)} with credentials"
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
    """Yield a line when more than ``most`` timers are live."""
    entries = [entry for _at, _order, entry in deadlines._entries if entry.live]
    if len(entries) > most:
        yield f"{len(entries)} live timers: {sorted({type(entry).__name__ for entry in entries})}"
