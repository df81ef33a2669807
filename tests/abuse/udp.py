"""A real server in a process of its own, over real UDP, under attack: what each row about packets checks, in one place.

The conditions, as for every row: the process lives, no exception reaches its nursery, its memory grows by at most 32 MB, a well-behaved
client beside is served all the time, half of its requests within twice the quiet time (or `SLACK`), 99 of 100 where there are enough of them and
the machine has nothing else to do, and once the attacker is gone nothing is left in the table of connection ids, the waiting table, the timers and the tasks.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.lowlevel
from aioquic.quic.packet import QuicPacketType

from quicflow_trio import ClientConfig, Message, open_client
from quicflow_trio.background import open_background
from quicflow_trio.net.udp import UdpNetwork, UdpSocket
from quicflow_trio.protocol.handshake import ALPN
from quicflow_trio.quic.aioquic_engine import client_engine
from quicflow_trio.quic.engine import ConnectionEnded, HandshakeCompleted
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import throwaway_tls
from tests.abuse.siege import p99
from tests.connections.raw import WINDOWS, Raw
from tests.quic.harness import core_of, packet

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
SLACK = 0.1
"""Seconds that requests of the client beside may take at any rate: attacker and client share a process here."""
ENOUGH = 200
"""Requests of which the slowest hundredth says something."""

QUICK = {"handshake_timeout": 2.0, "hello_timeout": 2.0, "heartbeat_interval": 1.0, "heartbeat_timeout": 3.0, "session_ttl": 1.0}
"""Short time-outs, so that what an attack leaves behind shows within a test."""

LEFT = ("connection_ids", "half_open", "connected_clients", "sessions_away", "waiting", "tasks", "timers", "held_bytes")


def machine_is_quiet() -> bool:
    """Tell whether this machine has cores left for what is measured."""
    return os.getloadavg()[0] <= 1.5 * (os.cpu_count() or 1)


class Victim:
    """The server's process.

    Attributes:
        address: where it listens.
        latencies: seconds that each request of the client beside took during the attack.
    """

    def __init__(self, options: dict[str, Any], port: int = 0) -> None:
        tls = throwaway_tls()[0]
        # Not measured for coverage, which would be half of the CPU that is measured here.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "tests.abuse.victim_program", str(tls.cert_file), str(tls.key_file), str(port)]
        self.process = subprocess.Popen(
            [*command, json.dumps({**QUICK, **options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
        )
        self.address = ("127.0.0.1", int(self._line()))
        self.latencies: list[float] = []

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has died"
        return line

    async def figures(self) -> dict[str, Any]:
        """Return what the server has counted, and what it holds."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        made: dict[str, Any] = json.loads(await trio.to_thread.run_sync(self._line))
        return made

    async def until(self, ready: Callable[[dict[str, Any]], object], seconds: float = 10.0) -> dict[str, Any]:
        """Wait for figures of which something is true."""
        figures = await self.figures()
        with trio.move_on_after(seconds):
            while not ready(figures):
                await trio.sleep(0.05)
                figures = await self.figures()
        assert ready(figures), figures
        return figures

    def check_bystander(self, quiet: list[float]) -> None:
        """Compare the latencies of the client beside with those before the attack."""
        measures: list[Callable[[list[float]], float]] = [statistics.median]
        if len(self.latencies) >= ENOUGH and machine_is_quiet():
            # On a busy machine one request in a hundred tells more about the others that use it than about the server.
            measures.append(p99)
        for measure in measures:
            during, before = measure(self.latencies), measure(quiet)
            assert during <= max(2 * before, SLACK), f"{measure.__name__}: {during:.4f} s, quiet {before:.4f} s"

    def cpu(self) -> float:
        """Return the seconds of CPU that the process has used."""
        # Not of `stat`, which counts in steps of 10 ms.
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def memory(self) -> int:
        """Return the bytes that the process has in use."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self._end()

    def stop(self) -> None:
        """Let it end by itself, without complaint."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self._end()

    def _end(self) -> None:
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@asynccontextmanager
async def open_victim(**options: Any) -> AsyncIterator[Victim]:
    """Run a server, attack it in the block, and check the conditions of every row."""
    victim = await trio.to_thread.run_sync(Victim, options)
    try:
        with trio.fail_after(60):
            async with open_client(
                *victim.address, client_id="beside", tls=throwaway_tls()[1], config=ClientConfig(ack_timeout=5.0)
            ) as client:

                async def ask() -> float:
                    started = trio.current_time()
                    assert (await client.request(Message.command(b"well?"))).result == b"well?"
                    await trio.sleep(0.005)
                    return trio.current_time() - started - 0.005

                async def beside() -> None:
                    while True:
                        victim.latencies.append(await ask())

                quiet = [await ask() for _ in range(50)]
                before, memory = await victim.figures(), victim.memory()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(beside)
                    yield victim
                    grown = victim.memory() - memory
                    await trio.sleep(0.05)
                    nursery.cancel_scope.cancel()
                assert grown <= 32 * MIB, f"grew by {grown / MIB:.1f} MiB"
                victim.check_bystander(quiet)
                assert client.statistics().connects == 1, "the client beside was never thrown out"
                # Timers come and go with the heartbeats of the client beside: two may stand there.
                figures = await victim.until(lambda now: all(now[name] <= before[name] + (name == "timers") for name in LEFT))
                assert figures["internal_errors"] == 0
        await trio.to_thread.run_sync(victim.stop)
    finally:
        victim.kill()


