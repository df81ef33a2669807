"""Errors of the ops side: what an answer, or its absence, means to a user and to the shell."""

from __future__ import annotations

import errno
import json
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, NoReturn, TypeVar

import httpx2

from ..common import CommandFailed, ExitCode, leaves, plain, shown
from .records import BadAnswer, parse_object

__all__ = ["OpsRefused", "OpsUnreachable", "parsed", "refuse", "translated", "with_json_errors"]

T = TypeVar("T")

# What a status means to the shell; the type of error decides before it, where the body names one.
CODES = {
    400: ExitCode.USAGE,
    401: ExitCode.NO_CONNECTION,
    403: ExitCode.NO_CONNECTION,
    409: ExitCode.NO_CONNECTION,
    413: ExitCode.USAGE,
}
TYPED_CODES = {"AckTimeout": ExitCode.TIMEOUT}


class OpsUnreachable(CommandFailed):
    """No answer came, or none that can be read: trying again may help."""


class OpsRefused(CommandFailed):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        type: the error's type as the server names it; empty when it does not.
    """

    def __init__(self, code: ExitCode, message: str, status: int, type: str) -> None:
        super().__init__(code, message)
        self.status: int = status
        self.type: str = type


def parsed(url: str, parse: Callable[[dict[str, Any]], T], answer: dict[str, Any]) -> T:
    """Return the record in an answer.

    Raises:
        OpsUnreachable: it makes no sense.
    """
    with translated(url):
        return parse(answer)


def refuse(response: httpx2.Response, content: bytes) -> NoReturn:
    """Raise what the server answered."""
    status = response.status_code
    try:
        error = parse_object(content)["error"]
        type, message = str(error["type"]), str(error["message"])
    except (BadAnswer, KeyError, TypeError):
        # Not the ops side's way to say no: a proxy in between, or another server altogether.
        type, message = "", f"HTTP {status} {shown(response.reason_phrase)}"
    else:
        message = shown(message)
    code = TYPED_CODES.get(type) or CODES.get(status, ExitCode.FAILED)
    place = f"{response.url.scheme}://{response.url.netloc.decode('ascii', 'replace')}"
    if status == HTTPStatus.UNAUTHORIZED:
        message += "\nhint: give the server's token with --token, or in the environment as QUICFLOW_OPS_TOKEN"
    elif status == HTTPStatus.NOT_FOUND and not type:
        message = f"{place}: {message}\nhint: is this the ops address of a quicflow server?"
    elif not type:
        message = f"{place}: {message}"
    raise OpsRefused(code, message, status, type)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what the HTTP library raises, and answers that make no sense, into errors for a user."""
    try:
        yield
    except BadAnswer as exc:
        raise OpsUnreachable(
            ExitCode.NO_CONNECTION, f"{url}: unexpected answer: {exc}\nhint: is this the ops address of a quicflow server?"
        ) from exc
    except httpx2.ConnectError as exc:
        raise OpsUnreachable(ExitCode.NO_CONNECTION, f"cannot connect to {url}: {_why(exc)}{_connect_hint(exc)}") from exc
    except httpx2.RemoteProtocolError as exc:
        hint = "\nhint: does something else listen there? `quicflow serve --ops HOST:PORT` says where the ops side is"
        raise OpsUnreachable(ExitCode.NO_CONNECTION, f"{url}: no HTTP answer: {shown(str(exc))}{hint}") from exc
    except httpx2.HTTPError as exc:
        raise OpsUnreachable(ExitCode.NO_CONNECTION, f"{url}: connection lost: {_why(exc)}") from exc


async def with_json_errors(run: Callable[[], Awaitable[int]], json_output: bool) -> int:
    """Run a command; with ``json_output`` an error becomes a JSON object, as `quicflow request` prints it, except one of usage."""
    try:
        return await run()
    except CommandFailed as exc:
        if exc.code == ExitCode.USAGE or not json_output:
            raise
        # A hint is for people.
        text = plain(str(exc)).partition("\nhint:")[0]
        print(json.dumps({"ok": False, "status": exc.code.name.lower(), "error": text}))
        return exc.code


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the outermost first."""
    cause: BaseException | None = exc
    while cause is not None:
        yield from leaves(cause)
        cause = cause.__cause__ or cause.__context__


def _why(exc: BaseException) -> str:
    """Return the reason that the system gave, since the HTTP library's own words are few."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return shown(cause.verify_message)
        if isinstance(cause, OSError) and cause.strerror:
            # From the number where it is one of the system's: Trio's own text repeats the address.
            return os.strerror(cause.errno) if cause.errno and cause.errno in errno.errorcode else shown(cause.strerror)
    return shown(str(exc)) or type(exc).__name__


def _connect_hint(exc: BaseException) -> str:
    numbers = {cause.errno for cause in _causes(exc) if isinstance(cause, OSError)}
    if errno.ECONNREFUSED in numbers:
        return "\nhint: is the server running with --ops? That address is TCP; the port that clients use is another"
    if any(isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(exc)):
        return "\nhint: the ops side itself speaks http://, not https://"
    return ""
