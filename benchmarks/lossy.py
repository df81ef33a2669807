"""How long messages take over a path that loses packets, in virtual time: ``python -m benchmarks.lossy`` prints the matrix of the README.

A client sends a server a message every 100 ms and waits for each ack, while so many of all packets are lost, each way. All of it is on
the network in memory: the figures depend on the code and the seeds, not on the machine.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from typing import Literal, NamedTuple

import trio

from quicflow_trio import ClientConfig, Message, MessageType, Request, Router, ServerConfig, configure_logging
from quicflow_trio.simulate.clocks import VirtualClock
from quicflow_trio.testing import MemoryNetwork, open_world, seeded

__all__ = ["Outcome", "deliver", "quantile"]

Congestion = Literal["reno", "lossy"]

MESSAGES = 30
GAP = 0.1
DELAY = 0.02
JITTER = 0.005
LOSSES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
SIZES = (200, 3000)


class Outcome(NamedTuple):
    """What became of the messages of one run.

    Attributes:
        runs: how often each of them was handled, by number.
        arrived: seconds from sending each of them to its handler's start.
        acked: seconds from sending each of them to its ack.
    """

    runs: Counter[int]
    arrived: list[float]
    acked: list[float]


def deliver(seed: int, *, loss: float, size: int = 200, congestion: Congestion = "reno", messages: int = MESSAGES) -> Outcome:
    """Send messages over a path that loses ``loss`` of all packets, each way, until all are acked.

    Args:
        seed: decides which packets.
        loss: share of them, 0 to 1.
        size: of each message, bytes.
        congestion: as in `ClientConfig`, for both sides.
        messages: how many.
    """
    outcome = Outcome(Counter(), [], [])
    with seeded(seed):
        trio.run(_run, seed, loss, size, congestion, messages, outcome, clock=VirtualClock())
    return outcome


async def _run(seed: int, loss: float, size: int, congestion: Congestion, messages: int, outcome: Outcome) -> None:
    begun: dict[int, float] = {}
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        number = int.from_bytes(request.message.payload[:4])
        outcome.runs[number] += 1
        outcome.arrived.append(trio.current_time() - begun[number])
        return request.message.payload[:4]

    network = MemoryNetwork(seed=seed, delay=DELAY, jitter=JITTER)
    async with open_world(
        network=network,
        router=router,
        client_config=ClientConfig(seed=seed, ack_timeout=math.inf, congestion=congestion),
        server_config=ServerConfig(session_ttl=3600, congestion=congestion),
    ) as world:
        client = world.clients["client-0"]

        async def ask(number: int) -> None:
            begun[number] = trio.current_time()
            ack = await client.request(Message.command(number.to_bytes(4) + bytes(size - 4)))
            assert ack.result == number.to_bytes(4)
            outcome.acked.append(trio.current_time() - begun[number])

        network.loss = loss
        async with trio.open_nursery() as nursery:
            for number in range(messages):
                nursery.start_soon(ask, number)
                await trio.sleep(GAP)
        network.loss = 0.0


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def main() -> None:
    """Print the matrix."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lossy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="runs of 30 messages for each cell")
    arguments = parser.parse_args()
    configure_logging("off")
    print("Seconds from sending to the ack, P50 / P99, of 30 messages in each of", arguments.seeds, "runs\n")
    print("| size | congestion | " + " | ".join(f"{loss:.0%} loss" for loss in LOSSES) + " |")
    print("| ---: | --- |" + " ---: |" * len(LOSSES))
    for size in SIZES:
        for congestion in ("reno", "lossy"):
            cells = []
            for loss in LOSSES:
                outcomes = [deliver(seed, loss=loss, size=size, congestion=congestion) for seed in range(arguments.seeds)]
                assert all(outcome.runs == dict.fromkeys(range(MESSAGES), 1) for outcome in outcomes), "exactly once"
                acked = [seconds for outcome in outcomes for seconds in outcome.acked]
                cells.append(f"{quantile(acked, 0.5):.2f} / {quantile(acked, 0.99):.2f}")
            print(f"| {size:,} B | {congestion} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
