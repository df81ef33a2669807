"""One request and its answer, between Hypercorn and the application: what Hypercorn leaves open is closed here.

- A handler is cancelled when its client goes. Starlette's plain handlers are not, so a request whose caller has long given up would
  go on, and an event stream would stay subscribed until the next write fails.
- A body has a limit in bytes and in time, an answer one in time: a client that sends or reads one byte a minute ends.
- What the handler did not read of a body is read and dropped. Hypercorn queues ten pieces for a handler and then stands still for
  good, with the connection; and a connection closed over unread bytes is reset, which can cost the client the refusal it should see.
- What a handler raises becomes an answer, and a line in the log, at most.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, final

import trio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..observe.logs import Logger, get_logger
from .refusals import Refusal, internal_error

__all__ = ["ExchangeApp"]

log: Logger = get_logger(__name__)

PIECE = 64 * 1024
"""Bytes of an answer that are given to Hypercorn at once, each with the time-out of its own."""
LINGER = 2.0
"""Seconds that an early answer waits for the rest of the body to come in and be dropped."""
SEND_GRACE = 1.0
"""Seconds that a write under way has once the client is gone: HTTP/2 must not lose the half of a header block."""

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
"""On every answer: what operators see is for them, and not for caches or other sites."""


@final
class ExchangeApp:
    """The ASGI application around the application: an exchange for each request."""

    def __init__(self, app: ASGIApp, *, max_body: int, request_timeout: float) -> None:
        self._app = app
        self.max_body: int = max_body
        self.request_timeout: float = request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `Exception` never leaves."""
        if scope["type"] == "http":
            # Routed as it was sent, percent-encoded: decoded, a client id with a slash in it would be another path.
            routed = {**scope, "path": scope["raw_path"].decode("ascii", "replace"), "app": self._app}
            await _Exchange(self, receive, send).run(self._app, routed)
        elif scope["type"] == "websocket":
            await _refuse_websocket(send)


async def _refuse_websocket(send: Send) -> None:
    try:
        await send({"type": "websocket.close"})  # Hypercorn answers 403.
    except Exception as exc:  # noqa: BLE001 - a client that goes on as if it were accepted; Hypercorn would log a traceback for each
        log.debug("a WebSocket could not be refused", error=exc)


class _Exchange:
    def __init__(self, app: ExchangeApp, receive: Receive, send: Send) -> None:
        self._limits = app
        self._receive = receive
        self._send = send
        self._received = 0
        self._body_deadline = trio.current_time() + app.request_timeout
        self._body_ended = trio.Event()
        self._watching = False
        self._started = False
        self._answered = False
        self._sending = False
        self._gone = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        async with trio.open_nursery() as self._nursery:
            with trio.CancelScope() as self._handling:
                try:
                    await app(scope, self.receive, self.send)
                except ClientDisconnect:
                    log.debug("a client has gone", method=scope["method"], path=scope["path"])
                except Exception:
                    # It ends one request; the others, and the backbone beside them, must not suffer.
                    log.exception("a request failed by a defect", method=scope["method"], path=scope["path"])
                    if not self._started:
                        with suppress(ClientDisconnect):
                            await internal_error()(scope, self.receive, self.send)
            self._nursery.cancel_scope.cancel()

    # -- for the application -----------------------------------------------------------------------------------------
    async def receive(self) -> Message:
        """Return the next piece of the body.

        Raises:
            Refusal: it is too long, or takes too long.
        """
        if self._body_ended.is_set():
            await trio.sleep_forever()  # Until the handler is cancelled because the client has gone.
        message: Message | None = None
        with trio.move_on_at(self._body_deadline):
            message = await self._receive()
        if message is None:
            raise Refusal(408, "RequestTimeout", f"the body did not come within {self._limits.request_timeout:g} s")
        if message["type"] == "http.disconnect":
            self._gone = True
            self._body_ended.set()
            return message
        self._received += len(message["body"])
        if self._received > self._limits.max_body:
            raise Refusal(413, "BodyTooLarge", f"the body is longer than {self._limits.max_body:,} bytes")
        if not message["more_body"]:
            self._body_ended.set()
            self._watch()
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer.

        Raises:
            ClientDisconnect: the client has gone, or does not read.
        """
        self._watch()
        if message["type"] == "http.response.start":
            self._started = True
            await self._pass_on({**message, "headers": [*message["headers"], *HEADERS]})
            return
        body: bytes = message.get("body", b"")
        for start in range(0, len(body), PIECE):
            await self._pass_on({"type": "http.response.body", "body": body[start : start + PIECE], "more_body": True})
        if not message.get("more_body", False):
            # With the last part Hypercorn ends the exchange, so what is still to come of the body must have come by then.
            with trio.move_on_at(min(trio.current_time() + LINGER, self._body_deadline)):
                await self._body_ended.wait()
            self._answered = True
            await self._pass_on({"type": "http.response.body", "body": b"", "more_body": False})

    # -- inside ------------------------------------------------------------------------------------------------------
    async def _pass_on(self, message: dict[str, Any]) -> None:
        sent = False
        self._sending = True
        try:
            with trio.move_on_after(self._limits.request_timeout):
                await self._send(message)
                sent = True
        except Exception as exc:  # noqa: BLE001 - Hypercorn's, not the handler's: the connection is in no state for an answer any more
            log.debug("an answer could not be written", error=exc)
        finally:
            self._sending = False
        # Nothing may be raised once all was sent: the application has not failed, and Hypercorn keeps the connection.
        if not sent or (self._gone and not self._answered):
            raise ClientDisconnect

    def _watch(self) -> None:
        """Look from now on for the end of the client; the body, if any is left, is dropped."""
        if not self._watching:
            self._watching = True
            self._nursery.start_soon(self._await_disconnect)

    async def _await_disconnect(self) -> None:
        while not self._gone:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
            if self._gone or not message["more_body"]:
                self._body_ended.set()
        # Hypercorn says the same when an answer is complete; it still has to make the connection ready for the next request then.
        if not self._answered:
            self._handling.deadline = trio.current_time() + (SEND_GRACE if self._sending else 0)
