"""Which library stands behind the engine contract: `engine_maker` chooses by the name that a configuration gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import ConfigurationError
from . import aioquic_engine
from .engine import Engine
from .limits import Windows
from .probes import ProbeBudget
from .resets import ResetKey
from .tls import TLSContext

__all__ = ["EngineMaker", "engine_maker"]


class EngineMaker(Protocol):
    """Makes engines of one kind; see `aioquic_engine` for the arguments."""

    def client_engine(
        self,
        tls: TLSContext,
        *,
        server_name: str,
        alpn: Sequence[str],
        idle_timeout: float,
        windows: Windows,
        datagram_size: int = 1200,
        congestion: str = "reno",
        probes: ProbeBudget | None = None,
    ) -> Engine:
        """Make the client side of a connection."""

    def server_engine(
        self,
        tls: TLSContext,
        *,
        original_destination_id: bytes,
        alpn: Sequence[str],
        idle_timeout: float,
        windows: Windows,
        datagram_size: int = 1200,
        congestion: str = "reno",
        probes: ProbeBudget | None = None,
        retry_source_id: bytes | None = None,
        reset_key: ResetKey | None = None,
    ) -> Engine:
        """Make the server side of a connection."""


def engine_maker(name: str, tls: TLSContext) -> EngineMaker:
    """Return what makes engines of the kind that is called ``aioquic`` or ``qh3``, for connections with these TLS settings.

    Raises:
        ConfigurationError: there is no such engine, it is not installed, or it cannot do what the TLS settings ask for.
    """
    if name == "aioquic":
        return aioquic_engine
    if name != "qh3":
        raise ConfigurationError(f"engine = {name!r}: expected 'aioquic' or 'qh3'")
    try:
        # An extra: without it the package must import, and with it only who asks for it should pay for the import.
        from . import qh3_core, qh3_engine
    except ImportError as error:
        raise ConfigurationError(f"engine = 'qh3': pip install 'quicflow_trio[qh3]' ({error})") from error
    qh3_core.check(tls)
    return qh3_engine
