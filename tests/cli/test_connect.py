"""`quicflow connect`: commands from a pipe and from a terminal, and what it shows."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Child, Quicflow

pytestmark = pytest.mark.realtime

Stdin = Callable[[bytes], None]


def without_times(text: str) -> list[str]:
    return [re.sub(r" \[[\d.]+ ms\]$", "", line) for line in text.splitlines()]


def test_commands_from_a_pipe(quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Stdin) -> None:
    stdin(
        b"request hello world\r\nquery Q\n\nsend s\nlane bulk\nrequest on a lane\nlane\nrequest fail\nnonsense\nhelp\nstats\nquit\nrequest no\n"
    )
    ran = quicflow("connect", server, "--id", "piped", *trust)
    lines = without_times(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert lines[0] == f"connecting to {server} as piped; `help` lists the commands"
    assert lines[1:3] == ["* connecting", "* connected"]
    for expected in (
        "#1 -> HELLO WORLD",
        "#2 -> Q",
        "#3 delivered",
        "lane bulk",
        "#4 -> ON A LANE",
        "the default lane",
        r"#5 HandlerFailed: RuntimeError: out of \x1b[31mpaper",
        "nonsense: no such command; `help` lists them",
    ):
        assert lines.count(expected) == 1, lines
    assert any(line.startswith("  state     connected, 1 connections") for line in lines)
    assert any("quit           leave" in line for line in lines)
    assert "#6" not in ran.out


def test_what_the_server_sends_is_shown_and_safe(quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Stdin) -> None:
    # The second one keeps the session open while the server asks back.
    stdin(b"event poke\nrequest hang\n")
    ran = quicflow("connect", server, "--id", "watcher", *trust, "--timeout", "1")
    lines = without_times(ran.out)
    assert ran.code == 0
    received = [line for line in lines if line.startswith("<-")]
    assert received == [r"<- command from server: c\x1b[2J", "<- event from server: e", "<- query from server: q"]
    assert "#2 nothing within 1 s" in lines


def test_it_comes_back_after_the_server_hung_up(quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Stdin) -> None:
    # The second request waits for the next connection, a backoff away.
    stdin(b"request hang up\n")
    ran = quicflow("connect", server, "--id", "patient", *trust)
    lines = without_times(ran.out)
    assert ran.code == 0
    assert "* idle (maintenance)" in lines
    assert any(line.startswith("#1 ConnectionLost: ") for line in lines)


def test_one_lane_too_many_is_said(quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Stdin) -> None:
    stdin(b"".join(b"lane %d\n" % number for number in range(20)))
    ran = quicflow("connect", server, "--id", "lanes", *trust)
    assert ran.code == 0
    assert "LaneLimitReached: " in ran.out


def test_a_script_hears_that_nobody_is_there(quicflow: Quicflow, trust: tuple[str, str], stdin: Stdin) -> None:
    stdin(b"request hello\n")
    ran = quicflow("connect", "127.0.0.1:9", "--id", "lonely", *trust, "--timeout", "0.3")
    assert ran.code == 3
    assert "no connection to 127.0.0.1:9 within 0.3 s" in ran.err


def test_an_untrusted_server_ends_it(quicflow: Quicflow, server: str, stdin: Stdin) -> None:
    stdin(b"request hello\n")
    ran = quicflow("connect", server, "--id", "careful")
    assert ran.code == 3
    assert "TLS alert" in ran.err


def test_the_older_of_two_with_one_id_is_sent_away(
    start: Callable[..., Child], quicflow: Quicflow, server: str, trust: tuple[str, str], stdin: Stdin
) -> None:
    older = start("connect", server, "--id", "twin", *trust)
    older.line("* connected")
    stdin(b"")
    assert quicflow("connect", server, "--id", "twin", *trust).code == 0
    ended = older.process.wait(30)
    assert ended == 3
    assert older.process.stderr is not None
    assert "a newer connection uses this client id" in older.process.stderr.read()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_while_it_reads(
    start: Callable[..., Child], server: str, trust: tuple[str, str], number: signal.Signals, code: int
) -> None:
    child = start("connect", server, "--id", "signalled", *trust)
    child.line("* connected")
    child.process.send_signal(number)
    # Standard input stays open: the thread that waits for it must not keep the process.
    assert child.process.wait(30) == code
    assert child.end().err == ""


def test_on_a_terminal_there_is_a_prompt(server: str, trust: tuple[str, str], start: Callable[..., Child]) -> None:
    controller, terminal = os.openpty()
    try:
        child = start("connect", server, "--id", "typist", *trust, stdin=terminal, stdout=terminal)
        os.close(terminal)
        os.write(controller, b"\nrequest typed\n")
        seen = b""
        while b"-> TYPED" not in seen or not seen.endswith(b"> "):
            seen += os.read(controller, 4096)
        os.write(controller, b"quit\n")
        assert child.process.wait(30) == 0
        # Each line clears the prompt and draws it again below.
        assert b"\r\x1b[K* connected\r\n> " in seen
    finally:
        os.close(controller)


def test_a_file_can_hold_the_commands(
    quicflow: Quicflow, server: str, trust: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "commands").write_text("request from a file")
    with (tmp_path / "commands").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        ran = quicflow("connect", server, "--id", "filed", *trust)
    assert "#1 -> FROM A FILE" in without_times(ran.out)
