"""A client's credentials: where they come from, and how they are renewed while it is connected."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

import trio

from .connection import Connection
from .errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionLost,
    CredentialsUnavailable,
    LocalProtocolError,
)
from .observe.logs import Logger, get_logger
from .protocol.outgoing import ErrorFactory
from .protocol.state import CloseCode
from .quic.engine import ConnectionEnded
from .wire import Authentication

__all__ = ["ClientCredentials", "CredentialsSource", "Renewal"]

log: Logger = get_logger(__name__)

CredentialsSource: TypeAlias = bytes | Callable[[], Awaitable[bytes]]
"""What a client shows: bytes, or an async function that returns fresh ones."""

MAX_BYTES = 32 * 1024
"""Longest credentials: with everything else that a hello says they must fit into one control frame."""
RENEW_AT = 0.75
"""When fresh credentials are shown, as a share of the time that the last are good for."""
RETRY_AT = 0.25
"""When that is tried again after a failure, as a share of the time that is left; and at least..."""
RETRY_AFTER = 0.5
"""...so many seconds."""
RENEWALS_SINCE = 2
"""Revision of the protocol that can renew credentials within a connection."""


class Renewal:
    """Fresh credentials that wait for the server's word.

    Attributes:
        number: of the frame that carries them.
        decided: set when the answer is there, or none will come.
        answer: the server's; None when the connection ended before.
    """

    __slots__ = ("answer", "decided", "number")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.decided: trio.Event = trio.Event()
        self.answer: Authentication | None = None


class ClientCredentials:
    """The credentials of one client.

    Args:
        source: see `CredentialsSource`.
        timeout: seconds that a source that is a function may take.
        client_id: for the log.

    Attributes:
        value: what is shown now.
        renewable: true when fresh ones can be had at any time.

    Raises:
        ConfigurationError: the source is neither bytes nor a function, or is too long.
    """

    def __init__(self, source: CredentialsSource, timeout: float, client_id: str) -> None:
        if not isinstance(source, bytes) and not callable(source):
            raise ConfigurationError(f"credentials: expected bytes or an async function, got {type(source).__name__}")
        self.value: bytes = b""
        self.renewable: bool = not isinstance(source, bytes)
        self._source = source
        self._timeout = timeout
        self._client_id = client_id
        self._lock = trio.Lock()
        self._renewal: Renewal | None = None
        self._number = 0
        # When the next ones are due and when the last ones end (Trio clock).
        self._renew_at = math.inf
        self._ends_at = math.inf
        self._sleep = trio.CancelScope()
        if isinstance(source, bytes):
            self.replace(source)

    def replace(self, credentials: bytes) -> None:
        """Show these from now on.

        Raises:
            ConfigurationError: they are longer than 32 KiB, or no bytes.
        """
        if not isinstance(credentials, bytes) or len(credentials) > MAX_BYTES:
            raise ConfigurationError(f"credentials: expected at most {MAX_BYTES:,} bytes")
        self.value = credentials

    async def fetch(self) -> None:
        """Get fresh ones, where a function gives them. Cancelled, the last ones stay.

        Raises:
            CredentialsUnavailable: the function raised, took too long, or returned something else.
        """
        source = self._source
        if isinstance(source, bytes):
            return
        try:
            with trio.move_on_after(self._timeout):
                self.replace(await source())
                return
        except Exception as exc:
            log.exception("no fresh credentials", client_id=self._client_id)
            raise CredentialsUnavailable(f"no fresh credentials: {type(exc).__name__}: {exc}") from exc
        raise CredentialsUnavailable(f"no fresh credentials within {self._timeout:g} s")

    async def renew(self, connection: Connection) -> None:
        """Show what there is to the server that the client is connected to, and wait for its word.

        Raises:
            AuthenticationFailed: it does not take them; the last ones are good as long as they were.
            ConnectionLost: the connection ended before its word came.
            LocalProtocolError: the server is of a version that cannot renew credentials.
        """
        async with self._lock:
            terms = connection.terms
            if terms is None or connection.engine.closing:
                await trio.lowlevel.checkpoint()
                raise ConnectionLost("the connection has ended")
            if terms.revision < RENEWALS_SINCE:
                raise LocalProtocolError("the server cannot renew credentials within a connection")
            self._number += 1
            renewal = self._renewal = Renewal(self._number)
            connection.send(Authentication(number=renewal.number, credentials=self.value))
            try:
                await renewal.decided.wait()
            finally:
                self._renewal = None
        if renewal.answer is None:
            raise ConnectionLost("the connection ended before the server had looked at the credentials")
        if renewal.answer.error:
            raise AuthenticationFailed(renewal.answer.error)

    # -- what the server and the connection say ------------------------------------------------------------------------
    def handle(self, frame: Authentication) -> None:
        """Take the server's word on credentials."""
        if not frame.error:
            valid_for = frame.valid_for_ms / 1000 if frame.valid_for_ms else math.inf
            now = trio.current_time()
            self._ends_at = now + valid_for
            self._renew_at = self._sleep.deadline = now + valid_for * RENEW_AT
        renewal = self._renewal
        if renewal is not None and renewal.number == frame.number:
            renewal.answer = frame
            renewal.decided.set()

    def connection_ended(self, ended: ConnectionEnded, *, opened: bool) -> ErrorFactory | None:
        """Settle what waits; return why the end is final: nothing fresher can be had than what the server found expired."""
        self._renew_at = self._ends_at = math.inf
        if self._renewal is not None:
            self._renewal.decided.set()
        expired = ended.application and ended.by_peer and ended.code == CloseCode.CREDENTIALS_EXPIRED
        if expired and not opened and not self.renewable:
            return partial(AuthenticationFailed, ended.reason or "the credentials have expired")
        return None

    # -- before they end -----------------------------------------------------------------------------------------------
    async def keep_fresh(self, connection: Connection) -> None:
        """Renew them before they end, for as long as this connection stands."""
        while True:
            with trio.CancelScope(deadline=self._renew_at) as self._sleep:
                await trio.sleep_forever()
            try:
                await self.fetch()
                await self.renew(connection)
            except ConnectionLost:
                return
            except (CredentialsUnavailable, AuthenticationFailed, LocalProtocolError) as exc:
                log.warning("credentials not renewed", client_id=self._client_id, reason=exc)
                now = trio.current_time()
                self._renew_at = now + max((self._ends_at - now) * RETRY_AT, RETRY_AFTER)
