"""`python -m tests.net.churn`: keeps 300 of 12,000 datagrams, each for a random while, and prints by how much the heap has grown, bytes."""

from __future__ import annotations

import random

import trio

from quicflow_trio.net.udp import UdpNetwork
from tests.malloc import malloc_info

KEPT = 300
SIZE = 1000


async def main() -> None:
    """Send datagrams to ourselves and keep some of them."""
    network = UdpNetwork()
    one, two = await network.bind("127.0.0.1", 0), await network.bind("127.0.0.1", 0)
    rng = random.Random(1)
    kept = [b""] * KEPT
    datagrams = [(bytes(SIZE), two.address)] * 8
    before = malloc_info()
    assert before is not None
    for _ in range(1500):
        one.send_nowait(datagrams)
        for data, _address in await two.receive():
            kept[rng.randrange(KEPT)] = data
    after = malloc_info()
    assert after is not None
    print(after.arena - before.arena)
    one.close()
    two.close()


if __name__ == "__main__":
    trio.run(main)
