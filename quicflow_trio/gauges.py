"""Gauges: what is now, summed over sessions and connections when somebody asks, and put together with the counters."""

from __future__ import annotations

from collections.abc import Collection

import trio

from .connection import Connection
from .link import Link
from .net.endpoint import EndpointStatistics
from .observe.instruments import Instruments
from .observe.metrics import MetricsSnapshot, count
from .protocol.waiting import WaitingTable

__all__ = ["NetworkTotals", "measure"]

_AS_COUNTED = (
    *("messages_sent", "messages_received", "messages_lost", "bytes_sent", "bytes_received"),
    *("heartbeats_sent", "heartbeats_received", "heartbeat_timeouts", "broadcasts_sent", "broadcast_targets"),
    *("encoding_errors", "decoding_errors", "internal_errors", "reconnect_attempts", "handlers_failed", "handlers_timed_out"),
    *("acks_late", "credit_stalls", "hook_failures"),
)
"""Counters that are shown as they are, under the same name."""


class NetworkTotals:
    """What endpoints have counted, summed: a client has one after the other."""

    def __init__(self) -> None:
        self.sent: int = 0
        self.received: int = 0
        self.kernel_drops: int = 0
        self.errors: int = 0
        self.dropped: dict[str, int] = {}

    def add(self, endpoint: EndpointStatistics) -> None:
        """Add the figures of one endpoint."""
        socket = endpoint.socket
        self.sent += socket.datagrams_out
        self.received += socket.datagrams_in
        self.kernel_drops += socket.receive_drops or 0
        self.errors += sum(socket.send_errors.values()) + sum(socket.receive_errors.values())
        for reason, number in endpoint.dropped.items():
            count(self.dropped, reason.replace(" ", "_"), number)

    def copy(self) -> NetworkTotals:
        """Return the same figures, to be added to."""
        totals = NetworkTotals()
        totals.sent, totals.received, totals.kernel_drops, totals.errors = (
            self.sent,
            self.received,
            self.kernel_drops,
            self.errors,
        )
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
    completed = latency.count
    # Those that have ended stand in the counters already.
    connections = [connection for connection in connections if not connection.closed.is_set()]
    inbox_drops = counters.inbox_drops + sum(connection.pump.dropped for connection in connections)
    return MetricsSnapshot(
        **{name: getattr(counters, name) for name in _AS_COUNTED},
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
        promise_completed=completed,
        promise_timeouts=counters.request_timeouts,
        promise_active=table.active,
        network_errors=counters.network_errors + network.errors,
        uptime_seconds=now - instruments.started,
        timestamp=instruments.epoch + now,
        latency=latency,
        disconnects=dict(counters.disconnects),
        connections_refused=dict(counters.connections_refused),
        half_open=half_open,
        sessions_away=away,
        requests_refused=table.refused,
        requests_cancelled=table.abandoned,
        packets_lost=counters.packets_lost + sum(connection.engine.packets_lost for connection in connections),
        datagrams_sent=network.sent,
        datagrams_received=network.received,
        datagrams_dropped=network.dropped | ({"inbox_full": inbox_drops} if inbox_drops else {}),
        kernel_drops=network.kernel_drops,
        event_subscribers=len(instruments.events),
        events_dropped=instruments.events.dropped,
    )


def _summed(links: Collection[Link]) -> dict[str, int]:
    """Return what sessions hold now, all of them together."""
    lanes = [lane for link in links for lane in link.lanes.values()]
    return {
        "handlers_running": sum(link.dispatcher.running for link in links),
        "dispatch_depth": sum(link.dispatcher.depth for link in links),
        "lanes": len(lanes),
        "outbox_messages": sum(lane.unwritten for lane in lanes),
        "outbox_bytes": sum(lane.outbox_bytes for lane in lanes),
        "unacked_bytes": sum(link.unacked_bytes for link in links),
        "held_bytes": sum(link.held_bytes for link in links),
    }
