"""The commands by name, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError, UnusedCliTokensError

from ..errors import AuthenticationFailed, QuicFlowError
from .common import CommandFailed, ExitCode, exit_code, is_broken_pipe, leaves, plain, shown

__all__ = ["main"]

# By import path: a command's module, with what it needs, is loaded when the command is called, not for `--help`.
COMMANDS = {
    "demo": "Watch a server and five clients talk over real QUIC, in a few seconds.",
    "certs": "Make a certification authority and the certificates of a server and of clients.",
    "serve": "Run a server that echoes queries, answers commands in upper case and logs events.",
    "connect": "Talk to a server by hand: send, request, and watch what arrives.",
    "request": "Send one message, wait for its answer and print it; made for scripts.",
    "load": "Measure messages per second and latency with many clients.",
    "simulate": "Break a simulated network, clocks and programs, and see whether the promise holds.",
}
# Of these each speaks with a server's ops side over HTTP, not with the backbone.
OPS_COMMANDS = {
    "top": "Watch a running server: throughput, latency, clients, events.",
    "clients": "List the clients of a running server.",
    "client": "Show one client of a running server: its figures and its history.",
    "events": "Print what happens on a running server, as it happens.",
    "send": "Let a running server send one message to one of its clients.",
    "broadcast": "Let a running server send one message to all its clients, or to some.",
    "disconnect": "Close the connection of one client of a running server.",
    "drain": "Stop a running server gracefully.",
}
CLIENTS = ("connect", "request", "load")

HELP = """A messaging backbone over QUIC.

Start with `quicflow demo`. Then, for a server and a client of your own:
  quicflow certs
  quicflow serve
  quicflow connect 127.0.0.1 --id me --ca certs/ca.pem

With --debug every command shows the traceback of an error, not just a line."""


def _make_app() -> App:
    app = App(
        name="quicflow",
        help=HELP,
        help_format="plaintext",
        version=lambda: f"quicflow {version('quicflow_trio')}",
        backend="trio",
    )
    for group, commands in (("Commands", COMMANDS), ("Commands for a running server (serve --ops)", OPS_COMMANDS)):
        for order, (name, summary) in enumerate(commands.items()):
            app.command(f"{__package__}.{name}:app", name=name, help=summary, group=group, sort_key=order)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run `quicflow` with these arguments, or the process's own, and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A client id in letters that this terminal lacks is escaped, and no error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(*_without_debug(sys.argv[1:] if argv is None else argv))
        # Here and not at exit, where Python would report a broken pipe by itself.
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit, BaseExceptionGroup) as exc:
        if not is_broken_pipe(exc):
            raise
    _discard_output()
    return ExitCode.BROKEN_PIPE


def _run(tokens: list[str], debug: bool) -> int:
    try:
        code = _make_app()(tokens, exit_on_error=False, result_action="return_value")
        # None comes from --help and --version.
        return ExitCode.OK if code is None else int(code)
    except CycloptsError as exc:
        # Cyclopts has printed what is wrong.
        if hint := _usage_hint(exc, tokens):
            print(hint, file=sys.stderr)
        return ExitCode.USAGE
    except (CommandFailed, QuicFlowError, OSError, ExceptionGroup) as exc:
        if is_broken_pipe(exc):
            raise
        if debug:
            traceback.print_exc()
        return _report(exc)


def _discard_output() -> None:
    """Let what is still buffered go nowhere: nobody reads it, and flushing it at exit would fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _usage_hint(exc: CycloptsError, tokens: list[str]) -> str | None:
    """Return what was probably meant, for mistakes that are easy to make."""
    if isinstance(exc, UnusedCliTokensError) and tokens[0] == "certs":
        return "hint: --out FOLDER says where to write"
    # Looked for among the tokens: what Cyclopts makes of it differs, a payload for one.
    if any(token.partition("=")[0] == "--port" for token in tokens):
        if tokens[0] in CLIENTS:
            return "hint: the port is part of the address: HOST:PORT"
        if tokens[0] in OPS_COMMANDS:
            return "hint: --ops HOST:PORT says where the server's ops side is"
    return None


def _without_debug(tokens: Sequence[str]) -> tuple[list[str], bool]:
    """Take out ``--debug``, wherever it stands before a ``--``; what comes after that is the command's.

    By hand: a meta app, which is what Cyclopts has for it, would take it from behind the ``--`` as well.
    """
    end = tokens.index("--") if "--" in tokens else len(tokens)
    kept = [token for token in tokens[:end] if token != "--debug"]
    return [*kept, *tokens[end:]], len(kept) < end


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
    if isinstance(exc, CommandFailed):
        return str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        # Without "[Errno 2]": the number tells a user nothing.
        return exc.strerror if exc.filename is None else f"{exc.filename}: {exc.strerror}"
    text = shown(plain(str(exc))) or type(exc).__name__
    if isinstance(exc, AuthenticationFailed) and "doesn't match" in text:
        return (
            f"{text}\nhint: say with --server-name NAME which of its names the certificate is to be checked for, "
            "or make one for this host with `quicflow certs --name HOST`"
        )
    if isinstance(exc, AuthenticationFailed) and not text.startswith("TLS alert"):
        return f"{text}\nhint: show what the server asks for with --token FILE, or with --cert FILE and --key FILE"
    if isinstance(exc, AuthenticationFailed):
        return f"{text}\nhint: trust the server's authority with --ca FILE (`quicflow certs` writes certs/ca.pem)"
    return text
