"""The ops commands with a real server: `quicflow serve --ops` in a process of its own, and real clients."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Child, Quicflow

pytestmark = pytest.mark.realtime

Start = Callable[..., Child]
TOKEN = "a-token-of-the-tests"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICFLOW_OPS", "QUICFLOW_OPS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files(certificates: Path) -> tuple[str, ...]:
    return ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))


@pytest.fixture
def serving_ops(start: Start, files: tuple[str, ...]) -> tuple[Child, str, str]:
    """A server: its process, its address, and its ops URL."""
    child = start("serve", "--json", "--port", "0", "--ops", "127.0.0.1:0", "--ops-token", TOKEN, "--log-level", "error", *files)
    said = json.loads(child.line("port"))
    return child, f"{said['host']}:{said['port']}", said["ops_url"]


def connected(start: Start, address: str, client_id: str, trust: tuple[str, str]) -> Child:
    client = start("connect", address, "--id", client_id, *trust)
    client.line("* connected")
    return client


def test_looking_at_a_server(
    serving_ops: tuple[Child, str, str], start: Start, quicflow: Quicflow, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address, url = serving_ops
    monkeypatch.setenv("QUICFLOW_OPS", url)
    connected(start, address, "ada", trust)
    connected(start, address, "a/b c?\u00e4", trust)
    said = json.loads(quicflow("clients", "--sort", "client_id", "--json").out)
    assert [client["client_id"] for client in said["clients"]] == ["a/b c?\u00e4", "ada"]
    ran = quicflow("clients", "--filter", "ADA")
    assert ran.out.splitlines()[1].startswith("ada     connected  127.0.0.1:")
    # An id may hold what means something in a URL.
    said = json.loads(quicflow("client", "a/b c?\u00e4", "--json").out)
    assert said["history"][0]["change"] == "connected"
    ran = quicflow("client", "nobody")
    assert (ran.code, ran.err.startswith("quicflow: no such client: 'nobody' is neither connected nor")) == (1, True)
    ran = quicflow("top", "--once", "--interval", "0.5")
    assert (ran.code, ran.err) == (0, "")
    assert "● ready  2 clients" in ran.out
    assert re.search(r"● ada +127\.0\.0\.1:\d+ ", ran.out)
    said = json.loads(quicflow("top", "--once", "--json").out)
    assert (said["ready"], said["metrics"]["connected_clients"]) == (True, 2)


def test_speaking_through_a_server(
    serving_ops: tuple[Child, str, str], start: Start, quicflow: Quicflow, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address, url = serving_ops
    monkeypatch.setenv("QUICFLOW_OPS", url)
    ada, ben = connected(start, address, "ada", trust), connected(start, address, "ben", trust)
    ran = quicflow("send", "ada", "without a token")
    assert (ran.code, "QUICFLOW_OPS_TOKEN" in ran.err) == (3, True)
    ran = quicflow("send", "ada", "with another's", "--token", "guess")
    assert (ran.code, ran.err.startswith("quicflow: the token given is not the server's")) == (3, True)
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", TOKEN)
    assert quicflow("send", "ada", "lunch").out.startswith("queued as ")
    ada.line("event from server: lunch")
    ran = quicflow("send", "ada", "how are you?", "--request", "--type", "query")
    assert (ran.code, ran.out, ran.err) == (0, "", "acked, no result\n")
    ada.line("query from server: how are you?")
    ran = quicflow("send", "nobody", "x", "--request", "--json")
    assert (ran.code, json.loads(ran.out)["status"]) == (1, "failed")
    assert quicflow("broadcast", "all", "--ack-timeout", "5").out.startswith("queued for 2 clients, answered by 2\n")
    ben.line("event from server: all")
    ran = quicflow("broadcast", "some", "--to", "ben", "--to", "zoe")
    assert (ran.code, ran.out) == (1, "queued for 1 client\n  zoe: ClientNotConnected: client 'zoe' is not connected\n")


def test_what_happens_is_told(
    serving_ops: tuple[Child, str, str], start: Start, quicflow: Quicflow, trust: tuple[str, str]
) -> None:
    server, address, url = serving_ops
    options = ("--ops", url, "--token", TOKEN)

    def listeners() -> int:
        return int(json.loads(quicflow("top", "--json", "--once", *options).out)["metrics"]["event_subscribers"])

    before = listeners()
    follower = start("events", "--follow", "--json", *options)
    for _ in range(100):
        if listeners() > before:
            break
        time.sleep(0.1)
    ada = connected(start, address, "ada", trust)
    assert '"client_id": "ada"' in follower.line('"connect"')
    assert quicflow("disconnect", "ada", "--reason", "cleaning day", *options).code == 0
    ada.line("cleaning day")
    ended = json.loads(follower.line('"disconnect"'))
    assert (ended["client_id"], ended["detail"], ended["by_peer"]) == ("ada", "cleaning day", False)
    said = json.loads(quicflow("client", "ada", *options, "--json").out)
    # As `quicflow client --help` says.
    ends = [change["change"] for change in said["history"] if change["detail"] == "cleaning day"]
    assert ends == ["closed", "disconnected"]
    assert quicflow("drain", "--grace", "0.5", *options).out == "the server drains, for at most 0.5 s\n"
    follower.line("draining")
    # The server's process ends with it.
    assert server.end().code == 0
    assert "trying again" in follower.line("trying again", stderr=True)


def test_a_server_with_an_empty_token_has_none(
    start: Start, files: tuple[str, ...], quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", "")
    server = start("serve", "--json", "--port", "0", "--ops", "127.0.0.1:0", "--log-level", "off", *files)
    ran = quicflow("drain", "--ops", json.loads(server.line("port"))["ops_url"])
    assert (ran.code, "this server has no token" in ran.err) == (3, True)


def test_what_is_wrong_with_the_ops_side_is_told(
    quicflow: Quicflow, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = quicflow("serve", "--port", "0", "--ops", "nonsense", *files)
    assert (ran.code, "HOST:PORT" in ran.err) == (2, True)
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", "two words")
    ran = quicflow("serve", "--port", "0", "--ops", "127.0.0.1:0", *files)
    assert (ran.code, "QUICFLOW_OPS_TOKEN: expected" in ran.err, "two words" in ran.err) == (2, True, False)
    monkeypatch.delenv("QUICFLOW_OPS_TOKEN")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = quicflow("serve", "--port", "0", "--ops", f"127.0.0.1:{taken.getsockname()[1]}", *files, "--log-level", "off")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "in use" in ran.err
