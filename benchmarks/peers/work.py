"""The work that every peer does, apart from any event loop: what is asked of a peer, how it is timed, and both command lines."""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

__all__ = ["DEPTH", "LIMIT", "PAYLOAD", "WORKS", "Conversation", "Files", "Hello", "Runtime", "Work", "run_peer"]

PAYLOAD = bytes(range(200))
DEPTH = 256
"""Coroutines that await their own replies at the same time, in the work ``acked``."""
WARM_UP = 2000
"""Messages before the clock starts, at most: congestion windows and buffers have grown by then."""
LIMIT = 60.0
"""Seconds after which a client gives up: a lost reply is an error, not a session that hangs."""

Work = Literal["sequential", "acked", "one_way"]
WORKS: tuple[Work, ...] = get_args(Work)
Hello = dict[str, Any]
"""What a server says of itself: ``port``, ``ca`` (file) and ``pids`` (its processes), and whatever its client needs besides."""


@dataclass(frozen=True)
class Files:
    """The server's certificates.

    Attributes:
        ca: of the authority that clients trust.
        certificate: for 127.0.0.1 and localhost.
        key: of the certificate.
    """

    ca: Path
    certificate: Path
    key: Path


class Conversation(Protocol):
    """One open connection of a peer, seen from the client."""

    async def request(self, payload: bytes) -> None:
        """Send a message and wait for the reply that carries its id."""

    async def send(self, payload: bytes) -> None:
        """Send a message that gets no reply."""

    async def confirm(self) -> None:
        """Wait until the receiver has confirmed that it has every message of `send`."""

    async def counted(self) -> int:
        """Return how many messages of `send` the receiver has counted."""


@dataclass(frozen=True)
class Runtime:
    """What the event loops do differently.

    Attributes:
        run: runs a coroutine function to its end.
        together: runs coroutine functions at the same time, until all have ended.
        until_stdin_closes: waits for the end of the process's standard input.
        at_most: runs a coroutine function, and fails when it takes longer than so many seconds.
    """

    run: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    together: Callable[[Sequence[Callable[[], Coroutine[Any, Any, None]]]], Awaitable[None]]
    until_stdin_closes: Callable[[], Awaitable[None]]
    at_most: Callable[[float, Callable[[], Awaitable[None]]], Awaitable[None]]


Serve = Callable[[Files], AbstractAsyncContextManager[Hello]]
Connect = Callable[[Hello], AbstractAsyncContextManager[Conversation]]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that ``share`` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, from the operating system."""
    # The clock of clock_getcpuclockid(3). Not the harness's function: importing that brings Trio into the peers' processes.
    return time.clock_gettime((~pid << 3) | 2)


async def sequential(talk: Conversation, count: int) -> dict[str, float]:
    """Make requests one after the other; return percentiles of their round trips, us."""
    clock, times = time.perf_counter, []
    for _ in range(count):
        start = clock()
        await talk.request(PAYLOAD)
        times.append((clock() - start) * 1e6)
    return {"p50_us": percentile(times, 0.5), "p99_us": percentile(times, 0.99)}


async def acked(talk: Conversation, count: int, runtime: Runtime) -> dict[str, float]:
    """Let `DEPTH` coroutines each await one reply after the other."""
    counters = [0] * DEPTH

    async def worker(number: int) -> None:
        for _ in range(count // DEPTH + (number < count % DEPTH)):
            await talk.request(PAYLOAD)
            counters[number] += 1

    await runtime.together([lambda number=number: worker(number) for number in range(DEPTH)])  # type: ignore[misc]
    if sum(counters) != count:
        raise SystemExit(f"{sum(counters)} replies to {count} requests")
    return {}


async def one_way(talk: Conversation, count: int) -> dict[str, float]:
    """Send messages that get no reply, and wait until the receiver has them all."""
    for _ in range(count):
        await talk.send(PAYLOAD)
    await talk.confirm()
    return {}


async def timed(talk: Conversation, work: Work, count: int, pids: Sequence[int], runtime: Runtime) -> dict[str, float]:
    """Do the work after a warm-up of the same kind; return rate, CPU time of both sides per message, and the work's own figures.

    ``start`` and ``end`` are `time.monotonic`'s, for whoever watches the machine meanwhile.
    """

    async def do(messages: int) -> dict[str, float]:
        if work == "sequential":
            return await sequential(talk, messages)
        if work == "acked":
            return await acked(talk, messages, runtime)
        return await one_way(talk, messages)

    warm_up = max(1, min(WARM_UP, count // 5))
    await do(warm_up)
    servers, own, start = [cpu_seconds(pid) for pid in pids], time.process_time(), time.monotonic()
    figures = await do(count)
    end, own = time.monotonic(), time.process_time() - own
    server = sum(cpu_seconds(pid) - before for pid, before in zip(pids, servers, strict=True))
    if work == "one_way" and (arrived := await talk.counted()) != warm_up + count:
        raise SystemExit(f"{arrived} of {warm_up + count} messages arrived")
    cpu = {"client_cpu_us": own / count * 1e6, "server_cpu_us": server / count * 1e6}
    return {"start": start, "end": end, "rate": count / (end - start), **figures, **cpu}


def tune() -> None:
    """Make garbage collections rare, alike in every process of every peer: none shall look better for having fewer objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


def make_certificates(folder: Path) -> Files:
    """Make an authority and a certificate below it with the library's own command, in a process of its own."""
    command = [sys.executable, "-m", "quicflow_trio.cli", "certs", "--out", str(folder), "--days", "2"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Files(folder / "ca.pem", folder / "server.pem", folder / "server.key")


async def be_server(serve: Serve, runtime: Runtime) -> None:
    """Serve until the standard input closes."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        files = make_certificates(Path(folder))
        async with serve(files) as hello:
            tune()
            print(json.dumps({"ca": str(files.ca), "pids": [os.getpid()], **hello}), flush=True)
            await runtime.until_stdin_closes()


async def be_client(connect: Connect, runtime: Runtime, options: argparse.Namespace) -> None:
    """Connect, do the work, print the figures."""
    hello: Hello = json.loads(options.hello)

    async def measure() -> None:
        async with connect(hello) as talk:
            tune()
            figures = await timed(talk, options.work, options.count, hello["pids"], runtime)
        print(json.dumps({"work": options.work, "count": options.count, **figures}), flush=True)

    await runtime.at_most(LIMIT, measure)


def run_peer(serve: Serve, connect: Connect, runtime: Runtime) -> None:
    """Be the server or the client of a peer, as the command line says."""
    parser = argparse.ArgumentParser(description="One side of a peer, for benchmarks.peers.")
    sides = parser.add_subparsers(dest="side", required=True)
    sides.add_parser("server", help="print one JSON line, serve until the standard input closes")
    client = sides.add_parser("client", help="do the work once, print one JSON line")
    client.add_argument("--hello", required=True, help="the server's JSON line")
    client.add_argument("--work", required=True, choices=WORKS)
    client.add_argument("--count", required=True, type=int, help="messages, warm-up not counted")
    options = parser.parse_args()
    if options.side == "server":
        runtime.run(lambda: be_server(serve, runtime))
    else:
        runtime.run(lambda: be_client(connect, runtime, options))
