"""`quicflow clients`, `client`, `events`, `send`, `broadcast`, `disconnect`, `drain`, against a stand-in for the ops side."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from .conftest import SECONDS, Child, Quicflow
from .ops_stub import OpsStub, client_json

pytestmark = pytest.mark.realtime

TOKEN = ("--token", "secret")


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUICFLOW_OPS", "QUICFLOW_OPS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ops() -> Iterator[OpsStub]:
    stub = OpsStub()
    yield stub
    stub.stop()


def columns(line: str) -> list[str]:
    return line.split()


# -- clients -----------------------------------------------------------------------------------------------------------
def test_clients_are_listed_for_people_and_for_pipes(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [
        client_json("ada", rtt_ms=0.42, messages_sent=12_345, bytes_sent=2048, outbox_bytes=1536),
        client_json("evil\x1b[2J\n", rtt_ms=None),
    ]
    ran = quicflow("clients", "--ops", ops.address)
    assert (ran.code, ran.err) == (0, "")
    head, ada, evil = ran.out.splitlines()
    assert [*columns(head)[:5], columns(head)[-1]] == ["CLIENT", "STATE", "ADDRESS", "SINCE", "RTT", "PROTOCOL"]
    assert columns(ada) == [
        *("ada", "connected", "127.0.0.1:50000", "1h", "02m", "0.42", "12,345"),
        *("0", "0", "1.5K", "2.0K", "0", "quicflow/2"),
    ]
    # Nothing of a client's may reach the terminal as it came.
    assert evil.startswith(r"evil\x1b[2J\n  connected")


def test_a_terminal_that_is_narrow_gets_the_first_columns(start: Callable[..., Child], ops: OpsStub) -> None:
    ops.clients = [client_json("ada")]
    main, terminal = pty.openpty()
    try:
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        command = [sys.executable, "-m", "quicflow_trio.cli", "clients", "--ops", ops.address]
        subprocess.run(command, stdout=terminal, check=True, timeout=SECONDS, env=environment | {"TERM": "xterm"})
        said = os.read(main, 4096).decode()
    finally:
        os.close(main)
        os.close(terminal)
    assert "SINCE" in said
    assert "RECEIVED" not in said


def test_what_is_wanted_is_asked_of_the_server(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [client_json(f"c{number}", messages_sent=number) for number in range(5)]
    options = ("--filter", "C", "--state", "all", "--sort", "-messages_sent", "--limit", "2", "--json")
    ran = quicflow("clients", "--ops", f"http://{ops.address}/", *options)
    said = json.loads(ran.out)
    assert [client["client_id"] for client in said["clients"]] == ["c4", "c3"]
    assert (said["total"], said["limit"]) == (5, 2)
    assert ops.calls == [("GET", "/clients?filter=C&state=all&sort=-messages_sent&limit=2", None)]
    ran = quicflow("clients", "--ops", ops.address, "--limit", "2")
    assert ran.err == "2 of 5; --limit 5 shows all\n"


def test_a_long_list_is_put_together_from_pages(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [client_json(f"c{number:04}") for number in range(2300)]
    said = json.loads(quicflow("clients", "--ops", ops.address, "--limit", "2200", "--json").out)
    assert len({client["client_id"] for client in said["clients"]}) == 2200
    assert len(ops.calls) == 3


def test_no_clients_are_no_error(quicflow: Quicflow, ops: OpsStub) -> None:
    assert quicflow("clients", "--ops", ops.address).err == "no client is connected\n"
    ran = quicflow("clients", "--ops", ops.address, "--state", "gone", "--filter", "x")
    assert (ran.code, ran.out, ran.err) == (0, "", "no client that matches is known to have left\n")


def test_the_address_may_come_from_the_environment(quicflow: Quicflow, ops: OpsStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICFLOW_OPS", ops.address)
    # A proxy cannot reach this machine's loopback, so it is not asked.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert quicflow("clients").code == 0
    monkeypatch.setenv("QUICFLOW_OPS", "nowhere:x")
    ran = quicflow("clients")
    assert (ran.code, "nowhere:x" in ran.err) == (2, True)


def test_one_client_with_its_history(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [client_json("ada", messages_received=7), client_json("ben", state="gone")]
    ops.history = [
        {"at": 1_700_000_000.0, "change": "connected", "detail": "127.0.0.1:5"},
        {"at": 1_700_000_100.0, "change": "disconnected", "detail": "idle\x1b[0m"},
    ]
    ran = quicflow("client", "ada", "--ops", ops.address)
    assert (ran.code, ran.err) == (0, "")
    assert "state       connected, 127.0.0.1:50000" in ran.out
    assert "round trip  0.42 ms, last heartbeat 5s ago" in ran.out
    assert "received    7 messages, 0 failed, 0 bytes" in ran.out
    assert ran.out.splitlines()[-1].endswith(r"disconnected  idle\x1b[0m")
    ran = quicflow("client", "ben", "--ops", ops.address)
    assert ran.out.splitlines()[:2] == ["client  ben", "state   gone"]
    assert json.loads(quicflow("client", "ben", "--ops", ops.address, "--json").out)["history"] == ops.history
    ran = quicflow("client", "zoe", "--ops", ops.address)
    assert (ran.code, ran.err) == (1, "quicflow: nothing is known of /clients/zoe\n")
    ran = quicflow("client", "zoe", "--ops", ops.address, "--json")
    assert (ran.code, ran.err) == (1, "")
    assert json.loads(ran.out) == {"ok": False, "status": "failed", "error": "nothing is known of /clients/zoe"}


# -- commands ----------------------------------------------------------------------------------------------------------
def test_send(quicflow: Quicflow, ops: OpsStub, stdin: Callable[[bytes], None]) -> None:
    ops.answers["POST", "/clients/a%2Fb/send"] = (200, {"message_id": "0a" * 16})
    ran = quicflow("send", "a/b", "hello", "--lane", "bulk", "--ops", ops.address, *TOKEN)
    assert (ran.code, ran.out, ran.err) == (0, f"queued as {'0a' * 16}\n", "")
    assert ops.calls[-1][2] == {"type": "event", "lane": "bulk", "payload": "hello"}
    stdin(b"\xff\x00")
    ran = quicflow("send", "a/b", "-", "--type", "query", "--ops", ops.address, *TOKEN, "--json")
    assert json.loads(ran.out) == {"ok": True, "status": "ok", "message_id": "0a" * 16}
    assert ops.calls[-1][2] == {"type": "query", "lane": "", "payload_base64": "/wA="}


def test_send_with_a_request(quicflow: Quicflow, ops: OpsStub) -> None:
    answer = {"message_id": "00", "status": "success", "result": None, "result_base64": "/wA=", "latency_ms": 1.5}
    ops.answers["POST", "/clients/ada/request"] = (200, answer)
    command = ("send", "ada", "x", "--request", "--ops", ops.address, *TOKEN)
    assert json.loads(quicflow(*command, "--json").out) == answer | {"ok": True, "status": "ok"}
    assert ops.calls[-1][2]["ack_timeout"] == 5.0
    ops.answers["POST", "/clients/ada/request"] = (200, answer | {"result_base64": "SEk="})
    assert quicflow(*command, "--ack-timeout", "0.5").out == "HI\n"
    assert ops.calls[-1][2]["ack_timeout"] == 0.5
    ops.answers["POST", "/clients/ada/request"] = (200, answer | {"result_base64": ""})
    ran = quicflow(*command)
    assert (ran.code, ran.out, ran.err) == (0, "", "acked, no result\n")
    ops.answers["POST", "/clients/ada/request"] = (200, answer | {"result_base64": "?"})
    ran = quicflow(*command)
    assert (ran.code, "unexpected answer" in ran.err) == (3, True)
    ran = quicflow("send", "ada", "x", "--ack-timeout", "1", "--ops", ops.address)
    assert (ran.code, "--request" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("status", "type", "code"),
    [
        (504, "AckTimeout", 4),
        (502, "HandlerFailed", 1),
        (404, "ClientNotConnected", 1),
        (409, "ConnectionLost", 3),
        (503, "SlowConsumer", 1),
        (413, "PayloadTooLarge", 2),
        (400, "BadRequest", 2),
        (403, "Forbidden", 3),
    ],
)
def test_each_refusal_has_its_exit_code(quicflow: Quicflow, ops: OpsStub, status: int, type: str, code: int) -> None:
    ops.answers["POST", "/clients/ada/request"] = (status, {"error": {"type": type, "message": "no\x1b[31m way"}})
    command = ("send", "ada", "x", "--request", "--ops", ops.address, *TOKEN)
    ran = quicflow(*command)
    assert (ran.code, ran.out, ran.err) == (code, "", "quicflow: no\\x1b[31m way\n")
    ran = quicflow(*command, "--json")
    if code == 2:
        assert (ran.code, ran.out) == (2, "")
    else:
        assert (ran.code, json.loads(ran.out)["ok"]) == (code, False)


def test_broadcast(quicflow: Quicflow, ops: OpsStub) -> None:
    answer = {"message_id": "00", "sent": 2, "acked": {"ada": {"result": "A", "result_base64": "QQ=="}}, "failed": {}}
    ops.answers["POST", "/broadcast"] = (200, answer)
    ran = quicflow("broadcast", "hi", "--to", "ada", "--to", "ben", "--ack-timeout", "2", "--ops", ops.address, *TOKEN)
    assert (ran.code, ran.out) == (0, "queued for 2 clients, answered by 1\n  ada: A\n")
    assert ops.calls[-1][2] == {"type": "event", "to": ["ada", "ben"], "ack_timeout": 2.0, "payload": "hi"}
    ops.answers["POST", "/broadcast"] = (200, answer | {"acked": {"ada": {"result": "", "result_base64": ""}}})
    assert quicflow("broadcast", "hi", "--ops", ops.address, *TOKEN).out.endswith("\n  ada: acked, no result\n")
    ops.answers["POST", "/broadcast"] = (200, answer)
    answer["failed"] = {"b\x1b": {"type": "AckTimeout", "message": "no ack within 2 s"}}
    ran = quicflow("broadcast", "hi", "--ops", ops.address, *TOKEN)
    assert (ran.code, ran.out) == (1, "queued for 2 clients\n  ada: A\n  b\\x1b: AckTimeout: no ack within 2 s\n")
    assert ops.calls[-1][2] == {"type": "event", "to": None, "ack_timeout": None, "payload": "hi"}
    said = json.loads(quicflow("broadcast", "hi", "--ops", ops.address, *TOKEN, "--json").out)
    assert (said["ok"], said["status"], said["sent"]) == (False, "failed", 2)
    mistakes: tuple[dict[str, object], ...] = ({"sent": "2"}, {"acked": []}, {"failed": {"ada": "no"}})
    for wrong in mistakes:
        ops.answers["POST", "/broadcast"] = (200, answer | wrong)
        ran = quicflow("broadcast", "hi", "--ops", ops.address, *TOKEN)
        assert (ran.code, "unexpected answer" in ran.err) == (3, True)


def test_disconnect_and_drain(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.answers["POST", "/clients/ada/disconnect"] = (200, {"client_id": "ada", "disconnected": True})
    ops.answers["POST", "/drain"] = (202, {"draining": True})
    ran = quicflow("disconnect", "ada", "--reason", "new certificate", "--ops", ops.address, *TOKEN)
    assert (ran.code, ran.out) == (0, "ada is disconnected\n")
    assert ops.calls[-1][2] == {"reason": "new certificate"}
    assert json.loads(quicflow("disconnect", "ada", "--ops", ops.address, *TOKEN, "--json").out)["disconnected"] is True
    assert ops.calls[-1][2] == {}
    ran = quicflow("drain", "--grace", "1.5", "--ops", ops.address, *TOKEN)
    assert (ran.code, ran.out) == (0, "the server drains, for at most 1.5 s\n")
    assert ops.calls[-1][2] == {"grace": 1.5, "retry_after": 1.0}
    assert json.loads(quicflow("drain", "--ops", ops.address, *TOKEN, "--json").out)["draining"] is True


# -- what can go wrong -------------------------------------------------------------------------------------------------
def test_a_missing_token_is_explained(quicflow: Quicflow, ops: OpsStub, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = quicflow("drain", "--ops", ops.address)
    assert ran.code == 3
    assert ran.err.splitlines() == [
        "quicflow: this needs the bearer token",
        "hint: give the server's token with --token, or in the environment as QUICFLOW_OPS_TOKEN",
    ]
    said = json.loads(quicflow("drain", "--ops", ops.address, "--json").out)
    assert said == {"ok": False, "status": "no_connection", "error": "this needs the bearer token"}
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", "secret")
    ops.answers["POST", "/drain"] = (202, {"draining": True})
    assert quicflow("drain", "--ops", ops.address).code == 0


@pytest.mark.parametrize("token", ["sec\nret", "two words", "\u00e9", "x" * 1025])
def test_a_token_that_cannot_be_one_is_told_by_where_it_came_from(
    quicflow: Quicflow, ops: OpsStub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    problem = "expected 1 to 1,024 visible ASCII characters without spaces\n"
    ran = quicflow("clients", "--ops", ops.address, "--token", token)
    assert (ran.code, ran.out, ran.err) == (2, "", f"quicflow: --token: {problem}")
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", token)
    ran = quicflow("clients", "--ops", ops.address)
    assert (ran.code, ran.err) == (2, f"quicflow: QUICFLOW_OPS_TOKEN: {problem}")
    assert quicflow("serve", "--ops", "127.0.0.1:0").err == f"quicflow: QUICFLOW_OPS_TOKEN: {problem}"
    assert quicflow("serve", "--ops", "127.0.0.1:0", "--ops-token", token).err == f"quicflow: --ops-token: {problem}"
    assert ops.calls == []


def test_an_empty_token_is_none(quicflow: Quicflow, ops: OpsStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICFLOW_OPS_TOKEN", "")
    assert quicflow("clients", "--ops", ops.address).code == 0
    ran = quicflow("drain", "--ops", ops.address)
    assert (ran.code, "this needs the bearer token" in ran.err) == (3, True)
    ops.answers["POST", "/drain"] = (202, {"draining": True})
    assert quicflow("drain", "--ops", ops.address, *TOKEN).code == 0


def test_nobody_there_is_explained(quicflow: Quicflow) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for command in (("clients",), ("client", "a"), ("events", "--follow"), ("top",), ("send", "a", "x")):
            problem = f"cannot connect to http://{address}: Connection refused"
            ran = quicflow(*command, "--ops", address)
            assert (ran.code, ran.out) == (3, "")
            assert ran.err.startswith(f"quicflow: {problem}\nhint: is the server running")
            # For programs the same object, whether they read or command.
            ran = quicflow(*command, "--ops", address, "--json")
            assert (ran.code, ran.err) == (3, "")
            assert json.loads(ran.out) == {"ok": False, "status": "no_connection", "error": problem}
    ran = quicflow("clients", "--sort", "beauty")
    assert (ran.code, "is none of connected_at" in ran.err) == (2, True)
    ran = quicflow("clients", "--ops", "nobody.invalid")
    assert (ran.code, "cannot connect" in ran.err) == (3, True)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", "unexpected answer: not JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "unexpected answer: clients is no list"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP 404 Not Found"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n", "HTTP 302 Found"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20000000\r\n\r\n" + b" " * 17_000_000, "more than 16,777,216 bytes"),
    ],
)
def test_another_server_is_recognised(quicflow: Quicflow, ops: OpsStub, raw: bytes, problem: str) -> None:
    ops.raw = raw
    ran = quicflow("clients", "--ops", ops.address)
    assert ran.code in (1, 3)
    assert problem in ran.err
    assert "Traceback" not in ran.err


def test_a_server_that_does_not_answer_is_a_timeout(quicflow: Quicflow) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = quicflow("clients", "--ops", address, "--timeout", "0.3")
        assert (ran.code, ran.err) == (4, f"quicflow: http://{address}: no answer within 0.3 s\n")
        ran = quicflow("events", "--ops", address, "--timeout", "0.3", "--count", "1")
        assert ran.code == 4


def test_a_wrong_scheme_is_explained(quicflow: Quicflow, ops: OpsStub) -> None:
    ran = quicflow("clients", "--ops", f"https://{ops.address}")
    assert (ran.code, "http://, not https://" in ran.err) == (3, True)


# -- events ------------------------------------------------------------------------------------------------------------
def test_events_for_people(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.emit("connect", client_id="ada", remote_address=["127.0.0.1", 5])
    ops.emit("disconnect", client_id="b\x1b", reason="normal", detail="", by_peer=True)
    ran = quicflow("events", "--count", "2", "--ops", ops.address, "--kind", "connect", "--kind", "disconnect", "--client", "a b")
    assert (ran.code, ran.err) == (0, "")
    first, second = ran.out.splitlines()
    assert columns(first)[1:] == ["connect", "ada", "from", "127.0.0.1:5"]
    assert columns(second)[1:3] == ["disconnect", r"b\x1b"]
    assert ops.calls[-1][1] == "/events?kind=connect&kind=disconnect&client_id=a+b"
    ran = quicflow("events", "--kind", "nonsense", "--ops", ops.address)
    assert (ran.code, "is none of connect, disconnect" in ran.err) == (2, True)


def test_events_as_json(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.emit("connect", client_id="ada", remote_address=["127.0.0.1", 5])
    ops.events.append(b'event: dropped\ndata: {"dropped": 3}\n\n')
    ran = quicflow("events", "--for", "0.5", "--json", "--ops", ops.address)
    connect, dropped = map(json.loads, ran.out.splitlines())
    assert (ran.code, connect["kind"], connect["remote_address"]) == (0, "connect", ["127.0.0.1", 5])
    assert dropped == {"kind": "dropped", "dropped": 3}
    # Too few in time.
    assert quicflow("events", "--for", "0.3", "--count", "2", "--ops", ops.address).code == 4


def test_following_survives_a_lost_stream(start: Callable[..., Child], ops: OpsStub) -> None:
    child = start("events", "--follow", "--ops", ops.address)
    ops.emit("connect", client_id="ada", remote_address=["127.0.0.1", 5])
    child.line("connect")
    ops.raw = b"gone"
    ops.hang_up()
    assert "has ended the stream; trying again" in child.line("trying again", stderr=True)
    ops.raw = None
    child.line("again", stderr=True)
    ops.emit("connect", client_id="ben", remote_address=["127.0.0.1", 5])
    child.line("ben")
    child.process.send_signal(signal.SIGINT)
    ended = child.end()
    assert (ended.code, "Traceback" in ended.err) == (0, False)


def test_a_stream_that_ends_is_an_error_without_follow(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.raw = b'HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\nevent: newer\ndata: {"a": 12}\n\n'
    ran = quicflow("events", "--for", "20", "--ops", ops.address)
    assert (ran.code, columns(ran.out)) == (3, ["-", "newer", "-", "a", "12"])
    assert "has ended the stream" in ran.err


def test_a_reader_that_leaves_is_no_error(start: Callable[..., Child], ops: OpsStub) -> None:
    ops.clients = [client_json("ada")]
    ops.emit("connect", client_id="ada", remote_address=["127.0.0.1", 5])
    for command in (
        ("clients",),
        ("client", "ada"),
        ("events", "--follow"),
        ("top", "--once", "--interval", "0.2"),
        ("top", "--json"),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        child = start(*command, "--ops", ops.address, stdout=writer)
        os.close(writer)
        ended = child.end()
        assert (ended.code, ended.err) == (141, "")
