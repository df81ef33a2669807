"""Fan-out: everyone once under one id, nobody waits for the slow one, and a report that says what became of each."""

from __future__ import annotations

import importlib
import math

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Ack,
    AckStatus,
    AckTimeout,
    ClientConfig,
    ClientNotConnected,
    ConfigurationError,
    ConnectionLost,
    HandlerFailed,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    SlowConsumer,
    WaitingTableFull,
)
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.messages.harness import assert_at_rest, until

# By its name in the package it is the function.
module = importlib.import_module("quicflow_trio.broadcast")


class PerClient:
    """A client router that notes which client got what: the client is the peer of its requests."""

    def __init__(self) -> None:
        self.got: dict[str, list[Message]] = {}
        self.behave: dict[str, str] = {}
        self.router = Router()
        for kind in (MessageType.COMMAND, MessageType.EVENT):
            self.router.add(kind, self.handle)

    async def handle(self, request: Request) -> bytes:
        name: str = request.peer.client_id  # type: ignore[attr-defined]
        self.got.setdefault(name, []).append(request.message)
        behaviour = self.behave.get(name)
        if behaviour == "fail":
            raise ValueError("not me")
        if behaviour == "hang":
            await trio.sleep_forever()
        return name.encode()


async def test_everyone_gets_it_once_under_one_id_and_unicast_reaches_its_target_only(autojump_clock: MockClock) -> None:
    clients = PerClient()
    async with open_world(clients=5, client_router=clients.router, network=MemoryNetwork(delay=0.01)) as world:
        message = Message.event(b"all")
        report = await world.server.broadcast(message, ack_timeout=5)
        names = {f"client-{number}" for number in range(5)}
        assert (report.sent, report.failed) == (5, {})
        assert report.acked == {name: Ack(AckStatus.SUCCESS, name.encode()) for name in names}
        assert {name: [one.id for one in got] for name, got in clients.got.items()} == {name: [message.id] for name in names}
        clients.got.clear()
        await world.server.sessions["client-3"].request(Message.command(b"you"))
        assert [*clients.got] == ["client-3"]
        clients.got.clear()
        report = await world.server.broadcast(Message.event(b"unacked"))
        assert (report.sent, report.acked, report.failed) == (5, {}, {})
        await trio.sleep(1)
        assert set(clients.got) == names
        assert_at_rest(world)


async def test_to_names_the_targets_each_once(autojump_clock: MockClock) -> None:
    clients = PerClient()
    async with open_world(clients=3, client_router=clients.router) as world:
        to = ["client-2", "nobody", "client-0", "client-2"]
        report = await world.server.broadcast(Message.event(), to=to, ack_timeout=5)
        assert (report.sent, set(report.acked), set(report.failed)) == (2, {"client-0", "client-2"}, {"nobody"})
        assert isinstance(report.failed["nobody"], ClientNotConnected)
        assert {name: len(got) for name, got in clients.got.items()} == {"client-0": 1, "client-2": 1}
        assert (await world.server.broadcast(Message.event(), to=[])).sent == 0
        assert (await world.server.broadcast(Message.event(), to=[], ack_timeout=1)).sent == 0
        report = await world.server.broadcast(Message.event(), to=["nobody"], ack_timeout=1)
        assert (report.sent, [*report.failed]) == (0, ["nobody"])


async def test_one_name_is_not_a_list_of_letters(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with pytest.raises(TypeError, match="client ids"):
            await world.server.broadcast(Message.event(), to="client-0")


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan])
async def test_a_deadline_that_is_none_is_refused(autojump_clock: MockClock, seconds: float) -> None:
    async with open_world() as world:
        with pytest.raises(ConfigurationError, match="ack_timeout"):
            await world.server.broadcast(Message.event(), ack_timeout=seconds)


async def test_the_report_tells_failure_from_silence(autojump_clock: MockClock) -> None:
    clients = PerClient()
    clients.behave = {"client-1": "fail", "client-2": "hang"}
    network = MemoryNetwork(delay=0.01)
    async with open_world(clients=4, client_router=clients.router, network=network) as world:
        network.partition("client-3")
        start = trio.current_time()
        report = await world.server.broadcast(Message.command(), ack_timeout=7)
        assert trio.current_time() - start == pytest.approx(7)
        assert (report.sent, set(report.acked)) == (4, {"client-0"})
        failure = report.failed["client-1"]
        assert isinstance(failure, HandlerFailed)
        assert failure.reason == "ValueError: not me"
        assert isinstance(report.failed["client-2"], AckTimeout)
        assert isinstance(report.failed["client-3"], AckTimeout)
        network.heal()
        await until(lambda: not world.clients["client-2"].statistics().handlers_running)
        await trio.sleep(5)
        assert_at_rest(world)


