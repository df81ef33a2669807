"""How the simulated programs are set up, drawn from the seed: what a promise holds for must not depend on one configuration."""

from __future__ import annotations

import random
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from ..auth import AuthenticationRequest, Identity
from ..config import ClientConfig, Limits, ServerConfig
from ..errors import CredentialsRefused
from ..permissions import Permissions
from .rules import Promise

__all__ = ["Settings", "authenticate", "credentials_for", "make_settings"]

# Small ones, so that a little traffic fills them.
_LIMITS = Limits(payload=64 * 1024, lane_window=32 * 1024, outbox_bytes=16 * 1024, dispatch_queue=32, lanes=4)
_WORKERS = 8
_EXPIRY = struct.Struct(">d")
_ALL_BUT_ONE = Permissions("*:", "*:bulk", "*:control")
"""All lanes of the traffic but `rules.FORBIDDEN_LANE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one simulation's programs have in common.

    Attributes:
        heartbeat: interval and time-out, seconds.
        away: what becomes of messages for a client that is away, see `ServerConfig.away`.
        reset_key: whether the server's stateless resets survive its restarts.
        valid_for: seconds that a client's credentials are good for; None where nobody asks for any.
        redeliver: share of the messages that may be redelivered.
        session_ttl: seconds that a session is kept without a connection.
    """

    heartbeat: tuple[float, float]
    away: Literal["refuse", "queue"]
    reset_key: bool
    valid_for: float | None
    redeliver: float
    session_ttl: float

    def __str__(self) -> str:
        interval, timeout = self.heartbeat
        parts = [
            f"heartbeat {interval:g}/{timeout:g} s",
            f"away: {self.away}",
            "reset key" if self.reset_key else "no reset key",
            "no credentials" if self.valid_for is None else f"credentials for {self.valid_for:.0f} s",
            f"{self.redeliver:.0%} redelivered",
            f"sessions kept for {self.session_ttl:g} s",
        ]
        return ", ".join(parts)

    def client(self, promise: Promise, seed: int) -> ClientConfig:
        """Return the configuration of a client."""
        interval, timeout = self.heartbeat
        return ClientConfig(
            limits=_LIMITS,
            workers=_WORKERS,
            handler_timeout=promise.handler_timeout,
            heartbeat_interval=interval,
            heartbeat_timeout=timeout,
            seed=seed,
        )

    def server(self, promise: Promise, reset_key: Path) -> ServerConfig:
        """Return the configuration of the server; ``reset_key`` is where its key may be kept."""
        interval, timeout = self.heartbeat
        return ServerConfig(
            limits=_LIMITS,
            workers=_WORKERS,
            handler_timeout=promise.handler_timeout,
            heartbeat_interval=interval,
            heartbeat_timeout=timeout,
            session_ttl=self.session_ttl,
            away=self.away,
            reset_key_file=reset_key if self.reset_key else None,
        )


def make_settings(seed: int) -> Settings:
    """Return the settings of a seed."""
    rng = random.Random(f"settings {seed}")
    return Settings(
        heartbeat=rng.choice(((15.0, 45.0), (30.0, 60.0), (30.0, 60.0))),
        away=rng.choice(("refuse", "queue")),
        reset_key=rng.random() < 0.5,
        valid_for=rng.uniform(120.0, 1200.0) if rng.random() < 0.3 else None,
        redeliver=rng.choice((0.0, 0.2, 0.5)),
        # The shorter one is shorter than many a partition.
        session_ttl=rng.choice((30.0, 120.0, 120.0)),
    )


def credentials_for(client_id: str, valid_for: float) -> Callable[[], Awaitable[bytes]]:
    """Return a function that gives a client credentials for the next ``valid_for`` seconds."""

    async def fetch() -> bytes:
        await trio.sleep(0.01)
        return _EXPIRY.pack(trio.current_time() + valid_for) + client_id.encode()

    return fetch


async def authenticate(request: AuthenticationRequest) -> Identity:
    """Take whoever shows what `credentials_for` gave; all but one lane is open to them."""
    await trio.sleep(0.01)
    shown = request.credentials
    if shown[_EXPIRY.size :] != request.client_id.encode():
        raise CredentialsRefused("made for somebody else")
    valid_for: float = _EXPIRY.unpack_from(shown)[0] - trio.current_time()
    if valid_for <= 0:
        raise CredentialsRefused("the credentials have expired", expired=True)
    return Identity(name=request.client_id, permissions=_ALL_BUT_ONE, valid_for=valid_for)
