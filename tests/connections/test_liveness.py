"""A frame that has begun must go on, or its connection ends; a slow line does not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.liveness import SLOWEST, FrameWatch
from quicflow_trio.testing import MemoryNetwork, open_world, seeded

MIB = 1 << 20
PATIENCE = 45.0
ENOUGH = int(SLOWEST * PATIENCE)


# -- the watch alone -------------------------------------------------------------------------------------------------------
def test_who_stands_still_is_found_after_the_time_out() -> None:
    watch = FrameWatch(PATIENCE)
    assert not any(watch.look(now, 100 + int(now), begun=True) for now in (0.0, 10.0, 44.9))
    assert watch.look(45.0, 150, begun=True)


def test_who_goes_on_has_time() -> None:
    watch = FrameWatch(PATIENCE)
    assert not any(watch.look(step * 44.0, step * ENOUGH, begun=True) for step in range(100))
    assert watch.look(99 * 44.0 + 45.0, 99 * ENOUGH + ENOUGH - 1, begun=True)


def test_who_ends_a_frame_begins_anew() -> None:
    watch = FrameWatch(PATIENCE)
    watch.look(0.0, 1, begun=True)
    watch.look(44.0, 2, begun=False)
    assert not watch.look(50.0, 3, begun=True)
    assert not watch.look(94.9, 4, begun=True)
    assert watch.look(95.0, 5, begun=True)


def test_looks_are_few() -> None:
    watch = FrameWatch(PATIENCE)
    watch.look(100.0, 0, begun=False)
    assert watch.due == 101.0


# -- lines that are slow -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(2))
async def test_a_megabyte_over_a_bad_line_is_not_cut(autojump_clock: MockClock, seed: int) -> None:
    """A fifth of all packets lost each way, and the line gone for 28 s, twice, in the middle of the message.

    That is as long as any connection bears: the time-out, less an interval between heartbeats. A sender hears nothing else meanwhile."""
    network = MemoryNetwork(seed=seed, loss=0.2, delay=0.15)
    router = Router()

    @router.on(MessageType.COMMAND)
    async def echo(request: Request) -> bytes:
        return request.message.payload

    config = ServerConfig(handler_timeout=3600.0)
    async with open_world(network=network, router=router, server_config=config) as world:
        client = world.clients["client-0"]

        async def partitions() -> None:
            for _ in range(2):
                await trio.sleep(8)
                network.partition("client-0")
                await trio.sleep(28)
                network.heal("client-0")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partitions)
            started = trio.current_time()
            ack = await client.request(Message.command(bytes(MIB - 100)), ack_timeout=3000.0)
            assert len(ack.result) == MIB - 100
            assert trio.current_time() - started > 70, "the line was as slow as it was meant to be"
        assert client.statistics().connects == 1
        assert world.server.metrics().heartbeat_timeouts == 0


@seeded(4)
async def test_sixteen_lanes_on_a_very_bad_line_are_not_cut(autojump_clock: MockClock) -> None:
    """Each has a sixteenth of a line that loses two packets of five; whatever is lost holds up all that is behind it.

    Seeded, since such a line brings nothing in order for 45 s once in a while, about once in fifty runs; that may end a connection, and its
    session goes on.
    """
    async with open_world(network=MemoryNetwork(seed=4, loss=0.4, delay=0.1)) as world:
        client = world.clients["client-0"]

        async def ask(number: int) -> None:
            payload = bytes(16_000)
            message = Message.query(payload)
            assert (await client.lane(f"lane-{number}").request(message, ack_timeout=3000.0)).result == payload

        async with trio.open_nursery() as nursery:
            started = trio.current_time()
            for number in range(15):
                nursery.start_soon(ask, number)
        assert trio.current_time() - started > 100, "the line was as slow as it was meant to be"
        assert {change.reason for change in client.statistics().history} <= {"", "heartbeat timeout"}
