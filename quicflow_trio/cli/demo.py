"""`quicflow demo`: a server and five clients over loopback UDP, each step shown and checked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import trio
from cyclopts import App

from ..errors import QuicFlowError
from .common import CommandFailed, ExitCode, Flag, configure_logging, explain, is_broken_pipe, leaves, until_signalled
from .demo_cast import open_cast
from .demo_stage import NotAsSaid, Stage
from .demo_steps import STEPS, show_metrics

__all__ = ["app"]

EPILOGUE = """Everything is real: TLS 1.3, QUIC, UDP sockets on the loopback interface; every
figure is measured, every "ok" was checked. Nothing is left behind.

Exit codes: 0 every step did what it said, 1 one did not (it is named).

Examples:
  quicflow demo
  quicflow demo --verbose
"""

STEP_SECONDS = 15.0

app: App = App(name="demo", help_epilogue=EPILOGUE)


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
        try:
            async with open_cast(Path(folder)) as cast:
                for title, explanation, play in STEPS:
                    stage.open_step(title, explanation)
                    with trio.fail_after(STEP_SECONDS):
                        await play(cast, stage)
                show_metrics(cast, stage)
        except Exception as exc:
            if is_broken_pipe(exc):
                raise
            problems = [_describe(cause) for cause in leaves(exc)]
            raise CommandFailed(ExitCode.FAILED, f"step {stage.number} ({stage.title}): {'; '.join(problems)}") from exc
    stage.close(f"All {stage.number} steps did what they said, in {time.perf_counter() - started:.1f} s.")
    return ExitCode.OK


def _describe(exc: BaseException) -> str:
    if isinstance(exc, NotAsSaid):
        return f"this does not hold: {exc}"
    # An AckTimeout is a TooSlowError as well, and says more.
    if isinstance(exc, trio.TooSlowError) and not isinstance(exc, QuicFlowError):
        return f"it did not end within {STEP_SECONDS:g} s"
    return explain(exc)
