"""Throw-away certificates for tests."""

from __future__ import annotations

import atexit
import datetime
import functools
import shutil
import tempfile
from pathlib import Path

from ..config import TLSConfig
from ..quic.certificates import make_authority, make_server_certificate

__all__ = ["throwaway_tls"]

NAMES = ("server", "localhost", "127.0.0.1", "::1")


@functools.cache
def throwaway_tls() -> tuple[TLSConfig, TLSConfig]:
    """Return the TLS settings of a server and of a client that trusts it; made once per process, deleted at its end.

    The certificate is for ``server``, ``localhost``, ``127.0.0.1`` and ``::1``. Keys are Ed25519: their signatures have one length,
    which a repeatable simulation needs.
    """
    folder = Path(tempfile.mkdtemp(prefix="quicflow-tls-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("throw-away authority", now=now, use_ed25519=True)
    server = make_server_certificate(authority, NAMES, now=now, use_ed25519=True)
    ca_file, cert_file, key_file = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    ca_file.write_bytes(authority.certificate_pem)
    server.write_pem(cert_file, key_file)
    return TLSConfig.server(cert_file, key_file), TLSConfig.client(ca_file)
