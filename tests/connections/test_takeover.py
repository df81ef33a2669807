"""One client id, two connections: the newest wins, and the older is told for good."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio import (
    ClientNotConnected,
    ClientState,
    ConnectionLost,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    SessionReplaced,
)
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import hello, open_raw


async def test_the_newest_wins_and_the_older_is_told(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network, host="older") as older:
        await older.wait_connected()
        first = machine.server.sessions["worker"]
        async with client_of(machine.network, host="newer") as newer:
            await newer.wait_connected()
            second = machine.server.sessions["worker"]
            assert second is not first
            assert second.remote_address[0] == "newer"
            assert first.remote_address[0] == "older"
            with pytest.raises(SessionReplaced, match="newer connection"):
                await older.wait_closed()
            await trio.sleep(300)
            assert older.statistics().attempts == 1, "permanent: it does not come back"
            # Its late disconnect did not take the new session away.
            assert machine.server.sessions["worker"] is machine.server.session("worker") is second
            assert (await newer.request(Message.command(b"x"))).result == b"x"
            assert not first.connected
            with pytest.raises(ClientNotConnected):
                await first.send(Message.event(b""))
            assert [(change.change, change.detail.split(":")[0]) for change in second.history] == [
                ("connected", "older"),
                ("replaced", "a newer connection uses the client id"),
                ("connected", "newer"),
            ]
            assert machine.server.statistics().disconnects == {"server:session_replaced": 1}


@pytest.mark.parametrize("seed", range(5))
async def test_the_older_hears_of_it_even_when_the_close_was_lost(autojump_clock: MockClock, seed: int) -> None:
    # Else it waits for its heartbeat time-out, comes back as the newest and throws the new one out.
    network = MemoryNetwork(delay=0.01, seed=seed)
    async with open_machine(network) as machine, client_of(network, host="older") as older:
        await older.wait_connected()
        network.partition("older")
        async with client_of(network, host="newer") as newer:
            await newer.wait_connected()
            await trio.sleep(1 + 8 * seed)
            network.heal()
            with trio.fail_after(20), pytest.raises(SessionReplaced):
                await older.wait_closed()
            await trio.sleep(100)
            assert newer.statistics().connects == 1
            assert machine.server.sessions["worker"].remote_address[0] == "newer"


async def test_requests_under_way_on_the_older_session(autojump_clock: MockClock) -> None:
    router, outcomes = Router(), []

    @router.on(MessageType.QUERY)
    async def hang(request: Request) -> None:
        await trio.sleep(20)

    async def ask(call: object, expected: type[Exception]) -> None:
        try:
            await call(Message.query(b""))  # type: ignore[operator]
        except expected as exc:
            outcomes.append(type(exc))

    async with open_machine(router=router) as machine, client_of(machine.network, host="older", router=router) as older:
        await older.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, older.request, SessionReplaced)
            nursery.start_soon(ask, machine.server.sessions["worker"].request, ConnectionLost)
            await trio.sleep(1)
            async with client_of(machine.network, host="newer") as newer:
                await newer.wait_connected()
        assert sorted(outcome.__name__ for outcome in outcomes) == ["ConnectionLost", "SessionReplaced"]


async def test_handlers_of_the_replaced_session_run_to_their_end(autojump_clock: MockClock) -> None:
    router, ended, answers = Router(), trio.Event(), []

    @router.on(MessageType.COMMAND)
    async def slow(request: Request) -> None:
        await trio.sleep(20)
        try:
            await request.peer.send(Message.event(b"too late"))
        except ClientNotConnected:
            answers.append("not connected")
        ended.set()

    async with open_machine(router=router) as machine, client_of(machine.network, host="older") as older:
        await older.send(Message.command(b""))
        await trio.sleep(1)
        async with client_of(machine.network, host="newer") as newer:
            await newer.wait_connected()
            with pytest.raises(SessionReplaced):
                await older.wait_closed()
            await ended.wait()
            assert answers == ["not connected"]
            await trio.sleep(1)
            # The nursery of the replaced session has ended with its handler, not after its time to live.
            assert machine.server.statistics().tasks == 3


@pytest.mark.parametrize("seed", range(6))
async def test_two_at_the_same_instant(autojump_clock: MockClock, seed: int) -> None:
    network = MemoryNetwork(delay=0.01, jitter=0.005, seed=seed)
    async with open_machine(network) as machine:
        outcomes: list[str] = []

        async def live(host: str) -> None:
            async with client_of(network, host=host) as client:
                try:
                    with trio.fail_after(100):
                        await client.wait_closed()
                except SessionReplaced:
                    outcomes.append("replaced")
                except trio.TooSlowError:
                    outcomes.append("kept")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(live, "one")
            nursery.start_soon(live, "other")
            await trio.sleep(50)
            assert list(machine.server.sessions) == ["worker"]
        assert sorted(outcomes) == ["kept", "replaced"]


async def test_a_chain_of_takeovers_leaves_one(autojump_clock: MockClock) -> None:
    async with open_world(clients=1, network=MemoryNetwork(delay=0.01)) as world:
        raws = []
        async with trio.open_nursery() as nursery:
            for number in range(10):

                async def take(host: str = f"raw-{number}") -> None:
                    async with open_raw(world.network, host) as raw:
                        await raw.greet("popular")
                        raws.append(raw)
                        await raw.ended()

                nursery.start_soon(take)
                await trio.sleep(0.1)
            await until(lambda: len(raws) == 10)
            assert [raw.engine.closing for raw in raws] == [True] * 9 + [False]
            assert {raw.engine.ended.code for raw in raws[:-1] if raw.engine.ended is not None} == {5}
            assert world.server.statistics().connected == 2
            await world.server.sessions["popular"].close()
        await trio.sleep(1)
        assert world.server.statistics().away == 0
        assert world.clients["client-0"].state.value is ClientState.CONNECTED


async def test_an_away_session_is_resumed_by_its_client_and_replaced_by_others(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world(network=MemoryNetwork(delay=0.01), server_config=ServerConfig(session_ttl=1000.0)) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        world.network.partition("client-0")
        await until(lambda: not session.connected)
        assert repr(session) == "<Session 'client-0' away>"
        world.network.heal()
        await client.state.wait_value(ClientState.IDLE)
        await client.wait_connected()
        await until(lambda: world.server.sessions)
        assert world.server.session("client-0") is session
        assert [change.change for change in session.history] == ["connected", "disconnected", "connected"]
        assert "takes the session over" not in caplog.text
        assert repr(session) == "<Session 'client-0' connected>"
        world.network.partition("client-0")
        await until(lambda: not session.connected)
        async with open_raw(world.network, "other") as raw:
            await raw.greet("client-0")
            assert world.server.session("client-0") is not session
            assert not session.connected
            assert "takes the session over" not in caplog.text
        world.network.heal()


async def test_the_history_of_an_id_is_bounded(autojump_clock: MockClock) -> None:
    async with open_world(clients=0) as world:
        for number in range(60):
            async with open_raw(world.network, f"raw-{number}") as raw:
                await raw.greet("popular")
                session = world.server.sessions["popular"]
                raw.write(0, hello())  # a protocol error: the session stays known, and with it the history
                await raw.ended()
        assert len(session.history) == 100
        assert session.history[-1].change == "disconnected"
