"""Tokens and certificates for the tests here."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

import jwt
import trio

from quicflow_trio import SignedTokens

SECRET = "a secret of more than thirty-two bytes"
START = 1_800_000_000.0


def virtual_time() -> Callable[[], float]:
    """Return a wall clock that follows Trio's."""
    zero = START - trio.current_time()
    return lambda: zero + trio.current_time()


def token(
    subject: str = "worker",
    *,
    valid_for: float = 60.0,
    now: float = START,
    key: Any = SECRET,
    algorithm: str = "HS256",
    headers: dict[str, Any] | None = None,
    **claims: object,
) -> bytes:
    content = {"sub": subject, "aud": "backbone", "iss": "issuer", "exp": now + valid_for} | claims
    content = {name: value for name, value in content.items() if value is not None}
    return jwt.encode(content, key, algorithm=algorithm, headers=headers).encode()


def authenticator(clock: Callable[[], float] = lambda: START, **options: Any) -> SignedTokens:
    settings: dict[str, Any] = {"key": SECRET, "algorithms": ["HS256"], "audience": "backbone", "issuer": "issuer", "leeway": 0.0}
    return SignedTokens(clock=clock, **settings | options)


def today() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
