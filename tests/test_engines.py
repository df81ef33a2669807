"""The same clients and servers over either engine, in each pairing: nothing above the engine contract may notice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    ClientConfig,
    ConfigurationError,
    ConnectionRefused,
    Limits,
    Message,
    Request,
    Router,
    ServerConfig,
    TLSConfig,
    open_client,
    serve,
)
from quicflow_trio.background import open_background
from quicflow_trio.quic.certificates import make_authority, make_client_certificate, make_server_certificate
from quicflow_trio.testing import MemoryNetwork, echo_router, open_world
from quicflow_trio.testing.tls import throwaway_tls
from tests.quic.harness import NOW

PAIRINGS = [("aioquic", "aioquic"), ("qh3", "qh3"), ("qh3", "aioquic"), ("aioquic", "qh3")]

needs_qh3 = pytest.mark.skipif(importlib.util.find_spec("qh3") is None, reason="qh3 is an extra and not installed")
pairings = pytest.mark.parametrize(
    ("client", "server"),
    [pytest.param(*pairing, marks=[needs_qh3] if "qh3" in pairing else [], id="-".join(pairing)) for pairing in PAIRINGS],
)


@pairings
async def test_messages_go_both_ways(autojump_clock: MockClock, client: str, server: str) -> None:
    near_config, far_config = ClientConfig(engine=client), ServerConfig(engine=server)
    async with open_world(clients=2, client_config=near_config, server_config=far_config) as world:
        near = world.clients["client-0"]
        far = world.server.sessions["client-0"]
        assert (await near.request(Message.command(b"up"))).result == b"up"
        assert (await far.request(Message.query(b"down"))).result == b"down"
        big = bytes(range(256)) * 3000
        assert (await near.request(Message.command(big))).result == big
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(near.request, Message.command(b"%d" % number))
                nursery.start_soon(far.request, Message.command(b"%d" % number))
        assert far.remote_address[0] == "client-0"


@pairings
async def test_nothing_is_lost_where_a_fifth_of_the_packets_is(autojump_clock: MockClock, client: str, server: str) -> None:
    network = MemoryNetwork(seed=3, loss=0.2, delay=0.01)
    near_config, far_config = ClientConfig(engine=client), ServerConfig(engine=server)
    async with open_world(network=network, client_config=near_config, server_config=far_config) as world:
        near = world.clients["client-0"]
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(near.request, Message.command(b"%d" % number * 50))
        assert near.statistics().requests_waiting == 0


@pairings
async def test_a_sender_waits_for_slow_handlers_and_all_arrives_in_order(
    autojump_clock: MockClock, client: str, server: str
) -> None:
    seen: list[int] = []

    async def slow(request: Request) -> None:
        await trio.sleep(0.01)
        seen.append(int(request.message.payload[:6]))

    router = Router()
    router.add(Message.event().type, slow, serial=True)
    limits = Limits(lane_window=16 * 1024, outbox_bytes=4096, dispatch_queue=4)
    async with open_world(
        router=router,
        client_config=ClientConfig(engine=client),
        server_config=ServerConfig(engine=server, limits=limits),
    ) as world:
        near, far = world.clients["client-0"], world.server.sessions["client-0"]
        most = 0
        for number in range(600):
            await near.send(Message.event(b"%06d" % number + bytes(1000)))
            most = max(most, far.statistics().held_bytes)
        assert most <= 2 * limits.lane_window
        assert len(seen) < 600
        with trio.fail_after(60):
            while len(seen) < 600:  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.1)
    assert seen == list(range(600))


@pairings
async def test_a_client_comes_back_to_a_restarted_server(autojump_clock: MockClock, client: str, server: str) -> None:
    network = MemoryNetwork()
    server_tls, client_tls = throwaway_tls()
    config = ServerConfig(engine=server)

    async with open_background() as background:
        first = await background.start(
            lambda task_status: serve(
                echo_router(), host="server", port=1, tls=server_tls, config=config, network=network, task_status=task_status
            )
        )
        async with open_client(
            "server", 1, client_id="c", tls=client_tls, config=ClientConfig(engine=client, seed=1), network=network
        ) as near:
            assert (await near.request(Message.command(b"1"))).result == b"1"
            await first.aclose()
            await background.start(
                lambda task_status: serve(
                    echo_router(), host="server", port=1, tls=server_tls, config=config, network=network, task_status=task_status
                )
            )
            assert (await near.request(Message.command(b"2"))).result == b"2"
            assert near.statistics().connects == 2


@pairings
@pytest.mark.parametrize("size", [1200, 8192])
async def test_real_datagrams(client: str, server: str, size: int) -> None:
    server_tls, client_tls = throwaway_tls()
    async with open_background() as background:
        far = await background.start(
            lambda task_status: serve(
                echo_router(),
                host="127.0.0.1",
                port=0,
                tls=server_tls,
                config=ServerConfig(engine=server, datagram_size=size),
                task_status=task_status,
            )
        )
        host, port = far.address
        config = ClientConfig(engine=client, datagram_size=size)
        with trio.fail_after(30):
            async with open_client(host, port, client_id="c", tls=client_tls, config=config) as near:
                for payload in (b"x", bytes(100_000)):
                    assert (await near.request(Message.command(payload))).result == payload
        await far.aclose()


# -- certificates ---------------------------------------------------------------------------------------------------------
def certificates(folder: Path) -> tuple[TLSConfig, TLSConfig, TLSConfig]:
    """Return settings of a server that asks for certificates, of a client that has one, and of one that has none."""
    authority = make_authority(now=NOW)
    for name, made in (
        ("ca", authority),
        ("server", make_server_certificate(authority, ["server"], now=NOW)),
        ("client", make_client_certificate(authority, "c", now=NOW)),
    ):
        made.write_pem(folder / f"{name}.crt", folder / f"{name}.pk")
    asking = TLSConfig.server(folder / "server.crt", folder / "server.pk", client_ca=folder / "ca.crt")
    shown = TLSConfig.client(folder / "ca.crt", cert_file=folder / "client.crt", key_file=folder / "client.pk")
    return asking, shown, TLSConfig.client(folder / "ca.crt")


@pytest.mark.parametrize("client", ["aioquic", pytest.param("qh3", marks=needs_qh3)])
async def test_a_client_shows_its_certificate(autojump_clock: MockClock, tmp_path: Path, client: str) -> None:
    asking, shown, without = certificates(tmp_path)
    network = MemoryNetwork()
    async with open_background() as background:
        far = await background.start(
            lambda task_status: serve(echo_router(), host="server", port=1, tls=asking, network=network, task_status=task_status)
        )
        config = ClientConfig(engine=client)
        async with open_client("server", 1, client_id="c", tls=shown, config=config, network=network) as near:
            assert (await near.request(Message.command(b"let me in"))).result == b"let me in"
        with pytest.raises(ConnectionRefused, match="certificate_required"):
            async with open_client("server", 1, client_id="c", tls=without, config=config, network=network) as near:
                await near.wait_closed()
        await far.aclose()


@needs_qh3
async def test_a_server_on_qh3_does_not_start_where_it_should_ask_for_certificates(tmp_path: Path) -> None:
    asking, _, _ = certificates(tmp_path)
    with pytest.raises(ConfigurationError, match="qh3' cannot ask for client certificates; use engine 'aioquic'"):
        await serve(echo_router(), host="127.0.0.1", port=0, tls=asking, config=ServerConfig(engine="qh3"))


# -- configuration --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [ClientConfig, ServerConfig])
def test_an_engine_that_does_not_exist_is_said_at_once(make: type[ClientConfig] | type[ServerConfig]) -> None:
    assert make().engine == "aioquic"
    with pytest.raises(ConfigurationError, match=r"engine = 'quiche': expected one of aioquic, qh3"):
        make(engine="quiche")


@pytest.mark.parametrize("make", [ClientConfig, ServerConfig])
def test_an_engine_that_is_not_installed_is_said_at_once(
    make: type[ClientConfig] | type[ServerConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quicflow_trio.config.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'quicflow_trio\[qh3\]'"):
        make(engine="qh3")
