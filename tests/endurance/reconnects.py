"""Forced reconnects during requests over real UDP, through a proxy that loses, delays, reorders and doubles."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import trio
from cyclopts import Parameter

from quicflow_trio.testing import PathFaults
from tests.endurance.children import Child, Event, open_crowd, open_server
from tests.endurance.conduct import Bar, balance, total
from tests.endurance.ledger import What
from tests.endurance.proxy import Cut, Door, Proxy, open_proxy
from tests.endurance.report import Report
from tests.endurance.traffic import Mix

__all__ = ["Reconnects", "Watch", "force", "prove"]

HEARTBEATS = {"heartbeat_interval": 0.25, "heartbeat_timeout": 1.0}
"""Seconds: a connection through a proxy gone dark ends soon."""
PATIENCE = 60.0
"""Seconds that a client may take to notice, and to be back."""
KINDS: tuple[Cut | str, ...] = ("both", "up", "down", "forget")
"""How a connection is cut: in both directions, in one, or only this connection while new ones pass."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reconnects:
    """Requests under forced reconnects.

    Attributes:
        requests: in all.
        cuts: reconnects that are forced, spread over them.
        clients: that make them, each through a door of its own in the proxy.
        tasks: of each client, which make one request after the other.
        loss: share of the datagrams lost, in either direction.
        delay: seconds that each takes.
        jitter: up to so many seconds more.
        reorder: share of them held back.
        duplicate: share of them that arrive twice.
        seed: of the proxy and the calls.
    """

    requests: int = 100_000
    cuts: int = 100
    clients: int = 10
    tasks: int = 20
    loss: float = 0.05
    delay: float = 0.005
    jitter: float = 0.01
    reorder: float = 0.05
    duplicate: float = 0.02
    seed: int = 1

    @property
    def faults(self) -> PathFaults:
        """What the proxy does in either direction."""
        return PathFaults(loss=self.loss, delay=self.delay, jitter=self.jitter, reorder=self.reorder, duplicate=self.duplicate)


