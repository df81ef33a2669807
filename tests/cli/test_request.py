"""`quicflow request`: the answer on standard output, and an exit code for each way to have none."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Child, Quicflow

pytestmark = pytest.mark.realtime


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def test_the_result_is_printed_as_it_came(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", server, "hello", "--id", "a", *trust)
    assert (ran.code, ran.out, ran.err) == (0, "HELLO\n", "")


def test_a_payload_may_begin_with_a_hyphen(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    assert quicflow("request", server, "--id", "a", *trust, "--", "--debug").out == "--DEBUG\n"


def test_the_payload_may_come_from_standard_input(
    quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Callable[[bytes], None]
) -> None:
    stdin(b"from a pipe\n")
    assert quicflow("request", server, "-", "--id", "a", *trust, "--type", "query").out == "from a pipe\n\n"


def test_json_has_the_result_and_the_time(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", server, "hello", "--id", "a", *trust, "--json")
    said = json.loads(ran.out)
    assert said.pop("seconds") > 0
    assert (ran.code, said) == (0, {"ok": True, "status": "ok", "result": "HELLO"})
    said = json.loads(quicflow("request", server, "binary", "--id", "a", *trust, "--json").out)
    assert said["result_base64"] == "/wA="


def test_a_failed_handler_is_exit_code_1(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", server, "fail", "--id", "a", *trust)
    # The reason is the server's text: what would turn the terminal red is escaped.
    assert (ran.code, ran.out, ran.err) == (1, "", "quicflow: RuntimeError: out of \\x1b[31mpaper\n")
    ran = quicflow("request", server, "fail", "--id", "a", *trust, "--json")
    said = json.loads(ran.out)
    assert (ran.code, ran.err, said["ok"], said["status"]) == (1, "", False, "failed")
    assert said["error"].endswith("paper")


def test_no_answer_in_time_is_exit_code_4(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", server, "hang", "--id", "a", *trust, "--timeout", "0.3")
    assert (ran.code, ran.err) == (4, "quicflow: no ack within 0.3 s\n")
    said = json.loads(quicflow("request", server, "hang", "--id", "a", *trust, "--timeout", "0.3", "--json").out)
    assert said["status"] == "timeout"


def test_a_lost_connection_is_exit_code_3(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", server, "hang up", "--id", "a", *trust)
    assert ran.code == 3
    assert "maintenance" in ran.err


def test_nobody_there_is_exit_code_3(quicflow: Quicflow, nobody: str, trust: tuple[str, str]) -> None:
    ran = quicflow("request", nobody, "x", "--id", "a", *trust, "--timeout", "0.3")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith(f"quicflow: no connection to {nobody} within 0.3 s")


def test_a_failed_attempt_is_given_as_the_reason(quicflow: Quicflow, trust: tuple[str, str]) -> None:
    # A label of 64 characters is refused without asking a name server.
    ran = quicflow("request", "a" * 64, "x", "--id", "a", *trust, "--timeout", "0.3")
    assert ran.code == 3
    assert "(last attempt: " in ran.err


def test_an_untrusted_server_is_exit_code_3_with_a_hint(quicflow: Quicflow, server: str) -> None:
    ran = quicflow("request", server, "x", "--id", "a")
    assert ran.code == 3
    assert "hint: trust the server's authority with --ca" in ran.err
    ran = quicflow("request", server, "x", "--id", "a", "--json")
    assert (ran.code, ran.err) == (3, "")
    assert json.loads(ran.out)["status"] == "no_connection"
    assert quicflow("request", server, "x", "--id", "a", "--insecure").out == "X\n"


def test_a_name_that_the_certificate_lacks_has_its_own_hint(quicflow: Quicflow, server: str, trust: tuple[str, str]) -> None:
    arguments = ("request", server, "x", "--id", "a", *trust, "--server-name", "nope.example")
    ran = quicflow(*arguments)
    assert ran.code == 3
    problem, hint = ran.err.splitlines()
    assert problem.endswith("hostname 'nope.example' doesn't match either of localhost, 127.0.0.1, ::1")
    assert "--server-name" in hint
    assert "quicflow certs --name" in hint
    assert "--ca" not in hint
    assert "Pattern(" not in json.loads(quicflow(*arguments, "--json").out)["error"]


def test_a_reader_that_leaves_is_no_error(start: Callable[..., Child], server: str, trust: tuple[str, str]) -> None:
    for options in ((), ("--json",)):
        reader, writer = os.pipe()
        os.close(reader)
        child = start("request", server, "x", "--id", "a", *trust, *options, stdout=writer)
        os.close(writer)
        ended = child.end()
        assert (ended.code, ended.err) == (141, "")


@pytest.mark.parametrize("json_option", [(), ("--json",)])
def test_what_can_be_seen_to_be_wrong_is_exit_code_2(
    quicflow: Quicflow, server: str, trust: tuple[str, str], json_option: tuple[str, ...]
) -> None:
    for options in (
        ("--id", " "),
        ("--id", "a", "--insecure"),
        ("--id", "a", "--cert", "alone.pem"),
        ("--id", "a", "--timeout", "inf"),
    ):
        ran = quicflow("request", server, "x", *trust, *options, *json_option)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err


def test_a_payload_over_the_limit_is_exit_code_2(
    quicflow: Quicflow, server: str, trust: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(bytes(1_048_577))
    with (tmp_path / "large").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        ran = quicflow("request", server, "-", "--id", "a", *trust)
    assert ran.code == 2
    assert "1,048,577 bytes" in ran.err


def test_an_interrupt_ends_it_with_the_shells_code(start: Callable[..., Child], server: str, trust: tuple[str, str]) -> None:
    child = start("request", server, "hang", "--id", "interrupted", *trust, "--timeout", "60", "--log-level", "info")
    child.line("new=connected", stderr=True)
    child.process.send_signal(signal.SIGINT)
    ended = child.end()
    assert (ended.code, ended.out) == (130, "")
    assert "Traceback" not in ended.err
