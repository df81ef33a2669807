"""The gatekeeper: asks the authenticator who a client is, sees to it that fresh credentials come in time, and ends whoever has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import trio
from cryptography import x509

from .auth import ANYBODY, AuthenticationRequest, Authenticator, Identity
from .config import ServerConfig
from .connection import Connection
from .deadlines import Deadlines
from .errors import CredentialsRefused, RemoteProtocolError
from .gate import Gate
from .observe.instruments import Instruments
from .observe.logs import Logger, get_logger, printable
from .observe.metrics import count
from .protocol.handshake import BACKBONE1
from .protocol.state import CloseCode, ConnectionState
from .quic.certificates import certificate_names
from .rates import Meters, TokenBucket
from .sessions import Session
from .wire import Authentication

__all__ = ["Gatekeeper", "is_named"]

log: Logger = get_logger(__name__)

RENEWALS_PER_SECOND = 1.0
RENEWALS_AHEAD = 10.0
"""Seconds' worth of renewals that one connection may ask for at once: each costs a call of the authenticator."""
REASON_BYTES = 256
"""Longest reason that goes to a client."""
LONGEST_MS = 2**53


class _Refused(NamedTuple):
    code: CloseCode
    reason: str


class _Expiry:
    """Closes a connection whose identity is good no longer (`Deadlines` asks)."""

    __slots__ = ("_connection", "live")

    def __init__(self, connection: Connection) -> None:
        self.live: bool = True
        self._connection = connection

    def expire(self, now: float) -> None:
        """Close; the client may come back with fresh credentials."""
        self.live = False
        log.info("credentials expired", **self._connection.context)
        self._connection.close(CloseCode.CREDENTIALS_EXPIRED, "the credentials have expired")


class _Visit:
    """One connection that has to say who it is.

    Attributes:
        nursery: of the connection: the authenticator runs there, and ends with it.
        client_id: what it wants to be known by.
        session: what it got; None until then.
        expiry: ends it; None while its identity has no end.
        asking: the call of the authenticator for a renewal.
        renewals: how many of them it may ask for.
    """

    __slots__ = ("asking", "client_id", "expiry", "nursery", "renewals", "session")

    def __init__(self, nursery: trio.Nursery, client_id: str) -> None:
        self.nursery: trio.Nursery = nursery
        self.client_id: str = client_id
        self.session: Session | None = None
        self.expiry: _Expiry | None = None
        self.asking: trio.CancelScope = trio.CancelScope()
        self.renewals: TokenBucket = TokenBucket(RENEWALS_PER_SECOND, RENEWALS_AHEAD)


