"""The same over real UDP sockets and real time: what virtual time cannot show."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from quicflow_trio import Client, ClientConfig, Message, Router, Server, ServerConfig, open_client, serve
from quicflow_trio.testing import throwaway_tls
from tests.messages.harness import KINDS, Gate, Recorder

pytestmark = pytest.mark.realtime

MIB = 1 << 20


@contextlib.asynccontextmanager
async def loopback(router: Router, client_router: Router, clients: int = 1) -> AsyncIterator[tuple[Server, list[Client]]]:
    server_tls, client_tls = throwaway_tls()
    config = ServerConfig(handler_timeout=math.inf)
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        server: Server = await nursery.start(partial(serve, router, host="127.0.0.1", port=0, tls=server_tls, config=config))
        opened = [
            await stack.enter_async_context(
                open_client(*server.address, client_id=f"client-{number}", tls=client_tls, router=client_router)
            )
            for number in range(clients)
        ]
        for client in opened:
            await client.wait_connected()
        yield server, opened
        await stack.aclose()
        await server.drain(grace=5)


async def test_each_kind_in_both_directions_in_order() -> None:
    on_server, on_client = Recorder(), Recorder()
    with trio.fail_after(30):
        async with loopback(on_server.router, on_client.router) as (server, [client]):
            session = server.sessions["client-0"]
            for peer, recorder in ((client, on_server), (session, on_client)):
                for kind in KINDS:
                    for number in range(100):
                        sent = await peer.send(Message(kind, b"%d" % number))
                    ack = await peer.request(Message(kind, b"last"))
                    assert ack.result == b"tsal"
                    await sent.delivered()
                    assert recorder.payloads(kind) == [b"%d" % number for number in range(100)] + [b"last"]


async def test_a_mebibyte_and_back() -> None:
    on_server, on_client = Recorder(), Recorder()
    with trio.fail_after(30):
        async with loopback(on_server.router, on_client.router) as (server, [client]):
            payload = bytes(range(256)) * (MIB // 256)
            for peer in (client, server.sessions["client-0"]):
                assert (await peer.request(Message.command(payload))).result == payload[::-1]


async def test_a_thousand_at_once_and_a_broadcast() -> None:
    on_server, on_client = Recorder(), Recorder()
    with trio.fail_after(30):
        async with loopback(on_server.router, on_client.router, clients=5) as (server, clients):
            async with trio.open_nursery() as nursery:
                for number in range(1000):
                    nursery.start_soon(clients[number % 5].request, Message.command(b"%d" % number))
            report = await server.broadcast(Message.event(b"all"), ack_timeout=5)
            assert (report.sent, len(report.acked), report.failed) == (5, 5, {})
            assert len(on_client.received) == 5
            assert len({message.id for message in on_client.received}) == 1
            for peer in (*clients, *server.sessions.values()):
                assert peer.statistics().requests_waiting == 0


async def test_a_stopped_handler_stops_its_sender_and_nobody_else() -> None:
    gate, on_client = Gate(), Recorder()
    config = ClientConfig()
    with trio.fail_after(30):
        async with loopback(gate.router, on_client.router) as (server, [client]):
            count = 0
            while True:
                try:
                    client.send_nowait(Message.command(bytes(20_000)))
                    count += 1
                except trio.WouldBlock:
                    await trio.sleep(0.3)
                    if not client._lane.has_room:
                        break
            session = server.sessions["client-0"]
            limits = config.limits
            assert session.statistics().held_bytes < limits.lane_window + 2 * 21_000
            assert client.statistics().outbox_bytes < limits.outbox_bytes + 21_000
            assert (await client.lane("other").request(Message.query(b"q"))).result == b"q"
            gate.opened.set()
            assert (await client.request(Message.query(b"last"))).result == b"last"
            assert len(gate.passed) == count