def bare_socket(victim: Victim) -> UdpSocket:
    """Return a socket of no connection."""
    import socket

    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return UdpSocket(sock)


async def send_all(socket: UdpSocket, datagrams: list[bytes], victim: Victim) -> None:
    """Send as fast as a server can read."""
    for start in range(0, len(datagrams), 50):
        batch = [(data, victim.address) for data in datagrams[start : start + 50]]
        assert socket.send_nowait(batch) == len(batch)
        await trio.sleep(0.002)


async def replies(socket: UdpSocket, seconds: float = 0.3) -> list[bytes]:
    """Return what comes within so many seconds."""
    found: list[bytes] = []
    with trio.move_on_after(seconds):
        while True:
            found += [data for data, _ in await socket.receive()]
    return found


def first_flight(victim: Victim) -> tuple[Any, bytes]:
    """Return a client's engine and its first Initial."""
    engine = client_engine(TLSContext(throwaway_tls()[1]), server_name="server", alpn=[ALPN], idle_timeout=30, windows=WINDOWS)
    now = trio.current_time()
    engine.connect(victim.address, now)
    return engine, engine.datagrams_to_send(now)[0][0]


async def first_flights(victim: Victim, count: int) -> list[bytes]:
    """Return the first Initials of so many clients. Takes 2 ms for each, which are not the client's beside."""
    found = []
    for _ in range(count):
        found.append(first_flight(victim)[1])
        await trio.lowlevel.checkpoint()
    return found


class Attacker(Raw):
    """A client by hand that can put any frames into well-encrypted packets."""

    def __init__(self, victim: Victim, engine: Any, socket: UdpSocket) -> None:
        super().__init__(engine, socket)
        self.victim = victim

    def inject(self, payload: bytes, packet_type: QuicPacketType = QuicPacketType.ONE_RTT, *, pad: int = 0) -> None:
        """Send one packet with these frames."""
        data = packet(core_of(self.engine), payload, packet_type).ljust(pad, b"\0")
        self.socket.send_nowait([(data, self.victim.address)])

    async def closed(self, within: float = 1.0) -> ConnectionEnded:
        """Return how the server has closed; it must do so within a second."""
        with trio.fail_after(within):
            ended = await self.ended()
        assert ended.by_peer, ended
        return ended


@asynccontextmanager
async def open_attacker(victim: Victim, *, handshake: bool = True) -> AsyncIterator[Attacker]:
    """Connect by hand; the block starts after TLS, or before the first packet."""
    engine = client_engine(TLSContext(throwaway_tls()[1]), server_name="server", alpn=[ALPN], idle_timeout=30, windows=WINDOWS)
    socket = await UdpNetwork().bind_for(victim.address)
    attacker = Attacker(victim, engine, socket)
    engine.connect(victim.address, trio.current_time())
    try:
        async with open_background() as background:
            if handshake:
                background.start_soon(attacker.run)
                await attacker.event(HandshakeCompleted)
            yield attacker
    finally:
        socket.close()
