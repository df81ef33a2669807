"""quic-backbone-v1 over each pair of engines, past the streams that the handshake allows."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, Message, ServerConfig
from quicflow_trio.testing import MemoryNetwork
from tests.backbone1.test_connecting import old_client
from tests.connections.machine import open_machine, until
from tests.messages.harness import Recorder


@pytest.mark.parametrize("server_engine", ["aioquic", "qh3"])
@pytest.mark.parametrize("client_engine", ["aioquic", "qh3"])
async def test_both_ways(autojump_clock: MockClock, server_engine: str, client_engine: str) -> None:
    for engine in (server_engine, client_engine):
        pytest.importorskip(engine)
    network = MemoryNetwork(delay=0.005)
    there, here = Recorder(), Recorder()
    server, config = ServerConfig(engine=server_engine), ClientConfig(engine=client_engine)
    async with (
        open_machine(network, router=there.router, config=server) as machine,
        old_client(network, router=here.router, config=config) as client,
    ):
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        with trio.fail_after(300):
            for number in range(200):
                await client.send(Message.event(b"%d" % number))
                await session.send(Message.event(b"%d" % number))
            for _ in range(20):
                assert (await client.request(Message.query(bytes(3000)))).result == bytes(3000)
                assert (await session.request(Message.query(bytes(3000)))).result == bytes(3000)
            await until(lambda: len(there.received) == len(here.received) == 220)
        assert client.statistics().connects == 1