async def test_with_an_infinite_deadline_only_the_end_of_a_session_ends_the_wait(autojump_clock: MockClock) -> None:
    clients = PerClient()
    clients.behave = {"client-1": "hang"}
    network = MemoryNetwork(delay=0.01)
    config = ClientConfig(handler_timeout=math.inf)
    # Not kept, so that the session ends with its connection.
    server_config = ServerConfig(session_ttl=0)
    async with open_world(
        clients=2, client_router=clients.router, network=network, client_config=config, server_config=server_config
    ) as world:
        network.partition("client-1")
        start = trio.current_time()
        report = await world.server.broadcast(Message.command(), ack_timeout=math.inf)
        assert [*report.acked] == ["client-0"]
        assert isinstance(report.failed["client-1"], ConnectionLost)
        assert 30 < trio.current_time() - start < 46, "the heartbeat time-out"
        assert world.server.statistics().requests_waiting == 0


async def test_a_session_that_goes_meanwhile_is_reported_and_the_others_are_served(autojump_clock: MockClock) -> None:
    clients = PerClient()
    clients.behave = {"client-1": "hang"}
    async with open_world(clients=3, client_router=clients.router, network=MemoryNetwork(delay=0.01)) as world:
        reports = []

        async def cast() -> None:
            reports.append(await world.server.broadcast(Message.command(), ack_timeout=20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cast)
            await trio.sleep(1)
            await world.server.sessions["client-1"].close("off you go")
        [report] = reports
        assert (report.sent, set(report.acked), set(report.failed)) == (3, {"client-0", "client-2"}, {"client-1"})
        await world.clients["client-1"].wait_connected()


async def test_a_slow_consumer_is_refused_at_once(autojump_clock: MockClock) -> None:
    clients = PerClient()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(limits=Limits(outbox_bytes=4096))
    async with open_world(clients=2, client_router=clients.router, network=network, server_config=config) as world:
        session = world.server.sessions["client-0"]
        network.partition("client-0")
        # What QUIC and the outbox take; the client reads none of it.
        while True:
            try:
                session.send_nowait(Message.event(bytes(1000)))
            except trio.WouldBlock:
                await trio.sleep(0.01)
                if not session._lane.has_room:
                    break
        start = trio.current_time()
        for ack_timeout in (None, 5.0):
            report = await world.server.broadcast(Message.event(b"news"), ack_timeout=ack_timeout)
            assert report.sent == 1
            assert isinstance(report.failed["client-0"], SlowConsumer)
        assert trio.current_time() - start < 1, "nobody waited for it"
        network.heal()
        await until(lambda: len(clients.got.get("client-0", ())) and not session.statistics().outbox_messages)
        await trio.sleep(10)
        assert_at_rest(world)
        assert not [one for one in clients.got["client-0"] if one.payload == b"news"]


async def test_without_room_in_the_waiting_table_the_rest_is_refused(autojump_clock: MockClock) -> None:
    clients = PerClient()
    config = ServerConfig(limits=Limits(waiting=2))
    async with open_world(clients=3, client_router=clients.router, server_config=config) as world:
        report = await world.server.broadcast(Message.command(), ack_timeout=5)
        assert (report.sent, len(report.acked)) == (2, 2)
        [error] = report.failed.values()
        assert isinstance(error, WaitingTableFull)
        assert world.server.statistics().requests_refused == 1
        assert_at_rest(world)


@pytest.mark.parametrize("ack_timeout", [None, 60.0])
async def test_a_broadcast_runs_only_so_far_ahead_of_its_recipients(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, ack_timeout: float | None
) -> None:
    """Ten thousand clients of one machine have no room for ten thousand datagrams; those who never answer hold it up for a second."""
    monkeypatch.setattr(module, "AHEAD", 64)
    clients = PerClient()
    network = MemoryNetwork(delay=0.1)
    async with open_world(clients=256, client_router=clients.router, network=network) as world:
        start = trio.current_time()
        report = await world.server.broadcast(Message.command(), ack_timeout=ack_timeout)
        assert report.sent == 256
        # The first two portions at once, then each when the one before it has been confirmed.
        assert 0.4 <= trio.current_time() - start < 1.0
        await trio.sleep(1)
        assert all(len(got) == 1 for got in clients.got.values())
        network.partition("server")
        start = trio.current_time()
        await world.server.broadcast(Message.event())
        assert trio.current_time() - start == pytest.approx(2 * module.PATIENCE, abs=0.1)
        network.heal()


async def test_many_clients_are_served_in_portions(autojump_clock: MockClock) -> None:
    """Acks of the first may come before the last was asked; the count of those waited for must not reach zero in between."""
    clients = PerClient()
    async with open_world(clients=70, client_router=clients.router) as world:
        report = await world.server.broadcast(Message.command(), ack_timeout=5)
        assert (report.sent, len(report.acked)) == (70, 70)
        report = await world.server.broadcast(Message.command())
        assert report.sent == 70
        await trio.sleep(1)
        assert all(len(got) == 2 for got in clients.got.values())
        assert_at_rest(world)
