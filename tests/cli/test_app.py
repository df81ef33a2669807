"""The command as a whole: help, version, errors; and the helpers that all commands share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import trio

from quicflow_trio import errors
from quicflow_trio.cli import app as app_module
from quicflow_trio.cli import main
from quicflow_trio.cli.common import (
    SHOWN_CHARACTERS,
    Address,
    CommandFailed,
    ExitCode,
    exit_code,
    first_of,
    leaves,
    parse_address,
    shown,
    until_signalled,
)
from quicflow_trio.cli.stdin import LONGEST_LINE, read_lines

from .conftest import Quicflow


def test_version(quicflow: Quicflow) -> None:
    ran = quicflow("--version")
    assert ran.code == 0
    assert ran.out.startswith("quicflow 0.")


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_lists_the_commands(quicflow: Quicflow, arguments: tuple[str, ...]) -> None:
    ran = quicflow(*arguments)
    assert ran.code == 0
    for name in (*app_module.COMMANDS, *app_module.OPS_COMMANDS):
        assert f"│ {name} " in ran.out


@pytest.mark.parametrize("command", [*app_module.COMMANDS, *app_module.OPS_COMMANDS])
def test_help_of_each_command_has_examples_and_exit_codes(quicflow: Quicflow, command: str) -> None:
    ran = quicflow(command, "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: quicflow {command}")
    assert (app_module.COMMANDS | app_module.OPS_COMMANDS)[command] in " ".join(ran.out.split())
    assert "Exit codes: 0 " in ran.out
    assert f"\n  quicflow {command}" in ran.out


def test_help_loads_no_command() -> None:
    # Otherwise `quicflow --help` would get slower with every command.
    source = (
        "import sys; from quicflow_trio.cli import main; main(['--help'])\n"
        "loaded = [name for name in sys.modules if name.startswith('quicflow_trio.cli.')]\n"
        "assert sorted(loaded) == ['quicflow_trio.cli.app', 'quicflow_trio.cli.common'], loaded"
    )
    subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("certs", "--nonsense"), ("request", "localhost"), ("request", "localhost:0", "x", "--id", "a")],
)
def test_wrong_usage_is_exit_code_2(quicflow: Quicflow, arguments: tuple[str, ...]) -> None:
    ran = quicflow(*arguments)
    assert ran.code == 2
    assert ran.err
    assert "Traceback" not in ran.err


def test_an_unknown_log_level_is_named_wherever_it_comes_from(quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = quicflow("serve", "--log-level", "loud")
    assert (ran.code, "'loud' is none of debug, info" in ran.err) == (2, True)
    monkeypatch.setenv("LOG_LEVEL", "quiet")
    ran = quicflow("serve")
    assert (ran.code, "LOG_LEVEL" in ran.err) == (2, True)


def test_debug_shows_the_traceback_and_the_line(quicflow: Quicflow) -> None:
    arguments = ("request", "localhost", "x", "--id", "a", "--ca", "missing.pem")
    plain = quicflow(*arguments)
    assert (plain.code, plain.err.count("\n")) == (2, 1)
    for debugged in (quicflow("--debug", *arguments), quicflow(*arguments, "--debug")):
        assert debugged.code == 2
        assert debugged.err.startswith("Traceback")
        assert debugged.err.endswith(plain.err)


def test_errors_of_a_group_are_printed_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup(
        "nursery",
        [errors.ConnectionLost("gone"), ExceptionGroup("inner", [errors.ConnectionLost("gone"), OSError(28, "No space left")])],
    )
    assert app_module._report(group) == ExitCode.NO_CONNECTION
    assert capsys.readouterr().err == "quicflow: gone\nquicflow: No space left\n"


def test_a_defect_keeps_its_traceback() -> None:
    group = ExceptionGroup("nursery", [errors.ConnectionLost("gone"), TypeError("ours")])
    with pytest.RaisesGroup(errors.ConnectionLost, TypeError) as caught:
        app_module._report(group)
    assert caught.value is group


def test_an_interrupt_before_the_command_runs_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(app_module, "_make_app", interrupted)
    assert main(["demo"]) == 130


def test_an_interrupt_while_modules_are_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == app_module.__name__:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, app_module.__name__)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert main(["demo"]) == 130


@pytest.mark.realtime
@pytest.mark.parametrize("arguments", [("--help",), ("certs", "--help"), ("certs",), ("certs", "--json"), ("demo",)])
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "quicflow_trio.cli", *arguments]
    # As from a shell of its own: the tests may run in another folder than the package's.
    environment = {**os.environ, "PYTHONPATH": str(Path(app_module.__file__).parents[2])}
    try:
        ran = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False, cwd=tmp_path, env=environment
        )
    finally:
        os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("certs", "other"), "hint: --out FOLDER"),
        (("connect", "localhost", "--id", "a", "--port", "9999"), "HOST:PORT"),
        (("request", "localhost", "x", "--id", "a", "--port=9999"), "HOST:PORT"),
        (("request", "localhost", "--id", "a", "--port", "9999"), "HOST:PORT"),
        (("load", "--port", "9999"), "HOST:PORT"),
        (("clients", "--port", "9999"), "--ops HOST:PORT"),
    ],
)
def test_usual_mistakes_get_a_hint(quicflow: Quicflow, arguments: tuple[str, ...], hint: str) -> None:
    ran = quicflow(*arguments)
    assert ran.code == 2
    assert hint in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CommandFailed(ExitCode.TIMEOUT, ""), 4),
        (errors.ConfigurationError(), 2),
        (errors.PayloadTooLarge(2, 1), 2),
        (errors.AuthenticationFailed(), 3),
        (errors.SessionReplaced(), 3),
        (errors.ConnectionLost(), 3),
        (errors.ConnectionClosed(), 3),
        (errors.AckTimeout(), 4),
        (errors.HandlerFailed("no"), 1),
        (OSError(), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 8474),
        ("10.0.0.1:9", "10.0.0.1", 9),
        ("::1", "::1", 8474),
        ("[::1]", "::1", 8474),
        ("[fe80::1]:65535", "fe80::1", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert parse_address(str(Address(host, port))) == Address(host, port)


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:0", "a:65536", "a:-1", "a:1x", "a:²", "[::1", "[::1]9", "[]:9"])
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("grüße", "grüße"),
        ("\x1b[2J\r\n", r"\x1b[2J\r\n"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
    ],
)
def test_text_of_a_peer_cannot_move_the_cursor(given: str | bytes, safe: str) -> None:
    assert shown(given) == safe


def test_long_text_of_a_peer_is_cut() -> None:
    assert shown("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    assert shown("x" * (SHOWN_CHARACTERS + 1)).endswith("x... (2,001 characters)")


def test_leaves_of_a_bare_error_are_itself() -> None:
    error = ValueError()
    assert list(leaves(error)) == [error]


async def test_first_of_cancels_the_others(autojump_clock: trio.testing.MockClock) -> None:
    cancelled = trio.Event()

    async def never() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    await first_of(partial(trio.sleep, 1), never)
    assert cancelled.is_set()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_cancels_the_command(number: signal.Signals, code: int) -> None:
    async def body() -> int:
        signal.raise_signal(number)
        await trio.sleep_forever()
        raise AssertionError

    assert await until_signalled(body) == code


async def test_without_a_signal_the_commands_own_code_counts() -> None:
    async def body() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    assert await until_signalled(body) == 7


async def test_an_overlong_line_is_handed_out_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [b"a\r\nb", b"x" * LONGEST_LINE, b"\xffc\n", b"last", b""]

    async def read() -> bytes:
        await trio.lowlevel.checkpoint()
        return chunks.pop(0)

    monkeypatch.setattr("quicflow_trio.cli.stdin._read", read)
    assert [line async for line in read_lines()] == ["a", "b" + "x" * LONGEST_LINE, "\ufffdc", "last"]
