"""Certificates: what they carry, how long they are, who may read the keys."""

from __future__ import annotations

import datetime
import ipaddress
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quicflow_trio.errors import ConfigurationError
from quicflow_trio.quic.certificates import (
    CertificateAndKey,
    certificate_names,
    make_authority,
    make_client_certificate,
    make_server_certificate,
    write_private,
)

NOW = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> CertificateAndKey:
    return make_authority(now=NOW)


def purposes(pair: CertificateAndKey) -> list[x509.ObjectIdentifier]:
    return list(pair.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_server_certificate_names_hosts_and_addresses(authority: CertificateAndKey) -> None:
    made = make_server_certificate(authority, ["backbone.example", "10.1.2.3", "::1"], now=NOW)
    names = made.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["backbone.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.1.2.3"), ipaddress.ip_address("::1")]
    assert purposes(made) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert certificate_names(made.certificate.public_bytes(Encoding.DER)) == {"backbone.example", "10.1.2.3", "::1"}
    made.certificate.verify_directly_issued_by(made.issuer)
    assert made.issuer == authority.certificate
    assert isinstance(made.key, ec.EllipticCurvePrivateKey)


def test_dates_come_from_the_caller(authority: CertificateAndKey) -> None:
    made = make_client_certificate(authority, "worker-1", now=NOW, valid_for=datetime.timedelta(days=3))
    assert made.certificate.not_valid_after_utc == NOW + datetime.timedelta(days=3)
    assert made.certificate.not_valid_before_utc == NOW - datetime.timedelta(hours=1)
    expired = make_client_certificate(authority, "worker-1", now=NOW, valid_for=datetime.timedelta(days=-3))
    assert expired.certificate.not_valid_before_utc < expired.certificate.not_valid_after_utc < NOW
    with pytest.raises(ConfigurationError, match="aware"):
        make_authority(now=NOW.replace(tzinfo=None))


@pytest.mark.parametrize(("client_id", "has_san"), [("worker-1", True), ("größe 5", False), ("a b", False)])
def test_a_client_certificate_carries_the_client_id(authority: CertificateAndKey, client_id: str, has_san: bool) -> None:
    made = make_client_certificate(authority, client_id, now=NOW)
    assert purposes(made) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == client_id
    assert certificate_names(made.certificate.public_bytes(Encoding.DER)) == {client_id}
    extensions = {type(one.value) for one in made.certificate.extensions}
    assert (x509.SubjectAlternativeName in extensions) == has_san


def test_extensions_chain_by_key_identifier(authority: CertificateAndKey) -> None:
    made = make_client_certificate(authority, "worker-1", now=NOW)
    issuer = made.certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer.key_identifier == subject.digest
    assert authority.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not made.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_ed25519_certificates_have_one_length() -> None:
    lengths = set()
    serials = set()
    for _ in range(30):
        authority = make_authority(now=NOW, use_ed25519=True)
        made = make_server_certificate(authority, ["localhost"], now=NOW, use_ed25519=True)
        assert isinstance(made.key, ed25519.Ed25519PrivateKey)
        lengths.add((len(authority.certificate.public_bytes(Encoding.DER)), len(made.certificate.public_bytes(Encoding.DER))))
        serials.add(made.certificate.serial_number)
    assert len(lengths) == 1
    assert len(serials) == 30
    assert all(serial.bit_length() == 159 for serial in serials)


@pytest.mark.parametrize("name", ["", "with space", "-", "ünicode.example"])
def test_what_is_no_host_name_is_refused(authority: CertificateAndKey, name: str) -> None:
    with pytest.raises(ConfigurationError):
        make_server_certificate(authority, [name], now=NOW)


def test_names_are_needed_and_bounded(authority: CertificateAndKey) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        make_server_certificate(authority, [], now=NOW)
    with pytest.raises(ConfigurationError, match="64"):
        make_client_certificate(authority, "x" * 65, now=NOW)
    long_name = "x" * 60 + ".example"
    made = make_server_certificate(authority, [long_name], now=NOW)
    assert long_name in certificate_names(made.certificate.public_bytes(Encoding.DER))


def test_keys_are_for_the_owner_only(authority: CertificateAndKey, tmp_path: Path) -> None:
    cert, key = tmp_path / "c", tmp_path / "k"
    key.write_text("older, readable by all")
    key.chmod(0o644)
    authority.write_pem(cert, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert x509.load_pem_x509_certificate(cert.read_bytes()) == authority.certificate
    assert load_pem_private_key(key.read_bytes(), None).public_key() == authority.certificate.public_key()
    write_private(tmp_path / "other", b"secret")
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o600


def test_no_certificate_has_no_names() -> None:
    with pytest.raises(ValueError, match=r".+"):
        certificate_names(b"garbage")
