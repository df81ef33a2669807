"""Certificates, a server with difficult handlers, and `quicflow` called in this process or in one of its own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import pytest
import trio

from quicflow_trio import Message, MessageType, Request, Router, Server, Session, TLSConfig, serve
from quicflow_trio.cli import main

SECONDS = 30
"""How long anything may take before a test gives up: far more than it does, since the machine may be busy."""


@dataclass(frozen=True)
class Ran:
    """One call of `quicflow`: its exit code and what it printed."""

    code: int
    out: str
    err: str


Quicflow = Callable[..., Ran]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands set up logging for their process, which here is everybody's."""
    monkeypatch.delenv("LOG_LEVEL", raising=False)
    # Rich would otherwise take width and colour from wherever the tests run.
    monkeypatch.setenv("COLUMNS", "100")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def quicflow(capfdbinary: pytest.CaptureFixture[bytes]) -> Quicflow:
    """Call the command in this process."""

    def call(*arguments: str) -> Ran:
        code = main(arguments)
        captured = capfdbinary.readouterr()
        return Ran(code, captured.out.decode(), captured.err.decode())

    return call


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Put bytes, and the end of the input after them, on standard input."""
    opened: list[IO[str]] = []

    def put(content: bytes) -> None:
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        opened.append(os.fdopen(reader, encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield put
    for file in opened:
        file.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, server.pem, server.key, and a certificate for the client `member`."""
    folder = tmp_path_factory.mktemp("certificates")
    subprocess.run(
        [sys.executable, "-m", "quicflow_trio.cli", "certs", "--out", str(folder), "--client", "member"],
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    return folder


def difficult_router() -> Router:
    """Return handlers for the ways in which a request can go."""
    router = Router()

    @router.on(MessageType.COMMAND)
    async def command(request: Request) -> bytes:
        match request.message.payload:
            case b"fail":
                raise RuntimeError("out of \x1b[31mpaper")
            case b"hang":
                await trio.sleep_forever()
            case b"binary":
                return b"\xff\x00"
            case b"hang up":
                assert isinstance(request.peer, Session)
                await request.peer.close("maintenance")
        return request.message.payload.upper()

    @router.on(MessageType.QUERY)
    async def echo(request: Request) -> bytes:
        return request.message.payload

    @router.on(MessageType.EVENT)
    async def poke(request: Request) -> None:
        for message in (Message.command(b"c\x1b[2J"), Message.event(b"e"), Message.query(b"q")):
            await request.peer.request(message)

    return router


class ServerThread:
    """A server in a thread, so that a command can run in the tests' own."""

    def __init__(self, folder: Path) -> None:
        self.address = ""
        self._tls = TLSConfig.server(folder / "server.pem", folder / "server.key")
        self._listening = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(SECONDS)

    def stop(self) -> None:
        trio.from_thread.run(self._server.aclose, trio_token=self._token)
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._server: Server = await nursery.start(
                partial(serve, difficult_router(), host="127.0.0.1", port=0, tls=self._tls)
            )
            self.address = "{}:{}".format(*self._server.address)
            self._listening.set()


@pytest.fixture(scope="session")
def server(certificates: Path) -> Iterator[str]:
    """The address of a server with difficult handlers."""
    thread = ServerThread(certificates)
    thread.start()
    yield thread.address
    thread.stop()


@pytest.fixture
def trust(certificates: Path) -> tuple[str, str]:
    """The options that make a client trust the servers here."""
    return ("--ca", str(certificates / "ca.pem"))


class Child:
    """`quicflow` in a process of its own."""

    def __init__(self, *arguments: str, stdin: int = subprocess.PIPE, stdout: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quicflow_trio.cli", *arguments], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        # Ends a wait for a line that never comes.
        self.watchdog = threading.Timer(SECONDS, self.process.kill)
        self.watchdog.start()

    def line(self, text: str, *, stderr: bool = False) -> str:
        """Read to the first line that has this text."""
        stream = self.process.stderr if stderr else self.process.stdout
        assert stream is not None
        seen = []
        for line in stream:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} did not come; these did: {seen}")

    def end(self) -> Ran:
        """Wait for the end, with no more input."""
        out, err = self.process.communicate(timeout=SECONDS)
        return Ran(self.process.returncode, out, err)


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start `quicflow` in a process of its own; none outlives the test."""
    children: list[Child] = []

    def begin(*arguments: str, **pipes: int) -> Child:
        children.append(Child(*arguments, **pipes))
        return children[-1]

    yield begin
    for child in children:
        child.watchdog.cancel()
        if child.process.poll() is None:
            child.process.kill()
        child.process.wait(SECONDS)
        for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


@pytest.fixture
def serving(start: Callable[..., Child], certificates: Path) -> Callable[..., tuple[Child, str]]:
    """Start `quicflow serve` on a free port; give the process and its address."""

    def begin(*options: str) -> tuple[Child, str]:
        files = ("--cert", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
        child = start("serve", "--json", "--port", "0", *files, *options)
        said = json.loads(child.line("port"))
        return child, f"{said['host']}:{said['port']}"

    return begin
