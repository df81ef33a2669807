"""Checks of peer certificates that aioquic does not make: client certificates altogether, and the purpose of server certificates.

Runs inside the TLS handshake, at the moment its last message has proven good: what raises here ends the handshake with the alert,
before `HandshakeCompleted` and before any stream data.
"""

from __future__ import annotations

from collections.abc import Sequence

from aioquic import tls
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from ..errors import ConfigurationError

__all__ = ["ClientVerifier", "check_server_purpose"]

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_EXPIRED = frozenset({9, 10})
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})


class CertificateRequiredError(tls.Alert):
    """The client shows no certificate."""

    description = tls.AlertDescription.certificate_required


class UnknownAuthorityError(tls.Alert):
    """No trusted authority stands above the certificate."""

    description = tls.AlertDescription.unknown_ca


class ClientVerifier:
    """Verifies client certificates: chain up to a trusted authority, dates, and the clientAuth purpose where purposes are named.

    Args:
        authorities: certificates that a client's chain may end in.

    Raises:
        ConfigurationError: this aioquic cannot ask a client for its certificate.
    """

    def __init__(self, authorities: Sequence[x509.Certificate]) -> None:
        if not hasattr(tls.Context(is_client=False), "_request_client_certificate"):
            raise ConfigurationError("TLSConfig.client_ca: the installed aioquic cannot ask for client certificates")
        self._store = crypto.X509Store()
        for authority in authorities:
            self._store.add_cert(crypto.X509.from_cryptography(authority))

    def verify(self, certificate: x509.Certificate | None, chain: Sequence[x509.Certificate]) -> x509.Certificate:
        """Check what a client presented and return its certificate.

        Raises:
            tls.Alert: with the description that goes to the peer.
        """
        if certificate is None:
            raise CertificateRequiredError("a client certificate is required")
        context = crypto.X509StoreContext(
            self._store, crypto.X509.from_cryptography(certificate), [crypto.X509.from_cryptography(one) for one in chain]
        )
        try:
            context.verify_certificate()
        except crypto.X509StoreContextError as error:
            raise _alert_for(error) from error
        _check_purpose(certificate, ExtendedKeyUsageOID.CLIENT_AUTH)
        return certificate


def check_server_purpose(certificate: x509.Certificate) -> None:
    """Refuse a certificate that was issued for other purposes only, such as that of a client of the same authority.

    Raises:
        tls.Alert: unsupported_certificate or bad_certificate.
    """
    _check_purpose(certificate, ExtendedKeyUsageOID.SERVER_AUTH)


def _check_purpose(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> None:
    try:
        named = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    except ValueError as error:
        raise tls.AlertBadCertificate("the certificate's extensions cannot be read") from error
    if purpose not in named and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in named:
        raise tls.AlertUnsupportedCertificate("the certificate was issued for another purpose")


def _alert_for(error: crypto.X509StoreContextError) -> tls.Alert:
    code, text = error.errors[0], str(error)
    if code in _EXPIRED:
        return tls.AlertCertificateExpired(text)
    if code in _UNKNOWN_AUTHORITY:
        return UnknownAuthorityError(text)
    return tls.AlertBadCertificate(text)
