"""Signed tokens: everything that makes one bad is refused, with a reason that helps nobody who guesses."""

from __future__ import annotations

import math
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from quicflow_trio import (
    AuthenticationRequest,
    ConfigurationError,
    CredentialsRefused,
    Identity,
    Permissions,
    RateLimit,
    SignedTokens,
)
from tests.auth.tokens import SECRET, START, authenticator, token


def asking(credentials: bytes, client_id: str = "worker") -> AuthenticationRequest:
    return AuthenticationRequest(
        client_id=client_id, credentials=credentials, certificate=None, names=frozenset(), address=("host", 1), identity=None
    )


def pem(key: Any) -> tuple[bytes, bytes]:
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


async def test_a_good_token() -> None:
    identity = await authenticator(rate=RateLimit(messages=5))(asking(token(permissions=["query", "event:"], team="blue")))
    assert identity.name == "worker"
    assert identity.valid_for == 60.0
    assert identity.permissions == Permissions("query", "event:")
    assert identity.rate == RateLimit(messages=5)
    assert identity.claims["team"] == "blue"
    assert "blue" not in repr(identity)


async def test_without_the_claim_the_permissions_are_the_configured_ones() -> None:
    assert (await authenticator()(asking(token()))).permissions.everything
    narrow = authenticator(permissions=Permissions("query"))
    assert (await narrow(asking(token()))).permissions == Permissions("query")
    assert (await narrow(asking(token(permissions=[])))).permissions == Permissions()


def tampered() -> bytes:
    head, _, signature = token("other").split(b".")
    return b".".join([head, token("worker").split(b".")[1], signature])


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        (b"", "required"),
        (b"x" * 20_000, "too long"),
        (b"nonsense", "not accepted"),
        (b"\xff\xfe.\x00.\x00", "not accepted"),
        (token(key="another secret of more than thirty-two bytes"), "not accepted"),
        (tampered(), "not accepted"),
        (
            jwt.encode({"sub": "worker", "aud": "backbone", "iss": "issuer", "exp": START + 60}, "", algorithm="none").encode(),
            "not accepted",
        ),
        (token(algorithm="HS512", key=SECRET * 2), "not accepted"),
        (token(aud="another service"), "not accepted"),
        (token(aud=None), "not accepted"),
        (token(iss="another issuer"), "not accepted"),
        (token(iss=None), "not accepted"),
        (token(sub=None), "not accepted"),
        (token(exp=None), "not accepted"),
        (token("another"), "another client id"),
        (token(exp="soon"), "cannot be read"),
        (token(exp=1e300), "cannot be read"),
        (token(nbf=START + 30), "not good yet"),
        (token(iat=START + 30), "not good yet"),
        (token(permissions="query"), "permissions"),
        (token(permissions=["delete"]), "permissions"),
        (token(permissions=[7]), "permissions"),
    ],
)
async def test_a_bad_token(credentials: bytes, reason: str) -> None:
    with pytest.raises(CredentialsRefused, match=reason) as caught:
        await authenticator()(asking(credentials))
    assert not caught.value.expired


async def test_an_expired_token_says_so_after_the_leeway() -> None:
    old = token(valid_for=-5)
    assert (await authenticator(leeway=10.0)(asking(old))).valid_for == 5.0
    with pytest.raises(CredentialsRefused, match="expired") as caught:
        await authenticator(leeway=5.0)(asking(old))
    assert caught.value.expired


async def test_clocks_that_are_a_little_behind() -> None:
    assert await authenticator(leeway=10.0)(asking(token(nbf=START + 5, iat=START + 5)))


@pytest.mark.parametrize(
    ("key", "algorithm"), [(ec.generate_private_key(ec.SECP256R1()), "ES256"), (ed25519.Ed25519PrivateKey.generate(), "EdDSA")]
)
async def test_public_keys(key: Any, algorithm: str) -> None:
    private, public = pem(key)
    check = authenticator(key=public, algorithms=[algorithm])
    assert await check(asking(token(key=private, algorithm=algorithm)))
    # The public key is no secret: signed with it as if it were one, a token is worth nothing.
    forged = b".".join([jwt.utils.base64url_encode(b'{"alg":"HS256"}'), token().split(b".")[1]])
    import hashlib
    import hmac

    forged += b"." + jwt.utils.base64url_encode(hmac.digest(public, forged, hashlib.sha256))
    with pytest.raises(CredentialsRefused, match="not accepted"):
        await check(asking(forged))


async def test_several_keys_by_their_id() -> None:
    new = "the next secret of more than thirty-two bytes"
    check = authenticator(key={"old": SECRET, "new": new})
    assert await check(asking(token(headers={"kid": "old"})))
    assert await check(asking(token(key=new, headers={"kid": "new"})))
    for headers in ({"kid": "new"}, {"kid": "unknown"}, None):
        with pytest.raises(CredentialsRefused, match="not accepted"):
            await check(asking(token(headers=headers)))


@pytest.mark.parametrize(
    "options",
    [
        {"algorithms": []},
        {"algorithms": "HS256"},
        {"algorithms": ["none"]},
        {"algorithms": ["HS256", "RS256"]},
        {"audience": ""},
        {"issuer": ""},
        {"key": ""},
        {"leeway": -1.0},
        {"leeway": math.nan},
    ],
)
def test_settings_that_are_of_no_use(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="SignedTokens"):
        authenticator(**options)


def test_without_pyjwt_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicflow_trio.auth.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"quicflow_trio\[auth\]"):
        SignedTokens(SECRET, algorithms=["HS256"], audience="a", issuer="i")


@pytest.mark.parametrize("valid_for", [0, -1, math.nan])
def test_an_identity_that_is_over_already(valid_for: float) -> None:
    with pytest.raises(ConfigurationError, match="valid_for"):
        Identity(name="x", valid_for=valid_for)
