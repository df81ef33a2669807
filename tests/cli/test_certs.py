"""`quicflow certs`."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from quicflow_trio import TLSConfig
from quicflow_trio.quic.certificates import certificate_names
from quicflow_trio.quic.tls import TLSContext

from .conftest import Quicflow


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_it_writes_files_that_load_and_prints_what_to_paste_next(
    quicflow: Quicflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = quicflow("certs")
    assert (ran.code, ran.err) == (0, "")
    assert "quicflow serve --cert certs/server.pem --key certs/server.key" in ran.out
    assert "quicflow connect 127.0.0.1 --id me --ca certs/ca.pem" in ran.out
    folder = tmp_path / "certs"
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem", "server.key", "server.pem"]
    TLSContext(TLSConfig.server(folder / "server.pem", folder / "server.key"))
    TLSContext(TLSConfig.client(folder / "ca.pem"))
    # Whoever reads a key is the server, or the authority.
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}


def test_names_clients_and_days_are_as_asked(quicflow: Quicflow, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "a b"), "--name", "backbone.example", "--name", "192.0.2.7", "--days", "3"]
    ran = quicflow("certs", *arguments, "--client", "one/two", "--client", "three")
    assert ran.code == 0
    folder = tmp_path / "a b"
    server = read(folder / "server.pem")
    assert certificate_names(server.public_bytes(Encoding.DER)) >= {"backbone.example", "192.0.2.7"}
    assert abs(server.not_valid_after_utc - datetime.now(UTC) - timedelta(days=3)) < timedelta(hours=1)
    # The slash does not leave the folder.
    assert {path.name for path in folder.glob("client-*.pem")} == {"client-one%2Ftwo.pem", "client-three.pem"}
    # What is printed can be pasted as it is, with the space in the folder's name, and requires the client certificates.
    assert f"--client-ca '{folder}/ca.pem'" in ran.out
    assert "connect backbone.example" in ran.out
    assert f"--cert '{folder}/client-one%2Ftwo.pem'" in ran.out


def test_json_names_the_files(quicflow: Quicflow, tmp_path: Path) -> None:
    ran = quicflow("certs", "--out", str(tmp_path), "--client", "w", "--json")
    said = json.loads(ran.out)
    assert said["ca"] == {"certificate": f"{tmp_path}/ca.pem", "key": f"{tmp_path}/ca.key"}
    assert said["server"]["key"] == f"{tmp_path}/server.key"
    assert said["clients"] == [{"certificate": f"{tmp_path}/client-w.pem", "key": f"{tmp_path}/client-w.key"}]
    assert datetime.fromisoformat(said["valid_until"]) > datetime.now(UTC)


def test_an_authority_in_use_is_not_overwritten_unasked(quicflow: Quicflow, tmp_path: Path) -> None:
    assert quicflow("certs", "--out", str(tmp_path)).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ran = quicflow("certs", "--out", str(tmp_path))
    assert ran.code == 2
    assert ran.err.startswith(f"quicflow: these exist already: {tmp_path}/ca.pem, ")
    assert "use --force" in ran.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert quicflow("certs", "--out", str(tmp_path), "--force").code == 0
    assert (tmp_path / "ca.pem").read_bytes() != before[tmp_path / "ca.pem"]


@pytest.mark.parametrize(
    "arguments",
    [("--days", "0"), ("--days", "x"), ("--name", "no host name"), ("--client", "c" * 65)],
)
def test_a_bad_value_is_named_and_nothing_is_written(quicflow: Quicflow, tmp_path: Path, arguments: tuple[str, str]) -> None:
    ran = quicflow("certs", "--out", str(tmp_path / "new"), *arguments)
    assert ran.code == 2
    assert arguments[1] in ran.err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_one_line(quicflow: Quicflow, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = quicflow("certs", "--out", str(tmp_path / "file" / "certs"))
    assert (ran.code, ran.err) == (1, f"quicflow: {tmp_path}/file/certs: Not a directory\n")
