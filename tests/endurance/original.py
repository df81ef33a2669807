"""`quic-backbone-v1` with a peer of the original's (`tests.backbone1.original`): both ways, across reconnects, its memory and its speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from cyclopts import Parameter

from tests.backbone1.peers import PeerProcess, open_ours, open_peer
from tests.endurance.conduct import Bar
from tests.endurance.report import Report

__all__ = ["Original", "prove"]

V1 = "quic-backbone-v1"
NAME = "c1"
HEARTBEATS = {"heartbeat_interval": 0.25, "heartbeat_timeout": 1.5}
"""Seconds, of our side: a connection that vanished is noticed soon."""
FIRST_TOLD = 2_000_000
FIRST_TIMED = 5_000_000
WARM = 8_000_000


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Original:
    """Messages with a peer of the original's.

    Attributes:
        messages: each way, with our side as the server and again as the client; half of them want an ack.
        unacked: after them, messages without an ack, each way.
        cuts: connections that end meanwhile, every second one without a word.
        inflight: messages under way at a time, each way.
        warm: messages each way before any is counted, so that both sides have the memory that they need at all.
        size: bytes of payload.
        timed: requests from our server whose speed is measured.
        rate: of them, acked in a second, at least.
        growth: bytes of memory that a message may leave behind, on either side, once half of them are through.
        stack: under the original's peer: ``aioquic`` or ``qh3``.
        baseline: measure the original's peer with itself instead of ours.
    """

    messages: int = 10_000
    unacked: int = 100_000
    cuts: int = 10
    inflight: int = 64
    warm: int = 2000
    size: int = 100
    timed: int = 10_000
    rate: float = 1500.0
    growth: float = 100.0
    stack: str = "aioquic"
    baseline: bool = False


async def prove(settings: Original, folder: Path, bar: Bar, report: Report) -> None:
    """Run it."""
    for role in ("server", "client"):
        async with _open_sides(settings, role) as (ours, theirs):
            talk = _Talk(settings, role, ours, theirs, report, bar)
            await talk.warm_up()
            await talk.exchange()
            await talk.tell()
            if role == "server":
                await talk.time()


@asynccontextmanager
async def _open_sides(settings: Original, role: str) -> AsyncIterator[tuple[PeerProcess, PeerProcess]]:
    """Run our side in this role, and the original's in the other one, until they have met."""

    def our_side(role: str, **more: Any) -> AbstractAsyncContextManager[PeerProcess]:
        if settings.baseline:
            return their_side(role, **more)
        if role == "client":
            config = {**HEARTBEATS, "backoff_initial": 0.1, "backoff_max": 0.5}
            return open_ours(role, config=config, protocol=V1, **more)
        return open_ours(role, config=HEARTBEATS, **more)

    def their_side(role: str, **more: Any) -> AbstractAsyncContextManager[PeerProcess]:
        return open_peer(role, stack=settings.stack, retry=0.1, heartbeat=0.5 if role == "client" else 1.5, **more)

    serve, connect = (our_side, their_side) if role == "server" else (their_side, our_side)
    async with serve("server") as server, connect("client", id=NAME, port=server.port) as client:
        await client.wait("connected")
        yield (server, client) if role == "server" else (client, server)
        await client.stop()
        await server.stop()


class _Memory:
    """What both sides took after each portion of so many messages, both ways together."""

    def __init__(self, messages: int) -> None:
        self._messages = messages
        self._samples: list[dict[PeerProcess, int]] = []

    def note(self, figures: dict[PeerProcess, dict[str, Any]]) -> None:
        """Take a sample."""
        self._samples.append({side: words["memory"] for side, words in figures.items()})

    def grown(self, side: PeerProcess) -> float:
        """Return by how many bytes it has grown with each message of the second half."""
        half = len(self._samples) // 2
        portions = len(self._samples) - half
        before = self._samples[half - 1][side] if half else self._samples[0][side]
        return (self._samples[-1][side] - before) / (self._messages * portions / len(self._samples))

    def last(self, side: PeerProcess) -> int:
        """Return what it took at the end."""
        return self._samples[-1][side]