class Watch:
    """Which clients have lost their connections, and are back.

    Attributes:
        losses: how often each client has lost its connection.
        returns: how often each has come back.
        done: set when a crowd has ended its work.
        events: all of them, in order.
    """

    def __init__(self) -> None:
        self.losses: dict[str, int] = {}
        self.returns: dict[str, int] = {}
        self.done = trio.Event()
        self.events: list[Event] = []
        self._changed = trio.lowlevel.ParkingLot()

    def hear(self, event: Event) -> None:
        """Take an event of a crowd."""
        self.events.append(event)
        if event["event"] == "done":
            self.done.set()
        else:
            counts = self.losses if event["event"] == "lost" else self.returns
            counts[event["client"]] = counts.get(event["client"], 0) + 1
        self._changed.unpark_all()

    async def until(self, ready: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait until something is true of the counts.

        Raises:
            trio.TooSlowError: it took too long.
        """
        with trio.fail_after(within):
            while not ready():
                await self._changed.park()

    def is_up(self, client: str) -> bool:
        """Return whether a client is connected, by its own account."""
        return self.losses.get(client, 0) == self.returns.get(client, 0)

    def of(self, client: str) -> list[Event]:
        """Return what was heard of one client."""
        return [event for event in self.events if event.get("client") == client]


async def force(watch: Watch, door: Door, client: str, kind: str, patience: float = PATIENCE) -> None:
    """End a client's connection through its door, and wait until the client is back.

    Args:
        watch: hears of the client.
        door: the client's.
        client: it.
        kind: one of `KINDS`.
        patience: seconds for each step of that.

    Raises:
        Stalled: it has not noticed, or has not come back.
    """
    try:
        # One that has lost its connection by itself, on a machine that stood still, would not lose it again.
        await watch.until(lambda: watch.is_up(client), patience)
        losses = watch.losses.get(client, 0)
        if kind == "forget":
            door.forget()
        else:
            door.cut = kind  # type: ignore[assignment]  # one of KINDS
        await watch.until(lambda: watch.losses.get(client, 0) > losses, patience)
        door.cut = "none"
        await watch.until(lambda: watch.is_up(client), patience)
    except trio.TooSlowError:
        raise Stalled(f"{client}, cut {kind}, for {patience:g} s until {time.monotonic()}: {watch.of(client)[-6:]}") from None


class Stalled(Exception):
    """A client has not noticed that its connection is gone, or has not come back."""


async def prove(settings: Reconnects, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    watch = Watch()
    each = settings.requests // settings.clients
    async with open_server(folder, HEARTBEATS) as server:
        address = ("127.0.0.1", server.hello["port"])
        async with open_proxy(address, settings.clients, settings.faults, settings.seed) as proxy:
            ports = [door.port for door in proxy.doors]
            config = {**HEARTBEATS, "backoff_initial": 0.1, "backoff_max": 1.0}
            async with open_crowd(folder, "client", ports, config, watch.hear, seed=settings.seed) as crowd:
                started = time.monotonic()
                await crowd.ask("work", calls=each, tasks=settings.tasks, mix=asdict(Mix()))
                forced = await _cut(settings, watch, proxy, crowd, bar)
                await watch.done.wait()
                report.figures["seconds of requests"] = time.monotonic() - started
                clients, held = await crowd.ask("figures"), await server.ask("figures")
                # What is still on its way through the proxy is no leftover.
                await trio.sleep(1.0)
                report.nothing_left("on the server", (await server.ask("left"))["left"])
                report.nothing_left("on the clients", (await crowd.ask("left"))["left"])
                await crowd.stop()
                await server.stop()
                report.nothing_left("by the processes", [*crowd.last_word["left"], *server.last_word["left"]])
    account = balance(report, folder, errors=clients["errors"])
    report.exactly("requests acked with their own result", account.counts[What.ACKED], each * settings.clients)
    report.exactly("messages handled", account.distinct, each * settings.clients)
    report.at_least("reconnects forced", forced, settings.cuts)
    report.at_least("sessions resumed", held["sessions_resumed"], settings.cuts)
    report.figures |= {
        "reconnects in all": sum(clients["connects"].values()) - settings.clients,
        "messages resent by clients": clients["messages_resent"],
        "packets lost, both sides": clients["packets_lost"] + held["packets_lost"],
        "slowest request, s": clients["slowest"],
        **{f"datagrams {what}": count for what, count in sorted(proxy.counts.items())},
    }


async def _cut(settings: Reconnects, watch: Watch, proxy: Proxy, crowd: Child, bar: Bar) -> int:
    """Cut connections, spread over the requests; return how many were cut."""
    rng = random.Random(settings.seed)
    each = settings.requests // settings.clients
    done: dict[str, int] = {}
    forced = 0
    over = trio.CancelScope()

    looked = trio.lowlevel.ParkingLot()

    async def look() -> None:
        with over:
            while True:
                figures = await crowd.ask("figures")
                done.update(figures["done"])
                looked.unpark_all()
                bar.show(total(figures), settings.requests, f"requests, {forced} reconnects")
                await trio.sleep(0.2)

    async def reached(client: str, requests: float) -> None:
        while done.get(client, 0) < requests:
            await looked.park()

    async def cut(number: int) -> None:
        nonlocal forced
        client, door = f"client-{number}", proxy.doors[number]
        cuts = settings.cuts // settings.clients + (number < settings.cuts % settings.clients)
        for turn in range(cuts):
            due = each * (turn + rng.random()) / cuts
            await reached(client, due)
            await force(watch, door, client, KINDS[(number + turn) % len(KINDS)])
            forced += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        async with trio.open_nursery() as cuts:
            for number in range(settings.clients):
                cuts.start_soon(cut, number)
        await watch.done.wait()
        over.cancel()
    return forced
