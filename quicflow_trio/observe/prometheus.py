"""The figures of a `MetricsSnapshot` as Prometheus reads them.

One rule makes all names: ``quicflow_``, the field's name, the unit where it is seconds, and ``_total`` behind a counter. So
``total_connections`` is ``quicflow_total_connections_total``: not pretty, but nobody has to look a name up. Milliseconds become
seconds, Prometheus' base unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from typing import final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE  # every Prometheus there is reads this version
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import ConfigurationError
from .histogram import HistogramSnapshot
from .metrics import MetricsSnapshot

__all__ = ["CONTENT_TYPE", "MetricsCollector", "metrics_text"]

PREFIX = "quicflow_"

_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
# Ours: `le` is a histogram's, `reason` that of the counters by reason.
_TAKEN = frozenset({"le", "reason"})


@final
class MetricsCollector(Collector):
    """Gives the figures of one server or client to a `prometheus_client` registry of the host program::

        registry.register(MetricsCollector(server.metrics, labels={"role": "backbone"}))

    `prometheus_client` refuses the same names twice in one registry: give each server and client of a process one of its own.

    Args:
        source: called at each scrape, in the scrape's thread. `Server.metrics` belongs to Trio's thread; when another thread serves,
            pass ``lambda: trio.from_thread.run_sync(server.metrics, trio_token=token)``.
        labels: put on every series.

    Raises:
        ConfigurationError: a label's name is not one, or is one of ours.
    """

    def __init__(self, source: Callable[[], MetricsSnapshot], *, labels: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._labels: dict[str, str] = dict(labels or {})
        for name in self._labels:
            if name in _TAKEN or not _LABEL.fullmatch(name):
                raise ConfigurationError(
                    f"labels: {name!r}: expected letters, digits and _ without __ in front, and not {' or '.join(sorted(_TAKEN))}"
                )

    def describe(self) -> Iterator[Metric]:
        """Yield the families without samples: to register a collector needs names, and the server may not run yet."""
        for declared in fields(MetricsSnapshot):
            yield _family(declared, {}, None)

    def collect(self) -> Iterator[Metric]:
        """Yield every family with the figures of this moment."""
        snapshot = self._source()
        for declared in fields(snapshot):
            yield _family(declared, self._labels, getattr(snapshot, declared.name))


def metrics_text(snapshot: MetricsSnapshot) -> bytes:
    """Return a snapshot in the text format of Prometheus, `CONTENT_TYPE`. It reads and touches no registry of the host program."""
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: snapshot))
    return generate_latest(registry)


def _family(declared: Field[object], labels: dict[str, str], value: object) -> Metric:
    kind, doc = declared.metadata["kind"], declared.metadata["doc"]
    unit, scale = _unit(declared)
    # Prometheus' own rule puts the unit last, once: uptime_seconds has it already.
    name = PREFIX + declared.name
    keys, values = [*labels], [*labels.values()]
    if kind == "histogram":
        histogram = HistogramMetricFamily(name, doc, labels=keys, unit=unit)
        if isinstance(value, HistogramSnapshot):
            buckets = [(repr(bound), float(number)) for bound, number in value.ladder()]
            histogram.add_metric(values, [*buckets, ("+Inf", float(value.count))], value.total)
        return histogram
    label = declared.metadata.get("label")
    make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
    family = make(name, doc, labels=[*keys, label] if label else keys, unit=unit)
    if isinstance(value, Mapping):
        for reason, number in value.items():
            family.add_metric([*values, reason], number)
    elif isinstance(value, int | float):
        family.add_metric(values, value * scale)
    return family


def _unit(declared: Field[object]) -> tuple[str, float]:
    """Return the unit of a field as Prometheus has it, and what to multiply with to get there."""
    if declared.metadata.get("unit") == "milliseconds":
        return "seconds", 1e-3
    if declared.metadata.get("unit") == "seconds" or declared.name in {"timestamp", "uptime_seconds"}:
        return "seconds", 1.0
    return "", 1.0
