"""The screens of `quicflow top`: a view and a size in, lines of text out. What came from the server is escaped here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.text import Text

from ..common import shown
from ..remote.event_text import event_detail, event_time
from ..remote.figures import NONE, ago, clock, count, milliseconds, rate, size, span
from ..remote.records import ClientFigures, Rates, Sample, ServerEvent
from .detail import detail_lines
from .draw import UNICODE, Band, Glyphs, boxes, fit, rule
from .view import Data, View

__all__ = ["screen"]

KIND_STYLES = {
    "connect": "green",
    "reconnect": "green",
    "disconnect": "yellow",
    "state_change": "cyan",
    "broadcast": "cyan",
    "heartbeat_timeout": "red",
    "ack_timeout": "red",
    "error": "red",
    "dropped": "red",
}
STATE_STYLES = {"connected": "green", "away": "yellow", "gone": "bright_black"}


# -- layout ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Layout:
    """Lines for each part of the screen, below the header and above the footer."""

    chart: int
    events: int
    list: int


def layout(view: View, height: int) -> Layout:
    """Divide the height; a part that would have too little of it is left out."""
    # A client alone has charts of its own, which a small screen prefers.
    chart = 4 if height >= 34 else 2 if height >= 22 and view.client is None else 0
    events = 0 if not view.events else 8 if height >= 34 else 4 if height >= 22 else 0
    rest = height - 2 - (chart + 3 if chart else 0) - (events + 1 if events else 0)
    return Layout(chart, events, max(rest, 0))


def screen(view: View, width: int, height: int, *, url: str, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Return what is to be seen, as so many lines of exactly this width."""
    parts = layout(view, height)
    lines = [_header(view, url, width, glyphs)]
    if view.help:
        lines += _help(width, glyphs)
    else:
        view.fit(parts.list - 2)
        if parts.chart:
            lines += boxes(_bands(view.data, width), width, parts.chart, glyphs)
        if view.client is not None:
            lines += detail_lines(view, width, parts.list, glyphs)
        else:
            lines += _list(view, width, parts.list, glyphs)
        if parts.events:
            lines += [Text(" " * width)] * (height - 2 - parts.events - len(lines))
            lines += _events(view, width, parts.events, glyphs)
    lines = lines[: max(height - 1, 0)]
    lines += [Text(" " * width)] * (height - 1 - len(lines))
    return [*lines, _footer(view, width, glyphs)][:height]


# -- header and footer -------------------------------------------------------------------------------------------------
def _header(view: View, url: str, width: int, glyphs: Glyphs) -> Text:
    data = view.data
    if data.problem:
        state = Text(f"{glyphs.dot} unreachable", style="bold red")
    elif data.ready:
        state = Text(f"{glyphs.dot} ready", style="bold green")
    else:
        state = Text(f"{glyphs.dot} draining", style="bold yellow")
    connected = data.metrics.get("connected_clients")
    clients = f"{count(connected)} client{'s' * (connected != 1)}"
    pieces = [
        Text(" quicflow top ", style="bold reverse cyan"),
        Text(shown(url.removeprefix("http://")), style="bold"),
        state,
        Text(clients),
        Text(f"up {span(data.metrics.get('uptime_seconds'))}"),
        Text(shown(data.version), style="bright_black"),
    ]
    right = (
        Text(" PAUSED ", style="bold reverse yellow") if view.paused else Text(clock(data.metrics.get("timestamp")), style="dim")
    )
    right.append(" ")
    # What has no room is left out, from the end.
    while len(pieces) > 1 and sum(piece.cell_len + 2 for piece in pieces) + right.cell_len > width:
        pieces.pop()
    left = fit(Text("  ").join(pieces), max(width - right.cell_len, 0), glyphs)
    return fit(Text.assemble(left, right), width, glyphs)


def _footer(view: View, width: int, glyphs: Glyphs) -> Text:
    if view.typed is not None:
        typed = Text.assemble((" filter: ", "bold yellow"), shown(view.typed), ("_", "blink"))
        return fit(typed.append(f"   {glyphs.enter} keep   Esc drop", style="dim"), width, glyphs)
    if view.data.problem:
        return fit(Text(f" {view.data.problem}; trying again", style="bold red"), width, glyphs)
    keys: Iterable[tuple[str, str]]
    if view.help:
        keys = [("any key", "back"), ("q", "quit")]
    elif view.client is not None:
        keys = [("Esc", "back"), (glyphs.arrows, "scroll"), ("e", "events"), ("p", "pause"), ("?", "help"), ("q", "quit")]
    else:
        keys = [
            *((glyphs.arrows, "move"), (glyphs.enter, "open"), ("s", "sort"), ("r", "reverse"), ("/", "filter"), ("a", "all")),
            *(("e", "events"), ("p", "pause"), ("?", "help"), ("q", "quit")),
        ]
    # With room between the keys where there is some.
    for gap in ("  ", " "):
        line = Text(" ")
        for key, meaning in keys:
            line.append(key, style="bold cyan").append(f" {meaning}{gap}")
        if line.cell_len <= width:
            break
    return fit(line, width, glyphs)


