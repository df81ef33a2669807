"""A server in a second process, for `quicflow load` without a host."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ..quic.certificates import make_authority, make_server_certificate
from .common import Address, CommandFailed, ExitCode

__all__ = ["own_server"]

HOST = "127.0.0.1"
VALID_FOR = datetime.timedelta(days=2)
START_SECONDS = 30.0
STOP_SECONDS = 5.0
LONGEST_LINE = 4096


@asynccontextmanager
async def own_server() -> AsyncIterator[tuple[Address, Path]]:
    """Run `quicflow serve` on a free port with certificates of its own; give its address and its authority's certificate.

    Raises:
        CommandFailed: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="quicflow-load-") as folder:
        ca_file, cert_file, key_file = (Path(folder) / name for name in ("ca.pem", "server.pem", "server.key"))
        now = datetime.datetime.now(datetime.UTC)
        authority = make_authority(now=now, valid_for=VALID_FOR)
        ca_file.write_bytes(authority.certificate_pem)
        make_server_certificate(authority, [HOST], now=now, valid_for=VALID_FOR).write_pem(cert_file, key_file)
        # The end of its standard input stops the server, so that it goes even when this process is killed.
        options = ["--until-eof", "--json", "--host", HOST, "--port", "0", "--grace", "1", "--log-level", "warning"]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", __package__, "serve", *options, "--cert", cert_file, "--key", key_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A Ctrl-C at the terminal is for the generator, which stops this one when it is done with it.
            start_new_session=True,
        )
        try:
            yield await _announced(process), ca_file
        finally:
            with trio.move_on_after(2 * STOP_SECONDS, shield=True):
                await _stop(process)


async def _announced(process: trio.Process) -> Address:
    """Read the line in which the server says where it listens."""
    assert process.stdout is not None
    line = bytearray()
    with trio.move_on_after(START_SECONDS):
        while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            chunk = await process.stdout.receive_some()
            if not chunk:
                break
            line += chunk
    try:
        announced = json.loads(line)
        return Address(announced["host"], announced["port"])
    except (ValueError, KeyError, TypeError):
        raise CommandFailed(ExitCode.NO_CONNECTION, f"the server did not start: {bytes(line)!r}") from None


async def _stop(process: trio.Process) -> None:
    """End the process within `STOP_SECONDS`, by force when it must be."""
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdin.aclose()
    with trio.move_on_after(STOP_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    await process.stdout.aclose()
