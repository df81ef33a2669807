"""Mutual TLS: the chain is verified by TLS, and the certificate must name the client id."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationFailed,
    AuthenticationRequest,
    ClientCertificates,
    CredentialsRefused,
    Identity,
    Message,
    Permissions,
    TLSConfig,
)
from quicflow_trio.quic.certificates import CertificateAndKey, make_authority, make_client_certificate, make_server_certificate
from tests.auth.tokens import today
from tests.connections.machine import client_of, open_machine

DAY = datetime.timedelta(days=1)


class Files:
    """An authority, a server below it, clients below it or below another of the same name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = today()
        self.authority = make_authority("the authority", now=self.now, use_ed25519=True)
        self.impostor = make_authority("the authority", now=self.now, use_ed25519=True)
        (folder / "ca.pem").write_bytes(self.authority.certificate_pem)
        make_server_certificate(self.authority, ["server"], now=self.now, use_ed25519=True).write_pem(
            folder / "server.pem", folder / "server.key"
        )

    def server(self, *, asking: bool = True) -> TLSConfig:
        ca = self.folder / "ca.pem"
        return TLSConfig.server(self.folder / "server.pem", self.folder / "server.key", client_ca=ca if asking else None)

    def client(self, name: str, authority: CertificateAndKey | None = None, valid_for: datetime.timedelta = DAY) -> TLSConfig:
        made = make_client_certificate(authority or self.authority, name, now=self.now, valid_for=valid_for, use_ed25519=True)
        made.write_pem(self.folder / "client.pem", self.folder / "client.key")
        return TLSConfig.client(self.folder / "ca.pem", cert_file=self.folder / "client.pem", key_file=self.folder / "client.key")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_the_certificate_names_the_client(autojump_clock: MockClock, files: Files) -> None:
    check = ClientCertificates(permissions=Permissions("query"))
    async with (
        open_machine(authenticate=check, tls=files.server()) as machine,
        client_of(machine.network, tls=files.client("worker")) as client,
    ):
        assert (await client.request(Message.query(b"x"))).result == b"x"
        identity = machine.server.sessions["worker"].identity
        assert identity.permissions == Permissions("query")
        assert identity.valid_for == pytest.approx(DAY.total_seconds(), abs=60)


async def test_a_certificate_of_another_client_is_refused(autojump_clock: MockClock, files: Files) -> None:
    async with (
        open_machine(authenticate=ClientCertificates(), tls=files.server()) as machine,
        client_of(machine.network, tls=files.client("worker")) as owner,
    ):
        await owner.wait_connected()
        async with client_of(machine.network, host="thief", tls=files.client("another")) as thief:
            with pytest.raises(AuthenticationFailed, match="does not name this client id"):
                await thief.wait_connected()
        assert (await owner.request(Message.query(b"x"))).result == b"x"


async def test_a_chain_that_does_not_verify_ends_in_tls(autojump_clock: MockClock, files: Files) -> None:
    # An authority of the right name with a key of its own: only the signature tells.
    asked: list[str] = []

    async def check(request: AuthenticationRequest) -> Identity:
        asked.append(request.client_id)
        return Identity(name="x")

    async with open_machine(authenticate=check, tls=files.server()) as machine:
        for tls in (
            files.client("worker", files.impostor),
            files.client("worker", valid_for=-DAY),
            TLSConfig.client(files.folder / "ca.pem"),
        ):
            async with client_of(machine.network, tls=tls) as client:
                with pytest.raises(AuthenticationFailed):
                    await client.wait_connected()
    assert asked == []


async def test_a_server_that_asks_for_none_sees_none(autojump_clock: MockClock, files: Files) -> None:
    async with (
        open_machine(authenticate=ClientCertificates(), tls=files.server(asking=False)) as machine,
        client_of(machine.network, tls=files.client("worker")) as client,
    ):
        with pytest.raises(AuthenticationFailed, match="certificate is required"):
            await client.wait_connected()


async def test_the_authenticator_gets_the_certificate(autojump_clock: MockClock, files: Files) -> None:
    asked: list[AuthenticationRequest] = []

    async def check(request: AuthenticationRequest) -> Identity:
        asked.append(request)
        return Identity(name="x")

    async with (
        open_machine(authenticate=check, tls=files.server()) as machine,
        client_of(machine.network, tls=files.client("worker.example")) as client,
    ):
        await client.reauthenticate(b"x")
    hello, renewal = asked
    assert hello.certificate is not None
    assert hello.certificate == renewal.certificate
    assert hello.certificate.issuer == files.authority.certificate.subject
    assert hello.names == {"worker.example"}
    assert renewal.identity == Identity(name="x")


async def test_an_expired_certificate_does_not_renew(files: Files) -> None:
    certificate = make_client_certificate(files.authority, "worker", now=files.now, valid_for=DAY).certificate
    request = AuthenticationRequest(
        client_id="worker", credentials=b"", certificate=certificate, names=frozenset({"worker"}), address=("a", 1), identity=None
    )
    end = certificate.not_valid_after_utc.timestamp()
    assert (await ClientCertificates(clock=lambda: end - 1)(request)).valid_for == 1
    with pytest.raises(CredentialsRefused, match="expired") as caught:
        await ClientCertificates(clock=lambda: end)(request)
    # The client cannot do anything about it by trying again.
    assert not caught.value.expired
