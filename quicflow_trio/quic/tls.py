"""TLS settings, loaded once: files become certificates and keys here, and errors name the file.

A server makes one `TLSContext` and shares it among all its connections; reading and parsing PEM for each of them would cost more
than the handshake itself.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from aioquic import tls as aioquic_tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from ..config import TLSConfig
from ..errors import ConfigurationError
from .verify import ClientVerifier

__all__ = ["SUPPORTED_VERSIONS", "TLSContext", "alert_name", "error_text", "is_certificate_alert", "tls_alert"]

SUPPORTED_VERSIONS: Final = (int(QuicProtocolVersion.VERSION_1), int(QuicProtocolVersion.VERSION_2))
"""QUIC versions that a server takes (RFC 9000, RFC 9369); a client offers the first."""

CONNECTION_ID_LENGTH: Final = 8
"""Bytes of every connection id that our side chooses; routing of short headers depends on it."""

_CRYPTO_ERROR: Final = 0x100
"""Transport codes from here to 0x1ff carry a TLS alert in their low byte (RFC 9001 section 4.8)."""

_ALERTS: Final[Mapping[int, str]] = {
    **{int(alert): alert.name for alert in aioquic_tls.AlertDescription},
    114: "bad_certificate_hash_value",
}
_CERTIFICATE_ALERTS: Final = frozenset({41, 42, 43, 44, 45, 46, 48, 113, 114, 116})
_TRANSPORT_ERRORS: Final = (
    "NO_ERROR",
    "INTERNAL_ERROR",
    "CONNECTION_REFUSED",
    "FLOW_CONTROL_ERROR",
    "STREAM_LIMIT_ERROR",
    "STREAM_STATE_ERROR",
    "FINAL_SIZE_ERROR",
    "FRAME_ENCODING_ERROR",
    "TRANSPORT_PARAMETER_ERROR",
    "CONNECTION_ID_LIMIT_ERROR",
    "PROTOCOL_VIOLATION",
    "INVALID_TOKEN",
    "APPLICATION_ERROR",
    "CRYPTO_BUFFER_EXCEEDED",
    "KEY_UPDATE_ERROR",
    "AEAD_LIMIT_REACHED",
    "NO_VIABLE_PATH",
    "VERSION_NEGOTIATION_ERROR",
)


def tls_alert(code: int) -> int | None:
    """Return the TLS alert inside a QUIC transport error code, None when it is no CRYPTO_ERROR."""
    return code - _CRYPTO_ERROR if _CRYPTO_ERROR <= code < 2 * _CRYPTO_ERROR else None


def alert_name(alert: int) -> str:
    """Return the name of a TLS alert as RFC 8446 section 6 writes it, ``alert_<number>`` for one it does not know."""
    return _ALERTS.get(alert, f"alert_{alert}")


def is_certificate_alert(alert: int | None) -> bool:
    """Tell whether an alert says that a certificate was missing or not accepted: trying again will not help."""
    return alert in _CERTIFICATE_ALERTS


def error_text(code: int) -> str:
    """Return the name of a QUIC transport error code (RFC 9000 section 20.1), with the alert's name for a CRYPTO_ERROR."""
    alert = tls_alert(code)
    if alert is not None:
        return f"CRYPTO_ERROR ({alert_name(alert)})"
    return _TRANSPORT_ERRORS[code] if 0 <= code < len(_TRANSPORT_ERRORS) else f"error 0x{code:x}"


