"""Who may connect: what an authenticator is asked and answers, and two of them, for signed tokens and for client certificates."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

from cryptography import x509

from .errors import ConfigurationError, CredentialsRefused
from .permissions import Permissions
from .rates import RateLimit

__all__ = ["ANYBODY", "AuthenticationRequest", "Authenticator", "ClientCertificates", "Identity", "SignedTokens"]

TOKEN_BYTES = 16 * 1024
"""Longest token that is looked at."""
_ALGORITHMS: Final = {
    **dict.fromkeys(("HS256", "HS384", "HS512"), "secret"),
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "public"),
    **dict.fromkeys(("ES256", "ES384", "EdDSA"), "public"),
}
_EVERYTHING: Final = Permissions("*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a client is and what it may do, as an authenticator says. A handler finds it as ``request.peer.identity``.

    Attributes:
        name: who it is, for logs and for your handlers; often the client id.
        permissions: what it may send; all by default.
        rate: how much of that; None takes ``ServerConfig.rate``.
        valid_for: seconds from now until the client must have shown fresh credentials. Its connection is closed then.
        claims: whatever else is known; kept out of ``repr``.

    Raises:
        ConfigurationError: ``valid_for`` is not more than 0.
    """

    name: str
    permissions: Permissions = _EVERYTHING
    rate: RateLimit | None = None
    valid_for: float = math.inf
    claims: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.valid_for > 0:
            raise ConfigurationError(f"Identity.valid_for = {self.valid_for!r}: expected more than 0 seconds")


ANYBODY: Final = Identity(name="")
"""Whom a server without an authenticator takes every client for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticationRequest:
    """What an authenticator is asked: may this client connect, or go on.

    Attributes:
        client_id: the id that it wants to be known by, 1 to 256 bytes of printable text.
        credentials: what it shows, at most 64 KiB; empty when it shows nothing. Kept out of ``repr``.
        certificate: its certificate, verified up to ``TLSConfig.client_ca``; None when it has none or the server asks for none.
        names: the common names, host names and addresses of that certificate.
        address: host and port that it sends from.
        identity: who it was so far, when a connected client shows fresh credentials; None for a new connection.
    """

    client_id: str
    credentials: bytes = field(repr=False)
    certificate: x509.Certificate | None
    names: frozenset[str]
    address: tuple[str, int]
    identity: Identity | None


Authenticator: TypeAlias = Callable[[AuthenticationRequest], Awaitable[Identity]]
"""An async function that returns who a client is, or raises `CredentialsRefused`. Anything else that it raises refuses the client for
now, as does running past ``ServerConfig.authenticate_timeout``."""


@final
class ClientCertificates:
    """An authenticator: the client's certificate must name its client id. It is good until the certificate expires.

    The server must ask for certificates, with ``TLSConfig.server(..., client_ca=...)``: TLS verifies the chain, the dates and the
    purpose. ``quicflow certs --client NAME`` makes such certificates.

    Args:
        permissions: of every client; use ``dataclasses.replace`` on the result, in an authenticator of yours, for finer ones.
        rate: of every client; None takes the server's.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        *,
        permissions: Permissions = _EVERYTHING,
        rate: RateLimit | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._permissions = permissions
        self._rate = rate
        self._clock = clock

    async def __call__(self, request: AuthenticationRequest) -> Identity:
        """Return the identity that the certificate proves. Never waits.

        Raises:
            CredentialsRefused: there is no certificate, it names somebody else, or it has expired.
        """
        certificate = request.certificate
        if certificate is None:
            raise CredentialsRefused("a client certificate is required")
        if request.client_id not in request.names:
            raise CredentialsRefused("the certificate does not name this client id")
        # TLS looked at the dates once; a client that renews its stay shows the same certificate again.
        valid_for = certificate.not_valid_after_utc.timestamp() - self._clock()
        if valid_for <= 0:
            raise CredentialsRefused("the certificate has expired")
        return Identity(name=request.client_id, permissions=self._permissions, rate=self._rate, valid_for=valid_for)


