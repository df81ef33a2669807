"""kill -9 of the server in traffic, again and again: all clients come back, nothing that was acked is lost."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from cyclopts import Parameter

from quicflow_trio.testing import PathFaults
from tests.endurance.children import Child, open_crowd, open_server
from tests.endurance.conduct import Bar, balance, quantiles
from tests.endurance.ledger import What
from tests.endurance.proxy import Door, open_proxy
from tests.endurance.reconnects import Watch
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Kill", "prove"]

MIX = Mix(size=500, slow=0.3, seconds=0.2, sends=0.2, redeliver=0.5, pause=0.02)
BETWEEN = (1.0, 3.0)
"""Seconds of traffic from the moment when all are back until the next kill."""
PATIENCE = 120.0
"""Seconds that all clients may take to be back: with default backoff they try again within a minute at the latest."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Kill:
    """A server that is killed in traffic.

    Attributes:
        kills: how often.
        clients: that talk all the time.
        tasks: of each client, which make one call after the other.
        seed: of everything random.
    """

    kills: int = 20
    clients: int = 50
    tasks: int = 4
    seed: int = 1


class Times:
    """How soon clients noticed, and were back, seconds.

    Attributes:
        noticed: since the new server has listened; before that nobody could tell a client anything.
        noticed_killed: since the kill.
        noticed_packet: since the first packet that the client sent to the new server.
        back: since the new server has listened.
        all_back: since the kill, one for each: until the last was back.
        reasons: why the connections ended, by the clients' account.
    """

    def __init__(self) -> None:
        self.noticed: list[float] = []
        self.noticed_killed: list[float] = []
        self.noticed_packet: list[float] = []
        self.back: list[float] = []
        self.all_back: list[float] = []
        self.reasons: Counter[str] = Counter()

    def take(self, watch: Watch, killed: float, listening: float, doors: Mapping[str, Door]) -> None:
        """Take the events since a kill."""
        returns = []
        for event in watch.events:
            if event["event"] == "lost":
                self.noticed_killed.append(event["at"] - killed)
                self.noticed.append(max(0.0, event["at"] - listening))
                self.reasons[event["reason"]] += 1
                packet = doors[event["client"]].next_up
                assert packet is not None, "without a packet it could not have come back"
                self.noticed_packet.append(event["at"] - packet)
            elif event["event"] == "back":
                returns.append(event["at"])
        self.back += [at - listening for at in returns]
        self.all_back.append(max(returns) - killed)
        watch.events.clear()

    def show(self, report: Report) -> None:
        """Report them."""
        for what, values in (
            ("noticed after the kill", self.noticed_killed),
            ("noticed after the new server listened", self.noticed),
            ("noticed after its next packet", self.noticed_packet),
            ("back after the new server listened", self.back),
            ("all back after the kill", self.all_back),
        ):
            report.figures |= {f"{what}, {name}, s": value for name, value in quantiles(values).items()}
        report.notes += [f"{count:,} connections ended by: {reason}" for reason, count in self.reasons.most_common()]


async def prove(settings: Kill, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    rng = random.Random(settings.seed)
    watch, times = Watch(), Times()
    config = {"reset_key_file": str(folder / "reset.key")}
    names = [f"client-{number}" for number in range(settings.clients)]
    once = 0
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        lives = Lives(folder, config, nursery)
        port = await lives.begin()
        # It changes nothing; it sees when each client sends.
        proxy = await stack.enter_async_context(open_proxy(("127.0.0.1", port), settings.clients, PathFaults(), settings.seed))
        doors = dict(zip(names, proxy.doors, strict=True))
        ports = [door.port for door in proxy.doors]
        async with open_crowd(folder, "client", ports, {}, watch.hear, seed=settings.seed) as crowd:
            await crowd.ask("work", tasks=settings.tasks, mix=asdict(MIX))
            for number in range(settings.kills):
                bar.show(number, settings.kills, f"kill {number + 1}")
                await trio.sleep(rng.uniform(*BETWEEN))
                returns = Counter(watch.returns)
                killed = time.monotonic()
                await lives.kill()
                await lives.begin(port)
                listening = time.monotonic()
                for door in proxy.doors:
                    door.next_up = None
                await watch.until(lambda: all(watch.returns.get(name, 0) > returns[name] for name in names), PATIENCE)  # noqa: B023
                once += sum(watch.returns[name] == returns[name] + 1 for name in names)
                times.take(watch, killed, listening, doors)
            await crowd.ask("hush")
            figures = await crowd.ask("figures")
            await trio.sleep(1.0)
            report.nothing_left("on the clients", (await crowd.ask("left"))["left"])
            report.nothing_left("on the last server", (await lives.server.ask("left"))["left"])
            await crowd.stop()
            await lives.server.stop()
            report.nothing_left("by the processes", [*crowd.last_word["left"], *lives.server.last_word["left"]])
    report.exactly("clients back, each once, after each kill", once, settings.kills * settings.clients)
    account = balance(report, folder, restarts=True, errors=figures["errors"])
    report.exactly("calls with delivery=REDELIVER that failed", account.failed_though_redeliver(), 0)
    report.exactly(
        "errors other than ConnectionLost", sum(figures["errors"].values()) - figures["errors"].get("ConnectionLost", 0), 0
    )
    report.at_least("messages acked", account.counts[What.ACKED], settings.kills * settings.clients)
    report.at_least("messages redelivered", figures["messages_redelivered"], 1)
    # A round trip is under a millisecond here; what is allowed is the machine's other work.
    report.at_most("noticed after its next packet, P99, s", quantiles(times.noticed_packet)["P99"], 1.0)
    times.show(report)


class Lives:
    """One server after the other on the same port.

    Attributes:
        server: the one of the moment.
    """

    def __init__(self, folder: Path, config: dict[str, str], nursery: trio.Nursery) -> None:
        self.server: Child
        self._folder = folder
        self._config = config
        self._nursery = nursery

    async def begin(self, port: int = 0) -> int:
        """Start the next; return its port."""
        self.server = await self._nursery.start(self._live, port)
        return int(self.server.hello["port"])

    async def _live(self, port: int, *, task_status: trio.TaskStatus[Child]) -> None:
        async with open_server(self._folder, self._config, port=port) as server:
            task_status.started(server)
            await server.wait()

    async def kill(self) -> None:
        """kill -9 the one of the moment."""
        self.server.signal(signal.SIGKILL)
        await self.server.wait()
