"""Certificates for tests, simulations and private deployments: an authority, servers below it, clients below it.

Made with `cryptography` alone. Nothing here reads a clock: the caller passes ``now``. Serial numbers are derived from the public key
and have a fixed length, so that with Ed25519 keys (whose signatures have one length too) a certificate is as long every time, and a
simulated handshake takes the same datagrams in every run.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..errors import ConfigurationError

__all__ = [
    "CertificateAndKey",
    "certificate_names",
    "make_authority",
    "make_client_certificate",
    "make_server_certificate",
    "write_private",
]

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

ONE_YEAR = datetime.timedelta(days=365)
_BACKDATED = datetime.timedelta(hours=1)
_COMMON_NAME_LIMIT = 64
"""Longest common name (X.520 ub-common-name), in characters."""
_HOST_NAME = re.compile(r"[A-Za-z0-9*_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class CertificateAndKey:
    """A certificate, its private key, and the authority that signed it.

    Attributes:
        certificate: the certificate.
        key: its private key, P-256 or Ed25519.
        issuer: the authority's certificate; the same as ``certificate`` for an authority.
    """

    certificate: x509.Certificate
    key: PrivateKey
    issuer: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key as PEM (PKCS 8), not encrypted."""
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def write_pem(self, cert_file: Path, key_file: Path) -> None:
        """Write both files; the key is readable by its owner only, from the first byte on."""
        cert_file.write_bytes(self.certificate_pem)
        write_private(key_file, self.key_pem)


def write_private(path: Path, data: bytes) -> None:
    """Write ``data`` so that nobody but the owner can ever read it.

    An older file is removed first: opening it would keep its mode, and writing before ``chmod`` would show the key for a moment.
    """
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def make_authority(
    common_name: str = "quicflow authority",
    *,
    now: datetime.datetime,
    valid_for: datetime.timedelta = 10 * ONE_YEAR,
    use_ed25519: bool = False,
) -> CertificateAndKey:
    """Make a self-signed certification authority.

    Args:
        common_name: its name, at most 64 characters.
        now: present time, aware; validity starts an hour before, for clocks that are behind.
        valid_for: time from ``now`` to the end of validity.
        use_ed25519: Ed25519 instead of P-256.

    Raises:
        ConfigurationError: the name is empty or too long, or ``now`` has no time zone.
    """
    key = _make_key(use_ed25519)
    name = _name(common_name)
    builder = (
        _builder(name, name, key, now, valid_for)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    certificate = _sign(builder, key)
    return CertificateAndKey(certificate, key, certificate)


def make_server_certificate(
    authority: CertificateAndKey,
    names: Sequence[str],
    *,
    now: datetime.datetime,
    valid_for: datetime.timedelta = ONE_YEAR,
    use_ed25519: bool = False,
) -> CertificateAndKey:
    """Make a server's certificate (serverAuth) for host names and IP addresses; the first one is its common name too.

    Raises:
        ConfigurationError: there is no name, or one is neither a host name nor an address.
    """
    if not names:
        raise ConfigurationError("names = []: a server certificate needs at least one host name or address")
    alternatives = [_alternative_name(name) for name in names]
    return _make_leaf(
        authority, names[0][:_COMMON_NAME_LIMIT], alternatives, ExtendedKeyUsageOID.SERVER_AUTH, now, valid_for, use_ed25519
    )


def make_client_certificate(
    authority: CertificateAndKey,
    client_id: str,
    *,
    now: datetime.datetime,
    valid_for: datetime.timedelta = ONE_YEAR,
    use_ed25519: bool = False,
) -> CertificateAndKey:
    """Make a client's certificate (clientAuth). The client id is its common name and, written like a host name, its SAN.

    Raises:
        ConfigurationError: the client id is empty or longer than 64 characters.
    """
    alternatives: list[x509.GeneralName] = []
    if _HOST_NAME.fullmatch(client_id):
        alternatives.append(x509.DNSName(client_id))
    return _make_leaf(authority, client_id, alternatives, ExtendedKeyUsageOID.CLIENT_AUTH, now, valid_for, use_ed25519)


def certificate_names(der: bytes) -> frozenset[str]:
    """Return the names a certificate speaks for: its common names, and the host names and addresses among its SANs.

    Raises:
        ValueError: ``der`` is no certificate, or its extensions cannot be read.
    """
    certificate = x509.load_der_x509_certificate(der)
    names = {str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset(names)
    names.update(alternatives.get_values_for_type(x509.DNSName))
    names.update(str(address) for address in alternatives.get_values_for_type(x509.IPAddress))
    return frozenset(names)


def _make_leaf(
    authority: CertificateAndKey,
    common_name: str,
    alternatives: list[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: datetime.datetime,
    valid_for: datetime.timedelta,
    use_ed25519: bool,
) -> CertificateAndKey:
    key = _make_key(use_ed25519)
    builder = (
        _builder(_name(common_name), authority.certificate.subject, key, now, valid_for)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return CertificateAndKey(_sign(builder, authority.key), key, authority.certificate)


def _make_key(use_ed25519: bool) -> PrivateKey:
    return ed25519.Ed25519PrivateKey.generate() if use_ed25519 else ec.generate_private_key(ec.SECP256R1())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, now: datetime.datetime, valid_for: datetime.timedelta
) -> x509.CertificateBuilder:
    if now.tzinfo is None:
        raise ConfigurationError(f"now = {now!r}: expected an aware datetime, as in datetime.now(timezone.utc)")
    public = key.public_key()
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    # 20 bytes whose first two bits are 01: positive in DER, and never a byte shorter than the last time.
    serial = int.from_bytes(hashlib.sha256(encoded).digest()[:20], "big") & (1 << 158) - 1 | 1 << 158
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(serial)
        # An hour back, or two days before the end for one that has expired already.
        .not_valid_before(min(now - _BACKDATED, now + valid_for - 48 * _BACKDATED))
        .not_valid_after(now + valid_for)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> x509.Certificate:
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    if not 1 <= len(common_name) <= _COMMON_NAME_LIMIT:
        raise ConfigurationError(f"common name {common_name!r}: expected 1 to {_COMMON_NAME_LIMIT} characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise ConfigurationError(f"name {name!r}: expected a host name (ASCII, or its xn-- form) or an IP address") from None
        return x509.DNSName(name)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