KEYS = (
    ("arrows, j, k", "move; PgUp, PgDn, Home, End in larger steps"),
    ("Enter", "one client alone, with its history"),
    ("Esc", "back, or the filter off"),
    ("s", "sort by the next figure"),
    ("r", "the other way round"),
    ("/", "filter by a part of the id or the address"),
    ("a", "clients that are away or gone, too"),
    ("e", "events on or off"),
    ("p", "pause, and on again"),
    ("q, Ctrl-C", "quit"),
)


def _help(width: int, glyphs: Glyphs) -> list[Text]:
    lines = [Text(""), Text(" Keys", style="bold")]
    lines += [Text.assemble((f"   {key:14}", "bold cyan"), meaning) for key, meaning in KEYS]
    lines += [Text(""), Text(" The list", style="bold")]
    lines += [
        Text.assemble((f"   {name:14}", "bold cyan"), meaning)
        for name, meaning in (
            ("SENT/s RECV/s", "messages to the client and from it, per second"),
            ("RTT", "round-trip time, milliseconds"),
            ("OUTBOX", "bytes that wait to be sent to it"),
            ("HELD", "bytes received that wait for handlers to end"),
        )
    ]
    return [fit(line, width, glyphs) for line in lines]


# -- charts ------------------------------------------------------------------------------------------------------------
def _bands(data: Data, width: int) -> list[Band]:
    last = data.samples[-1] if data.samples else None

    def series(value: Callable[[Sample], float | None]) -> list[float | None]:
        return [value(sample) for sample in data.samples]

    sent, received = (None, None) if last is None else (last.sent_per_second, last.received_per_second)
    # A second without an ack has no latency; the last that had one is told.
    latest = next((sample for sample in reversed(data.samples) if sample.p99_ms is not None), None)
    p50, p99 = (None, None) if latest is None else (latest.p50_ms, latest.p99_ms)
    through = series(lambda sample: sample.bytes_per_second)
    bands = [
        Band(
            "messages/s",
            Text.assemble(("in ", "dim"), (rate(received), "bold cyan"), ("  out ", "dim"), (rate(sent), "bold blue")),
            series(lambda sample: sample.received_per_second),
            series(lambda sample: (sample.received_per_second or 0) + (sample.sent_per_second or 0)),
            ("cyan", "blue"),
        ),
        Band(
            "bytes/s",
            Text.assemble((size(through[-1] if through else None), "bold magenta"), *_peak(through, size)),
            through,
            through,
            ("magenta", "magenta"),
        ),
        Band(
            "latency ms",
            Text.assemble(
                ("P50 ", "dim"), (milliseconds(p50), "bold green"), ("  P99 ", "dim"), (milliseconds(p99), "bold yellow")
            ),
            series(lambda sample: sample.p50_ms),
            series(lambda sample: sample.p99_ms),
            ("green", "yellow"),
        ),
    ]
    if width >= 100:
        clients = series(lambda sample: sample.connected_clients)
        value = Text.assemble((count(clients[-1] if clients else None), "bold"), *_peak(clients, count))
        bands.insert(0, Band("clients", value, clients, clients, ("white", "white")))
    return bands


def _peak(values: list[float | None], text: Callable[[float | None], str]) -> tuple[tuple[str, str], str]:
    return ("  peak ", "dim"), text(max((value for value in values if value is not None), default=None))


# -- the list ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Column:
    """A column of the list.

    Attributes:
        heading: its name.
        width: its cells.
        value: its text for a client.
        keys: what the list is sorted by when this column shows it.
        left: aligned to the left.
    """

    heading: str
    width: int
    value: Callable[[ClientFigures, Rates | None, float], str]
    keys: tuple[str, ...] = ()
    left: bool = False


NARROWEST_ID, WIDEST_ID = 14, 40

# The more important first; what has no room is left out, from the end.
COLUMNS = (
    Column("RTT", 7, lambda client, rates, now: milliseconds(client.rtt_ms), ("rtt_ms",)),
    Column("SENT/s", 7, lambda client, rates, now: rate(rates.sent if rates else None), ()),
    Column("RECV/s", 7, lambda client, rates, now: rate(rates.received if rates else None), ()),
    Column("SINCE", 7, lambda client, rates, now: span(ago(now, client.connected_at)), ("connected_at",)),
    Column("OUTBOX", 7, lambda client, rates, now: size(client.outbox_bytes), ("outbox_bytes",)),
    Column("ADDRESS", 17, lambda client, rates, now: shown(client.remote_address) or NONE, (), left=True),
    Column("SENT", 7, lambda client, rates, now: count(client.messages_sent), ("messages_sent",)),
    Column("RECV", 7, lambda client, rates, now: count(client.messages_received), ("messages_received",)),
    Column("FAILED", 6, lambda client, rates, now: count(client.messages_failed), ()),
    Column("BYTES OUT", 9, lambda client, rates, now: size(client.bytes_sent), ("bytes_sent",)),
    Column("BYTES IN", 8, lambda client, rates, now: size(client.bytes_received), ("bytes_received",)),
    Column("PROTOCOL", 16, lambda client, rates, now: shown(client.protocol) or NONE, (), left=True),
    Column("RUNNING", 7, lambda client, rates, now: count(client.handlers_running), ()),
    Column("HELD", 7, lambda client, rates, now: size(client.held_bytes), ()),
    Column("BEAT", 7, lambda client, rates, now: span(ago(now, client.last_heartbeat)), ()),
)
SORT_NAMES: dict[str, str] = {
    "connected_at": "time of connection",
    "client_id": "id",
    "state": "state",
    "rtt_ms": "RTT",
    "messages_sent": "messages sent",
    "messages_received": "messages received",
    "bytes_sent": "bytes sent",
    "bytes_received": "bytes received",
    "outbox_bytes": "outbox",
}


