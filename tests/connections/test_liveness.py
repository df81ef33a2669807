"""A frame that has begun must go on, or its connection ends; a slow line does not."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.liveness import SLOWEST, BeginningFrame, FrameWatch
from quicflow_trio.testing import MemoryNetwork, open_world

MIB = 1 << 20
PATIENCE = 45.0
ENOUGH = int(SLOWEST * PATIENCE)


# -- the watch alone -------------------------------------------------------------------------------------------------------
def test_a_frame_that_stands_still_is_found_after_the_time_out() -> None:
    watch, frame = FrameWatch(PATIENCE), BeginningFrame(4, 100, 10)
    for now in (0.0, 10.0, 44.9):
        assert watch.look(now, [frame]) is None
    assert watch.look(45.0, [frame._replace(size=14)]) == (4, 100, 14)


def test_a_frame_that_goes_on_has_time() -> None:
    watch = FrameWatch(PATIENCE)
    for step in range(100):
        assert watch.look(step * 44.0, [BeginningFrame(4, 0, 1 + step * ENOUGH)]) is None
    assert watch.look(99 * 44.0 + 45.0, [BeginningFrame(4, 0, 99 * ENOUGH + 1)]) is not None


def test_each_frame_has_its_own_time() -> None:
    watch = FrameWatch(PATIENCE)
    for step in range(10):
        assert watch.look(step * 44.0, [BeginningFrame(4, step * 1000, 1), BeginningFrame(8, step, 5)]) is None
    assert watch.look(9 * 44.0 + 45, [BeginningFrame(4, 10_000, 1), BeginningFrame(8, 9, 5)]) == (8, 9, 5)


def test_a_frame_that_this_side_held_back_begins_anew() -> None:
    watch, frame = FrameWatch(PATIENCE), BeginningFrame(4, 0, 1)
    watch.look(0.0, [frame])
    watch.look(40.0, [])
    assert watch.look(50.0, [frame]) is None
    assert watch.look(94.9, [frame]) is None
    assert watch.look(95.0, [frame]) == frame


def test_looks_are_few() -> None:
    watch = FrameWatch(PATIENCE)
    watch.look(100.0, [])
    assert watch.due == 101.0


# -- lines that are slow -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
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
