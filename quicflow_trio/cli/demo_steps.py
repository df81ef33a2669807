"""The steps of the demo. Each shows one thing the backbone does, and checks that it did."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from ..errors import AckTimeout, HandlerFailed, SessionReplaced
from ..message import Message
from .common import shown
from .demo_cast import NAMES, Cast
from .demo_stage import Stage
from .metrics_sum import metrics_rows

__all__ = ["STEPS", "Step", "show_metrics"]

KIB = 1024


class Step(NamedTuple):
    """One step: what it is called, what it shows, and what it does."""

    title: str
    explanation: str
    play: Callable[[Cast, Stage], Awaitable[None]]


def _ms_since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1000:.1f} ms"


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds; the step's deadline bounds it."""
    while not holds():  # noqa: ASYNC110 - statistics have no event to wait for
        await trio.sleep(0.005)


async def connect(cast: Cast, stage: Stage) -> None:
    """Let the five clients connect."""
    stage.say("the server listens on UDP {}:{}".format(*cast.server.address))
    for name in NAMES:
        client = await cast.enter(name)
        path = " -> ".join(change.state.value for change in client.statistics().history)
        stage.say(f"{name}: idle -> {path} in {cast.connect_ms[name]:.1f} ms")
    stage.check(tuple(cast.server.sessions) == NAMES, f"the server lists {', '.join(cast.server.sessions)}")


async def unicast(cast: Cast, stage: Stage) -> None:
    """Send to one client."""
    started = time.perf_counter()
    await cast.server.session("ben").send(Message.event(b"only for ben"))
    got = await cast.inboxes["ben"].take()
    stage.check(got == b"only for ben", f"ben got {shown(got)!r} after {_ms_since(started)}")
    others = [name for name in NAMES if name != "ben"]
    stage.check(all(cast.inboxes[name].is_empty for name in others), f"nothing came to {', '.join(others)}")


async def broadcast(cast: Cast, stage: Stage) -> None:
    """Send to all clients at once."""
    started = time.perf_counter()
    report = await cast.server.broadcast(Message.event(b"lunch is ready"), ack_timeout=5)
    stage.say(f"sent to {report.sent} clients, {len(report.acked)} acks after {_ms_since(started)}")
    stage.check(sorted(report.acked) == sorted(NAMES) and not report.failed, f"acked by {', '.join(sorted(report.acked))}")
    got = [await cast.inboxes[name].take() for name in NAMES]
    stage.check(got == [b"lunch is ready"] * len(NAMES), "each of them got it once")
    report = await cast.server.broadcast(Message.event(b"meeting"), to=["ada", "emil", "zoe"], ack_timeout=5)
    stage.check(sorted(report.acked) == ["ada", "emil"], "to ada, emil and zoe: acked by ada and emil")
    stage.check(list(report.failed) == ["zoe"], f"zoe is reported: {shown(str(report.failed['zoe']))}")
    stage.check({await cast.inboxes[name].take() for name in ("ada", "emil")} == {b"meeting"}, "both got it")


async def request(cast: Cast, stage: Stage) -> None:
    """Ask and be answered, in both directions."""
    started = time.perf_counter()
    ack = await cast.clients["ada"].request(Message.command(b"hello backbone"))
    stage.check(
        ack.result == b"HELLO BACKBONE", f"ada asked the server, the answer {shown(ack.result)!r} took {_ms_since(started)}"
    )
    started = time.perf_counter()
    ack = await cast.server.session("ada").request(Message.query(b"how are you?"))
    stage.check(ack.result == b"ada is fine", f"the server asked ada, the answer {shown(ack.result)!r} took {_ms_since(started)}")


async def failure(cast: Cast, stage: Stage) -> None:
    """Let a handler raise."""
    client = cast.clients["ben"]
    try:
        await client.request(Message.command(b"print the report"))
    except HandlerFailed as exc:
        stage.check("out of paper" in exc.reason, f"ben got HandlerFailed: {shown(exc.reason)}")
    else:
        stage.check(False, "the handler failed")
    ack = await client.request(Message.command(b"still there?"))
    stage.check(ack.result == b"STILL THERE?", f"the server goes on: {shown(ack.result)!r}")


async def timeout(cast: Cast, stage: Stage) -> None:
    """Let an answer take too long."""
    started = time.perf_counter()
    try:
        await cast.clients["cleo"].request(Message.command(b"dig a tunnel"), ack_timeout=0.5)
    except AckTimeout as exc:
        stage.check(True, f"cleo got AckTimeout after {_ms_since(started)}: {shown(str(exc))}")
    else:
        stage.check(False, "no answer came")
    await cast.workshop.cancelled.wait()
    await until(lambda: not cast.server.session("cleo").statistics().handlers_running)
    stage.check(True, "the server cancelled the handler")


async def back_pressure(cast: Cast, stage: Stage) -> None:
    """Send to a handler that stands still, and past it."""
    client = cast.clients["dora"]
    bulk = client.lane("bulk")
    chunk = bytes(64 * KIB)
    accepted, most = 0, 1000
    with trio.move_on_after(0.5) as scope:
        while accepted < most:
            await bulk.send(Message.event(chunk))
            accepted += 1
            scope.deadline = trio.current_time() + 0.5
    here, there = client.statistics(), cast.server.session("dora").statistics()
    stage.check(accepted < most, f"the sender has to wait after {accepted} messages of 64 KiB")
    stage.say(f"{here.outbox_bytes / KIB:,.0f} KiB wait in dora's outbox, {there.held_bytes / KIB:,.0f} KiB at the server")
    started = time.perf_counter()
    ack = await client.request(Message.command(b"may I pass?"))
    stage.check(ack.result == b"MAY I PASS?", f"on another lane a request is answered in {_ms_since(started)}")
    started = time.perf_counter()
    cast.workshop.gate.set()
    last = await bulk.request(Message.event(b"the end"))
    # The lane is in order and its handler serial: when the last is acked, all before it were handled.
    stage.check(
        not last.result and cast.workshop.events == accepted + 1, f"let go, all {accepted} arrive within {_ms_since(started)}"
    )


