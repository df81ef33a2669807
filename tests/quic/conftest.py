"""Certificates for the engine tests, and pairs of engines around them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest

from quicflow_trio.quic.certificates import make_authority, make_client_certificate, make_server_certificate
from tests.quic.harness import AIOQUIC, NOW, Files, Pair, make_client, make_server


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    authority = make_authority(now=NOW)
    made = Files(tmp_path_factory.mktemp("tls"), authority)
    past = datetime.timedelta(days=-1)
    made.write("ca", authority)
    made.write("other-ca", make_authority("another authority", now=NOW))
    made.write("server", make_server_certificate(authority, ["localhost", "127.0.0.1"], now=NOW))
    made.write("expired", make_server_certificate(authority, ["localhost"], now=NOW, valid_for=past))
    made.write("worker-1", make_client_certificate(authority, "worker-1", now=NOW))
    # A client called as the server is: only the purpose tells the two apart.
    made.write("localhost-client", make_client_certificate(authority, "localhost", now=NOW))
    made.write("expired-client", make_client_certificate(authority, "worker-1", now=NOW, valid_for=past))
    made.write("stranger", make_client_certificate(make_authority("nobody", now=NOW), "worker-1", now=NOW))
    fixed = make_authority("fixed length", now=NOW, use_ed25519=True)
    made.write("ed-ca", fixed)
    made.write("ed-server", make_server_certificate(fixed, ["localhost"], now=NOW, use_ed25519=True))
    return made


PairMaker = Callable[..., Pair]


@pytest.fixture
def pairing() -> tuple[str, str]:
    """Engines of client and server; modules that test others override it."""
    return AIOQUIC, AIOQUIC


@pytest.fixture
def pair(files: Files, pairing: tuple[str, str]) -> PairMaker:
    """Return a function that makes a pair; ``stock="server"`` puts the stock class on that side."""

    def make(
        *,
        stock: str = "",
        connect: bool = True,
        client_tls: Any = None,
        server_tls: Any = None,
        client: dict[str, Any] | None = None,
        server: dict[str, Any] | None = None,
        **options: Any,
    ) -> Pair:
        here = {"engine": pairing[0], **(client or {})}
        there = {"engine": pairing[1], **(server or {})}
        near = make_client(client_tls or files.client(), stock=stock == "client", **here)
        far = make_server(server_tls or files.server(), near.original_destination_id, stock=stock == "server", **there)
        made = Pair(near, far, **options)
        return made.handshake() if connect else made

    return make
