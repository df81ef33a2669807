"""What ended connections leave to the garbage collector: nothing. Thousands of them collected at once stop a server for 200 ms."""

from __future__ import annotations

import gc
import importlib.util
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationFailed,
    AuthenticationRequest,
    ClientConfig,
    CredentialsRefused,
    Identity,
    Message,
    ServerConfig,
)
from quicflow_trio.quic.hardened import HardenedConnection
from quicflow_trio.testing import MemoryNetwork
from tests.connections.machine import client_of, open_machine

SOON = ClientConfig(heartbeat_interval=1.0, heartbeat_timeout=3.0, backoff_initial=0.01, backoff_max=0.1, seed=1)
CONFIG = ServerConfig(session_ttl=30.0, heartbeat_timeout=6.0, heartbeat_interval=2.0, allow_unauthenticated_v1=True)
TIMES = 3
WATCHED = (
    "aioquic.",
    "qh3.",
    "quicflow_trio.quic.qh3",
    "quicflow_trio.connection",
    "quicflow_trio.lanes",
    "quicflow_trio.sessions",
)


async def check(request: AuthenticationRequest) -> Identity:
    if request.credentials != b"good":
        raise CredentialsRefused("not good")
    return Identity(name=request.client_id)


async def come_and_go(network: MemoryNetwork) -> None:
    async with client_of(network, "guest", credentials=b"good", config=SOON) as client:
        await client.lane("second").request(Message.command(b"x"))
        await client.request(Message.command(bytes(100_000)))
        await client.send(Message.event(b"y"))


async def be_refused(network: MemoryNetwork) -> None:
    async with client_of(network, "stranger", credentials=b"bad") as client:
        # What `pytest.raises` returns would hold the client in a circle.
        with suppress(AuthenticationFailed):
            await client.request(Message.command())
            pytest.fail("the credentials were accepted")


async def be_cut_off(network: MemoryNetwork) -> None:
    async with client_of(network, "guest", credentials=b"good", config=SOON) as client:
        for _ in range(TIMES):
            await client.request(Message.command(bytes(1000)))
            network.partition("guest")
            await trio.sleep(10)
            network.heal()
        await client.request(Message.command())
        assert client.statistics().connects == TIMES + 1


async def speak_v1(network: MemoryNetwork) -> None:
    async with client_of(network, "old", config=SOON, protocol="quic-backbone-v1") as client:
        await client.request(Message.command(bytes(100_000)))
        await client.send(Message.event(b"y"))
        await client.wait_connected()


async def fall_silent(network: MemoryNetwork) -> None:
    async with client_of(network, "guest", credentials=b"good", config=replace(SOON, close_grace=0)) as client:
        await client.request(Message.command())
        network.partition("guest")
    network.heal()


async def give_up(network: MemoryNetwork) -> None:
    """Leave in the middle of a handshake."""
    with trio.move_on_after(0.015):
        async with client_of(network, "guest", credentials=b"good", config=SOON) as client:
            await client.request(Message.command())


def unreachable() -> Counter[str]:
    """Collect what only the garbage collector finds, and return what of it belongs to connections and sessions."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        kinds = [type(one) for one in gc.garbage]
        return Counter(kind.__qualname__ for kind in kinds if kind.__module__.startswith(WATCHED))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def look(config: ServerConfig, visit: Callable[[MemoryNetwork], Awaitable[None]]) -> Counter[str]:
    """Return what some visits leave to the garbage collector."""
    network = MemoryNetwork(delay=0.01)
    async with open_machine(network, config=config, authenticate=check):
        await come_and_go(network)  # What is made once.
        await trio.sleep(60)
        gc.collect()
        gc.disable()
        try:
            for _ in range(TIMES):
                await visit(network)
            await trio.sleep(60)
            assert not [one for one in gc.get_objects() if isinstance(one, HardenedConnection)]
            return unreachable()
        finally:
            gc.enable()


@pytest.mark.parametrize("visit", [come_and_go, be_refused, be_cut_off, speak_v1, fall_silent, give_up])
async def test_an_ended_connection_is_freed_at_once(
    autojump_clock: MockClock, visit: Callable[[MemoryNetwork], Awaitable[None]]
) -> None:
    assert await look(CONFIG, visit) == {}


@pytest.mark.skipif(importlib.util.find_spec("qh3") is None, reason="qh3 is an extra and not installed")
@pytest.mark.parametrize("visit", [come_and_go, fall_silent, give_up])
async def test_one_of_qh3_as_well(
    autojump_clock: MockClock, visit: Callable[[MemoryNetwork], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SOON", replace(SOON, engine="qh3"))
    assert await look(replace(CONFIG, engine="qh3"), visit) == {}