async def takeover(cast: Cast, stage: Stage) -> None:
    """Replace a client by a newer connection with its id."""
    old_address = cast.server.session("cleo").remote_address
    old = await cast.enter("cleo")
    try:
        await old.wait_closed()
    except SessionReplaced as exc:
        stage.check(True, f"the older cleo got SessionReplaced and stays away: {shown(str(exc))}")
    else:
        stage.check(False, "the older cleo was replaced")
    new_address = cast.server.session("cleo").remote_address
    stage.check(old_address != new_address, f"cleo was at port {old_address[1]}, and is at port {new_address[1]} now")
    await cast.server.session("cleo").send(Message.event(b"welcome back"))
    got = await cast.inboxes["cleo"].take()
    stage.check(got == b"welcome back" and len(cast.server.sessions) == len(NAMES), f"the newer cleo got {shown(got)!r}")


async def reconnect(cast: Cast, stage: Stage) -> None:
    """Close a client's connection from the server's side."""
    client = cast.clients["emil"]
    before = client.statistics()
    session = cast.server.session("emil")
    await session.close("maintenance")
    # Counted, since a slow machine may be here only after emil has been idle and is back.
    await until(lambda: client.statistics().connects > before.connects)
    changes = client.statistics().history[len(before.history) :]
    for change in changes:
        reason = f" ({shown(change.reason)})" if change.reason else ""
        stage.say(f"{(change.at - changes[0].at) * 1000:6,.0f} ms  emil is {change.state.value}{reason}")
    path = [change.state.value for change in changes]
    stage.check(path == ["idle", "connecting", "connected"], "emil was disconnected and came back by itself")
    ack = await client.request(Message.command(b"back again"))
    stage.check(ack.result == b"BACK AGAIN" and cast.server.session("emil") is not session, "in a new session, and working")


async def drain(cast: Cast, stage: Stage) -> None:
    """Show the figures, then stop the server while a request is under way."""
    show_statistics(cast, stage)
    answers: list[bytes] = []

    async def ask() -> None:
        ack = await cast.clients["ada"].request(Message.command(b"take half a second"))
        answers.append(ack.result)

    started = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: cast.server.session("ada").statistics().handlers_running > 0)
        await cast.server.drain(grace=5)
    stage.check(answers == [b"TAKE HALF A SECOND"], "what was under way was answered")
    stage.check(not cast.server.sessions, f"then all clients were told; the server was down after {_ms_since(started)}")


def show_statistics(cast: Cast, stage: Stage) -> None:
    """Show a table of what everybody has done."""
    rows = []
    for name, session in cast.server.sessions.items():
        figures = cast.clients[name].statistics()
        rows.append(
            (
                name,
                f"{figures.connects}",
                f"{figures.messages_sent:,}",
                f"{figures.messages_received:,}",
                "-" if session.rtt is None else f"{session.rtt * 1000:.2f}",
                f"{figures.bytes_sent:,}",
                f"{figures.bytes_received:,}",
            )
        )
    stage.table("Clients", ("client", "connects", "sent", "received", "RTT ms", "bytes sent", "bytes received"), rows)
    server = cast.server.statistics()
    socket = server.endpoint.socket
    stage.say(
        f"server: {server.connections} connections accepted, {server.connected} connected, {server.requests_waiting} requests "
        f"waiting; {socket.datagrams_in:,} datagrams in, {socket.datagrams_out:,} out"
    )
    stage.check(len(rows) == len(NAMES) and not server.requests_waiting, "nobody is missing, nothing is left waiting")


def show_metrics(cast: Cast, stage: Stage) -> None:
    """Show what the server has counted from its start to its end: `Server.metrics`."""
    metrics = cast.server.metrics()
    stage.table("What the server counted", ("Server.metrics()", "figures"), metrics_rows(metrics))


STEPS = (
    Step("Connect", "Five clients open connections: QUIC over UDP, TLS 1.3, certificates verified.", connect),
    Step("Unicast", "The server sends an event to ben, and to nobody else.", unicast),
    Step("Broadcast", "One call reaches everybody, or those named, and reports on each.", broadcast),
    Step("Request", "A request returns what the handler on the other side returned. Both sides can ask.", request),
    Step("A handler fails", "An exception in a handler comes back to the sender as a typed error.", failure),
    Step("A timeout", "cleo waits half a second for a handler that never ends. It is told to stop, too.", timeout),
    Step("Back-pressure", "A handler stands still: its sender has to wait, in bounded memory. Other lanes go on.", back_pressure),
    Step("A client is replaced", "A second cleo connects. The newest wins, the older one is sent away for good.", takeover),
    Step("A forced reconnect", "The server closes emil's connection. After a second's backoff emil is back.", reconnect),
    Step("Drain", "The figures, and then the server stops: what is under way may end, clients are told.", drain),
)
