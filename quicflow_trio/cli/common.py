"""What the commands share: exit codes, options, logging, signals, and text that is safe on a terminal."""

from __future__ import annotations

import enum
import math
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
from cyclopts import Parameter

from ..background import open_background
from ..config import OpsConfig, TLSConfig
from ..errors import (
    AckTimeout,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    ConnectionRefused,
    PayloadTooLarge,
    SessionReplaced,
)
from ..observe import logs

if TYPE_CHECKING:
    from cyclopts import Token

    from ..client import Client

__all__ = [
    "DEFAULT_PORT",
    "NO_RESULT",
    "Address",
    "AddressArgument",
    "ClientTLS",
    "CommandFailed",
    "ExitCode",
    "Flag",
    "JsonFlag",
    "LogLevel",
    "OpsToken",
    "Patience",
    "configure_logging",
    "exit_code",
    "explain",
    "first_of",
    "is_broken_pipe",
    "leaves",
    "plain",
    "print_result",
    "shown",
    "until_signalled",
    "wait_connected",
]

DEFAULT_PORT = 8474


class ExitCode(enum.IntEnum):
    """What the process says to the shell."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3
    TIMEOUT = 4
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CommandFailed(Exception):
    """A command cannot go on; the message is for the user.

    Attributes:
        code: the exit code.
    """

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code: ExitCode = code


def exit_code(exc: BaseException) -> ExitCode:
    """Return the exit code of an error."""
    match exc:
        case CommandFailed():
            return exc.code
        case ConfigurationError() | PayloadTooLarge():
            return ExitCode.USAGE
        case ConnectionRefused() | SessionReplaced() | ConnectionLost() | ConnectionClosed():
            return ExitCode.NO_CONNECTION
        case AckTimeout():
            return ExitCode.TIMEOUT
        case _:
            return ExitCode.FAILED


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Yield what a group holds; a nursery wraps even a single error."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc


def is_broken_pipe(exc: BaseException) -> bool:
    """True when whoever read our output has left, as `head` does: nothing that needs a word."""
    # Rich, which prints help and tables, makes a SystemExit of it; nothing else here raises one.
    return any(isinstance(cause, (BrokenPipeError, SystemExit)) for cause in leaves(exc))


# -- options -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        host: its name or address.
        port: its UDP port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in ``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``.

    Raises:
        ValueError: there is no host, or the port is no number from 1 to 65,535.
    """
    if text.count(":") > 1 and not text.startswith("["):
        return Address(text, DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: expected [ADDRESS] or [ADDRESS]:PORT")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
    if not host:
        raise ValueError(f"{text!r}: expected HOST or HOST:PORT")
    if not colon:
        return Address(host, DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"port {port!r}: expected a whole number from 1 to 65535")
    return Address(host, int(port))


def _convert_address(_type: object, tokens: tuple[Token, ...]) -> Address:
    return parse_address(tokens[0].value)


def _convert_token(_type: object, tokens: tuple[Token, ...]) -> str | None:
    """Return the token; None when it is empty, as compose files and systemd units leave a variable that is not set."""
    token = tokens[0]
    if not token.value:
        return None
    try:
        return OpsConfig(token=token.value).token
    except ConfigurationError:
        # No ValueError: Cyclopts would show the secret. The keyword is the option, or the variable, that it came from.
        message = f"{token.keyword}: expected 1 to 1,024 visible ASCII characters without spaces"
        raise CommandFailed(ExitCode.USAGE, message) from None


def _check_level(_type: object, value: str) -> None:
    if value.lower() not in LEVELS:
        raise ValueError(f"{value!r} is none of {', '.join(LEVELS)}")


def _check_seconds(_type: object, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{value:g}: expected more than 0 seconds")


AddressArgument = Annotated[Address, Parameter(name="HOST[:PORT]", converter=_convert_address, n_tokens=1, accepts_keys=False)]
Patience = Annotated[float, Parameter(name="--timeout", validator=_check_seconds)]
Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
JsonFlag = Annotated[bool, Parameter(name="--json", negative=(), show_default=False)]
OpsToken = Annotated[
    str | None, Parameter(env_var="QUICFLOW_OPS_TOKEN", converter=_convert_token, n_tokens=1, accepts_keys=False)
]
LogLevel = Annotated[str, Parameter(env_var="LOG_LEVEL", validator=_check_level)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class ClientTLS:
    """How a client verifies the server and shows who it is.

    Attributes:
        ca: certificates of the authority to trust, PEM; without it the public authorities.
        insecure: do not verify the server. For experiments on one machine only.
        server_name: name that the server's certificate must carry, where it is not the host.
        cert: certificate to show to the server, PEM.
        key: its private key, PEM.
    """

    ca: Path | None = None
    insecure: Flag = False
    server_name: str | None = None
    cert: Path | None = None
    key: Path | None = None

    def config(self) -> TLSConfig:
        """Return the settings for `open_client`.

        Raises:
            ConfigurationError: a file does not exist, or one of ``cert`` and ``key`` is missing.
            CommandFailed: the options contradict each other.
        """
        if self.insecure and self.ca is not None:
            raise CommandFailed(ExitCode.USAGE, "--ca and --insecure contradict each other: give one of them")
        return TLSConfig.client(
            self.ca, server_name=self.server_name, insecure=self.insecure, cert_file=self.cert, key_file=self.key
        )


# -- logging -----------------------------------------------------------------------------------------------------------
LEVELS = ("debug", "info", "warning", "error", "off")


def configure_logging(level: str) -> None:
    """Log to stderr from this level on (one of ``LEVELS``, in any case), as text or as JSON: the environment's LOG_FORMAT says which.

    Raises:
        ConfigurationError: LOG_FORMAT is neither ``console`` nor ``json``.
    """
    logs.configure_logging(level)


# -- running -----------------------------------------------------------------------------------------------------------
async def until_signalled(body: Callable[[], Awaitable[int]]) -> int:
    """Run ``body`` and return its exit code; SIGINT or SIGTERM cancels it, and the code is the shell's: 128 + the number.

    Signals are watched for, and not left to KeyboardInterrupt, which would come out of whatever task runs, in an ExceptionGroup.
    Only the first is: a second one kills a program whose clean-up hangs.
    """
    caught: list[int] = []
    async with open_background() as nursery:
        with trio.CancelScope() as scope:

            async def watch(task_status: trio.TaskStatus[None]) -> None:
                with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    task_status.started()
                    caught.append(await anext(signals))
                scope.cancel()

            await nursery.start(watch)
            return await body()
    return 128 + caught[0]


async def first_of(*functions: Callable[[], Awaitable[object]]) -> None:
    """Run these side by side until one returns; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def run(function: Callable[[], Awaitable[object]]) -> None:
            await function()
            nursery.cancel_scope.cancel()

        for function in functions:
            nursery.start_soon(run, function)


async def wait_connected(client: Client, address: Address, patience: float) -> None:
    """Wait until the client is connected, for at most ``patience`` seconds.

    Raises:
        CommandFailed: it is not by then, or it was refused; exit code `ExitCode.NO_CONNECTION`.
    """
    try:
        with trio.fail_after(patience):
            await client.wait_connected()
    except trio.TooSlowError:
        reasons = [change.reason for change in client.statistics().history if change.reason]
        detail = f" (last attempt: {shown(plain(reasons[-1]))})" if reasons else ""
        raise CommandFailed(ExitCode.NO_CONNECTION, f"no connection to {address} within {patience:g} s{detail}") from None


# -- output ------------------------------------------------------------------------------------------------------------
SHOWN_CHARACTERS = 2000
NO_RESULT = "acked, no result"


def shown(text: str | bytes) -> str:
    """Return text of a peer for a terminal: control characters escaped, so that it cannot move the cursor; long text is cut."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}... ({len(text):,} characters)"


def print_result(result: bytes) -> None:
    """Print what a handler answered as it came, and a line feed after it; that it is empty is a remark, and not an empty line."""
    if not result:
        print(NO_RESULT, file=sys.stderr)
        return
    sys.stdout.buffer.write(result + b"\n")
    sys.stdout.buffer.flush()


def plain(text: str) -> str:
    """Return an error's text with the names of a certificate as a user writes them, not as the objects that the TLS stack shows."""
    return re.sub(r"\w+Pattern\(pattern=(?:b|IPv[46]Address\()'([^']*)'\)+", r"\1", text)


def explain(error: BaseException) -> str:
    """Return an error as one phrase: its kind, and what it says."""
    return f"{type(error).__name__}: {shown(plain(str(error)))}"