class _Talk:
    """One of our roles with the original's other one."""

    def __init__(self, settings: Original, role: str, ours: PeerProcess, theirs: PeerProcess, report: Report, bar: Bar) -> None:
        self._settings = settings
        self._as = f"as {role}"
        self._ours, self._theirs = ours, theirs
        self._report = report
        self._bar = bar
        self._to = {ours: NAME if role == "server" else "", theirs: NAME if role == "client" else ""}

    async def _send_both_ways(
        self, beside: Callable[[], Any] | None = None, **arguments: Any
    ) -> dict[PeerProcess, dict[str, Any]]:
        replies: dict[PeerProcess, dict[str, Any]] = {}

        async def send(side: PeerProcess) -> None:
            options = {"size": self._settings.size, "inflight": self._settings.inflight, "again": True, **arguments}
            replies[side] = await side.ask("send", to=self._to[side], **options)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, self._ours)
            nursery.start_soon(send, self._theirs)
            if beside is not None:
                nursery.start_soon(beside)
        return replies

    async def warm_up(self) -> None:
        """Let both sides take the memory that they need at all, what a reconnect takes included."""
        for wait_ack in (True, False):
            await self._send_both_ways(count=self._settings.warm // 2, wait_ack=wait_ack, first=WARM)
        await self._cut(quiet=False)

    async def _cut(self, *, quiet: bool) -> None:
        connects = self._connects()
        await self._theirs.ask("cut", to=self._to[self._theirs], quiet=quiet)
        # Its own account of it: our side's would be what is to be proved.
        await self._theirs.wait("connected", count=connects + 1, seconds=30)

    def _connects(self) -> int:
        return sum(words["event"] == "connected" for words in self._theirs.events)

    async def exchange(self) -> None:
        """Send all messages, in portions with a cut in each, and hold what has become of them against the promise."""
        settings, report = self._settings, self._report
        before = await self._figures()
        outcome: dict[PeerProcess, Counter[str]] = {self._ours: Counter(), self._theirs: Counter()}
        stuck = 0
        memory = _Memory(2 * settings.messages)
        portions = max(settings.cuts, 1)
        for portion in range(portions):
            first, end = (settings.messages * (portion + step) // portions for step in (0, 1))

            async def cut(quiet: bool = portion % 2 == 1) -> None:
                await trio.sleep(0.2)
                await self._cut(quiet=quiet)

            replies = await self._send_both_ways(
                cut if settings.cuts else None, count=end - first, first=first, wait_ack=portion % 4 < 2, patience=60.0
            )
            for side, reply in replies.items():
                outcome[side].update(reply["outcome"])
                stuck += reply["stuck"]
            memory.note(await self._figures())
            self._bar.show(end, settings.messages, self._as)
        after = await self._figures()
        report.exactly(f"{self._as}: messages stuck", stuck, 0)
        for name, sender, receiver in (("sent", self._ours, self._theirs), ("received", self._theirs, self._ours)):
            counts = Counter(after[receiver]["received"])
            counts.subtract(before[receiver]["received"])
            cut_off = outcome[sender].pop("cut", 0)
            report.exactly(f"{self._as}: {name} with success", outcome[sender].pop("done", 0), settings.messages)
            report.exactly(f"{self._as}: different messages {name}", counts["different"], settings.messages)
            report.at_most(f"{self._as}: {name} twice", counts["repeated"], cut_off)
            report.figures[f"{self._as}: {name}, cut off and sent again"] = cut_off
            report.notes += [f"{self._as}, {name}: {count:,} times {what}" for what, count in outcome[sender].items()]
        self._report_memory("messages and cuts", memory)

    async def tell(self) -> None:
        """Send messages that want no ack, both ways, and look at the memory."""
        memory = _Memory(2 * self._settings.unacked)
        portions = 10
        done = 0
        for portion in range(portions):
            first, end = (self._settings.unacked * (portion + step) // portions for step in (0, 1))
            replies = await self._send_both_ways(count=end - first, first=FIRST_TOLD + first, wait_ack=False, patience=120.0)
            done += sum(reply["outcome"].get("done", 0) for reply in replies.values())
            memory.note(await self._figures())
            self._bar.show(end, self._settings.unacked, f"{self._as}, without acks")
        self._report.exactly(f"{self._as}: messages without an ack, both ways", done, 2 * self._settings.unacked)
        if self._settings.unacked:
            self._report_memory("without acks", memory)

    async def _figures(self) -> dict[PeerProcess, dict[str, Any]]:
        return {side: await side.ask("figures") for side in (self._ours, self._theirs)}

    def _report_memory(self, what: str, memory: _Memory) -> None:
        for side, whose in ((self._ours, ""), (self._theirs, "the original's ")):
            where = f"{self._as}, {what}: {whose}memory"
            self._report.at_most(f"{where} grown in the second half, bytes a message", memory.grown(side), self._settings.growth)
            self._report.figures[f"{where}, MB"] = memory.last(side) / 1e6

    async def time(self) -> None:
        """Measure requests from our server."""
        settings = self._settings
        before = await self._figures()
        reply = await self._ours.ask(
            "send",
            count=settings.timed,
            first=FIRST_TIMED,
            to=NAME,
            size=settings.size,
            inflight=settings.inflight,
            patience=120.0,
        )
        done = reply["outcome"].get("done", 0)
        self._report.exactly("requests measured and acked", done, settings.timed)
        self._report.at_least(f"acked a second, {settings.inflight} in flight", done / reply["seconds"], settings.rate)
        after = await self._figures()
        # What it takes where others want the machine too: a core has a million.
        for side, whose in ((self._ours, "our"), (self._theirs, "the original's")):
            self._report.figures[f"{whose} CPU for each, us"] = (after[side]["cpu"] - before[side]["cpu"]) / settings.timed * 1e6