@final
class SignedTokens:
    """An authenticator: the credentials are a JSON Web Token (RFC 7519) whose subject is the client id.

    Signature, audience, issuer and expiry are always checked, and an expiry is required. A claim ``permissions``, a list of rules as
    `Permissions` reads them, says what the client may send. The other claims are ``identity.claims``.

    Args:
        key: the secret (HS256 ...) or public key in PEM (RS256, ES256, EdDSA ...); or several, by the ``kid`` of the token's header.
        algorithms: those that are accepted. Secrets and public keys never together: a public key would be taken for a secret.
        audience: what the token must be meant for.
        issuer: who must have issued it.
        leeway: seconds that clocks may differ.
        permissions: for tokens without that claim.
        rate: of every client; None takes the server's.
        clock: returns Unix seconds.

    Raises:
        ConfigurationError: an argument is of no use, or PyJWT is not installed (``pip install 'quicflow_trio[auth]'``).
    """

    def __init__(
        self,
        key: str | bytes | Mapping[str, str | bytes],
        *,
        algorithms: Sequence[str],
        audience: str,
        issuer: str,
        leeway: float = 10.0,
        permissions: Permissions = _EVERYTHING,
        rate: RateLimit | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if find_spec("jwt") is None:
            raise ConfigurationError("SignedTokens: PyJWT is not installed; pip install 'quicflow_trio[auth]'")
        if isinstance(algorithms, str) or not algorithms or not _ALGORITHMS.keys() >= set(algorithms):
            raise ConfigurationError(f"SignedTokens: algorithms = {algorithms!r}: expected some of {', '.join(_ALGORITHMS)}")
        if len({_ALGORITHMS[algorithm] for algorithm in algorithms}) > 1:
            raise ConfigurationError(
                f"SignedTokens: algorithms = {algorithms!r}: expected those of secrets or of public keys, not both"
            )
        if not key or not audience or not issuer:
            raise ConfigurationError("SignedTokens: expected a key, an audience and an issuer")
        if not 0 <= leeway <= 3600:
            raise ConfigurationError(f"SignedTokens: leeway = {leeway!r}: expected 0 to 3,600 seconds")
        self._key = key
        self._algorithms = list(algorithms)
        self._audience = audience
        self._issuer = issuer
        self._leeway = leeway
        self._permissions = permissions
        self._rate = rate
        self._clock = clock

    async def __call__(self, request: AuthenticationRequest) -> Identity:
        """Return the identity that the token proves. Never waits: checking a signature takes about 50 us.

        Raises:
            CredentialsRefused: there is no token, or it is not good, or good no longer (``expired`` is true then).
        """
        claims = self._verify(request.credentials)
        valid_for = self._check_times(claims)
        if claims["sub"] != request.client_id:
            raise CredentialsRefused("the token is for another client id")
        return Identity(
            name=request.client_id,
            permissions=self._read_permissions(claims),
            rate=self._rate,
            valid_for=valid_for,
            claims=MappingProxyType(claims),
        )

    def _verify(self, token: bytes) -> dict[str, Any]:
        import jwt

        if not token:
            raise CredentialsRefused("a token is required")
        if len(token) > TOKEN_BYTES:
            raise CredentialsRefused("the token is too long")
        try:
            key = self._key
            if isinstance(key, Mapping):
                key = key[jwt.get_unverified_header(token).get("kid", "")]
            return jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                # Times are compared below, with a clock that a test can set.
                options={"require": ["exp", "sub", "aud", "iss"], "verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
        except (jwt.PyJWTError, LookupError, ValueError, TypeError) as exc:
            # What is wrong with it is for the log, not for who guesses.
            raise CredentialsRefused("the token is not accepted") from exc

    def _check_times(self, claims: Mapping[str, object]) -> float:
        """Return the seconds that the token is still good for, leeway included."""
        now = self._clock()
        for name in ("nbf", "iat"):
            if name in claims and _seconds(claims[name]) > now + self._leeway:
                raise CredentialsRefused("the token is not good yet")
        valid_for = _seconds(claims["exp"]) + self._leeway - now
        if valid_for <= 0:
            raise CredentialsRefused("the token has expired", expired=True)
        return valid_for

    def _read_permissions(self, claims: Mapping[str, object]) -> Permissions:
        rules = claims.get("permissions")
        if rules is None:
            return self._permissions
        try:
            if not isinstance(rules, list):
                raise ConfigurationError(f"permissions = {rules!r}: expected a list")
            return Permissions(*rules)
        except ConfigurationError as exc:
            raise CredentialsRefused("the permissions of the token cannot be read") from exc


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        raise CredentialsRefused("a time in the token cannot be read")
    return float(value)
