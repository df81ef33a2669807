"""Gauges: what is now, summed over sessions and connections when somebody asks, and put together with the counters."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import Any

import trio

from .connection import Connection
from .link import Link
from .net.endpoint import EndpointStatistics
from .observe.instruments import Instruments
from .observe.metrics import MetricsSnapshot, count
from .protocol.waiting import WaitingTable

__all__ = ["NetworkTotals", "measure"]

_AS_COUNTED = (
    *("messages_sent", "messages_received", "messages_lost", "messages_cancelled", "messages_abandoned"),
    *("messages_resent", "messages_redelivered", "sessions_resumed"),
    *("bytes_sent", "bytes_received"),
    *("heartbeats_sent", "heartbeats_received", "heartbeat_timeouts", "broadcasts_sent", "broadcast_targets"),
    *("encoding_errors", "decoding_errors", "internal_errors", "reconnect_attempts", "handlers_failed", "handlers_timed_out"),
    *("acks_late", "credit_stalls", "hook_failures"),
)
"""Counters that are shown as they are, under the same name."""

_BY_LABEL = ("connections_by_protocol", "disconnects", "connections_refused", "authentications", "messages_refused")
"""Counters by reason and the like, under the same name."""


class NetworkTotals:
    """What endpoints have counted, summed: a client has one after the other."""

    def __init__(self) -> None:
        self.sent: int = 0
        self.received: int = 0
        self.kernel_drops: int = 0
        self.errors: int = 0
        self.resets_sent: int = 0
        self.resets_received: int = 0
        self.retries: int = 0
        self.tokens_refused: int = 0
        self.dropped: dict[str, int] = {}

    def add(self, endpoint: EndpointStatistics) -> None:
        """Add the figures of one endpoint."""
        socket = endpoint.socket
        self.sent += socket.datagrams_out
        self.received += socket.datagrams_in
        self.kernel_drops += socket.receive_drops or 0
        self.errors += sum(socket.send_errors.values()) + sum(socket.receive_errors.values())
        self.resets_sent += endpoint.resets_sent
        self.resets_received += endpoint.resets_received
        self.retries += endpoint.retries
        self.tokens_refused += endpoint.tokens_refused
        for reason, number in endpoint.dropped.items():
            count(self.dropped, reason.replace(" ", "_"), number)

    def copy(self) -> NetworkTotals:
        """Return the same figures, to be added to."""
        totals = copy(self)
        totals.dropped = dict(self.dropped)
        return totals


def measure(
    instruments: Instruments,
    *,
    links: Collection[Link],
    connections: Collection[Connection],
    table: WaitingTable,
    network: NetworkTotals,
    connected: int,
    half_open: int,
    away: int,
) -> MetricsSnapshot:
    """Return all figures of one server or client.

    ``links`` are its sessions, ``connections`` those that it knows, ``network`` what its sockets have counted.
    """
    now = trio.current_time()
    counters = instruments.counters
    latency = counters.latency.snapshot()
    inbox_drops, packets_lost = _transport(connections)
    inbox_drops += counters.inbox_drops
    return MetricsSnapshot(
        **{name: getattr(counters, name) for name in _AS_COUNTED},
        **{name: getattr(counters, name).copy() for name in _BY_LABEL},
        **_summed(links),
        connected_clients=connected,
        total_connections=counters.connections,
        total_disconnects=sum(counters.disconnects.values()),
        messages_failed=counters.handlers_failed + counters.messages_lost,
        message_throughput=counters.throughput.rate(now, counters.messages_sent + counters.messages_received),
        average_latency=latency.mean * 1000,
        p50_latency=latency.quantile(0.50) * 1000,
        p95_latency=latency.quantile(0.95) * 1000,
        p99_latency=latency.quantile(0.99) * 1000,
        promise_created=table.created,
        promise_completed=table.acked,
        promise_timeouts=table.timed_out,
        promise_active=table.active,
        network_errors=counters.network_errors + network.errors,
        uptime_seconds=now - instruments.started,
        timestamp=instruments.epoch + now,
        latency=latency,
        half_open=half_open,
        sessions_away=away,
        requests_refused=table.refused,
        requests_cancelled=table.abandoned,
        packets_lost=counters.packets_lost + packets_lost,
        datagrams_sent=network.sent,
        datagrams_received=network.received,
        datagrams_dropped=network.dropped | ({"inbox_full": inbox_drops} if inbox_drops else {}),
        kernel_drops=network.kernel_drops,
        stateless_resets_sent=network.resets_sent,
        stateless_resets_received=network.resets_received,
        retries_sent=network.retries,
        tokens_refused=network.tokens_refused,
        event_subscribers=len(instruments.events),
        events_dropped=instruments.events.dropped,
    )


def _summed(links: Collection[Link]) -> dict[str, Any]:
    """Return what sessions hold now, all of them together. One walk: a sum for each figure took three times as long."""
    running = depth = lanes = messages = outbox = unacked = held = 0
    for link in links:
        dispatcher = link.dispatcher
        running += dispatcher.running
        depth += dispatcher.depth
        held += link.held_bytes
        unacked += link.unacked_bytes
        lanes += len(link.lanes)
        for lane in link.lanes.values():
            waiting = lane.outbox_bytes
            if waiting:
                outbox += waiting
                messages += lane.unwritten
    return {
        "handlers_running": running,
        "dispatch_depth": depth,
        "lanes": lanes,
        "outbox_messages": messages,
        "outbox_bytes": outbox,
        "unacked_bytes": unacked,
        "held_bytes": held,
    }


def _transport(connections: Collection[Connection]) -> tuple[int, int]:
    """Return datagrams that found an inbox full, and packets lost; those of connections that have ended are in the counters."""
    drops = lost = 0
    for connection in connections:
        if not connection.closed.is_set():
            drops += connection.pump.dropped
            lost += connection.engine.packets_lost
    return drops, lost
