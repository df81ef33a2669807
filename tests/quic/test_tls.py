"""TLS settings: each mistake in a file is told with the file's name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from aioquic import tls as aioquic_tls
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from quicflow_trio.config import TLSConfig
from quicflow_trio.errors import ConfigurationError
from quicflow_trio.quic import verify
from quicflow_trio.quic.certificates import make_authority, make_server_certificate
from quicflow_trio.quic.tls import TLSContext, alert_name, error_text, is_certificate_alert, tls_alert
from tests.quic.conftest import PairMaker
from tests.quic.harness import NOW, Files, only


def key_file(folder: Path, key: object, *, password: bytes | None = None) -> Path:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path = folder / "special.pk"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)  # type: ignore[attr-defined]
    )
    return path


def refused(config: TLSConfig, *parts: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        TLSContext(config)
    for part in parts:
        assert part in str(caught.value)


def test_files_that_are_no_pem_are_named(files: Files, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_text("not a certificate")
    good, key = files.folder / "server.crt", files.folder / "server.pk"
    refused(TLSConfig.server(bad, key), "cert_file", str(bad))
    refused(TLSConfig.server(good, bad), "key_file", str(bad))
    refused(TLSConfig.server(good, key, client_ca=bad), "client_ca", str(bad))
    refused(TLSConfig.client(bad), "ca_file", str(bad))
    bad.unlink()
    bad.touch()
    config = TLSConfig.client(bad)
    bad.unlink()
    refused(config, "cannot be read", str(bad))


def test_a_key_of_another_certificate_is_named(files: Files) -> None:
    refused(TLSConfig.server(files.folder / "server.crt", files.folder / "ca.pk"), "does not match", "ca.pk", "server.crt")


def test_an_encrypted_key_is_told_so(files: Files, tmp_path: Path) -> None:
    path = key_file(tmp_path, ec.generate_private_key(ec.SECP256R1()), password=b"secret")
    refused(TLSConfig.server(files.folder / "server.crt", path), "encrypted", str(path))


@pytest.mark.parametrize("kind", ["P-521", "X25519"])
def test_a_key_that_tls_cannot_sign_with_is_refused(files: Files, tmp_path: Path, kind: str) -> None:
    key = ec.generate_private_key(ec.SECP521R1()) if kind == "P-521" else x25519.X25519PrivateKey.generate()
    path = key_file(tmp_path, key)
    refused(TLSConfig.server(files.folder / "server.crt", path), "P-256", str(path))


def test_rsa_works(pair: PairMaker, files: Files, tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    made = make_server_certificate(files.authority, ["localhost"], now=NOW)
    old = made.certificate
    builder = x509.CertificateBuilder(
        issuer_name=old.issuer,
        subject_name=old.subject,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=old.not_valid_before_utc,
        not_valid_after=old.not_valid_after_utc,
        extensions=[old.extensions.get_extension_for_class(x509.SubjectAlternativeName)],
    )
    cert = tmp_path / "rsa.crt"
    signed = builder.sign(files.authority.key, hashes.SHA256())
    cert.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    both = pair(server_tls=TLSContext(TLSConfig.server(cert, key_file(tmp_path, key))))
    from quicflow_trio.quic.engine import HandshakeCompleted

    # It names no purpose, and so may be a server's.
    assert only(both.client_events, HandshakeCompleted)


def test_pem_with_text_and_other_line_ends_is_read(files: Files, tmp_path: Path, pair: PairMaker) -> None:
    other = make_authority("second", now=NOW).certificate_pem
    text = b"subject: one\r\n" + files.authority.certificate_pem.replace(b"\n", b"\r\n") + b"\r\n# two\n" + other + b"\n\n"
    path = tmp_path / "bundle.crt"
    path.write_bytes(text)
    from quicflow_trio.quic.engine import HandshakeCompleted

    assert only(pair(client_tls=TLSContext(TLSConfig.client(path))).client_events, HandshakeCompleted)


def test_only_a_server_asks_for_certificates(files: Files) -> None:
    refused(TLSConfig(is_client=True, client_ca=files.folder / "ca.crt"), "client_ca")


def test_an_aioquic_that_cannot_ask_is_told(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, **_: object) -> None: ...

    monkeypatch.setattr(aioquic_tls, "Context", Other)
    with pytest.raises(ConfigurationError, match="cannot ask"):
        files.server(client_ca=files.folder / "ca.crt")


def test_connections_of_one_server_share_their_settings(files: Files) -> None:
    context = files.server()
    one = context.server_configurations(alpn=["a"], idle_timeout=30.0, datagram_size=1200)
    two = context.server_configurations(alpn=("a",), idle_timeout=30.0, datagram_size=1200)
    assert one is two
    assert one[1].private_key is one[0].private_key
    assert [one[version].supported_versions for version in (1, 0x6B3343CF)] == [[1], [0x6B3343CF]]


def test_a_configured_server_name_comes_before_the_dialled_one(files: Files) -> None:
    context = files.client(server_name="localhost")
    made = context.client_configuration(server_name="10.0.0.1", alpn=["a"], idle_timeout=30.0, datagram_size=1200)
    assert made.server_name == "localhost"


def test_without_a_file_the_public_authorities_are_trusted() -> None:
    context = TLSContext(TLSConfig.client())
    made = context.client_configuration(server_name="x", alpn=["a"], idle_timeout=30.0, datagram_size=1200)
    assert made.cadata is None
    assert made.cafile is None
    assert made.verify_mode is None


def test_codes_have_names() -> None:
    assert alert_name(48) == "unknown_ca"
    assert alert_name(255) == "alert_255"
    assert tls_alert(0x100 + 116) == 116
    assert tls_alert(0x0A) is None
    assert tls_alert(0x200) is None
    assert error_text(0x100 + 42) == "CRYPTO_ERROR (bad_certificate)"
    assert error_text(3) == "FLOW_CONTROL_ERROR"
    assert error_text(0x11) == "VERSION_NEGOTIATION_ERROR"
    assert error_text(0x4242) == "error 0x4242"
    assert not is_certificate_alert(None)
    assert not is_certificate_alert(40)
    assert {name for number in range(256) if is_certificate_alert(number) and (name := alert_name(number))} >= {
        "bad_certificate",
        "unsupported_certificate",
        "certificate_expired",
        "unknown_ca",
        "certificate_required",
    }


# -- verification beyond what the handshake tests show -----------------------------------------------------------------
def leaf(files: Files, *extensions: x509.ExtensionType, path_length: int | None = None) -> x509.Certificate:
    made = make_authority("leaf", now=NOW)
    builder = x509.CertificateBuilder(
        issuer_name=files.authority.certificate.subject,
        subject_name=made.certificate.subject,
        public_key=made.certificate.public_key(),
        serial_number=5,
        not_valid_before=made.certificate.not_valid_before_utc,
        not_valid_after=made.certificate.not_valid_after_utc,
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(files.authority.key, hashes.SHA256())


def test_any_purpose_is_good_for_both(files: Files) -> None:
    certificate = leaf(files, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]))
    verify.check_server_purpose(certificate)
    verify.ClientVerifier([files.authority.certificate]).verify(certificate, [])


def test_unreadable_extensions_are_a_bad_certificate(files: Files) -> None:
    broken = x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\x30\x03\x02\x01")
    with pytest.raises(aioquic_tls.AlertBadCertificate, match="cannot be read"):
        verify.check_server_purpose(leaf(files, broken))


def test_another_failure_of_the_chain_is_a_bad_certificate(files: Files) -> None:
    authority = make_authority(now=NOW)  # same name, another key: the signature does not fit
    with pytest.raises(aioquic_tls.Alert) as caught:
        verify.ClientVerifier([authority.certificate]).verify(leaf(files), [])
    assert is_certificate_alert(caught.value.description)
    failed = crypto.X509StoreContextError("invalid CA certificate", [24, 1, "invalid CA certificate"], crypto.X509())
    assert isinstance(verify._alert_for(failed), aioquic_tls.AlertBadCertificate)


def test_messages_do_not_name_the_machine(files: Files) -> None:
    with pytest.raises(aioquic_tls.Alert) as caught:
        verify.ClientVerifier([files.authority.certificate]).verify(None, [])
    assert not re.search(r"/|\\", str(caught.value)), "it goes to the peer as the reason"
