"""The monitoring example: every metric name that it uses exists, its files are sound, and its server runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from quicflow_trio import DisconnectReason, MetricsSnapshot
from quicflow_trio.observe.prometheus import metrics_text

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "monitoring"

# What Prometheus itself adds to a scraped series.
TARGET_LABELS = {"job", "instance"}
# PromQL: a name, perhaps with matchers in braces; and the labels of an aggregation or a join.
SERIES = re.compile(r"(?<![\w:])(quicflow_[a-z0-9_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def series() -> dict[str, set[str]]:
    """Return the labels of every series that a server gives, by the series' name."""
    names = {declared.name for declared in fields(MetricsSnapshot) if declared.metadata.get("label")}
    snapshot = MetricsSnapshot(**{name: {"any": 1} for name in names})  # type: ignore[arg-type]
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics_text(snapshot).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((EXAMPLE / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLE / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return loaded


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every PromQL expression with where it stands."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def mistakes(expression: str, known: dict[str, set[str]]) -> list[str]:
    """Return the names and labels in an expression that no server gives."""
    found, labels = [], set(TARGET_LABELS)
    for name, matchers in SERIES.findall(expression):
        if name not in known:
            found.append(f"no series {name}")
            continue
        labels |= known[name]
        found += [f"no label {key} on {name}" for key in MATCHER.findall(matchers) if key not in known[name] | TARGET_LABELS]
    for group in GROUPING.findall(expression):
        found += [f"no label {key.strip()}" for key in group.split(",") if key.strip() not in labels]
    return found


# -- names ------------------------------------------------------------------------------------------------------------
def test_every_name_and_label_that_is_used_exists() -> None:
    known = series()
    assert {where: found for where, expression in expressions() if (found := mistakes(expression, known))} == {}


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("rate(quicflow_bytes_sent_total[5m]) > 1", []),
        ("rate(quicflow_bytes_sent[5m])", ["no series quicflow_bytes_sent"]),
        ('quicflow_disconnects_total{reason="x", side="y"}', ["no label side on quicflow_disconnects_total"]),
        ('quicflow_lanes{reason!~"x"}', ["no label reason on quicflow_lanes"]),
        ("sum by (instance, reason) (quicflow_lanes)", ["no label reason"]),
        ("sum by (le) (rate(quicflow_latency_seconds_bucket[5m]))", []),
    ],
)
def test_the_check_sees_what_it_is_for(expression: str, found: list[str]) -> None:
    assert mistakes(expression, series()) == found


def test_the_dashboard_shows_every_counter() -> None:
    # One that nobody sees is one that nobody checks. The percentiles since the start stand beside the histogram on purpose.
    text = " ".join(expression for _, expression in expressions())
    shown = {name for name, _ in SERIES.findall(text)}
    unseen = {name for name in series() if name not in shown and not name.startswith("quicflow_latency_seconds")}
    assert unseen == {
        "quicflow_average_latency_seconds",
        "quicflow_p50_latency_seconds",
        "quicflow_p95_latency_seconds",
        "quicflow_p99_latency_seconds",
        "quicflow_timestamp_seconds",
    }


def test_reasons_in_the_alerts_are_reasons() -> None:
    known = {f"{side}:{reason.value}" for side in ("client", "server") for reason in DisconnectReason}
    used = re.findall(r'reason(=~|!~|!=|=)"([^"]*)"', " ".join(expression for _, expression in expressions()))
    assert used
    for operator, value in used:
        for alternative in re.sub(r"^\.\*:\((.*)\)$", r"\1", value).split("|") if "~" in operator else [value]:
            assert any(reason in (alternative, f"client:{alternative}") for reason in known), alternative


# -- files ------------------------------------------------------------------------------------------------------------
def test_each_alert_says_what_it_means() -> None:
    names = Counter(rule["alert"] for rule in rules())
    assert [name for name, count in names.items() if count > 1] == []
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys(), rule["alert"]
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"], rule["alert"]


