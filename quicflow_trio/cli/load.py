"""`quicflow load`: how fast is it here?"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import trio
from cyclopts import App, Parameter, validators

from ..config import Protocol
from ..message import MessageType
from .common import (
    Address,
    AddressArgument,
    ClientTLS,
    ExitCode,
    Flag,
    JsonFlag,
    LogLevel,
    Patience,
    configure_logging,
    until_signalled,
)
from .load_run import Load, Report, Run
from .load_server import own_server
from .metrics_sum import metrics_rows

if TYPE_CHECKING:
    from rich.table import Table

    from ..observe.metrics import MetricsSnapshot

__all__ = ["app"]

EPILOGUE = """Without a host it starts a server of its own, in a second process, with
certificates made for the occasion. Latency of a request is from the call to the
answer; with --one-way, from the call until a batch of half the depth, which
the message is part of, is known to be received and kept by the server. At the
end stand the metrics that the clients counted, all together: Client.metrics().

Exit codes: 0 every message was answered, 1 some were not, 2 usage,
3 no connection.

Examples:
  quicflow load
  quicflow load --clients 1 --depth 256 --messages 100000
  quicflow load 127.0.0.1 --ca certs/ca.pem --clients 200 --depth 4 --json
"""

FILLING = b"quicflow load "

app: App = App(name="load", help_epilogue=EPILOGUE)


def _whole(low: int, high: int) -> Parameter:
    return Parameter(validator=validators.Number(gte=low, lte=high))


@app.default
async def load(
    address: AddressArgument | None = None,
    /,
    *,
    clients: Annotated[int, _whole(1, 10_000)] = 1,
    messages: Annotated[int, _whole(1, 100_000_000)] = 50_000,
    depth: Annotated[int, _whole(1, 20_000)] = 256,
    size: Annotated[int, _whole(0, 1_048_576)] = 200,
    type: Literal["command", "event", "query"] = "command",
    one_way: Flag = False,
    id: str = "load",
    protocol: Protocol = "auto",
    patience: Patience = 30.0,
    tls: ClientTLS = ClientTLS(),  # noqa: B008 - frozen
    log_level: LogLevel = "off",
    json_output: JsonFlag = False,
) -> int:
    """Measure messages per second and latency with many clients.

    Args:
        address: the server; without one, a process of its own.
        clients: how many clients, each on a connection of its own.
        messages: how many messages, of all clients together.
        depth: messages that each client has under way at a time.
        size: payload of a message, bytes.
        type: what the messages are; an event is answered without content.
        one_way: send without asking for answers, and wait for receipts.
        id: the clients' ids start with this.
        protocol: auto, quicflow/2, or quic-backbone-v1, which is the original's.
        patience: seconds to wait for the connections, and for each answer.
        tls: certificates.
        log_level: debug, info, warning, error or off; logs go to standard error.
        json_output: print one JSON object instead of tables.
    """
    configure_logging(log_level)
    plan = Load(
        clients=clients,
        messages=messages,
        depth=depth,
        payload=(FILLING * size)[:size],
        type=MessageType[type.upper()],
        one_way=one_way,
        id=id,
        timeout=patience,
        protocol=protocol,
    )
    return await until_signalled(partial(_load, address, plan, tls, json_output))


async def _load(address: Address | None, plan: Load, tls: ClientTLS, json_output: bool) -> int:
    async with _target(address, tls) as (target, options):
        run = Run(plan, target, options.config())
        async with _progress(run):
            report = await run.run()
    if json_output:
        print(json.dumps(report.as_json()))
    else:
        _print(report, "its own server" if address is None else str(address))
    return ExitCode.FAILED if report.errors else ExitCode.OK


@asynccontextmanager
async def _target(address: Address | None, tls: ClientTLS) -> AsyncIterator[tuple[Address, ClientTLS]]:
    if address is not None:
        yield address, tls
    else:
        async with own_server() as (own, ca_file):
            yield own, ClientTLS(ca=Path(ca_file))


@asynccontextmanager
async def _progress(run: Run) -> AsyncIterator[None]:
    """Show how far the run is, when somebody looks: a bar in a log file would only be noise."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn by a task and not by rich's thread, which would take the interpreter from the generator ten times a second.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("connecting", total=run.plan.clients)

        def draw() -> None:
            if run.started:
                progress.update(bar, description="messages", completed=run.taken, total=run.plan.messages, refresh=True)
            else:
                progress.update(bar, completed=run.connected, refresh=True)

        async def redraw() -> None:
            while True:
                draw()
                await trio.sleep(0.2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(redraw)
            yield
            nursery.cancel_scope.cancel()
        draw()


def _print(report: Report, target: str) -> None:
    from rich.console import Console

    plan = report.plan
    kind = f"{plan.type.name.lower()}, one way" if plan.one_way else plan.type.name.lower()
    console = Console()
    console.print(
        f"{plan.messages:,} messages ({kind}, {len(plan.payload):,} bytes) from {plan.clients:,} "
        f"client{'s' * (plan.clients > 1)} to {target}, {plan.depth:,} under way per client",
        highlight=False,
        markup=False,
    )
    console.print(_table(report), highlight=False)
    console.print(_metrics_table(report.metrics), highlight=False)


def _metrics_table(metrics: MetricsSnapshot) -> Table:
    from rich.table import Table

    table = Table(title="What the clients counted", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in metrics_rows(metrics):
        table.add_row(*row)
    return table


def _table(report: Report) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("messages answered", f"{report.completed:,}")
    table.add_row("seconds", f"{report.seconds:.3f}")
    table.add_row("messages per second", f"{report.messages_per_second:,.0f}")
    for name, value in report.latency_ms.items():
        table.add_row(f"latency {name}", "-" if value is None else f"{value:.3f} ms")
    for name, value in report.connect_ms.items():
        table.add_row(f"time to connect {name}", "-" if value is None else f"{value:.1f} ms")
    table.add_row("errors", f"{sum(report.errors.values()):,}")
    for name, count in report.errors.items():
        table.add_row(f"  {name}", f"{count:,}")
    return table
