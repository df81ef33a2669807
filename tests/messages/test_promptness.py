"""Nothing waits for a heartbeat: random traffic with narrow limits, where the next thing that would wake a sender is 1,000 s away."""

from __future__ import annotations

import math
import random

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, Limits, Message, MessageType, Peer, Request, Router, ServerConfig
from quicflow_trio.testing import MemoryNetwork, open_world

CALLS = 60
LONGEST_HANDLER = 0.3
SECONDS = 2 * CALLS * LONGEST_HANDLER + 60
"""All handlers of both sides one after the other, and half a second for each message to come through."""


class Scenario:
    """What one seed makes of settings, handlers and calls."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.handled = 0
        self.expected = 0
        self.limits = Limits(
            payload=256 * 1024,
            lane_window=rng.choice([16, 64, 512]) * 1024,
            outbox_bytes=rng.choice([4, 20, 64, 1024]) * 1024,
            dispatch_queue=rng.choice([1, 2, 4, 1024]),
            total_bytes=rng.choice([1, 256]) * 1024 * 1024,
        )
        self.workers = rng.choice([1, 2, 64])
        self.longest_payload = rng.choice([100, 9_000, 60_000, 256 * 1024])

    def router(self) -> Router:
        router = Router()
        for kind in (MessageType.EVENT, MessageType.QUERY):
            router.add(kind, self.handle, serial=self.rng.random() < 0.4)
        return router

    async def handle(self, request: Request) -> bytes:
        if self.rng.random() < 0.7:
            await trio.sleep(self.rng.random() * LONGEST_HANDLER)
        # A query may be taken back by now, or be refused before it starts: only events are counted on.
        self.handled += request.message.type is MessageType.EVENT
        return bytes(self.rng.choice([0, 0, 10, 20_000]))

    async def calls(self, peer: Peer) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CALLS):
                nursery.start_soon(self.call, peer.lane(self.rng.choice(["", "a", "b"])))
                if self.rng.random() < 0.3:
                    await trio.sleep(self.rng.random() * 0.1)

    async def call(self, peer: Peer) -> None:
        payload = bytes(int(self.longest_payload * self.rng.random()))
        if self.rng.random() < 0.6:
            self.expected += 1
            await peer.send(Message.event(payload))
        else:
            patience = self.rng.choice([math.inf, math.inf, self.rng.random()])
            with trio.move_on_after(patience):
                await peer.request(Message.query(payload), ack_timeout=math.inf)


@pytest.mark.parametrize("seed", range(40))
async def test_nothing_waits_for_a_heartbeat(autojump_clock: MockClock, seed: int) -> None:
    scenario = Scenario(seed)
    limits, workers = scenario.limits, scenario.workers
    async with open_world(
        router=scenario.router(),
        client_router=scenario.router(),
        network=MemoryNetwork(delay=0.005, seed=seed),
        server_config=ServerConfig(limits=limits, workers=workers, heartbeat_interval=1000, heartbeat_timeout=3000),
        client_config=ClientConfig(limits=limits, workers=workers, heartbeat_interval=1000, heartbeat_timeout=3000),
    ) as world:
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scenario.calls, world.clients["client-0"])
                nursery.start_soon(scenario.calls, world.server.sessions["client-0"])
            while scenario.handled < scenario.expected:  # noqa: ASYNC110 - virtual time costs nothing
                await trio.sleep(0.05)
