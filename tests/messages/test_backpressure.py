"""A handler that stops stops its sender, at a bounded number of bytes on either side, and nobody else."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, Limits, Message, MessageType, Peer, Request, Router, ServerConfig
from quicflow_trio.client_state import ClientState
from quicflow_trio.protocol.outgoing import MESSAGE_OVERHEAD
from quicflow_trio.testing import MemoryNetwork, open_world
from tests.messages.harness import Gate, assert_at_rest, until

KIB = 1 << 10
MIB = 1 << 20

FRAME_COST = 64
"""More than the envelope of a message on the wire, bytes."""


async def fill(peer: Peer, payload: bytes, *, patience: float = 20.0) -> int:
    """Send until nothing has been taken for a while; return how many were."""
    count = 0
    while True:
        with trio.move_on_after(patience) as scope:
            await peer.send(Message.command(count.to_bytes(4, "big") + payload))
        if scope.cancelled_caught:
            return count
        count += 1


@pytest.mark.parametrize("from_server", [False, True])
@pytest.mark.parametrize(
    ("size", "window"),
    [(10, 64 * KIB), (KIB, 512 * KIB), (MIB - 4, 512 * KIB), (MIB - 4, 16 * KIB), (100 * KIB, 16 * KIB)],
)
async def test_a_stopped_handler_stops_its_sender_and_only_it(
    autojump_clock: MockClock, size: int, window: int, from_server: bool
) -> None:
    gate = Gate()
    limits = Limits(lane_window=window, outbox_bytes=256 * KIB)
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=gate.router,
        client_router=gate.router,
        server_config=ServerConfig(handler_timeout=math.inf, limits=limits),
        client_config=ClientConfig(handler_timeout=math.inf, limits=limits),
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        sender: Peer = session if from_server else client
        receiver: Peer = client if from_server else session
        count = await fill(sender, bytes(size))
        out, held = sender.statistics(), receiver.statistics()
        cost = size + 4 + MESSAGE_OVERHEAD
        # The outbox takes messages until its limit is reached: at most one over. (The one that was refused waits outside of it.)
        assert limits.outbox_bytes <= out.outbox_bytes < limits.outbox_bytes + cost
        # The window, and a frame that has begun: one behind the window, or one that is longer than it.
        frame = size + FRAME_COST
        assert window - 4096 - frame <= held.held_bytes <= window + 2 * frame
        # The last message was begun with the last of the credit; QUIC holds its rest.
        assert out.unacked_bytes < frame
        assert held.handlers_running == 1
        assert count == out.messages_sent + out.outbox_messages
        assert out.requests_waiting == 0

        # Other lanes, the other direction, acks and heartbeats go on.
        payload = bytes(50 * KIB)
        assert (await sender.lane("other").request(Message.query(payload), ack_timeout=5)).result == payload
        assert (await receiver.request(Message.query(payload), ack_timeout=5)).result == payload
        for _ in range(20):
            await sender.lane("other").send(Message.event(payload))
        await trio.sleep(100)
        assert client.state.value is ClientState.CONNECTED
        assert client.statistics().connects == 1
        assert session.last_heartbeat is not None
        assert sender.statistics().outbox_bytes == out.outbox_bytes
        assert receiver.statistics().held_bytes == held.held_bytes

        gate.opened.set()
        last = await sender.send(Message.command(count.to_bytes(4, "big") + bytes(size)))
        await last.delivered()
        await until(lambda: len(gate.passed) == count + 1)
        assert [int.from_bytes(payload[:4], "big") for payload in gate.passed] == list(range(count + 1))
        await trio.sleep(1)
        assert_at_rest(world)


async def test_senders_in_many_tasks_wait_together_and_in_order(autojump_clock: MockClock) -> None:
    gate = Gate()
    limits = Limits(lane_window=16 * KIB, outbox_bytes=16 * KIB)
    config = ServerConfig(handler_timeout=math.inf, limits=limits)
    async with open_world(router=gate.router, server_config=config, client_config=ClientConfig(limits=limits)) as world:
        client = world.clients["client-0"]
        returned: list[int] = []

        async def send(number: int) -> None:
            await client.send(Message.command(number.to_bytes(4, "big") + bytes(1000)))
            returned.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(send, number)
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                client.send_nowait(Message.command(b""))
            assert 20 < len(returned) < 40
            gate.opened.set()
        assert sorted(returned) == list(range(100))
        await until(lambda: len(gate.passed) == 100)
        assert [int.from_bytes(payload[:4], "big") for payload in gate.passed] == list(range(100))


async def test_every_lane_stopped_still_leaves_acks_and_heartbeats(autojump_clock: MockClock) -> None:
    gate = Gate()
    limits = Limits(lanes=4, lane_window=32 * KIB, outbox_bytes=32 * KIB, payload=64 * KIB)
    config = ServerConfig(handler_timeout=math.inf, limits=limits)
    async with open_world(
        network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config, client_config=ClientConfig(limits=limits)
    ) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        for name in ("", "a", "b", "c"):
            await fill(client.lane(name), bytes(20 * KIB), patience=1)
        assert session.statistics().handlers_running == 4
        bound = 4 * (32 * KIB + 2 * 21 * KIB)
        assert session.statistics().held_bytes < bound
        assert world.server.statistics().held_bytes == session.statistics().held_bytes
        payload = bytes(60 * KIB)
        for _ in range(10):
            assert (await session.request(Message.query(payload), ack_timeout=5)).result == payload
        await trio.sleep(120)
        assert client.statistics().connects == 1
        gate.opened.set()
        await until(lambda: client.statistics().outbox_messages == 0)
        await trio.sleep(1)
        assert_at_rest(world)


@pytest.mark.parametrize("size", [1000, 1050, 1100, 1150, 1175, 1225, 2250, 3375, 20_000])
async def test_cancelling_requests_on_a_stopped_lane_reaches_the_peer(autojump_clock: MockClock, size: int) -> None:
    """Messages leave a part of the credit free: with none left, the peer could never be told to give up the handler."""
    gate = Gate()
    config = ServerConfig(handler_timeout=math.inf)
    async with open_world(network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        async with trio.open_nursery() as nursery:
            for number in range(800_000 // size):
                nursery.start_soon(client.request, Message.command(b"%d" % number + bytes(size)))
            await trio.sleep(1)
            assert session.statistics().held_bytes > 500 * KIB
            assert len(gate.started) == 1
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        # The next in line may have started before the packet with its own cancellation came.
        assert gate.passed == []
        assert len(gate.started) < 5
        assert_at_rest(world)
        assert (await client.request(Message.query(b"q"))).result == b"q"


async def test_many_sessions_share_the_budget_of_the_process(autojump_clock: MockClock) -> None:
    """Ten stopped clients with 512 KiB each would hold 5 MiB; the budget is 2."""
    gate = Gate()
    limits = Limits(total_bytes=2 * MIB, outbox_bytes=64 * KIB)
    config = ServerConfig(handler_timeout=math.inf, limits=limits)
    client_config = ClientConfig(limits=Limits(outbox_bytes=64 * KIB))
    async with open_world(
        clients=10, network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config, client_config=client_config
    ) as world:
        # The first window of each lane is given before anything is known of it; what counts is that it is not renewed.
        for client in world.clients.values():
            for _ in range(60):
                await client.send(Message.command(bytes(4000)))
            await trio.sleep(1)
        gate.opened.set()
        await until(lambda: len(gate.passed) == 600)
        gate.opened = trio.Event()
        await trio.sleep(1)
        assert world.server.statistics().held_bytes == 0
        for client in world.clients.values():
            await fill(client, bytes(4000), patience=1)
        held = world.server.statistics().held_bytes
        windows = [session.statistics().held_bytes for session in world.server.sessions.values()]
        assert sum(windows) == held
        assert held < 10 * limits.lane_window * 0.7
        assert min(windows) > 8 * KIB, "nobody is left without a window"
        gate.opened.set()
        await until(lambda: all(client.statistics().outbox_messages == 0 for client in world.clients.values()))
        await until(lambda: world.server.statistics().held_bytes == 0)
        await trio.sleep(1)
        assert_at_rest(world)


async def test_a_taken_budget_slows_a_new_session_down_but_does_not_stop_it(autojump_clock: MockClock) -> None:
    gate = Gate()
    config = ServerConfig(handler_timeout=math.inf, limits=Limits(total_bytes=MIB))
    async with open_world(clients=4, network=MemoryNetwork(delay=0.01), router=gate.router, server_config=config) as world:
        *greedy, modest = world.clients.values()
        for client in greedy:
            await fill(client, bytes(4000), patience=1)
        assert world.server.statistics().held_bytes > MIB
        for _ in range(100):
            assert (await modest.request(Message.query(bytes(20 * KIB)), ack_timeout=5)).result == bytes(20 * KIB)
        gate.opened.set()
        await until(lambda: all(client.statistics().outbox_messages == 0 for client in greedy))


async def test_what_a_lost_connection_left_half_is_not_held_for_ever(autojump_clock: MockClock) -> None:
    """Held in the budget of the process, a few thousand lost uploads would shrink every window for good."""
    network = MemoryNetwork(delay=0.01)
    async with open_world(network=network, server_config=ServerConfig(session_ttl=1)) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        await client.send(Message.command(bytes(MIB)))
        await until(lambda: session.statistics().held_bytes > 100 * KIB)
        network.partition("client-0")
        await until(lambda: not session.connected)
        await trio.sleep(2)
        assert world.server.statistics().held_bytes == 0
        network.heal()
        assert (await client.request(Message.command(b"x"), ack_timeout=60)).result == b"x"


async def test_what_a_session_holds_is_given_back_when_it_ends(autojump_clock: MockClock) -> None:
    gate = Gate()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(handler_timeout=math.inf, session_ttl=10)
    async with open_world(network=network, router=gate.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        await fill(client, bytes(4000), patience=1)
        network.partition("client-0")
        await until(lambda: not session.connected)
        assert session.statistics().handlers_running == 1, "a lost connection cancels no handler"
        assert world.server.statistics().held_bytes > 400 * KIB
        await trio.sleep(11)
        assert world.server.statistics().away == 0
        assert world.server.statistics().held_bytes == 0
        gate.opened.set()
        network.heal()
        await until(lambda: client.statistics().outbox_messages == 0, seconds=200)


async def test_a_peer_that_reads_no_acks_gets_no_further_handlers_and_costs_a_bounded_number_of_bytes(
    autojump_clock: MockClock,
) -> None:
    """Large results to a client that is gone from the network: what is not read waits, and past a limit no handler starts."""
    network = MemoryNetwork(delay=0.01)
    limits = Limits(outbox_bytes=64 * KIB, payload=256 * KIB)
    config = ServerConfig(limits=limits)
    async with open_world(network=network, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        results: list[bytes] = []

        async def ask(peer: Peer) -> None:
            results.append((await peer.request(Message.query(bytes(64 * KIB)), ack_timeout=200)).result)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(ask, client)
            await trio.sleep(5)
        assert results == [bytes(64 * KIB)] * 30
        assert session.statistics().messages_received == 30
        await trio.sleep(1)
        assert_at_rest(world)


@pytest.mark.parametrize(("dispatch_queue", "cancelled"), [(1, 0), (1, 3), (1024, 1200)])
async def test_a_lane_goes_on_after_cancellations_fill_its_queue(
    autojump_clock: MockClock, dispatch_queue: int, cancelled: int
) -> None:
    """Cancellations must not use up the room of messages, nor wait behind them: the lane would stand still with nothing running."""
    router = Router()
    started = 0

    @router.on(MessageType.COMMAND)
    async def stand_still(request: Request) -> None:
        nonlocal started
        started += 1
        await trio.sleep_forever()

    @router.on(MessageType.QUERY)
    async def answer(request: Request) -> bytes:
        return b"here"

    config = ServerConfig(limits=Limits(dispatch_queue=dispatch_queue), workers=1, handler_timeout=math.inf)
    async with open_world(router=router, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        client = world.clients["client-0"]
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                for _ in range(cancelled):
                    nursery.start_soon(partial(client.request, Message.command(), ack_timeout=math.inf))
        assert (await client.request(Message.query(), ack_timeout=5)).result == b"here"
        assert started <= max(1, cancelled // 2), "what was taken back is not run"
        assert world.server.sessions["client-0"].statistics().held_bytes == 0


async def test_credit_comes_back_in_the_middle_of_a_message(autojump_clock: MockClock) -> None:
    """Messages nearly as long as the window, without acks: each waits for the one before it, and for nothing else to be said."""
    started: list[float] = []
    router = Router()

    @router.on(MessageType.EVENT)
    async def work(request: Request) -> None:
        started.append(trio.current_time())
        await trio.sleep(1)

    async with open_world(router=router, network=MemoryNetwork(delay=0.005)) as world:
        client = world.clients["client-0"]
        begun = trio.current_time()
        for _ in range(4):
            await client.send(Message.event(bytes(900_000)))
        await until(lambda: len(started) == 4)
        assert [at - begun for at in started] == pytest.approx([0, 1, 2, 3], abs=0.2)


async def test_a_message_decoded_late_is_receipted_when_it_is(autojump_clock: MockClock) -> None:
    """A sender that keeps as much as it may for its peer waits for receipts: for handlers as long as they take, and no longer."""
    started: list[float] = []
    router = Router()

    @router.on(MessageType.EVENT, serial=True)
    async def work(request: Request) -> None:
        started.append(trio.current_time())
        await trio.sleep(0.1)

    limits = Limits(outbox_bytes=64 * KIB, dispatch_queue=4)
    async with open_world(
        router=router,
        network=MemoryNetwork(delay=0.005),
        server_config=ServerConfig(limits=limits),
        client_config=ClientConfig(limits=limits),
    ) as world:
        client = world.clients["client-0"]
        begun = trio.current_time()
        for _ in range(60):
            await client.send(Message.event(bytes(10_000)))
        await until(lambda: len(started) == 60)
        assert [at - begun for at in started] == pytest.approx([0.1 * number for number in range(60)], abs=0.5)


async def test_a_receipt_does_not_wait_for_a_handler(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.EVENT, serial=True)
    async def work(request: Request) -> None:
        await trio.sleep(5)

    config = ServerConfig(limits=Limits(dispatch_queue=2))
    async with open_world(router=router, server_config=config, network=MemoryNetwork(delay=0.005)) as world:
        begun = trio.current_time()
        sent = [await world.clients["client-0"].send(Message.event(bytes(100))) for _ in range(4)]
        await sent[-1].delivered()
        # The second handler's start makes room for the last two; it is 10 s until it has ended.
        assert trio.current_time() - begun == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("acked", [False, True])
@pytest.mark.parametrize("share", [0.45, 0.7, 0.85])
@pytest.mark.parametrize("window", [16 * KIB, 64 * KIB])
async def test_what_a_long_handler_leaves_of_the_window_is_used(
    autojump_clock: MockClock, window: int, share: float, acked: bool
) -> None:
    """However little that is: the others go on, without a heartbeat to help them."""
    router = Router()
    done = 0

    @router.on(MessageType.COMMAND)
    async def long(request: Request) -> None:
        await trio.sleep(500)

    @router.on(MessageType.EVENT)
    async def short(request: Request) -> None:
        nonlocal done
        await trio.sleep(0.1)
        done += 1

    limits = Limits(lane_window=window)
    async with open_world(
        router=router,
        network=MemoryNetwork(delay=0.01),
        server_config=ServerConfig(limits=limits, handler_timeout=math.inf, heartbeat_interval=1000, heartbeat_timeout=3000),
        client_config=ClientConfig(limits=limits, heartbeat_interval=1000, heartbeat_timeout=3000),
    ) as world:
        client = world.clients["client-0"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.request, Message.command(bytes(int(window * share))), ack_timeout=math.inf))
            await trio.sleep(1)
            number = 2 * window // 1000
            for _ in range(number):
                if acked:
                    nursery.start_soon(client.request, Message.event(bytes(900)))
                else:
                    await client.send(Message.event(bytes(900)))
            await until(lambda: done == number, seconds=40)
            nursery.cancel_scope.cancel()


async def test_a_window_that_was_cut_grows_again_with_a_heartbeat_at_the_latest(autojump_clock: MockClock) -> None:
    """What others have held is given back, and a lane that stands still learns of it although none of its own handlers ends."""
    router = Router()
    done = 0

    @router.on(MessageType.COMMAND)
    async def long(request: Request) -> None:
        await trio.sleep(500 if request.message.payload.startswith(b"long") else 30)

    @router.on(MessageType.EVENT)
    async def short(request: Request) -> None:
        nonlocal done
        done += 1

    config = ServerConfig(limits=Limits(total_bytes=MIB), handler_timeout=math.inf)
    async with open_world(clients=3, router=router, server_config=config, network=MemoryNetwork(delay=0.01)) as world:
        one, *others = world.clients.values()
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(partial(other.request, Message.command(bytes(500_000)), ack_timeout=math.inf))
            await trio.sleep(1)
            nursery.start_soon(partial(one.request, Message.command(b"long" + bytes(400_000)), ack_timeout=math.inf))
            await trio.sleep(1)
            for _ in range(600):
                await one.send(Message.event(bytes(900)))
            await trio.sleep(10)
            assert done < 600
            await until(lambda: done == 600, seconds=80)
            nursery.cancel_scope.cancel()
