"""`quicflow demo`: a server and five clients over loopback UDP, each step shown and checked."""

from __future__ import annotations

import datetime
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from cyclopts import App

from ..background import open_background
from ..client import Client, open_client
from ..config import ClientConfig, TLSConfig
from ..errors import QuicFlowError
from ..quic.certificates import make_authority, make_server_certificate
from ..server import Server, serve
from .common import CommandFailed, ExitCode, Flag, configure_logging, explain, until_signalled
from .demo_cast import Cast, Inboxes, NotAsSaid, Workshop
from .demo_steps import STEPS
from .demo_stage import Stage

__all__ = ["app"]

EPILOGUE = """Everything is real: TLS 1.3, QUIC, UDP sockets on the loopback interface; every
figure is measured. Nothing is left behind.

Exit codes: 0 every step did what it said, 1 one did not (it is named).

Examples:
  quicflow demo
  quicflow demo --verbose
"""

HOST = "127.0.0.1"
NAMES = ("ada", "ben", "cleo", "dora", "emil")
STEP_SECONDS = 15.0
VALID_FOR = datetime.timedelta(days=2)

app = App(name="demo", help_epilogue=EPILOGUE)


@app.default
async def demo(*, verbose: Flag = False) -> int:
    """Watch a server and five clients talk over real QUIC, in a few seconds.

    Args:
        verbose: show the library's log as well, on standard error.
    """
    configure_logging("info" if verbose else "off")
    return await until_signalled(_demo)


async def _demo() -> int:
    stage = Stage()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="quicflow-demo-") as folder:
        async with open_cast(stage, Path(folder)) as cast:
            for title, step in STEPS:
                stage.title(title)
                await _checked(stage, title, partial(step, cast, stage))
    stage.close(f"All {len(STEPS) + 1} steps did what they said, in {time.perf_counter() - started:.1f} s.")
    return ExitCode.OK
