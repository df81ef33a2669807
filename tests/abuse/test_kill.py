"""kill -9 of a server in traffic: how soon its clients know, and that they come back. Over real UDP, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from quicflow_trio import ClientConfig, ConnectionLost, DisconnectEvent, DisconnectReason, Message, open_client
from quicflow_trio.testing import throwaway_tls
from tests.abuse.udp import QUICK, Victim

pytestmark = pytest.mark.realtime

CLIENTS = 10


async def test_clients_know_with_their_next_packet_that_the_server_was_killed(tmp_path: Path) -> None:
    options = {**QUICK, "heartbeat_interval": 10.0, "heartbeat_timeout": 30.0, "reset_key_file": str(tmp_path / "reset.key")}
    victim = await trio.to_thread.run_sync(Victim, options)
    told: dict[str, float] = {}
    back: dict[str, float] = {}
    try:
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                up, connected = trio.Event(), trio.Event()
                ready: list[str] = []

                async def work(client_id: str) -> None:
                    config = ClientConfig(backoff_initial=0.1)
                    async with (
                        open_client(*victim.address, client_id=client_id, tls=throwaway_tls()[1], config=config) as client,
                        client.open_events(kinds=[DisconnectEvent]) as events,
                    ):
                        assert (await client.request(Message.command(b"before"))).result == b"before"
                        ready.append(client_id)
                        if len(ready) == CLIENTS:
                            connected.set()
                        await up.wait()
                        started = trio.current_time()
                        with pytest.raises(ConnectionLost, match="stateless reset"):
                            await client.request(Message.command(b"into the void"))
                        told[client_id] = trio.current_time() - started
                        event = await anext(events)
                        assert isinstance(event, DisconnectEvent)
                        assert event.reason is DisconnectReason.STATELESS_RESET
                        assert (await client.request(Message.command(b"after"))).result == b"after"
                        back[client_id] = trio.current_time() - started

                for number in range(CLIENTS):
                    nursery.start_soon(work, f"worker-{number}")
                await connected.wait()
                victim.kill()
                victim = await trio.to_thread.run_sync(Victim, options, victim.address[1])
                up.set()
        assert len(back) == CLIENTS
        # On loopback a round trip is under a millisecond; what is allowed here is the machine's other work. The heartbeat time-out is 30 s.
        assert max(told.values()) < 1.0, told
        assert max(back.values()) < 5.0, back
        figures = await victim.figures()
        assert figures["stateless_resets_sent"] >= CLIENTS
        await trio.to_thread.run_sync(victim.stop)
    finally:
        victim.process.kill()
