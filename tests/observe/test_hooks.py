"""Hooks are called, in order, and whatever they do hurts no connection."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    ConfigurationError,
    ConnectEvent,
    DisconnectEvent,
    Event,
    Hooks,
    Message,
    MessageReceivedEvent,
    StateChangeEvent,
    open_client,
)
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.connections.machine import CLIENT_TLS, client_of, open_machine, until


async def test_a_server_calls_them(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    seen: list[str] = []

    @hooks.on(ConnectEvent)
    async def connected(event: ConnectEvent) -> None:
        seen.append(f"+{event.client_id}")

    @hooks.on(DisconnectEvent)
    async def disconnected(event: DisconnectEvent) -> None:
        await trio.sleep(0.1)
        seen.append(f"-{event.client_id}")

    async with open_world(clients=2, hooks=hooks) as world:
        await world.server.sessions["client-0"].close()
        await until(lambda: len(seen) == 4)
        assert sorted(seen[:2]) == ["+client-0", "+client-1"]
        assert sorted(seen[2:]) == ["+client-0", "-client-0"]
    # The last ones as well, although the server ended with them.
    assert sorted(seen[4:]) == ["-client-0", "-client-1"]


async def test_the_first_and_the_last_event_of_a_server(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    states: list[str] = []

    @hooks.on(StateChangeEvent)
    async def changed(event: StateChangeEvent) -> None:
        states.append(event.new)

    async with open_world(clients=0, hooks=hooks):
        pass
    assert states == ["listening", "draining", "stopped"]


async def test_a_client_calls_them(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    states: list[tuple[str, str]] = []

    @hooks.on(StateChangeEvent)
    async def changed(event: StateChangeEvent) -> None:
        states.append((event.old, event.new))

    async with open_machine() as machine:
        async with open_client("server", client_id="worker", tls=CLIENT_TLS, hooks=hooks, network=machine.network) as client:
            await client.wait_connected()
        assert states == [("idle", "connecting"), ("connecting", "connected"), ("connected", "idle")]


async def test_one_that_raises_is_logged_and_called_again(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    hooks = Hooks()
    called: list[int] = []

    @hooks.on(MessageReceivedEvent)
    async def broken(event: MessageReceivedEvent) -> None:
        called.append(event.size)
        raise LookupError("a hook's own fault")

    async with open_world(hooks=hooks) as world:
        for _ in range(3):
            assert (await world.clients["client-0"].request(Message.command(b"xy"))).result == b"xy"
        await until(lambda: len(called) == 3)
        assert world.server.statistics().connected == 1
    assert "a hook's own fault" in caplog.text
    assert "broken" in caplog.text


async def test_one_that_hangs_stops_neither_traffic_nor_the_server(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    called: list[int] = []

    @hooks.on(MessageReceivedEvent)
    async def stuck(event: MessageReceivedEvent) -> None:
        called.append(event.size)
        await trio.sleep_forever()

    started = trio.current_time()
    async with open_world(hooks=hooks, network=MemoryNetwork()) as world:
        for _ in range(1500):
            await world.clients["client-0"].send(Message.event(b"x"))
        await until(lambda: world.server.metrics().messages_received == 1500)
        # One is with it, 1,024 wait, the rest is lost to it, and counted.
        assert world.server.metrics().events_dropped == 1500 - 1 - 1024
    assert called == [1]
    assert trio.current_time() - started < 10


async def test_when_the_server_is_cancelled_they_are_too(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    cancelled = []

    @hooks.on(ConnectEvent)
    async def stuck(event: ConnectEvent) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(event.client_id)

    with trio.CancelScope() as scope:
        async with open_world(hooks=hooks):
            await trio.sleep(1)
            scope.cancel()
            cancelled_at = trio.current_time()
    assert cancelled == ["client-0"]
    assert trio.current_time() - cancelled_at < 1.5


async def test_they_see_the_end_of_a_server_that_is_cancelled(autojump_clock: MockClock) -> None:
    # As Ctrl-C does it.
    hooks = Hooks()
    seen: list[str] = []

    @hooks.on(ConnectEvent, DisconnectEvent, StateChangeEvent)
    async def note(event: Event) -> None:
        await trio.sleep(0.01)
        seen.append(event.new if isinstance(event, StateChangeEvent) else event.kind)

    with trio.CancelScope() as scope:
        async with open_world(hooks=hooks):
            await trio.sleep(1)
            scope.cancel()
    # One function for several kinds gets them in their order.
    assert seen == ["listening", "connect", "disconnect", "stopped"]


async def test_one_may_stop_the_server(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    async with open_machine(hooks=hooks) as machine:

        @hooks.on(ConnectEvent)
        async def stop(event: ConnectEvent) -> None:
            await machine.server.drain(grace=1)

        await machine.stop()
        await machine.start()
        with trio.fail_after(10):
            async with client_of(machine.network) as client:
                await client.wait_connected()
                await machine.server._stopped.wait()


async def _take(event: Event) -> None:
    pass


def test_wrong_arguments() -> None:
    hooks = Hooks()
    with pytest.raises(ConfigurationError, match="expected classes of events"):
        hooks.add(_take)
    with pytest.raises(ConfigurationError, match="expected an async function"):
        hooks.add(print, ConnectEvent)  # type: ignore[arg-type]
    hooks.add(partial(_take), ConnectEvent)
    with pytest.raises(ConfigurationError, match="expected classes of events"):
        hooks.add(_take, "connect")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected an async function"):
        hooks.add(None, ConnectEvent)  # type: ignore[arg-type]


async def test_one_object_serves_many(autojump_clock: MockClock) -> None:
    hooks = Hooks()
    seen: list[str] = []

    @hooks.on(ConnectEvent)
    async def connected(event: ConnectEvent) -> None:
        seen.append(event.client_id)

    async with (
        open_machine() as machine,
        open_client("server", client_id="a", tls=CLIENT_TLS, hooks=hooks, network=machine.network) as a,
        open_client("server", client_id="b", tls=CLIENT_TLS, hooks=hooks, network=machine.network) as b,
        client_of(machine.network, "c") as c,
    ):
        for client in (a, b, c):
            await client.wait_connected()
        await until(lambda: sorted(seen) == ["a", "b"])
