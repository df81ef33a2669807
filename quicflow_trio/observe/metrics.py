"""What is counted: `Counters`, plain integers that the traffic increments, and `MetricsSnapshot`, what a reader gets.

There is one `Counters` for a server and one for each client. Counting happens where a batch is known (a turn of the pump, a packet),
not per message, wherever that is possible; gauges (how many now, how many bytes) are summed up when somebody asks.
"""

# ruff: noqa: RUF009 - the calls in the snapshot's class declare its fields
from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .histogram import Histogram, HistogramSnapshot

__all__ = ["Counters", "MetricsSnapshot", "ThroughputMeter", "count"]

WINDOW = 10
"""Seconds that `message_throughput` looks back."""


class ThroughputMeter:
    """Messages per second over the last ten seconds, from a total that is shown to it now and then. It needs no task and no timer."""

    __slots__ = ("_ends", "_second", "_started", "_total")

    def __init__(self, now: float) -> None:
        self._started = now
        self._second = int(now)
        self._total = 0
        # The total at the end of each second in which something was shown.
        self._ends: deque[tuple[int, int]] = deque(maxlen=WINDOW + 2)

    def mark(self, now: float, total: int) -> None:
        """Note how many messages there have been; a turn of the pump calls it once."""
        second = int(now)
        if second != self._second:
            self._ends.append((self._second, self._total))
            self._second = second
        self._total = total

    def rate(self, now: float, total: int) -> float:
        """Return messages per second since the beginning of the tenth full second before ``now``."""
        self.mark(now, total)
        first = self._second - WINDOW
        base = 0
        for second, end in self._ends:
            if second >= first:
                break
            base = end
        # At least a second: a burst right after the start is no rate of fifty thousand.
        return (total - base) / max(now - max(first, self._started), 1.0)


class Counters:
    """What one server, or one client, has counted since it started. See `MetricsSnapshot` for the meaning of each.

    Attributes:
        latency: seconds from `request()` to its ack, for every ack that came.
        throughput: see there.
    """

    __slots__ = (
        "acks_late",
        "authentications",
        "broadcast_targets",
        "broadcasts_sent",
        "bytes_received",
        "bytes_sent",
        "connections",
        "connections_by_protocol",
        "connections_refused",
        "credit_stalls",
        "decoding_errors",
        "disconnects",
        "encoding_errors",
        "handlers_failed",
        "handlers_timed_out",
        "heartbeat_timeouts",
        "heartbeats_received",
        "heartbeats_sent",
        "hook_failures",
        "inbox_drops",
        "internal_errors",
        "latency",
        "messages_abandoned",
        "messages_cancelled",
        "messages_lost",
        "messages_received",
        "messages_redelivered",
        "messages_refused",
        "messages_resent",
        "messages_sent",
        "network_errors",
        "packets_lost",
        "reconnect_attempts",
        "sessions_resumed",
        "throughput",
    )

    def __init__(self, now: float) -> None:
        self.connections: int = 0
        self.messages_sent: int = 0
        self.messages_received: int = 0
        self.messages_lost: int = 0
        self.messages_cancelled: int = 0
        self.messages_resent: int = 0
        self.messages_redelivered: int = 0
        self.sessions_resumed: int = 0
        self.messages_abandoned: int = 0
        self.handlers_failed: int = 0
        self.handlers_timed_out: int = 0
        self.bytes_sent: int = 0
        self.bytes_received: int = 0
        self.heartbeats_sent: int = 0
        self.heartbeats_received: int = 0
        self.heartbeat_timeouts: int = 0
        self.acks_late: int = 0
        self.broadcasts_sent: int = 0
        self.broadcast_targets: int = 0
        self.encoding_errors: int = 0
        self.decoding_errors: int = 0
        self.network_errors: int = 0
        self.credit_stalls: int = 0
        self.inbox_drops: int = 0
        self.packets_lost: int = 0
        self.reconnect_attempts: int = 0
        self.hook_failures: int = 0
        self.internal_errors: int = 0
        self.connections_by_protocol: dict[str, int] = {}
        self.disconnects: dict[str, int] = {}
        self.connections_refused: dict[str, int] = {}
        self.authentications: dict[str, int] = {}
        self.messages_refused: dict[str, int] = {}
        self.latency: Histogram = Histogram()
        self.throughput: ThroughputMeter = ThroughputMeter(now)

    def mark(self, now: float) -> None:
        """Keep the throughput meter going; a turn of a pump calls it."""
        self.throughput.mark(now, self.messages_sent + self.messages_received)


