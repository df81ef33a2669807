"""How the ops side starts and ends."""

from __future__ import annotations

import errno
import socket
from typing import Any, cast

import httpx2
import pytest
import trio

from quicflow_trio.config import OpsConfig
from quicflow_trio.observe.logs import limiter
from quicflow_trio.ops import run_ops, service
from quicflow_trio.ops.http import Connections
from tests.ops.harness import BEARER, FakeClient, FakeServer, open_ops, open_wire, until

pytestmark = pytest.mark.realtime


def ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_port_0_takes_a_free_one_and_the_url_names_it() -> None:
    async with open_ops() as ops:
        assert ops.url.startswith("http://127.0.0.1:")
        assert ops.port > 0


@pytest.mark.parametrize(
    "address", ["localhost:0", pytest.param("[::1]:0", marks=pytest.mark.skipif(not ipv6_works(), reason="IPv6"))]
)
async def test_names_and_ipv6(address: str) -> None:
    async with open_ops(address=address) as ops:
        if "::1" in address:
            assert ops.url.startswith("http://[::1]:")
        assert (await ops.http.get("/clients")).status_code == 200


async def test_an_address_that_is_taken_is_an_error_of_the_system() -> None:
    async with open_ops() as ops:
        config = OpsConfig(ops.url.removeprefix("http://"))
        with pytest.raises(OSError, match="in use") as caught:
            await run_ops(cast(Any, FakeServer()), config)
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match="Errno"):
        await run_ops(cast(Any, FakeServer()), OpsConfig("192.0.2.1:1"))
    with pytest.raises(OSError, match="Errno"):
        await run_ops(cast(Any, FakeServer()), OpsConfig("name.invalid:1"))


@pytest.mark.parametrize(
    ("address", "token", "warned"), [("0.0.0.0:0", None, True), ("0.0.0.0:0", "t", False), ("127.0.0.1:0", None, False)]
)
async def test_it_warns_when_others_can_reach_it_and_nobody_can_use_it(
    address: str, token: str | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    limiter.clear()
    async with open_ops(address=address, token=token):
        pass
    assert ("beyond this machine" in caplog.text) is warned


async def test_cancelled_it_leaves_nothing() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with (
        open_ops() as ops,
        open_wire(ops, "/events") as stream,
        open_wire(ops) as silent,
        open_wire(ops, "/healthz") as idle,
    ):
        await stream.until(": events follow")
        await idle.until("HTTP/1.1 200")
        await silent.stream.send_all(b"GET / HT")
        await ops.stop()
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(ops.server.hub) == 0
        with pytest.raises(OSError, match="connect"):
            await ops.dial()


async def test_a_request_under_way_is_answered_and_one_that_lasts_is_not_waited_for() -> None:
    server = FakeServer([FakeClient("quick"), FakeClient("stuck")])
    for client in server.clients:
        client.waits = trio.Event()
    statuses: dict[str, int] = {}

    async def ask(http: httpx2.AsyncClient, name: str) -> None:
        try:
            statuses[name] = (await http.post(f"/clients/{name}/request", json={"payload": "x"})).status_code
        except httpx2.TransportError:
            statuses[name] = 0

    async with open_ops(server, stop_grace=0.5) as ops, trio.open_nursery() as nursery:
        for client in server.clients:
            nursery.start_soon(ask, ops.http, client.client_id)
        await until(lambda: all(client.waiting for client in server.clients))
        ops.scope.cancel()
        assert server.clients[0].waits is not None
        server.clients[0].waits.set()
        await ops.ended.wait()
        await until(lambda: len(statuses) == 2)
    assert statuses["quick"] == 200
    # Cancelled, with a proper answer or cut off, but not left waiting.
    assert statuses["stuck"] in (0, 500)
    assert server.clients[1].waiting == 0


async def test_one_who_does_not_read_does_not_hold_the_end_up() -> None:
    # Hypercorn shields its writes: without the guard a cancellation would wait for this client for ever.
    clients = [FakeClient(f"client-{number}") for number in range(1000)]
    async with open_ops(FakeServer(clients), request_timeout=3600.0, stop_grace=0.1) as ops, await ops.dial() as stream:
        await stream.send_all(b"GET /clients?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        await trio.sleep(0.5)
        await ops.stop()


async def test_no_grace_is_no_grace() -> None:
    async with open_ops(stop_grace=0) as ops, open_wire(ops, "/events") as wire:
        await wire.until(": events follow")
        await ops.stop()
        assert len(ops.server.hub) == 0


async def test_a_part_that_fails_is_logged_and_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "RESTART_PAUSE", 0.02)
    accept = Connections.accept
    failures = iter([RuntimeError("no descriptors"), ValueError("odd")])

    async def fragile(self: Connections, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        for failure in failures:
            raise failure
        await accept(self, listener, nursery)

    monkeypatch.setattr(Connections, "accept", fragile)
    server = FakeServer(fails=RuntimeError("no metrics"))
    async with open_ops(server) as ops:
        assert (await ops.http.get("/healthz")).status_code == 200
        server.fails = None
        await until(lambda: "no metrics" in caplog.text)
        assert (await ops.http.get("/samples")).json() == {"interval": 1.0, "samples": []}
    assert "a part of the ops side failed and is started again" in caplog.text
    assert "no descriptors" in caplog.text


async def test_a_listener_without_descriptors_waits_for_some(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept = trio.SocketListener.accept
    failures = iter([OSError(errno.EMFILE, "too many open files")])

    async def fragile(self: trio.SocketListener) -> trio.SocketStream:
        for failure in failures:
            raise failure
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, "accept", fragile)
    async with open_ops() as ops:
        assert (await ops.http.get("/healthz", headers=BEARER)).status_code == 200
    assert "cannot accept a connection" in caplog.text
