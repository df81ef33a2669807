"""Who gets a session without credentials, and whose session it may take over."""

from __future__ import annotations

from pathlib import Path

import pytest
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationRequest,
    ClientCertificates,
    ClientConfig,
    CredentialsRefused,
    HandlerFailed,
    Identity,
    Message,
    Permissions,
    ServerConfig,
    open_client,
)
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import BackbonePing
from tests.auth.test_certificates import Files
from tests.backbone1.raw1 import answer, data, open_raw1, put
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import open_raw


async def by_password(request: AuthenticationRequest) -> Identity:
    if request.credentials != b"secret":
        raise CredentialsRefused("wrong")
    return Identity(name=request.client_id)


async def test_with_an_authenticator_it_is_refused(autojump_clock: MockClock) -> None:
    async with (
        open_machine(authenticate=by_password) as machine,
        open_raw(machine.network, alpn="quic-backbone-v1") as raw,
    ):
        put(raw, BackbonePing("old"))
        ended = await raw.ended()
        assert (ended.code, ended.reason) == (1, "this protocol has no credentials, and no certificate names the client")
        assert not machine.server.sessions
        assert machine.server.statistics().refused == {"server:authentication_failed": 1}
        assert machine.server.metrics().authentications == {"refused": 1}


async def test_it_can_be_allowed(autojump_clock: MockClock) -> None:
    config = ServerConfig(allow_unauthenticated_v1=True)
    async with open_machine(authenticate=by_password, config=config) as machine, open_raw1(machine.network, "old") as raw:
        assert await answer(raw, put(raw, data(ack=True))) is not None
        assert machine.server.sessions["old"].connected


async def test_it_never_takes_over_a_session_with_credentials(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(allow_unauthenticated_v1=True)
    async with (
        open_machine(network, authenticate=by_password, config=config) as machine,
        client_of(network, "worker", host="worker", credentials=b"secret") as client,
    ):
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        async with open_raw(network, alpn="quic-backbone-v1") as raw:
            put(raw, BackbonePing("worker"))
            ended = await raw.ended()
            assert (ended.code, ended.reason) == (1, "failed to create session")
        assert machine.server.sessions["worker"] is session
        # Not while it is away either: its client comes back with its token.
        network.partition("worker")
        await client.state.wait_value(client.state.value.IDLE)
        async with open_raw(network, "raw2", alpn="quic-backbone-v1") as raw:
            put(raw, BackbonePing("worker"))
            assert (await raw.ended()).reason == "failed to create session"
        network.heal("worker")
        assert (await client.request(Message.query(b"q"))).result == b"q"
        assert machine.server.session("worker") is session


async def test_a_client_with_credentials_takes_over_from_one_without(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(allow_unauthenticated_v1=True)
    async with (
        open_machine(network, authenticate=by_password, config=config) as machine,
        open_raw1(network, "worker") as raw,
        client_of(network, "worker", host="worker", credentials=b"secret") as client,
    ):
        await client.wait_connected()
        ended = await raw.ended()
        assert (ended.code, ended.reason) == (1, "a newer connection uses this client id")
        assert machine.server.sessions["worker"].protocol == "quicflow/2"


@pytest.mark.parametrize("duplicates", ["replace", "refuse"])
async def test_the_newest_takes_over_unless_that_is_refused(autojump_clock: MockClock, duplicates: str) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(v1_duplicates=duplicates)  # type: ignore[arg-type]
    async with (
        open_machine(network, config=config) as machine,
        open_raw1(network, "old", host="one") as one,
        open_raw(network, "two", alpn="quic-backbone-v1") as two,
    ):
        first = machine.server.sessions["old"]
        put(two, BackbonePing("old"))
        loser = one if duplicates == "replace" else two
        ended = await loser.ended()
        reasons = {"replace": "a newer connection uses this client id", "refuse": "failed to create session"}
        assert (ended.code, ended.reason) == (1, reasons[duplicates])
        assert (machine.server.sessions["old"] is first) == (duplicates == "refuse")


@pytest.mark.parametrize("name", ["worker", "other"])
async def test_a_certificate_must_name_the_id_and_the_authenticator_decides(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    files = Files(tmp_path)
    check = ClientCertificates(permissions=Permissions("query"))
    async with open_machine(authenticate=check, tls=files.server()) as machine:
        config = ClientConfig(backoff_initial=60)
        tls = files.client(name)
        async with open_client(
            "server", client_id="worker", tls=tls, network=machine.network, protocol="quic-backbone-v1", config=config
        ) as client:
            if name == "worker":
                assert (await client.request(Message.query(b"x"))).result == b"x"
                with pytest.raises(HandlerFailed, match="command"):
                    await client.request(Message.command(b"x"))
                assert machine.server.sessions["worker"].identity.permissions == Permissions("query")
            else:
                await until(lambda: machine.server.statistics().refused)
                assert machine.server.statistics().refused == {"server:authentication_failed": 1}
                assert not machine.server.sessions
