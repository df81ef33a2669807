"""`quicflow serve`, in a process of its own, as it is used."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Child, Quicflow

pytestmark = pytest.mark.realtime

Serving = Callable[..., tuple[Child, str]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_tells_the_clients(
    serving: Serving, start: Callable[..., Child], trust: tuple[str, str], number: signal.Signals
) -> None:
    server, address = serving("--log-level", "info")
    client = start("connect", address, "--id", "watcher", *trust)
    client.line("* connected")
    server.process.send_signal(number)
    client.line("* idle (server shutdown)")
    ended = server.end()
    assert ended.code == 0
    assert "draining grace=10.0 sessions=1" in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    client.process.send_signal(signal.SIGINT)
    assert client.end().code == 0


def test_a_second_signal_does_not_wait_for_the_drain(
    serving: Serving, start: Callable[..., Child], trust: tuple[str, str]
) -> None:
    server, address = serving("--grace", "3600")
    client = start("connect", address, "--id", "frozen", *trust)
    client.line("* connected")
    # A client that does not answer is what a drain waits for.
    client.process.send_signal(signal.SIGSTOP)
    try:
        server.process.terminate()
        server.line("draining", stderr=True)
        server.process.terminate()
        assert server.end().code == 0
    finally:
        client.process.send_signal(signal.SIGCONT)


def test_the_end_of_input_stops_a_scripts_server(start: Callable[..., Child], certificates: Path) -> None:
    files = ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
    server = start("serve", "--port", "0", "--until-eof", *files, "--log-level", "off")
    server.line("listening on 127.0.0.1:")
    ended = server.end()  # closes its standard input
    assert (ended.code, ended.err) == (0, "")


def test_handlers_and_the_log_of_events(serving: Serving, quicflow: Quicflow, trust: tuple[str, str]) -> None:
    server, address = serving()
    common = ("--id", "tester", *trust)
    assert quicflow("request", address, "Hello", *common).out == "HELLO\n"
    assert quicflow("request", address, "Hello", *common, "--type", "query").out == "Hello\n"
    ran = quicflow("request", address, "line\nbreak", *common, "--type", "event")
    assert (ran.code, ran.out, ran.err) == (0, "", "acked, no result\n")
    # One line, whatever the client sends.
    assert r"client_id=tester text=line\nbreak" in server.line("event ", stderr=True)
    server.process.terminate()
    assert server.end().code == 0


def test_the_level_of_the_log_comes_from_the_environment(
    serving: Serving, quicflow: Quicflow, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    server, address = serving()
    assert quicflow("request", address, "e", "--id", "a", *trust, "--type", "event").code == 0
    server.process.terminate()
    assert server.end().err == ""


def test_clients_without_a_certificate_are_refused_when_one_is_required(
    serving: Serving, quicflow: Quicflow, certificates: Path, trust: tuple[str, str]
) -> None:
    _, address = serving("--client-ca", str(certificates / "ca.pem"))
    refused = quicflow("request", address, "x", "--id", "member", *trust)
    assert refused.code == 3
    shown = ("--cert", str(certificates / "client-member.pem"), "--key", str(certificates / "client-member.key"))
    assert quicflow("request", address, "x", "--id", "member", *trust, *shown).out == "X\n"


def test_a_missing_certificate_is_explained(quicflow: Quicflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = quicflow("serve")
    assert ran.code == 2
    assert ran.err.startswith("quicflow: certs/server.pem: no such file\n")
    assert "quicflow certs" in ran.err


def test_a_port_in_use_is_one_line(quicflow: Quicflow, certificates: Path) -> None:
    files = ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        ran = quicflow("serve", *files, "--port", str(port))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"quicflow: cannot bind UDP 127.0.0.1 port {port}: {os.strerror(98)}\n"
