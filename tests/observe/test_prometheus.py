"""The figures as Prometheus reads them: every field is there, by one rule for names, in base units."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from quicflow_trio import ConfigurationError
from quicflow_trio.observe.histogram import LADDER, Histogram, HistogramSnapshot
from quicflow_trio.observe.metrics import MetricsSnapshot
from quicflow_trio.observe.prometheus import CONTENT_TYPE, MetricsCollector, metrics_text


def families(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value_of(text: bytes, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families(text).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) == 1, f"{name} {labels}: {found}"
    return found[0]


def seconds(*durations: float) -> HistogramSnapshot:
    histogram = Histogram()
    for duration in durations:
        histogram.observe(duration)
    return histogram.snapshot()


def test_every_field_is_a_family_with_its_own_help() -> None:
    found = families(metrics_text(MetricsSnapshot()))
    assert len(found) == len(fields(MetricsSnapshot))
    for declared in fields(MetricsSnapshot):
        seconds_too = {f"quicflow_{declared.name}", f"quicflow_{declared.name}_seconds"}
        (name,) = seconds_too & found.keys()
        assert found[name].type == declared.metadata["kind"]
        assert found[name].documentation == declared.metadata["doc"]


def test_counters_and_gauges_keep_their_figures() -> None:
    text = metrics_text(
        MetricsSnapshot(connected_clients=3, total_connections=2**53, message_throughput=0.5, uptime_seconds=7.25)
    )
    assert value_of(text, "quicflow_connected_clients") == 3
    assert value_of(text, "quicflow_total_connections_total") == 2**53
    assert value_of(text, "quicflow_message_throughput") == 0.5
    assert value_of(text, "quicflow_uptime_seconds") == 7.25


def test_milliseconds_become_seconds() -> None:
    text = metrics_text(
        MetricsSnapshot(average_latency=1.5, p50_latency=1.0, p95_latency=20.0, p99_latency=3000.0, timestamp=9.5)
    )
    assert value_of(text, "quicflow_average_latency_seconds") == pytest.approx(0.0015)
    assert value_of(text, "quicflow_p50_latency_seconds") == pytest.approx(0.001)
    assert value_of(text, "quicflow_p95_latency_seconds") == pytest.approx(0.020)
    assert value_of(text, "quicflow_p99_latency_seconds") == pytest.approx(3.0)
    assert value_of(text, "quicflow_timestamp_seconds") == 9.5


def test_the_histogram_is_cumulative_and_ends_with_everything() -> None:
    text = metrics_text(MetricsSnapshot(latency=seconds(0.00001, 0.0015, 0.0015, 3.0, 100.0)))
    (family,) = [family for family in families(text).values() if family.type == "histogram"]
    buckets = {float(sample.labels["le"]): sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert [*buckets] == [*LADDER, math.inf]
    assert (buckets[50e-6], buckets[1e-3], buckets[2e-3], buckets[60.0], buckets[math.inf]) == (1, 1, 3, 4, 5)
    assert value_of(text, "quicflow_latency_seconds_count") == 5
    assert value_of(text, "quicflow_latency_seconds_sum") == pytest.approx(103.00301)


def test_reasons_are_labels_and_do_not_mix_with_the_plain_counter() -> None:
    text = metrics_text(MetricsSnapshot(total_disconnects=5, disconnects={"shutdown": 2, 'odd\n"one\\': 3}))
    assert value_of(text, "quicflow_total_disconnects_total") == 5
    assert value_of(text, "quicflow_disconnects_total", reason="shutdown") == 2
    assert value_of(text, "quicflow_disconnects_total", reason='odd\n"one\\') == 3


def test_no_series_comes_twice() -> None:
    # Prometheus rejects the whole scrape for one duplicate.
    snapshot = MetricsSnapshot(latency=seconds(1.0), disconnects={"a": 1, "b": 1}, datagrams_dropped={"a": 1})
    lines = [line.rpartition(" ")[0] for line in metrics_text(snapshot).decode().splitlines()]
    assert len(lines) == len(set(lines))


def test_the_content_type_is_the_one_that_every_prometheus_reads() -> None:
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_openmetrics_takes_the_families_too() -> None:
    # A host program may serve its registry in that format: it is stricter about units and suffixes.
    registry = CollectorRegistry()
    registry.register(MetricsCollector(lambda: MetricsSnapshot(latency=seconds(1.0), disconnects={"a": 1})))
    text: bytes = exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
    assert len(list(parse_openmetrics(text.decode()))) == len(fields(MetricsSnapshot))  # type: ignore[no-untyped-call]


def test_a_collector_in_a_registry_of_the_host() -> None:
    registry = CollectorRegistry(auto_describe=True)
    count = 0

    def source() -> MetricsSnapshot:
        nonlocal count
        count += 1
        return MetricsSnapshot(messages_sent=count, disconnects={"normal": 1}, latency=seconds(0.1))

    registry.register(MetricsCollector(source, labels={"role": "backbone"}))
    assert count == 0, "to register must not read figures: the server may not run yet"
    assert registry.get_sample_value("quicflow_messages_sent_total", {"role": "backbone"}) == 1
    text = generate_latest(registry)
    assert value_of(text, "quicflow_messages_sent_total", role="backbone") == 2
    assert value_of(text, "quicflow_disconnects_total", role="backbone", reason="normal") == 1
    assert value_of(text, "quicflow_latency_seconds_bucket", role="backbone", le="0.1") == 1
    # A second one would give each series twice: the registry knows all names and refuses.
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(MetricsCollector(source, labels={"role": "other"}))


@pytest.mark.parametrize("name", ["le", "reason", "", "1st", "a-b", "__name__", "a\n"])
def test_a_label_that_would_spoil_the_text_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="labels: "):
        MetricsCollector(MetricsSnapshot, labels={name: "x"})
