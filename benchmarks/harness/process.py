"""Child processes, seen from the process that measures: servers, clients, and what the operating system says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicflow_trio import TLSConfig

__all__ = ["Child", "ServerProcess", "child_process", "cpu_seconds", "rss_bytes", "run_client", "server_process"]

GOODBYE = 30.0
"""Seconds that a child may take to end once its input is closed."""
PROC = Path("/proc/self/stat")
"""There on Linux; elsewhere `ps` says the same, only coarser."""


@dataclass(frozen=True)
class Child:
    """A running process that takes commands, one JSON object a line, and answers each with one.

    Attributes:
        process: it.
        hello: what it said when it was ready.
    """

    process: subprocess.Popen[str]
    hello: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer. Blocks; from Trio only while nothing else should run."""
        self.tell(**command)
        return self.answer()

    def tell(self, **command: Any) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the next answer."""
        return _read(self.process)


@contextmanager
def child_process(module: str, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[Child]:
    """Run ``python -m module`` for the length of the block, from its first line of output on.

    Args:
        module: what to run. It prints a JSON object when it is ready and ends when its input does.
        arguments: for it.
        before: a command to run it under, a profiler for instance.
    """
    command = [*before, sys.executable, "-m", module, *arguments]
    # A process group of its own: a Ctrl-C is for the session, which ends its children.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdin is not None
        try:
            yield Child(process, _read(process))
            process.stdin.close()
            process.wait(GOODBYE)
        finally:
            # It has ended by itself, unless something went wrong.
            process.kill()


def _read(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    # A command that the process runs under has things to say as well, and they are no JSON objects.
    for line in process.stdout:
        if line.startswith("{"):
            read: dict[str, Any] = json.loads(line)
            return read
    raise SystemExit("a process of the benchmark has ended; its error stands above")


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        child: its process.
        port: its UDP port.
        tls: for its clients.
        ops_url: its ops side, None without one.
    """

    child: Child
    port: int
    tls: TLSConfig
    ops_url: str | None

    @property
    def pid(self) -> int:
        """Its process id, by its own account: what was started may be a profiler that started it."""
        return int(self.child.hello["pid"])

    @property
    def ca(self) -> str:
        """The file of the authority that its clients trust."""
        return str(self.tls.ca_file)


@contextmanager
def server_process(*arguments: str, before: tuple[str, ...] = ()) -> Iterator[ServerProcess]:
    """Run `benchmarks.server` with these arguments for the length of the block."""
    with child_process("benchmarks.server", *arguments, before=before) as child:
        yield ServerProcess(child, child.hello["port"], TLSConfig.client(child.hello["ca"]), child.hello["ops_url"])


def run_client(module: str, *arguments: str) -> dict[str, Any]:
    """Run ``python -m module`` to its end and return the JSON object in its last line of output.

    Raises:
        SystemExit: it failed; with what it wrote to its standard error.
    """
    command = [sys.executable, "-m", module, *arguments]
    # Killed by `run` when this is interrupted; in a group of its own, so that it prints no traceback of its own then.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, process_group=0)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise SystemExit(f"{module} failed (exit code {done.returncode}):\n{done.stderr.strip()}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, all its threads, from the operating system.

    The clock is that of ``clock_getcpuclockid(3)``: the sum in ``/proc/PID/stat``, in nanoseconds and not in ticks of 10 ms.
    """
    if PROC.exists():
        return time.clock_gettime((~pid << 3) | 2)
    listed = subprocess.run(["ps", "-o", "time=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout.strip()
    seconds = 0.0
    for part in listed.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def rss_bytes(pid: int) -> int:
    """Return the memory of a process that is in RAM, from the operating system."""
    if PROC.exists():
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(listed.stdout) * 1024