def count(counters: dict[str, int], reason: str, number: int = 1) -> None:
    """Add to the counter of a reason. Reasons are names out of a fixed set, never text of a peer: each becomes a time series."""
    counters[reason] = counters.get(reason, 0) + number


def gauge(doc: str) -> Any:
    """Declare a figure that goes up and down."""
    return field(default=0, metadata={"kind": "gauge", "doc": doc})


def counter(doc: str) -> Any:
    """Declare a figure that only grows."""
    return field(default=0, metadata={"kind": "counter", "doc": doc})


def by_reason(doc: str, label: str = "reason") -> Any:
    """Declare a counter for each of a bounded set of reasons, or of what else the label says."""
    return field(default_factory=dict, metadata={"kind": "counter", "doc": doc, "label": label})


def measured(doc: str) -> Any:
    """Declare a histogram of seconds."""
    return field(default_factory=lambda: Histogram().snapshot(), metadata={"kind": "histogram", "unit": "seconds", "doc": doc})


def milliseconds(doc: str) -> Any:
    """Declare a gauge in milliseconds, which Prometheus gets in seconds."""
    return field(default=0.0, metadata={"kind": "gauge", "unit": "milliseconds", "doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """All figures of one server or one client at one moment. Counters count from its start, over all connections and sessions.

    The first 27 have the names of the requirements; the others are what a person operating this asks next. Each field's meaning is
    in its declaration, where the Prometheus help text comes from too.
    """

    connected_clients: int = gauge("clients connected now; on a client 1 while it is connected")
    total_connections: int = counter("connections that have completed their hello")
    total_disconnects: int = counter("connections that had completed their hello and ended")
    messages_sent: int = counter("messages written to the wire")
    messages_received: int = counter("messages received whose handler was started")
    messages_failed: int = counter("messages that failed: handlers_failed and messages_lost")
    bytes_sent: int = counter("stream bytes written, acks and heartbeats included")
    bytes_received: int = counter("stream bytes received, acks and heartbeats included")
    message_throughput: float = gauge("messages sent and received per second, over the last ten seconds")
    average_latency: float = milliseconds("mean time from a request to its ack, since the start")
    p50_latency: float = milliseconds("half of the requests were acked within this time, since the start")
    p95_latency: float = milliseconds("95 % of the requests were acked within this time, since the start")
    p99_latency: float = milliseconds("99 % of the requests were acked within this time, since the start")
    heartbeats_sent: int = counter("pings sent by a client, pongs by a server")
    heartbeats_received: int = counter("pongs received by a client, pings by a server")
    heartbeat_timeouts: int = counter("connections closed because nothing was heard for the heartbeat time-out")
    promise_created: int = counter("requests that began to wait for an ack")
    promise_completed: int = counter("requests that got their ack, of success or failure")
    promise_timeouts: int = counter("requests whose ack did not come in time")
    promise_active: int = gauge("requests that wait for their ack now")
    broadcasts_sent: int = counter("broadcasts")
    broadcast_targets: int = counter("clients that broadcasts were meant for, all in all")
    encoding_errors: int = counter("payloads and handler results that could not be encoded: too large or of the wrong type")
    decoding_errors: int = counter("connections closed because what the peer sent could not be decoded or was not allowed")
    network_errors: int = counter("errors of the network: sockets, handshakes and connections that ended without a close")
    uptime_seconds: float = gauge("seconds since the start")
    timestamp: float = gauge("when this was taken, Unix seconds")

    latency: HistogramSnapshot = measured("time from a request to its ack")
    connections_by_protocol: Mapping[str, int] = by_reason("connections that have stood, by message protocol", "protocol")
    disconnects: Mapping[str, int] = by_reason("connections that had completed their hello and ended, by side and reason")
    connections_refused: Mapping[str, int] = by_reason(
        "connections that ended before their hello was accepted, by side and reason"
    )
    authentications: Mapping[str, int] = by_reason("answers of the authenticator, renewals included, by outcome")
    messages_refused: Mapping[str, int] = by_reason("messages received that were refused before a handler started, by reason")
    half_open: int = gauge("connections whose hello has not come yet")
    sessions_away: int = gauge("sessions without a connection whose handlers still run, or that are kept")
    reconnect_attempts: int = counter("attempts of a client to connect after the first")
    handlers_failed: int = counter("messages received whose handler failed, for whatever reason")
    handlers_timed_out: int = counter("handlers that ran past their deadline")
    handlers_running: int = gauge("handlers that run now")
    dispatch_depth: int = gauge("messages decoded that wait for a handler or are in one")
    messages_lost: int = counter(
        "messages taken for sending whose delivery was not confirmed when the connection or session ended"
    )
    messages_cancelled: int = counter("messages received and taken back by their sender before their handler had ended")
    messages_abandoned: int = counter("messages received whose handler was never started because their session ended")
    messages_resent: int = counter("messages written again because a connection had ended before they were received")
    messages_redelivered: int = counter("messages that go out again in a new session because their sender chose so")
    sessions_resumed: int = counter("sessions that went on on another connection")
    requests_refused: int = counter("requests refused because the waiting table was full")
    requests_cancelled: int = counter(
        "requests that ended without an ack or time-out: the caller was cancelled, the connection ended"
    )
    acks_late: int = counter("acks that came when nobody waited for them any more")
    lanes: int = gauge("lanes open for sending")
    outbox_messages: int = gauge("messages that wait to be written")
    outbox_bytes: int = gauge("bytes that wait to be written")
    unacked_bytes: int = gauge("bytes written that the peer's transport has not acknowledged")
    held_bytes: int = gauge("bytes received that wait for handlers to end")
    credit_stalls: int = counter("times that a lane had messages to write and no credit left")
    packets_lost: int = counter("packets declared lost, whose content was sent again")
    datagrams_sent: int = counter("datagrams that the kernel took")
    datagrams_received: int = counter("datagrams read")
    datagrams_dropped: Mapping[str, int] = by_reason("datagrams dropped here, by reason")
    kernel_drops: int = counter("datagrams that the kernel dropped because the receive buffer was full")
    stateless_resets_sent: int = counter("packets of unknown connections answered by a stateless reset (RFC 9000 section 10.3)")
    stateless_resets_received: int = counter("stateless resets received: connections that the peer has lost")
    retries_sent: int = counter(
        "clients asked, under load, to show that their address is their own (Retry, RFC 9000 section 8.1)"
    )
    tokens_refused: int = counter("connection attempts whose Retry token was forged, expired or from another address")
    event_subscribers: int = gauge("open event streams, hooks included")
    events_dropped: int = counter("events dropped because a subscriber did not keep up")
    hook_failures: int = counter("hooks that raised")
    internal_errors: int = counter("connections ended by a defect of this library; the log has the traceback")

    def as_json(self) -> dict[str, object]:
        """Return the figures as plain numbers and dictionaries; the histogram as count, sum in seconds, and the shown buckets."""
        plain: dict[str, object] = {}
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, HistogramSnapshot):
                value = {"count": value.count, "sum": value.total, "buckets": value.ladder()}
            elif isinstance(value, Mapping):
                value = dict(value)
            plain[declared.name] = value
        return plain
