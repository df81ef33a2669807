"""The server in a process of its own, seen from the process that measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quicflow_trio import TLSConfig

__all__ = ["ServerProcess", "server_process"]


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        pid: its process.
        port: its UDP port.
        tls: for its clients.
        ops_url: its ops side, None without one.
    """

    pid: int
    port: int
    tls: TLSConfig
    ops_url: str | None


@contextmanager
def server_process(*arguments: str) -> Iterator[ServerProcess]:
    """Run `benchmarks.server` with these arguments for the length of the block."""
    command = [sys.executable, "-m", "benchmarks.server", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server process did not start; its error stands above")
        hello = json.loads(line)
        try:
            yield ServerProcess(process.pid, hello["port"], TLSConfig.client(hello["ca"]), hello["ops_url"])
        finally:
            process.stdin.close()
