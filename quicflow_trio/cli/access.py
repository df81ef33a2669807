"""Who may connect to `quicflow serve`, and what the other commands show it: signed tokens, certificates, a rate limit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter, validators

from ..auth import Authenticator, ClientCertificates, SignedTokens
from ..credentials import CredentialsSource
from ..rates import RateLimit
from .common import CommandFailed, ExitCode, Flag

__all__ = ["Admission", "Credentials"]

PEM = b"-----BEGIN"
ALGORITHMS: dict[bool, tuple[str, ...]] = {
    True: ("EdDSA", "ES256", "ES384", "RS256", "PS256"),
    False: ("HS256", "HS384", "HS512"),
}
"""By whether the key is a public one: a public key must never pass for a secret, which everybody would know then."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Admission:
    """Who may connect, and how much each may send.

    Attributes:
        token_key: file with the secret or the public key (PEM) that clients' JSON Web Tokens are checked with.
        audience: whom those tokens must be meant for.
        issuer: who must have issued them.
        client_names: a client's certificate must name its client id; goes with --client-ca.
        rate: messages per second that each client may send; all when not given.
    """

    token_key: Path | None = None
    audience: str | None = None
    issuer: str | None = None
    client_names: Flag = False
    rate: Annotated[float | None, Parameter(validator=validators.Number(gt=0))] = None

    def authenticator(self, client_ca: Path | None) -> Authenticator | None:
        """Return what `serve` asks; None when everybody may connect.

        Raises:
            CommandFailed: the options contradict each other, or a file cannot be read.
            ConfigurationError: PyJWT is not installed.
        """
        if self.client_names:
            if self.token_key is not None:
                raise CommandFailed(ExitCode.USAGE, "--client-names and --token-key: give one of them")
            if client_ca is None:
                raise CommandFailed(ExitCode.USAGE, "--client-names: needs --client-ca, whose certificates name the clients")
            return ClientCertificates()
        if self.token_key is None:
            if self.audience is not None or self.issuer is not None:
                raise CommandFailed(ExitCode.USAGE, "--audience and --issuer: need --token-key")
            return None
        if not self.audience or not self.issuer:
            raise CommandFailed(ExitCode.USAGE, "--token-key: needs --audience and --issuer, which each token must name")
        try:
            key = self.token_key.read_bytes().strip()
        except OSError as exc:
            raise CommandFailed(ExitCode.USAGE, f"{self.token_key}: {exc.strerror}") from None
        return SignedTokens(key, algorithms=ALGORITHMS[key.startswith(PEM)], audience=self.audience, issuer=self.issuer)

    def rate_limit(self) -> RateLimit | None:
        """Return the limit of each client; None when there is none."""
        return None if self.rate is None else RateLimit(messages=self.rate)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows.

    Attributes:
        token: file with the credentials that the server asks for, such as a JSON Web Token. It is read again for each attempt and before
            the credentials end; ``{id}`` in its name stands for the client id.
    """

    token: str | None = None

    def source(self, client_id: str) -> CredentialsSource:
        """Return what `open_client` takes.

        Raises:
            CommandFailed: the file cannot be read now.
        """
        if self.token is None:
            return b""
        file = Path(self.token.replace("{id}", client_id))
        if not file.is_file():
            raise CommandFailed(ExitCode.USAGE, f"--token: {file}: no such file")
        return partial(_read, trio.Path(file))


async def _read(file: trio.Path) -> bytes:
    return (await file.read_bytes()).strip()
