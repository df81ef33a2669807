"""Ending in order: a server that drains, a client that leaves, both at once."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    ClientConfig,
    ClientState,
    ConnectionClosed,
    ConnectionLost,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
)
from quicflow_trio.protocol.lane_sender import CREDIT_RESERVE
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import Goodbye, LaneOpen, MessageFrame, ReceiptFrame
from tests.connections.machine import Machine, client_of, open_machine, times, until
from tests.connections.raw import hello, open_raw

IDLE, CONNECTED, CONNECTING = ClientState.IDLE, ClientState.CONNECTED, ClientState.CONNECTING


class Work:
    """Handlers that take their time, and what became of them."""

    def __init__(self, seconds: float) -> None:
        self.router = Router()
        self.handled: list[bytes] = []
        self.cancelled = 0
        self.running = 0

        async def work(request: Request) -> bytes:
            self.running += 1
            try:
                await trio.sleep(seconds)
            except trio.Cancelled:
                self.cancelled += 1
                raise
            finally:
                self.running -= 1
            self.handled.append(request.message.payload)
            return b"done"

        for kind in MessageType:
            if kind is not MessageType.RESPONSE:
                self.router.add(kind, work)


async def answer(results: list[str], call: object, payload: bytes = b"") -> None:
    try:
        results.append((await call(Message.command(payload))).result.decode())  # type: ignore[operator]
    except (ConnectionClosed, ConnectionLost, AckTimeout) as exc:
        results.append(type(exc).__name__)


# -- the server drains ---------------------------------------------------------------------------------------------------
async def test_a_drain_waits_for_requests_of_both_sides(autojump_clock: MockClock) -> None:
    work, results = Work(3.0), list[str]()
    async with open_machine(router=work.router) as machine, client_of(machine.network, router=work.router) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(answer, results, client.request)
                nursery.start_soon(answer, results, session.request)
            await trio.sleep(1)
            started = trio.current_time()
            await machine.server.drain(grace=30)
            assert trio.current_time() - started == pytest.approx(2.0, abs=0.2), "as long as the work, not as the grace"
        assert results == ["done"] * 10
        assert work.cancelled == 0
        await client.state.wait_value(IDLE)
        assert client.statistics().history[-1].reason == "server shutdown"
        await machine._gone.wait()


async def test_clients_start_nothing_new_and_come_back_when_asked(autojump_clock: MockClock) -> None:
    work = Work(2.0)
    async with (
        open_machine(router=work.router) as machine,
        client_of(machine.network, config=ClientConfig(jitter=0)) as client,
    ):
        await client.send(Message.command(b"before"))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(machine.server.drain, grace=30, retry_after=7.0))
            await trio.sleep(0.5)
            sent = await client.send(Message.command(b"during"))
            assert client.statistics().outbox_messages == 1
        await client.state.wait_value(IDLE)
        assert work.handled == [b"before"]
        assert client.statistics().outbox_messages == 1, "kept for the next connection"
        await machine.start()
        await sent.delivered()
        assert times(client, CONNECTING)[-1] - times(client, IDLE)[-1] == pytest.approx(8.0), "asked for 7, and its own second"
        await until(lambda: work.handled == [b"before", b"during"])


async def test_no_server_sends_a_client_away_for_ever(autojump_clock: MockClock) -> None:
    config = ClientConfig(jitter=0, backoff_initial=1, backoff_max=5)
    async with open_machine() as machine, client_of(machine.network, config=config) as client:
        await client.wait_connected()
        await machine.server.drain(grace=1, retry_after=1_000_000.0)
        await client.state.wait_value(IDLE)
        await machine.start()
        await client.wait_connected()
        assert times(client, CONNECTING)[-1] - times(client, IDLE)[-1] == pytest.approx(6.0), (
            "the longest wait, and its own second"
        )


async def test_clients_are_asked_back_one_after_the_other(autojump_clock: MockClock) -> None:
    """Ten thousand that come back in one instant are ten thousand handshakes in one instant."""
    async with open_world(clients=0) as world, AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(open_raw(world.network, f"raw-{number}")) for number in range(5)]
        for number, raw in enumerate(raws):
            await raw.greet(f"raw-{number}")
        await world.server.drain(grace=1, retry_after=2.5)
        asked = [raw.frames()[-1] for raw in raws]
        assert [one.retry_after_ms for one in asked if isinstance(one, Goodbye)] == [2500, 2502, 2504, 2506, 2508]


@pytest.mark.parametrize("seed", range(4))
async def test_messages_on_the_wire_under_loss_are_still_handled(autojump_clock: MockClock, seed: int) -> None:
    work = Work(0.1)
    network = MemoryNetwork(seed=seed, loss=0.2, delay=0.03, reorder=0.2)
    async with open_machine(network, router=work.router) as machine, client_of(network) as client:
        await client.wait_connected()
        sent = [await client.send(Message.event(b"%d" % number)) for number in range(200)]
        await trio.sleep(0.05)
        await machine.server.drain(grace=30)
        written = client.statistics().messages_sent
        assert written > 0
        assert sorted(work.handled, key=int) == [b"%d" % number for number in range(written)]
        for one in sent[:written]:
            await one.delivered()


async def test_the_grace_ends_and_a_stuck_handler_is_cancelled(autojump_clock: MockClock) -> None:
    work, results = Work(1000.0), list[str]()
    config = ServerConfig(handler_timeout=2000.0)
    async with open_machine(router=work.router, config=config) as machine, client_of(machine.network) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, results, partial(client.request, ack_timeout=500))
            await trio.sleep(1)
            started = trio.current_time()
            await machine.server.drain(grace=5)
            assert trio.current_time() - started == pytest.approx(5.0, abs=0.1)
        assert results == ["ConnectionLost"]
        assert (work.cancelled, work.running) == (1, 0)


async def test_no_grace_at_all(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        await machine.server.drain(grace=0)
        await client.state.wait_value(IDLE)


async def test_new_connections_are_refused_while_it_drains(autojump_clock: MockClock) -> None:
    work = Work(5.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network) as client:
        await client.send(Message.command(b""))
        await trio.sleep(1)
        async with open_raw(machine.network, "half-open") as half_open, trio.open_nursery() as nursery:
            await trio.sleep(0.1)
            nursery.start_soon(partial(machine.server.drain, grace=30))
            ended = await half_open.ended()
            assert (ended.code, ended.reason) == (CloseCode.SHUTDOWN, "the server is draining")
            async with client_of(machine.network, "late") as late:
                await trio.sleep(1)
                assert late.state.value is CONNECTING
            assert machine.server.statistics().refused["server:draining"] >= 1
            assert machine.server.statistics().half_open == 0


async def test_a_hello_that_comes_while_it_drains(autojump_clock: MockClock) -> None:
    # The goodbye to half-open connections and their hellos cross.
    async with open_machine() as machine:
        async with open_raw(machine.network) as raw:
            machine.server._admission.draining = True
            raw.open(hello())
            ended = await raw.ended()
            assert (ended.code, ended.reason) == (CloseCode.SHUTDOWN, "the server is draining")
        await machine.server.aclose()


async def test_clients_that_are_away_do_not_hold_it_up(autojump_clock: MockClock) -> None:
    work = Work(5.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network) as client:
        await client.wait_connected()
        machine.network.partition("worker")
        await until(lambda: not machine.server.sessions)
        started = trio.current_time()
        await machine.server.drain(grace=30)
        assert trio.current_time() - started < 0.1
        machine.network.heal()


async def test_a_drain_waits_for_handlers_of_clients_that_are_gone(autojump_clock: MockClock) -> None:
    work = Work(3.0)
    async with open_machine(router=work.router) as machine:
        async with client_of(machine.network) as client:
            await client.wait_connected()
            await client.send(Message.event(b"left behind"))
        await until(lambda: not machine.server.sessions)
        await machine.server.drain(grace=30)
        assert (work.handled, work.cancelled) == ([b"left behind"], 0)


async def test_a_client_that_falls_silent_during_the_drain(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        machine.network.partition("worker")
        started = trio.current_time()
        await machine.server.drain(grace=10)
        assert trio.current_time() - started == pytest.approx(10.0)


async def test_a_client_that_never_answers_the_goodbye(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw(machine.network) as raw:
        await raw.greet()
        started = trio.current_time()
        await machine.server.drain(grace=4, retry_after=2.5)
        assert trio.current_time() - started == pytest.approx(4.0)
        goodbye = await raw.frame(Goodbye)
        assert (goodbye.code, goodbye.retry_after_ms) == (CloseCode.SHUTDOWN, 2500)
        assert goodbye.reason == "the server is draining"
        ended = await raw.ended()
        assert (ended.code, ended.reason) == (CloseCode.SHUTDOWN, "server shutdown")


async def test_draining_twice(autojump_clock: MockClock) -> None:
    work = Work(3.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network) as client:
        await client.send(Message.command(b""))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(machine.server.drain, grace=30))
            nursery.start_soon(partial(machine.server.drain, grace=30))
        await machine.server.drain(grace=30)
        assert len(work.handled) == 1


async def test_closing_during_a_drain(autojump_clock: MockClock) -> None:
    work = Work(20.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network) as client:
        await client.send(Message.command(b""))
        await trio.sleep(0.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(machine.server.drain, grace=30))
            await trio.sleep(1)
            started = trio.current_time()
            await machine.server.aclose()
        assert trio.current_time() - started < 0.1
        assert (work.cancelled, work.running) == (1, 0)


async def test_a_cancelled_drain_leaves_the_server_draining(autojump_clock: MockClock) -> None:
    work = Work(20.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network) as client:
        await client.send(Message.command(b""))
        await trio.sleep(0.5)
        with trio.move_on_after(2):
            await machine.server.drain(grace=30)
        assert work.running == 1
        assert machine.server.sessions
        async with client_of(machine.network, "late") as late:
            await trio.sleep(5)
            assert late.state.value is CONNECTING
        await machine.server.drain(grace=30)
        assert (len(work.handled), work.cancelled) == (1, 0)


async def test_a_drain_of_nobody(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        started = trio.current_time()
        await machine.server.drain(grace=30)
        assert trio.current_time() == started


async def test_a_drain_waits_for_what_the_server_has_queued(autojump_clock: MockClock) -> None:
    # More than the client's window: the answer to the goodbye must not stop what is still in the outbox.
    taken = Work(0.001)
    async with open_machine() as machine, client_of(machine.network, router=taken.router) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        sent = [await session.send(Message.event(bytes(1000))) for _ in range(900)]
        await machine.server.drain(grace=30)
        for one in sent:
            await one.delivered()
        assert len(taken.handled) == 900


async def test_a_drain_ends_when_the_last_unwritten_message_is_taken_back(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.EVENT, serial=True)
    async def stand(request: Request) -> None:
        await trio.sleep(400)

    config = ServerConfig(heartbeat_interval=1000, heartbeat_timeout=3000)
    client_config = ClientConfig(
        limits=Limits(lane_window=16 * 1024), handler_timeout=math.inf, heartbeat_interval=1000, heartbeat_timeout=3000
    )
    async with open_world(client_router=router, server_config=config, client_config=client_config) as world:
        session = world.server.sessions["client-0"]
        connection, lane = session._connection, session._lane
        assert connection is not None
        await session.send(Message.event(bytes(500)))
        await trio.sleep(0.2)
        while connection.engine.credit(lane.stream_id or 0) > CREDIT_RESERVE:
            await session.send(Message.event(bytes(500)))
            await trio.sleep(0.2)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(AckTimeout):
                    await session.request(Message.event(), ack_timeout=50)

            nursery.start_soon(ask)
            await trio.sleep(1)
            assert session.statistics().outbox_messages == 1
            await world.server.drain(grace=300)
        assert trio.current_time() - begun == pytest.approx(50, abs=1)


# -- the client leaves ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [0.0, 0.2])
async def test_what_a_leaving_client_has_queued_arrives(autojump_clock: MockClock, loss: float) -> None:
    work = Work(0.0)
    network = MemoryNetwork(delay=0.01, loss=loss)
    async with open_machine(network, router=work.router) as machine:
        async with client_of(network, config=ClientConfig(close_grace=30.0)) as client:
            await client.wait_connected()
            # More than one window of 512 KB: most of it is not written when the block ends.
            sent = [await client.send(Message.event(b"%03d" % number + bytes(1000))) for number in range(900)]
        assert sorted(payload[:3] for payload in work.handled) == [b"%03d" % number for number in range(900)]
        for one in sent:
            await one.delivered()
        await until(lambda: not machine.server.sessions)
        if not loss:
            assert machine.server.statistics().disconnects == {"client:normal": 1}
            assert machine.server.statistics().away == 0


async def test_messages_queued_before_the_connection_get_their_chance(autojump_clock: MockClock) -> None:
    work = Work(0.0)
    async with open_machine(router=work.router) as machine:
        async with client_of(machine.network) as client:
            client.send_nowait(Message.event(b"one"))
            client.lane("other").send_nowait(Message.event(b"two"))
            assert client.state.value is not CONNECTED
        assert sorted(work.handled) == [b"one", b"two"]


@pytest.mark.parametrize("queued", [True, False])
async def test_leaving_without_a_server(autojump_clock: MockClock, queued: bool) -> None:
    started = trio.current_time()
    async with client_of(MemoryNetwork(), config=ClientConfig(close_grace=5.0)) as client:
        await trio.sleep(1)
        sent = client.send_nowait(Message.event(b"")) if queued else None
    assert trio.current_time() - started == pytest.approx(6.0 if queued else 1.0)
    if sent is not None:
        with pytest.raises(ConnectionClosed):
            await sent.delivered()


async def test_leaving_waits_for_handlers_and_their_acks(autojump_clock: MockClock) -> None:
    work, results = Work(2.0), list[str]()
    async with open_machine() as machine, trio.open_nursery() as nursery:
        async with client_of(machine.network, router=work.router) as client:
            await client.wait_connected()
            nursery.start_soon(answer, results, machine.server.sessions["worker"].request)
            await trio.sleep(0.5)
        assert len(work.handled) == 1
        await trio.sleep(1)
        assert results == ["done"]


async def test_the_grace_of_a_leaving_client_ends(autojump_clock: MockClock) -> None:
    work, results = Work(100.0), list[str]()
    async with open_machine() as machine, trio.open_nursery() as nursery:
        async with client_of(machine.network, router=work.router, config=ClientConfig(close_grace=2.0)) as client:
            await client.wait_connected()
            nursery.start_soon(answer, results, machine.server.sessions["worker"].request)
            await trio.sleep(0.5)
            leaving = trio.current_time()
        assert trio.current_time() - leaving == pytest.approx(2.0)
        assert (work.cancelled, work.running) == (1, 0)
        await trio.sleep(1)
        assert results == ["ConnectionLost"]
        assert machine.server.statistics().disconnects == {"client:normal": 1}


@pytest.mark.parametrize("how", ["cancelled", "raised"])
async def test_leaving_by_an_exception_is_quick_and_polite(autojump_clock: MockClock, how: str) -> None:
    work, results = Work(100.0), list[str]()
    async with open_machine(router=work.router) as machine:
        with trio.CancelScope() as scope:
            try:
                async with client_of(machine.network, router=work.router) as client:
                    await client.wait_connected()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(answer, results, client.request)
                        await trio.sleep(1)
                        nursery.cancel_scope.cancel()
                    leaving = trio.current_time()
                    if how == "raised":
                        raise ZeroDivisionError
                    scope.cancel()
                    await trio.sleep_forever()
            except ZeroDivisionError:
                assert how == "raised"
        assert trio.current_time() == leaving
        assert scope.cancelled_caught is (how == "cancelled")
        await until(lambda: not machine.server.sessions, seconds=1)
        assert machine.server.statistics().disconnects == {"client:normal": 1}
        assert client.state.value is IDLE


async def test_leaving_at_once(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        for _ in range(20):
            async with client_of(machine.network):
                pass
        await trio.sleep(20)
        figures = machine.server.statistics()
        assert (figures.connected, figures.half_open, figures.endpoint.connection_ids) == (0, 0, 0)


@pytest.mark.parametrize("after", [0.0, 0.005, 0.011, 0.021, 0.031, 0.041])
async def test_leaving_at_every_moment_of_the_handshake(autojump_clock: MockClock, after: float) -> None:
    async with open_machine() as machine:
        with trio.move_on_after(after):
            async with client_of(machine.network):
                await trio.sleep_forever()
        await trio.sleep(20)
        figures = machine.server.statistics()
        assert (figures.connected, figures.away, figures.half_open, figures.endpoint.connection_ids) == (0, 0, 0, 0)


# -- both ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
async def test_both_leave_at_the_same_time(autojump_clock: MockClock, seed: int) -> None:
    work = Work(0.2)
    network = MemoryNetwork(seed=seed, delay=0.01, jitter=0.01)
    results: list[str] = []

    async def live(machine: Machine, ready: trio.Event, leave: trio.Event) -> None:
        async with client_of(network, router=work.router) as client, trio.open_nursery() as nursery:
            await client.wait_connected()
            nursery.start_soon(answer, results, client.request)
            nursery.start_soon(answer, results, machine.server.sessions["worker"].request)
            await trio.sleep(0.1)
            ready.set()
            await leave.wait()

    async with open_machine(network, router=work.router) as machine, trio.open_nursery() as nursery:
        ready, leave = trio.Event(), trio.Event()
        nursery.start_soon(live, machine, ready, leave)
        await ready.wait()
        leave.set()
        with trio.fail_after(5):
            await machine.server.drain(grace=30)
    assert results == ["done", "done"]
    assert work.cancelled == 0


async def test_goodbyes_that_cross_lose_nothing(autojump_clock: MockClock) -> None:
    work = Work(0.0)
    async with open_machine(router=work.router) as machine, client_of(machine.network, router=work.router) as client:
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        async with trio.open_nursery() as nursery:
            mine = [await client.send(Message.event(bytes(1000))) for _ in range(600)]
            theirs = [await session.send(Message.event(bytes(1000))) for _ in range(600)]
            nursery.start_soon(partial(machine.server.drain, grace=30))
            await trio.testing.wait_all_tasks_blocked()
            await client._supervisor.leave()
        for one in mine + theirs:
            await one.delivered()
    assert len(work.handled) == 1200


async def test_a_goodbye_said_twice_counts_once(autojump_clock: MockClock) -> None:
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01)) as world, open_raw(world.network) as raw:
        await raw.greet()
        session = world.server.sessions["raw"]
        raw.write(0, Goodbye(reason="leaving\nforged"), Goodbye(code=99, retry_after_ms=2**40))
        assert (await raw.frame(Goodbye)).code == CloseCode.NORMAL
        await session.send(Message.event(b"too late"))
        # What was on its way when it said goodbye is still taken.
        stream_id = raw.open(LaneOpen(), MessageFrame(1, bytes(16), MessageType.EVENT, b"x", False, 1))
        assert (await raw.frame(ReceiptFrame, stream_id)).received == 1
        await trio.sleep(1)
        assert not [frame for frame in raw.frames(1) if isinstance(frame, MessageFrame)], "nothing new after a goodbye"
        assert len([frame for frame in raw.frames() if isinstance(frame, Goodbye)]) == 1
        await session.close()


async def test_a_client_is_not_ended_by_its_own_goodbye(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        async with client_of(machine.network) as client:
            await client.wait_connected()
            connection = client._supervisor.connection
            assert connection is not None
            connection.begin_drain()
            connection.begin_drain()
            connection.say_goodbye(CloseCode.NORMAL, "first")
            connection.say_goodbye(CloseCode.NORMAL, "second")
            await connection.drained()
            await connection.drained()
            assert client.state.value is CONNECTED
        await connection.drained()
