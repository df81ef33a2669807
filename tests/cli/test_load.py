"""`quicflow load`: it counts what happened, and only that."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from quicflow_trio import MessageType
from quicflow_trio.cli import load_server
from quicflow_trio.cli.common import CommandFailed
from quicflow_trio.cli.load_run import Load, Report, percentile
from quicflow_trio.observe.metrics import MetricsSnapshot

from .conftest import SECONDS, Child, Quicflow

pytestmark = pytest.mark.realtime


def test_alone_it_starts_a_server_of_its_own(quicflow: Quicflow) -> None:
    ran = quicflow("load", "--messages", "300", "--clients", "3", "--depth", "8")
    assert (ran.code, ran.err) == (0, "")
    assert "300 messages (command, 200 bytes) from 3 clients to its own server, 8 under way per client" in ran.out
    for row in ("messages answered", "messages per second", "latency P50", "latency P99", "latency max", "time to connect"):
        assert row in ran.out
    rows = [" ".join(re.findall(r"[\w.-]+", line)) for line in ran.out.splitlines()]
    # Of all clients together.
    assert "requests acked timed out 300 300 0" in [row.replace(",", "") for row in rows]


@pytest.mark.parametrize("options", [("--type", "query"), ("--one-way",), ("--one-way", "--depth", "1")])
def test_json(quicflow: Quicflow, server: str, trust: tuple[str, str], options: tuple[str, ...]) -> None:
    ran = quicflow("load", server, *trust, "--messages", "101", "--size", "10", "--json", *options)
    said = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert (said["messages"], said["completed"], said["size"], said["errors"]) == (101, 101, 10, {})
    assert said["one_way"] is ("--one-way" in options)
    assert said["messages_per_second"] == pytest.approx(101 / said["seconds"])
    latency = said["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    metrics = said["metrics"]
    assert (metrics["messages_sent"], metrics["messages_failed"], metrics["total_connections"]) == (101, 0, 1)
    waited = 0 if said["one_way"] else 101
    assert (metrics["promise_created"], metrics["promise_completed"], metrics["latency"]["count"]) == (waited, waited, waited)
    assert 0 < said["connect_ms"]["p50"] <= said["connect_ms"]["max"]


def test_a_signal_ends_a_run_that_is_too_long(start: Callable[..., Child], server: str, trust: tuple[str, str]) -> None:
    load = start("load", server, *trust, "--messages", "100000000", "--log-level", "info")
    load.line("new=connected", stderr=True)
    load.process.terminate()
    ended = load.end()
    assert (ended.code, ended.out) == (143, "")


def test_errors_are_listed_and_fail_the_command(
    quicflow: Quicflow, server: str, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no option for what is sent; this server's handler fails for this.
    monkeypatch.setattr("quicflow_trio.cli.load.FILLING", b"fail")
    ran = quicflow("load", server, *trust, "--messages", "9", "--size", "4")
    assert ran.code == 1
    rows = [" ".join(re.findall(r"[\w.-]+", line)) for line in ran.out.splitlines()]
    assert {"messages answered 0", "latency P50 -", "errors 9", "HandlerFailed 9"} <= set(rows)


async def test_a_message_that_fails_is_no_latency(server: str, trust: tuple[str, str]) -> None:
    from quicflow_trio.cli.common import ClientTLS, parse_address
    from quicflow_trio.cli.load_run import Run

    def plan(payload: bytes, *, one_way: bool) -> Load:
        return Load(
            clients=2,
            messages=7,
            depth=2,
            payload=payload,
            type=MessageType.COMMAND,
            one_way=one_way,
            id="errors",
            timeout=5,
        )

    tls = ClientTLS(ca=Path(trust[1])).config()
    report = await Run(plan(b"fail", one_way=False), parse_address(server), tls).run()
    assert (report.completed, report.errors, report.latency_ms["P50"]) == (0, {"HandlerFailed": 7}, None)
    report = await Run(plan(bytes(1_048_577), one_way=True), parse_address(server), tls).run()
    assert (report.completed, report.errors) == (0, {"PayloadTooLarge": 7})


def test_nobody_there_is_exit_code_3(quicflow: Quicflow, trust: tuple[str, str]) -> None:
    ran = quicflow("load", "127.0.0.1:9", *trust, "--clients", "2", "--timeout", "0.3")
    assert (ran.code, ran.out) == (3, "")
    # Two clients, one line.
    assert ran.err.count("no connection to 127.0.0.1:9") == 1


@pytest.mark.parametrize("options", [("--clients", "0"), ("--depth", "30000"), ("--size", "1048577"), ("--type", "response")])
def test_values_out_of_range_are_exit_code_2(quicflow: Quicflow, options: tuple[str, str]) -> None:
    ran = quicflow("load", "localhost", *options)
    assert ran.code == 2
    assert options[1] in ran.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar(
    quicflow: Quicflow, server: str, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert quicflow("load", server, *trust, "--messages", "50").code == 0
    assert "messages" in terminal.getvalue()
    assert "50/50" in terminal.getvalue()


async def test_a_server_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_server, "HOST", "192.0.2.1")  # nobody's address (RFC 5737)
    with pytest.raises(CommandFailed, match="the server did not start"):
        async with load_server.own_server():
            raise AssertionError("unreachable")


async def test_a_server_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_server, "STOP_SECONDS", 0.1)
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    await load_server._stop(process)
    assert process.returncode == -signal.SIGKILL


def children(parent: int) -> list[Path]:
    """Return the folders in /proc of a process's children."""
    return [status.parent for status in Path("/proc").glob("[0-9]*/status") if f"\nPPid:\t{parent}\n" in status.read_text()]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
def test_the_server_goes_when_the_generator_is_killed(start: Callable[..., Child]) -> None:
    load = start("load", "--messages", "100000000", "--log-level", "info")
    load.line("new=connected", stderr=True)
    (child,) = children(load.process.pid)
    load.process.kill()
    load.process.wait(SECONDS)
    until = time.monotonic() + SECONDS
    # A process that has ended but that nobody has waited for has an empty command line.
    while (child / "cmdline").exists() and (child / "cmdline").read_bytes():
        assert time.monotonic() < until, "the server is still there"
        time.sleep(0.05)


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (1.0, 4)])
def test_percentiles_are_values_that_occurred(share: float, value: int) -> None:
    assert percentile([1, 2, 3, 4], share) == value


def test_a_report_of_nothing_divides_by_nothing() -> None:
    plan = Load(clients=1, messages=1, depth=1, payload=b"", type=MessageType.EVENT, one_way=False, id="a", timeout=1)
    assert Report(plan, 0, 0.0, (), (), {"AckTimeout": 1}, MetricsSnapshot()).messages_per_second == 0