class TLSContext:
    """What one side's connections share: certificates, keys, trusted authorities. Immutable.

    Args:
        config: the files to load; this is the only place that reads them.

    Attributes:
        is_client: which side it is for.
        server_name: name that the server's certificate must carry; None takes the host that was dialled.
        client_verifier: what a server checks client certificates with; None asks for none.

    Raises:
        ConfigurationError: a file cannot be read, is not PEM, its key is encrypted or belongs to another certificate.
    """

    def __init__(self, config: TLSConfig) -> None:
        self.is_client: Final = config.is_client
        self.server_name: Final = config.server_name
        self._verify_mode = ssl.CERT_NONE if config.insecure else None
        self._certificates: list[x509.Certificate] = []
        self._key: Any = None
        if config.cert_file is not None and config.key_file is not None:
            self._certificates = _load_certificates("cert_file", config.cert_file)
            self._key = _load_key(config.key_file)
            _check_key(self._certificates[0], self._key, config.cert_file, config.key_file)
        self._trusted: bytes | None = None
        if config.ca_file is not None:
            # Written anew: aioquic splits PEM at an exact line and fails on text, CRLF or blank lines between certificates.
            authorities = _load_certificates("ca_file", config.ca_file)
            self._trusted = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in authorities)
        self.client_verifier: Final = _client_verifier(config)
        self._server_configurations: dict[tuple[object, ...], Mapping[int, QuicConfiguration]] = {}

    def client_configuration(
        self, *, server_name: str, alpn: Sequence[str], idle_timeout: float, datagram_size: int, congestion: str = "reno"
    ) -> QuicConfiguration:
        """Return the settings of one connection attempt; the server's name given in `TLSConfig` comes before ``server_name``."""
        name = self.server_name or server_name
        return self._make_configuration(tuple(alpn), idle_timeout, datagram_size, congestion, SUPPORTED_VERSIONS[:1], name)

    def server_configurations(
        self, *, alpn: Sequence[str], idle_timeout: float, datagram_size: int, congestion: str = "reno"
    ) -> Mapping[int, QuicConfiguration]:
        """Return the settings of a server's connections by QUIC version, 0 holding the one for the first packet.

        The same objects come back for the same arguments: all connections share them.
        """
        arguments = (tuple(alpn), idle_timeout, datagram_size, congestion)
        configurations = self._server_configurations.get(arguments)
        if configurations is None:
            any_version = self._make_configuration(*arguments, SUPPORTED_VERSIONS, None)
            one_version = {
                version: dataclasses.replace(any_version, supported_versions=[version]) for version in SUPPORTED_VERSIONS
            }
            configurations = self._server_configurations[arguments] = {0: any_version} | one_version
        return configurations

    def _make_configuration(
        self,
        alpn: tuple[str, ...],
        idle_timeout: float,
        datagram_size: int,
        congestion: str,
        versions: tuple[int, ...],
        server_name: str | None,
    ) -> QuicConfiguration:
        return QuicConfiguration(
            alpn_protocols=list(alpn),
            congestion_control_algorithm=congestion,
            connection_id_length=CONNECTION_ID_LENGTH,
            idle_timeout=idle_timeout,
            is_client=self.is_client,
            max_datagram_size=datagram_size,
            server_name=server_name,
            cadata=self._trusted,
            certificate=self._certificates[0] if self._certificates else None,
            certificate_chain=self._certificates[1:],
            private_key=self._key,
            # DATAGRAM frames are not offered: a peer that sends one is closed with PROTOCOL_VIOLATION.
            max_datagram_frame_size=None,
            supported_versions=list(versions),
            verify_mode=self._verify_mode,
        )


def _client_verifier(config: TLSConfig) -> ClientVerifier | None:
    if config.client_ca is None:
        return None
    if config.is_client:
        raise ConfigurationError("TLSConfig.client_ca: only a server asks for client certificates")
    return ClientVerifier(_load_certificates("client_ca", config.client_ca))


def _read(field: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"TLSConfig.{field} = {str(path)!r}: cannot be read: {error.strerror}") from error


def _load_certificates(field: str, path: Path) -> list[x509.Certificate]:
    data = _read(field, path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigurationError(f"TLSConfig.{field} = {str(path)!r}: expected PEM certificates: {error}") from error


def _load_key(path: Path) -> Any:
    data = _read("key_file", path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise ConfigurationError(
            f"TLSConfig.key_file = {str(path)!r}: the private key is encrypted; give one without a password"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(f"TLSConfig.key_file = {str(path)!r}: expected a PEM private key: {error}") from error
    usable = isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    )
    if not usable:
        raise ConfigurationError(
            f"TLSConfig.key_file = {str(path)!r}: expected an RSA, P-256, P-384, Ed25519 or Ed448 key, got {type(key).__name__}"
        )
    return key


def _check_key(certificate: x509.Certificate, key: Any, cert_file: Path, key_file: Path) -> None:
    if certificate.public_key() != key.public_key():
        raise ConfigurationError(
            f"TLSConfig.key_file = {str(key_file)!r}: the key does not match the first certificate in {str(cert_file)!r}"
        )
