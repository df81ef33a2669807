"""Tools to test programs that use quicflow_trio: a simulated network, a ready-made world, determinism, certificates.

Virtual time is Trio's own: pytest-trio's ``autojump_clock`` fixture, or ``trio.testing.MockClock(autojump_threshold=0)``::

    async def test_reboot(autojump_clock):
        async with open_world(clients=2, router=my_router, network=MemoryNetwork(loss=0.2, delay=0.03, seed=7)) as world:
            ack = await world.clients["client-0"].request(Message.command(b"reboot"))
            assert ack.result == b"rebooting"
"""

from __future__ import annotations

from .determinism import seeded
from .network import MemoryNetwork, NetworkStatistics, SentDatagram
from .pair import EnginePair
from .path import PathFaults
from .tls import throwaway_tls
from .world import World, echo_router, open_world

__all__ = [
    "EnginePair",
    "MemoryNetwork",
    "NetworkStatistics",
    "PathFaults",
    "SentDatagram",
    "World",
    "echo_router",
    "open_world",
    "seeded",
    "throwaway_tls",
]
