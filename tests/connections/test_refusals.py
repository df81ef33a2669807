"""Permanent refusals: who gets to see them, and how an exception leaves `open_client`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationFailed,
    Client,
    ClientState,
    ConnectionRefused,
    Message,
    QuicFlowError,
    SessionReplaced,
    TLSConfig,
    open_client,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.quic.certificates import make_authority, make_server_certificate
from quicflow_trio.quic.engine import EngineEvent, StreamData
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import PeerLimits
from tests.connections.machine import CLIENT_TLS, SERVER_TLS, client_of, open_machine
from tests.connections.raw import Raw, hello, open_raw, open_raw_server

NOW = datetime.datetime.now(datetime.UTC)


def opened(network: MemoryNetwork, tls: TLSConfig | None = CLIENT_TLS) -> AbstractAsyncContextManager[Client]:
    return open_client("server", client_id="worker", tls=tls, network=network)


# -- each way of being refused, each place where it shows --------------------------------------------------------------
def rejecting(code: CloseCode) -> Callable[[Raw, EngineEvent], None]:
    def on_event(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData) and not raw.engine.closing:
            raw.engine.close(int(code), "not you")

    return on_event


KINDS = {
    CloseCode.REJECTED: ConnectionRefused,
    CloseCode.AUTHENTICATION_FAILED: AuthenticationFailed,
    CloseCode.SESSION_REPLACED: SessionReplaced,
}


async def call_send(client: Client) -> None:
    await client.send(Message.event(b""))


async def call_request(client: Client) -> None:
    await client.request(Message.command(b""))


async def call_delivered(client: Client) -> None:
    await client.send_nowait(Message.event(b"")).delivered()


async def call_wait_connected(client: Client) -> None:
    await client.wait_connected()


async def call_wait_closed(client: Client) -> None:
    await client.wait_closed()


async def call_send_nowait(client: Client) -> None:
    client.send_nowait(Message.event(b""))


CALLS = [call_send, call_request, call_delivered, call_wait_connected, call_wait_closed, call_send_nowait]


@pytest.mark.parametrize("code", KINDS)
@pytest.mark.parametrize("call", CALLS)
async def test_a_call_under_way_and_the_next_one_raise(
    autojump_clock: MockClock, code: CloseCode, call: Callable[[Client], object]
) -> None:
    network = MemoryNetwork(delay=0.01)
    seen: list[BaseException] = []
    async with open_raw_server(network, rejecting(code)), opened(network) as client:
        if call is not call_send_nowait:
            with pytest.raises(KINDS[code], match="not you") as under_way:
                await call(client)  # type: ignore[misc]
            seen.append(under_way.value)
        else:
            await trio.sleep(1)
        for _ in range(2):
            with pytest.raises(KINDS[code], match="not you") as later:
                await call(client)  # type: ignore[misc]
            seen.append(later.value)
        assert client.state.value is ClientState.IDLE
        await trio.sleep(1000)
        assert client.statistics().attempts == 1, "never again"
    # It was seen, so leaving the block raises nothing; and nobody got an exception that another has.
    assert len({id(exc) for exc in seen}) == len(seen)


@pytest.mark.parametrize("code", KINDS)
async def test_nobody_saw_it_so_the_end_of_the_block_raises(autojump_clock: MockClock, code: CloseCode) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(code)):
        with pytest.raises(KINDS[code], match="not you"):
            async with opened(network):
                await trio.sleep(1)


async def test_it_leaves_as_itself_and_not_as_a_group(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(CloseCode.REJECTED)):
        with pytest.raises(ConnectionRefused) as uncaught:
            async with opened(network) as client:
                await client.wait_connected()
        assert not isinstance(uncaught.value.__cause__, BaseExceptionGroup)


async def test_the_blocks_own_exception_wins(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(CloseCode.REJECTED)):
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the whole block is what is tested
            async with opened(network):
                await trio.sleep(1)
                raise ZeroDivisionError
        theirs = ExceptionGroup("of the user's own nursery", [ValueError()])
        with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the whole block is what is tested
            async with opened(network):
                await trio.sleep(1)
                raise theirs
        assert caught.value is theirs


async def test_a_queue_that_cannot_go_out_does_not_hold_up_leaving(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(CloseCode.REJECTED)):
        started = trio.current_time()
        with pytest.raises(ConnectionRefused):
            async with opened(network) as client:
                client.send_nowait(Message.event(b"never"))
        assert trio.current_time() - started < 1, "not the whole of close_grace"


async def test_a_refusal_is_logged_as_an_error(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(CloseCode.REJECTED)), opened(network) as client:
        with pytest.raises(ConnectionRefused):
            await client.wait_closed()
    assert [(record.levelname, "not you" in record.getMessage()) for record in caplog.records] == [("ERROR", True)]


# Expired credentials are final for a client that has no others: tests/auth has those that can make some.
@pytest.mark.parametrize("code", sorted(set(CloseCode) - set(KINDS) - {CloseCode.CREDENTIALS_EXPIRED}))
async def test_every_other_close_is_followed_by_another_attempt(autojump_clock: MockClock, code: CloseCode) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, rejecting(code)), opened(network) as client:
        await trio.sleep(30)
        assert client.statistics().attempts > 3


# -- certificates ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TLSConfig]:
    folder: Path = tmp_path_factory.mktemp("wrong")
    authority = make_authority(now=NOW)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    past = datetime.timedelta(days=-1)
    made = {"client": TLSConfig.client(folder / "ca.pem")}
    for name, host, valid_for in [("expired", "server", past), ("other", "elsewhere", datetime.timedelta(days=9))]:
        cert, key = folder / f"{name}.crt", folder / f"{name}.pk"
        make_server_certificate(authority, [host], now=NOW, valid_for=valid_for).write_pem(cert, key)
        made[name] = TLSConfig.server(cert, key)
    return made


@pytest.mark.parametrize("what", ["wrong authority", "public authorities only", "expired", "wrong name"])
async def test_a_certificate_that_does_not_verify(autojump_clock: MockClock, wrong: dict[str, TLSConfig], what: str) -> None:
    from quicflow_trio import Router, serve

    server, client_tls = {
        "wrong authority": (SERVER_TLS, wrong["client"]),
        "public authorities only": (SERVER_TLS, None),
        "expired": (wrong["expired"], wrong["client"]),
        "wrong name": (wrong["other"], wrong["client"]),
    }[what]
    network = MemoryNetwork(delay=0.01)
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(Router(), host="server", tls=server, network=network, task_status=task_status)

        await nursery.start(run)
        for call in CALLS[:5]:
            async with opened(network, client_tls) as client:
                with pytest.raises(AuthenticationFailed):
                    await call(client)
        with pytest.raises(AuthenticationFailed):
            async with opened(network, client_tls) as client:
                await trio.sleep(1)
        assert client.statistics().attempts == 1
        nursery.cancel_scope.cancel()


async def test_another_name_can_be_asked_for(autojump_clock: MockClock, wrong: dict[str, TLSConfig]) -> None:
    async with open_world(clients=0) as world:
        tls = TLSConfig.client(CLIENT_TLS.ca_file, server_name="localhost")
        async with open_client("server", client_id="worker", tls=tls, network=world.network) as client:
            await client.wait_connected()


async def test_a_server_of_another_protocol_is_a_refusal(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    async with open_raw_server(network, lambda raw, event: None, alpn="h3"), opened(network) as client:
        with pytest.raises(ConnectionRefused, match="no_application_protocol") as caught:
            await client.wait_connected()
        assert not isinstance(caught.value, AuthenticationFailed)


async def test_a_client_of_another_protocol_is_counted(autojump_clock: MockClock) -> None:
    async with open_world(clients=1) as world:
        async with open_raw(world.network, alpn="h3", handshake=False) as raw:
            ended = await raw.ended()
        assert ended.tls_alert == 120
        assert world.server.statistics().refused == {"server:tls": 1}


# -- hellos that are not accepted --------------------------------------------------------------------------------------
BAD_HELLOS = {
    "empty id": (hello(""), CloseCode.REJECTED, "client id is empty"),
    "long id": (hello("x" * 300), CloseCode.REJECTED, "longer than 256 bytes"),
    "NUL": (hello("a\0b"), CloseCode.REJECTED, "control or unprintable"),
    "newline": (hello("a\nERROR forged"), CloseCode.REJECTED, "control or unprintable"),
    "space": (hello(" a"), CloseCode.REJECTED, "white space"),
    "no limits": (hello(limits=PeerLimits()), CloseCode.REJECTED, "no payload or no lane"),
    "1 MB id": (hello("x" * 1_000_000), CloseCode.FRAME_TOO_LARGE, "over the limit"),
}


@pytest.mark.parametrize("what", BAD_HELLOS)
async def test_a_hello_that_is_not_accepted(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, what: str) -> None:
    frame, code, reason = BAD_HELLOS[what]
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            raw.open(frame)
            ended = await raw.ended()
        assert (ended.application, ended.code, ended.by_peer) == (True, code, True)
        assert reason in ended.reason
        await trio.sleep(1)
        figures = world.server.statistics()
        assert figures.refused == {f"server:{code.name.lower()}": 1}
        assert (figures.connected, figures.away, figures.half_open) == (1, 0, 0)
        assert world.clients["client-0"].state.value is ClientState.CONNECTED
    assert all(record.getMessage().isprintable() for record in caplog.records)


async def test_an_id_that_is_not_utf8_is_refused(autojump_clock: MockClock) -> None:
    body = b"\x0a\x04\x12\x02\xff\xfe"
    async with open_world(clients=1) as world, open_raw(world.network) as raw:
        raw.open(len(body).to_bytes(4, "big") + body)
        assert (await raw.ended()).code == CloseCode.PROTOCOL_ERROR


async def test_nothing_counts_that_stands_behind_a_rejected_hello(autojump_clock: MockClock) -> None:
    # It once did: a good hello in the same packet took another client's session over, on a connection that was closing.
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        async with open_raw(world.network) as raw:
            raw.open(hello(""), hello("client-0"))
            assert (await raw.ended()).code == CloseCode.REJECTED
        await trio.sleep(1)
        assert [change.change for change in world.server.sessions["client-0"].history] == ["connected"]
        assert world.clients["client-0"].statistics().connects == 1


async def test_an_error_type_for_everything(autojump_clock: MockClock) -> None:
    # A program that catches the root catches every refusal.
    async with open_machine() as machine, client_of(machine.network, host="elsewhere") as client:
        await client.wait_connected()
        async with client_of(machine.network) as newer:
            await newer.wait_connected()
            with pytest.raises(QuicFlowError):
                await client.wait_closed()
