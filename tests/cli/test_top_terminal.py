"""`quicflow top` as a program: frames and JSON for pipes, and a sitting at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from .conftest import SECONDS, Child, Quicflow
from .ops_stub import OpsStub, client_json

pytestmark = pytest.mark.realtime


@pytest.fixture
def ops() -> Iterator[OpsStub]:
    stub = OpsStub()
    yield stub
    stub.stop()


def test_one_frame_for_a_pipe(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [client_json("ada"), client_json("b\x1b")]
    ops.metrics["connected_clients"] = 2
    ran = quicflow("top", "--interval", "0.5", "--ops", ops.address)
    assert (ran.code, ran.err) == (0, "")
    assert "● ready  2 clients" in ran.out
    # Two looks: the rates are known.
    assert re.search(r"● ada +127.0.0.1:50000 +0.42 +0 +0 +1h 02m", ran.out)
    assert "\x1b" not in ran.out


def test_one_frame_where_only_ascii_can_be_printed(ops: OpsStub) -> None:
    ops.clients = [client_json("gr\u00fcn")]
    command = [sys.executable, "-X", "utf8=0", "-m", "quicflow_trio.cli", "top", "--interval", "0.2", "--ops", ops.address]
    for arguments in (command, [*command[:5], "clients", *command[-2:]]):
        ran = subprocess.run(
            arguments,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert r"gr\xfcn" in ran.stdout


def test_json(quicflow: Quicflow, ops: OpsStub) -> None:
    ops.clients = [client_json("ada")]
    ops.ready = False
    ran = quicflow("top", "--json", "--once", "--ops", ops.address)
    said = json.loads(ran.out)
    assert (ran.code, said["ready"], said["sample"], said["clients"]["total"]) == (0, False, None, 1)
    assert said["metrics"]["uptime_seconds"] == 7.0


def test_json_goes_on_until_ctrl_c(start: Callable[..., Child], ops: OpsStub) -> None:
    child = start("top", "--json", "--interval", "0.2", "--ops", ops.address)
    for _ in range(3):
        assert json.loads(child.line("{"))["ready"] is True
    child.process.send_signal(signal.SIGINT)
    ended = child.end()
    assert (ended.code, ended.err) == (0, "")


class Screen:
    """`quicflow top` on a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 80, lines: int = 24) -> None:
        self.main, self.terminal = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.terminal)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quicflow_trio.cli", "top", *arguments],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
        )
        self.seen = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.main, keys.encode())

    def _read(self, seconds: float) -> None:
        if select.select([self.main], [], [], seconds)[0]:
            self.seen += os.read(self.main, 65_536)

    @property
    def frame(self) -> str:
        """What stands on the screen: the last frame that is complete, without its colours."""
        frames = self.seen.split(b"\x1b[H")
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames[-2].decode(errors="replace")) if len(frames) > 2 else ""

    def until(self, *texts: str, missing: str = "\0") -> str:
        """Wait until all of these stand on the screen, and that does not."""
        deadline = time.monotonic() + SECONDS
        while not (all(text in self.frame for text in texts) and missing not in self.frame):
            assert time.monotonic() < deadline, f"{texts} did not come, without {missing!r}: {self.frame}"
            self._read(0.1)
        return self.frame

    def end(self) -> int:
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        self._read(0)
        return self.process.wait(0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        os.close(self.main)
        os.close(self.terminal)

    @property
    def is_as_it_was(self) -> bool:
        """True when the terminal's settings, screen and cursor are those of before."""
        assert self.seen.rindex(b"\x1b[?1049l") > self.seen.rindex(b"\x1b[?1049h")
        assert self.seen.rindex(b"\x1b[?25h") > self.seen.rindex(b"\x1b[?25l")
        return termios.tcgetattr(self.terminal) == self.before


@pytest.fixture
def on_screen(ops: OpsStub) -> Iterator[Screen]:
    ops.clients = [client_json(f"client-{number:02}", messages_sent=number) for number in range(40)]
    ops.clients.append(client_json("left-before", state="gone"))
    ops.history = [{"at": 1_700_000_000.0, "change": "disconnected", "detail": "idle_timeout"}]
    ops.metrics["connected_clients"] = 40
    screen = Screen("--interval", "0.2", "--ops", ops.address)
    yield screen
    screen.close()


def test_a_sitting(on_screen: Screen, ops: OpsStub) -> None:
    screen = on_screen
    screen.until("● ready  40 clients", "client-00", "clients 1-10 of 40")
    ops.emit("connect", client_id="client-77", remote_address=["10.0.0.7", 7])
    screen.until("client-77", "from 10.0.0.7:7")
    screen.press("\x1b[6~")
    screen.until("clients 2-11 of 40", "client-10")
    screen.press("ssss")
    screen.until("by messages sent ▼", "client-39")
    screen.press("/left")
    screen.until("filter: left_", "none")
    screen.press("\ra")
    screen.until("left-before", "away and gone too")
    screen.press("\r")
    screen.until("client left-before", "state       gone", "idle_timeout", "Esc back")
    screen.press("\x1b")
    screen.until("filter 'left'")
    screen.press("\x1b")
    screen.until("client-39", missing="filter 'left'")
    screen.press("?")
    screen.until("one client alone")
    screen.press("x")
    ops.ready = False
    screen.until("● draining")
    screen.resize(140, 40)
    screen.process.send_signal(signal.SIGWINCH)
    screen.until("BYTES OUT", "╭─ clients ─")
    screen.press("q")
    assert screen.end() == 0
    assert screen.is_as_it_was


def test_a_server_that_goes_and_comes_back(on_screen: Screen, ops: OpsStub) -> None:
    on_screen.until("● ready")
    ops.raw = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
    ops.hang_up()
    on_screen.until("● unreachable", "HTTP 502 Bad Gateway; trying again", "client-00")
    ops.raw = None
    on_screen.until("● ready", missing="trying again")
    on_screen.process.send_signal(signal.SIGINT)
    assert on_screen.end() == 0
    assert on_screen.is_as_it_was
    assert b"Traceback" not in on_screen.seen


def test_pausing(on_screen: Screen, ops: OpsStub) -> None:
    on_screen.until("40 clients")
    on_screen.press("p")
    on_screen.until("PAUSED")
    ops.metrics = ops.metrics | {"connected_clients": 41}
    calls = len(ops.calls)
    time.sleep(0.6)
    # One may have been under way.
    assert len(ops.calls) <= calls + 5
    on_screen.press("p")
    on_screen.until("41 clients")
    on_screen.process.terminate()
    assert on_screen.end() == 143
    assert on_screen.is_as_it_was


def test_a_server_that_is_not_there_is_no_picture() -> None:
    screen = Screen("--ops", "127.0.0.1:1")
    try:
        assert screen.end() == 3
        assert b"cannot connect" in screen.seen
        assert b"\x1b[?1049h" not in screen.seen
        assert termios.tcgetattr(screen.terminal) == screen.before
    finally:
        screen.close()
