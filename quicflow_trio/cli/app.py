"""The commands by name, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

from ..errors import AuthenticationFailed, QuicFlowError
from .common import CommandFailed, ExitCode, Flag, exit_code, leaves

__all__ = ["main"]

# By import path: a command's module, with what it needs, is loaded when the command is called, not for `--help`.
COMMANDS = {
    "demo": "Watch a server and five clients talk over real QUIC, in a few seconds.",
    "certs": "Make a certification authority and the certificates of a server and of clients.",
    "serve": "Run a server that echoes queries, answers commands in upper case and logs events.",
    "connect": "Talk to a server by hand: send, request, and watch what arrives.",
    "request": "Send one message, wait for its answer and print it; made for scripts.",
    "load": "Measure messages per second and latency with many clients.",
}

HELP = """A messaging backbone over QUIC.

Start with `quicflow demo`. Then, for a server and a client of your own:
  quicflow certs
  quicflow serve
  quicflow connect 127.0.0.1 --id me --ca certs/ca.pem"""

EVERYWHERE = Group("With every command", sort_key=99)
Tokens = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


def _make_app() -> App:
    app = App(
        name="quicflow",
        help=HELP,
        help_format="plaintext",
        version=lambda: f"quicflow {version('quicflow_trio')}",
        backend="trio",
    )
    for order, (name, summary) in enumerate(COMMANDS.items()):
        app.command(f"{__package__}.{name}:app", name=name, help=summary, sort_key=order)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quicflow` with these arguments, or the process's own, and return its exit code."""
    app = _make_app()

    @app.meta.default
    def launch(*tokens: Tokens, debug: Annotated[Flag, Parameter(group=EVERYWHERE)] = False) -> int:
        """Run one command.

        Args:
            tokens: the command and its arguments.
            debug: show the traceback of an error, not just its message.
        """
        try:
            return _call(app, tokens, delimiter="--")
        except (CommandFailed, QuicFlowError, OSError, ExceptionGroup) as exc:
            if debug:
                traceback.print_exc()
            return _report(exc)

    try:
        # No delimiter here: the outer app would swallow a `--` that is meant for the command.
        return _call(app.meta, sys.argv[1:] if argv is None else argv, delimiter="")
    except CycloptsError:
        # Cyclopts has printed what is wrong.
        return ExitCode.USAGE
    except KeyboardInterrupt:
        # Only outside the event loop: the commands watch for the signal themselves.
        return ExitCode.INTERRUPTED


def _call(app: App, tokens: Sequence[str], delimiter: str) -> int:
    code = app(tokens, exit_on_error=False, result_action="return_value", end_of_options_delimiter=delimiter)
    # None comes from --help and --version.
    return ExitCode.OK if code is None else int(code)


def _report(exc: Exception) -> int:
    """Print an error that a user can do something about and return its exit code; a defect of ours keeps its traceback."""
    causes = list(leaves(exc))
    expected = [cause for cause in causes if isinstance(cause, (CommandFailed, QuicFlowError, OSError))]
    if len(expected) < len(causes):
        raise exc
    for text in dict.fromkeys(_describe(cause) for cause in expected):
        print(f"quicflow: {text}", file=sys.stderr)
    return exit_code(expected[0])


def _describe(exc: BaseException) -> str:
    text = str(exc) or type(exc).__name__
    if isinstance(exc, OSError) and exc.strerror:
        # Without "[Errno 2]": the number tells a user nothing.
        return exc.strerror if exc.filename is None else f"{exc.filename}: {exc.strerror}"
    if isinstance(exc, AuthenticationFailed):
        return f"{text}\nhint: trust the server's authority with --ca FILE (`quicflow certs` writes certs/ca.pem)"
    return text