class Gatekeeper:
    """Decides who gets a session, and what it may do. Without an authenticator and limits it costs nothing.

    Args:
        authenticate: as given to `serve`; None takes everybody for anybody.
        config: the server's.
        instruments: where it counts and reports.
        deadlines: where the ends of identities stand.
    """

    def __init__(
        self, authenticate: Authenticator | None, config: ServerConfig, instruments: Instruments, deadlines: Deadlines
    ) -> None:
        self._authenticate = authenticate
        self._config = config
        self._instruments = instruments
        self._deadlines = deadlines
        self._meters = Meters()
        self._visits: dict[Connection, _Visit] = {}

    # -- a new connection --------------------------------------------------------------------------------------------
    def check(
        self,
        connection: Connection,
        client_id: str,
        credentials: bytes,
        *,
        nursery: trio.Nursery | None,
        admit: Callable[[Identity], None],
    ) -> None:
        """Find out who says hello, and call ``admit`` with the answer unless that is no: at once, or from a task of the connection.

        Raises:
            RemoteProtocolError: a second hello, while the first is looked at.
        """
        if self._authenticate is None:
            admit(ANYBODY)
            return
        if connection.protocol == BACKBONE1 and not is_named(connection, client_id):
            self._admit_unproven(connection, client_id, admit)
            return
        if connection in self._visits:
            raise RemoteProtocolError("a second hello")
        assert nursery is not None, "a connection that says hello has its task"
        self._visits[connection] = _Visit(nursery, client_id)
        nursery.start_soon(self._decide_hello, connection, client_id, credentials, admit)

    def _admit_unproven(self, connection: Connection, client_id: str, admit: Callable[[Identity], None]) -> None:
        """Admit a client that can show neither credentials nor a certificate, if that is allowed."""
        if self._config.allow_unauthenticated_v1:
            admit(ANYBODY)
            return
        count(self._instruments.counters.authentications, "refused")
        reason = "this protocol has no credentials, and no certificate names the client"
        log.warning("client without credentials refused", **{**connection.context, "client_id": client_id})
        self._instruments.report_error(client_id, "authentication", reason)
        connection.close(CloseCode.AUTHENTICATION_FAILED, reason)

    async def _decide_hello(
        self, connection: Connection, client_id: str, credentials: bytes, admit: Callable[[Identity], None]
    ) -> None:
        answer = await self._ask(connection, client_id, credentials, None)
        if connection.state is not ConnectionState.HELLO or connection.engine.closing:
            return  # It has ended meanwhile, or its time was up.
        if isinstance(answer, Identity):
            admit(answer)
        else:
            connection.close(answer.code, answer.reason)

    def admitted(self, session: Session, connection: Connection, identity: Identity) -> None:
        """Let a session have its identity from now on. To be called before its first handler runs, and after the welcome."""
        self._give(session, identity)
        visit = self._visits.get(connection)
        session.vouched = session.vouched or visit is not None
        if visit is not None:
            visit.session = session
            if self._await_expiry(visit, connection, identity):
                connection.send(Authentication(valid_for_ms=_milliseconds(identity.valid_for)))

    def vouches(self, connection: Connection) -> bool:
        """Return True for a connection whose client the authenticator was asked about."""
        return connection in self._visits

    def ended(self, connection: Connection) -> None:
        """Forget a connection."""
        visit = self._visits.pop(connection, None)
        if visit is not None:
            self._forget_expiry(visit)

    # -- fresh credentials -------------------------------------------------------------------------------------------
    def renew(self, connection: Connection, frame: Authentication) -> None:
        """Look at fresh credentials of a connected client; the latest count."""
        visit = self._visits.get(connection)
        if visit is None:
            # Nobody asked for any, so these are as good as none.
            connection.send(Authentication(number=frame.number))
            return
        now = trio.current_time()
        wait = visit.renewals.wait(1, now)
        if wait:
            connection.send(Authentication(number=frame.number, error=f"too many, try again in {wait:.3g} s"))
            return
        visit.renewals.take(1, now)
        visit.asking.cancel()
        visit.asking = trio.CancelScope()
        visit.nursery.start_soon(self._decide_renewal, connection, visit, frame, visit.asking)

    async def _decide_renewal(
        self, connection: Connection, visit: _Visit, frame: Authentication, scope: trio.CancelScope
    ) -> None:
        session = visit.session
        assert session is not None, "the state table allows fresh credentials to nobody else"
        answer: Identity | _Refused | None = None
        with scope:
            answer = await self._ask(connection, visit.client_id, frame.credentials, session.identity)
        if answer is None or scope.cancel_called or connection not in self._visits or connection.engine.closing:
            return  # Later ones came, or it has ended meanwhile.
        if isinstance(answer, _Refused):
            connection.send(Authentication(number=frame.number, error=answer.reason))
            return
        self._give(session, answer)
        ends = self._await_expiry(visit, connection, answer)
        valid_for_ms = _milliseconds(answer.valid_for) if ends else 0
        connection.send(Authentication(number=frame.number, valid_for_ms=valid_for_ms))
        log.info("credentials renewed", **connection.context)

    # -- what both have in common --------------------------------------------------------------------------------------
    async def _ask(
        self, connection: Connection, client_id: str, credentials: bytes, identity: Identity | None
    ) -> Identity | _Refused:
        """Call the authenticator, within its time. Whatever it does ends in an answer, in a log line and in a counter."""
        assert self._authenticate is not None
        outcomes = self._instruments.counters.authentications
        context = {**connection.context, "client_id": client_id}
        try:
            request = _request(connection, client_id, credentials, identity)
            with trio.move_on_after(self._config.authenticate_timeout) as scope:
                answer = await self._authenticate(request)
                if not isinstance(answer, Identity):
                    raise TypeError(f"the authenticator returned {type(answer).__name__}, expected an Identity")
                count(outcomes, "accepted")
                return answer
        except CredentialsRefused as exc:
            count(outcomes, "expired" if exc.expired else "refused")
            reason = _short(exc.reason)
            log.warning("credentials refused", **context, reason=reason, detail=printable(str(exc.__cause__ or "")))
            self._instruments.report_error(client_id, "authentication", reason)
            return _Refused(CloseCode.CREDENTIALS_EXPIRED if exc.expired else CloseCode.AUTHENTICATION_FAILED, reason)
        except Exception as exc:
            # Its defect is no verdict on the client, who may try again; and none of the others notices.
            count(outcomes, "failed")
            log.exception("the authenticator failed", **context)
            self._instruments.report_error(client_id, "authentication", f"{type(exc).__name__}: {exc}")
            return _Refused(CloseCode.AUTHENTICATION_UNAVAILABLE, "the credentials could not be checked")
        assert scope.cancelled_caught
        count(outcomes, "timed_out")
        log.error("the authenticator ran past its deadline", **context, authenticate_timeout=self._config.authenticate_timeout)
        self._instruments.report_error(client_id, "authentication", "the authenticator ran past its deadline")
        return _Refused(CloseCode.AUTHENTICATION_UNAVAILABLE, "the credentials could not be checked in time")

    def _give(self, session: Session, identity: Identity) -> None:
        session.identity = identity
        limit = self._config.rate if identity.rate is None else identity.rate
        permissions = None if identity.permissions.everything else identity.permissions
        meter = None if limit is None else self._meters.of(session.client_id, limit)
        gated = permissions is not None or meter is not None
        session._link.dispatcher.gate = Gate(permissions, meter, session.client_id, self._instruments) if gated else None

    def _await_expiry(self, visit: _Visit, connection: Connection, identity: Identity) -> bool:
        """Have the connection closed when this identity ends; return whether it does."""
        self._forget_expiry(visit)
        if identity.valid_for == math.inf:
            return False
        visit.expiry = _Expiry(connection)
        self._deadlines.add(trio.current_time() + identity.valid_for, visit.expiry)
        return True

    def _forget_expiry(self, visit: _Visit) -> None:
        expiry, visit.expiry = visit.expiry, None
        if expiry is not None and expiry.live:
            expiry.live = False
            self._deadlines.ended_early()


def is_named(connection: Connection, client_id: str) -> bool:
    """Return True when the client's certificate names the id that it wants to be known by."""
    der = connection.engine.peer_certificate
    return der is not None and client_id in certificate_names(der)


def _request(connection: Connection, client_id: str, credentials: bytes, identity: Identity | None) -> AuthenticationRequest:
    der = connection.engine.peer_certificate
    address = connection.engine.peer_address
    return AuthenticationRequest(
        client_id=client_id,
        credentials=credentials,
        certificate=None if der is None else x509.load_der_x509_certificate(der),
        names=frozenset() if der is None else certificate_names(der),
        address=("", 0) if address is None else (address[0], address[1]),
        identity=identity,
    )


def _short(reason: str) -> str:
    """Return a reason as it goes into a close frame."""
    return reason.encode("utf-8", "replace")[:REASON_BYTES].decode("utf-8", "ignore") or "refused"


def _milliseconds(seconds: float) -> int:
    return max(int(min(seconds * 1000, LONGEST_MS)), 1)
