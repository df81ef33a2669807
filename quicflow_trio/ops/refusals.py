"""How a request is refused: `Refusal`, and which status an error of the library stands for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..errors import (
    AckTimeout,
    ClientNotConnected,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    HandlerFailed,
    LaneLimitReached,
    PayloadTooLarge,
    QuicFlowError,
    SessionReplaced,
    SlowConsumer,
    WaitingTableFull,
)
from .jsontext import json_response

__all__ = ["HANDLERS", "Refusal", "bad_request", "error_json", "internal_error", "no_such_client"]

STATUS: dict[type[QuicFlowError], int] = {
    ConfigurationError: 400,
    ClientNotConnected: 404,
    ConnectionClosed: 409,
    ConnectionLost: 409,
    LaneLimitReached: 409,
    SessionReplaced: 409,
    PayloadTooLarge: 413,
    HandlerFailed: 502,
    SlowConsumer: 503,
    WaitingTableFull: 503,
    AckTimeout: 504,
}

NAMES = {404: "NotFound", 405: "MethodNotAllowed"}


class Refusal(Exception):
    """A request that is not carried out.

    Attributes:
        status: HTTP status.
        type: what kind of trouble, for programs.
        message: what is wrong, for people.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, type: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status: int = status
        self.type: str = type
        self.message: str = message
        self.headers: Mapping[str, str] = headers or {}


def bad_request(message: str) -> Refusal:
    """Return the refusal of a request whose field or parameter is wrong; the message names it."""
    return Refusal(400, "BadRequest", message)


def no_such_client(client_id: str) -> Refusal:
    """Return the refusal of a request about a client of which nothing is known, connected or gone."""
    return Refusal(404, ClientNotConnected.__name__, f"no such client: {client_id!r} is neither connected nor one that has left")


def error_json(exc: Exception) -> dict[str, str]:
    """Return an error as JSON shows it."""
    return {"type": type(exc).__name__, "message": str(exc)}


def internal_error() -> Response:
    """Return the answer when a handler has a defect; what it was stands in the log."""
    return _answer(500, "InternalError", "the server has a defect; its log says more", {})


def _answer(status: int, type: str, message: str, headers: Mapping[str, str]) -> Response:
    return json_response({"error": {"type": type, "message": message}}, status, headers)


async def _refused(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    return _answer(exc.status, exc.type, exc.message, exc.headers)


async def _failed(_: Request, exc: Exception) -> Response:
    status = next((STATUS[kind] for kind in type(exc).__mro__ if kind in STATUS), 500)
    return _answer(status, type(exc).__name__, str(exc), {})


async def _unrouted(request: Request, exc: Exception) -> Response:
    """Answer a path or method that does not exist."""
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        message = f"{request.method} is not for this path; see Allow"
    else:
        message = "there is nothing at this path; see /openapi.json"
    return _answer(exc.status_code, NAMES.get(exc.status_code, "HTTPError"), message, exc.headers or {})


HANDLERS: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
    Refusal: _refused,
    QuicFlowError: _failed,
    HTTPException: _unrouted,
}
"""What makes an answer of each exception."""
