"""Metrics of many clients as those of one, and the ones that tell how a run went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..observe.histogram import HistogramSnapshot
from ..observe.metrics import MetricsSnapshot
from .remote.figures import count, milliseconds, size

__all__ = ["add_metrics", "metrics_rows"]

LATEST = {"uptime_seconds", "timestamp"}
QUANTILES = {"p50_latency": 0.5, "p95_latency": 0.95, "p99_latency": 0.99}


def add_metrics(one: MetricsSnapshot, other: MetricsSnapshot) -> MetricsSnapshot:
    """Return the figures of both together; a latency is that of all their requests, a time the later one."""
    values: dict[str, Any] = {}
    for declared in fields(MetricsSnapshot):
        name = declared.name
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, HistogramSnapshot):
            values[name] = HistogramSnapshot(
                tuple(map(sum, zip(first.counts, second.counts, strict=True))), first.total + second.total
            )
        elif isinstance(first, Mapping):
            values[name] = dict(Counter(first) + Counter(second))
        else:
            values[name] = max(first, second) if name in LATEST else first + second
    latency: HistogramSnapshot = values["latency"]
    values["average_latency"] = latency.mean * 1000
    values |= {name: latency.quantile(share) * 1000 for name, share in QUANTILES.items()}
    return MetricsSnapshot(**values)


def metrics_rows(metrics: MetricsSnapshot) -> list[tuple[str, str]]:
    """Return names and figures for people, a few lines of them."""
    latency = [metrics.p50_latency, metrics.p95_latency, metrics.p99_latency]
    measured = [milliseconds(value) for value in latency] if metrics.latency.count else ["-"] * len(latency)
    return [
        ("messages sent, received", f"{metrics.messages_sent:,}, {metrics.messages_received:,}"),
        ("messages failed, cancelled", f"{metrics.messages_failed:,}, {metrics.messages_cancelled:,}"),
        (
            "requests, acked, timed out",
            f"{metrics.promise_created:,}, {metrics.promise_completed:,}, {metrics.promise_timeouts:,}",
        ),
        ("latency P50, P95, P99", f"{', '.join(measured)} ms"),
        ("bytes sent, received", f"{size(metrics.bytes_sent)}, {size(metrics.bytes_received)}"),
        ("heartbeats sent, received", f"{count(metrics.heartbeats_sent)}, {count(metrics.heartbeats_received)}"),
        ("packets lost", f"{metrics.packets_lost:,}"),
        ("credit stalls", f"{metrics.credit_stalls:,}"),
    ]