def test_prometheus_scrapes_where_the_server_answers() -> None:
    config = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text(encoding="utf-8"))
    assert [(EXAMPLE / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("quicflow", "/metrics")
    (target,) = job["static_configs"][0]["targets"]
    assert f'default="{target}"' in (EXAMPLE / "server.py").read_text(encoding="utf-8")


def test_the_dashboard_s_panels_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    assert len({panel["title"] for panel in panels}) == len(panels)

    def apart(one: dict[str, int], other: dict[str, int]) -> bool:
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        return beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]

    places = {panel["title"]: panel["gridPos"] for panel in panels}
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places.values())
    assert [(a, b) for a, b in combinations(places, 2) if not apart(places[a], places[b])] == []


def test_the_dashboard_names_no_data_source_of_ours() -> None:
    # The one of who imports it is chosen above the panels; a fixed one would show "not found" everywhere.
    board = dashboard()
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["instance"]["definition"] == "label_values(quicflow_uptime_seconds, instance)"
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert sources == [{"type": "prometheus", "uid": "${datasource}"}] * len(sources), panel["title"]
        assert panel["description"], panel["title"]
        assert panel["type"] == "heatmap" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.realtime
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; it comes with Prometheus")
@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules alerts_test.yml"])
def test_promtool_is_content(command: str) -> None:
    run = subprocess.run(["promtool", *command.split()], cwd=EXAMPLE, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


# -- the server -------------------------------------------------------------------------------------------------------
def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


@pytest.mark.realtime
@pytest.mark.parametrize("by", ["a signal", "an operator"])
def test_the_server_runs_and_stops(tmp_path: Path, by: str) -> None:
    # From another folder, with warnings as errors, like the other examples.
    command = [
        sys.executable,
        "-W",
        "error",
        str(EXAMPLE / "server.py"),
        "--clients=3",
        "--port=0",
        "--ops=127.0.0.1:0",
        "--json",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "LOG_LEVEL"}
    environment["QUICFLOW_OPS_TOKEN"] = "open-sesame"
    log = tmp_path / "log.jsonl"
    # The log goes to a file: a pipe that nobody reads would stop the server once it is full.
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as server,
    ):
        try:
            assert server.stdout is not None
            announced = re.fullmatch(r"ops side on (http://127\.0\.0\.1:\d+); Ctrl-C stops\n", server.stdout.readline())
            assert announced is not None
            until = time.monotonic() + 30
            figures = {"quicflow_connected_clients": 0.0, "quicflow_promise_completed_total": 0.0}
            while min(figures["quicflow_connected_clients"] / 3, figures["quicflow_promise_completed_total"]) < 1:
                assert time.monotonic() < until, figures
                time.sleep(0.1)
                text = fetch(announced[1] + "/metrics")
                figures = {
                    sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
                }
            if by == "a signal":
                server.send_signal(signal.SIGINT)
            else:
                drain = urllib.request.Request(announced[1] + "/drain", b"{}", {"Authorization": "Bearer open-sesame"})
                urllib.request.urlopen(drain, timeout=10).close()
            out, _ = server.communicate(timeout=30)
        finally:
            server.kill()
    err = log.read_text(encoding="utf-8")
    assert (server.returncode, out) == (0, "draining\ndrained\n" if by == "a signal" else "drained\n"), err
    logged = [json.loads(line) for line in err.splitlines()]
    assert {"listening", "client connected", "draining", "client disconnected", "stopped"} <= {line["event"] for line in logged}
    audited = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {entry["kind"] for entry in audited} == {"connect", "disconnect"}
    assert {entry["client_id"] for entry in audited} == {"sensor-000", "sensor-001", "sensor-002"}


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("arguments", "level", "said"),
    [
        (["--help"], "info", ""),
        (["--ops=nowhere"], "info", "server.py: OpsConfig.address = 'nowhere': expected HOST:PORT"),
        ([], "loud", "server.py: LOG_LEVEL = 'loud': expected one of debug, info"),
    ],
)
def test_the_server_explains_itself(tmp_path: Path, arguments: list[str], level: str, said: str) -> None:
    command = [sys.executable, str(EXAMPLE / "server.py"), *arguments]
    environment = {**os.environ, "LOG_LEVEL": level}
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert run.returncode == bool(said)
    assert run.stderr.startswith(said)
    assert len(run.stderr.splitlines()) == bool(said)