def columns_for(width: int, sort: str) -> tuple[int, list[Column]]:
    """Return the width of the id, and the columns that fit in; the one that the list is sorted by is always among them."""
    left = width - 3 - NARROWEST_ID
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda column: sort not in column.keys):
        if left >= column.width + 1:
            chosen.append(column)
            left -= column.width + 1
    chosen.sort(key=lambda column: (not column.left, COLUMNS.index(column)))
    return min(NARROWEST_ID + left, WIDEST_ID), chosen


def _list(view: View, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    page = view.data.page
    first, last = view.first, min(view.first + view.rows, page.total)
    where = f"{first + 1:,}-{last:,} of {page.total:,}" if page.total > view.rows else f"{page.total:,}"
    title = Text.assemble(("clients ", "bold"), where)
    if view.everyone:
        title.append(", away and gone too")
    parts: list[Text | str] = [title, f"by {SORT_NAMES[view.sort]} {glyphs.falling if view.descending else glyphs.rising}"]
    wanted = view.filter if view.typed is None else view.typed
    if wanted:
        parts.append(Text(f"filter {shown(wanted)!r}", style="yellow"))
    id_width, columns = columns_for(width, view.sort)
    lines = [rule(parts, width, glyphs), _headings(view, width, id_width, columns, glyphs)]
    for line in range(first, last):
        lines.append(_client_line(view, line, width, id_width, columns, glyphs))
    if not page.total:
        lines.append(fit(Text("   none" if wanted or view.everyone else "   no client is connected", style="dim"), width, glyphs))
    return lines[:height]


def _headings(view: View, width: int, id_width: int, columns: list[Column], glyphs: Glyphs) -> Text:
    line = Text("   ")
    line.append("CLIENT".ljust(id_width), style="bold underline" if view.sort == "client_id" else "bold")
    for column in columns:
        heading = column.heading.ljust(column.width) if column.left else column.heading.rjust(column.width)
        padding = heading[: len(heading) - len(heading.lstrip())]
        line.append(f" {padding}")
        line.append(heading.lstrip(), style="bold underline" if view.sort in column.keys else "bold")
    return fit(line, width, glyphs)


def _client_line(view: View, number: int, width: int, id_width: int, columns: list[Column], glyphs: Glyphs) -> Text:
    client = view.at(number)
    line = Text()
    if client is None:
        # On its way.
        line.append(f"   {glyphs.ellipsis}", style="dim")
    else:
        state = glyphs.dot if client.state == "connected" else glyphs.ring
        line.append(f" {state} ", style=STATE_STYLES.get(client.state, ""))
        line.append_text(fit(Text(shown(client.client_id)), id_width, glyphs))
        rates, now = view.data.rates.get(client.client_id), view.data.page.timestamp
        for column in columns:
            value = Text(column.value(client, rates, now))
            if not column.left:
                value.pad_left(max(column.width - value.cell_len, 0))
            line.append(" ").append_text(fit(value, column.width, glyphs))
    line = fit(line, width, glyphs)
    if number == view.cursor:
        line.stylize("reverse", 3)
    elif client is not None and client.state != "connected":
        line.stylize("dim", 3)
    return line


# -- events ------------------------------------------------------------------------------------------------------------
def _events(view: View, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    chosen = [event for event in view.data.events if view.client is None or event.client_id == view.client]
    title = "events" if view.client is None else "its events"
    lines = [rule([Text(title, style="bold")], width, glyphs)]
    lines += [fit(_event(event, 14 if width < 100 else 24, glyphs), width, glyphs) for event in chosen[-height:]]
    if not chosen:
        lines.append(fit(Text("   none so far", style="dim"), width, glyphs))
    return lines


def _event(event: ServerEvent, id_width: int, glyphs: Glyphs) -> Text:
    line = Text.assemble(" ", (event_time(event), "dim"), "  ")
    line.append(f"{shown(event.kind):18}", style=KIND_STYLES.get(event.kind, ""))
    line.append_text(fit(Text(shown(event.client_id) or NONE), id_width, glyphs))
    return line.append(f" {event_detail(event)}")
