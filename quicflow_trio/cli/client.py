"""`quicflow client`: one client of a running server, with its history."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

from cyclopts import App

from .common import ExitCode, JsonFlag, shown, until_signalled
from .remote.columns import print_columns, print_pairs
from .remote.connection import OpsOptions, client_path, open_ops
from .remote.errors import parsed, with_json_errors
from .remote.figures import NONE, ago, count, day_and_clock, milliseconds, size, span
from .remote.records import Change, ClientFigures, objects

__all__ = ["app", "parse_client", "summary"]

EPILOGUE = """The history holds the last 100 changes: connects, disconnects with their
reasons, takeovers. It is kept for the last 10,000 clients that left, so this
works for those, too. CHANGE "disconnected" is the end of a connection, "closed"
that the server ended the session: a `quicflow disconnect` leaves both, with its
reason as DETAIL of each.

Exit codes: 0 printed, 1 no such client, 2 usage, 3 no connection or not
allowed, 4 no answer in time.

Examples:
  quicflow client sensor-7
  quicflow client sensor-7 --json
"""

app: App = App(name="client", help_epilogue=EPILOGUE)


@app.default
async def client(
    id: str,
    /,
    *,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Show one client of a running server: its figures and its history.

    Args:
        id: client id.
        options: the server.
        json_output: print one JSON object instead; of a failure one with "ok": false, "status" and "error".
    """
    run = partial(_client, options, id, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _client(options: OpsOptions, client_id: str, json_output: bool) -> int:
    async with open_ops(options) as ops:
        answer = await ops.get(client_path(client_id))
    figures, history = parsed(ops.url, parse_client, answer)
    if json_output:
        print(json.dumps(answer))
        return ExitCode.OK
    print_pairs([("client", shown(figures.client_id)), *summary(figures, time.time())])
    if history:
        print()
        rows = [(day_and_clock(change.at), shown(change.change), shown(change.detail)) for change in history]
        print_columns(("WHEN", "CHANGE", "DETAIL"), rows, left=3)
    return ExitCode.OK


def parse_client(source: dict[str, Any]) -> tuple[ClientFigures, list[Change]]:
    """Return what the server says of a client, and its history, oldest first.

    Raises:
        BadAnswer: it makes no sense.
    """
    return ClientFigures.parse(source), [Change.parse(change) for change in objects(source, "history")]


def summary(figures: ClientFigures, now: float) -> list[tuple[str, str]]:
    """Return a client's figures as names and values, for people; of one that has left only its state."""
    if figures.state == "gone":
        return [("state", "gone")]
    heartbeat = "none yet" if figures.last_heartbeat is None else f"{span(ago(now, figures.last_heartbeat))} ago"
    rtt = "not measured yet" if figures.rtt_ms is None else f"{milliseconds(figures.rtt_ms)} ms"
    failed, outbox = count(figures.messages_failed), f"{count(figures.outbox_messages)} ({size(figures.outbox_bytes)} bytes)"
    since = span(ago(now, figures.connected_at))
    return [
        ("state", f"{shown(figures.state)}, {shown(figures.remote_address) or NONE}"),
        *([("identity", shown(figures.identity))] if figures.identity else []),
        *([("protocol", shown(figures.protocol))] if figures.protocol else []),
        ("connected", f"{day_and_clock(figures.connected_at)} ({since} ago)"),
        ("round trip", f"{rtt}, last heartbeat {heartbeat}"),
        (
            "sent to it",
            f"{count(figures.messages_sent)} messages, {size(figures.bytes_sent)} bytes, lanes open: {count(figures.lanes)}",
        ),
        ("received", f"{count(figures.messages_received)} messages, {failed} failed, {size(figures.bytes_received)} bytes"),
        ("waiting", f"{count(figures.requests_waiting)} for answers, {outbox} in the outbox"),
        ("handlers", f"{count(figures.handlers_running)} running, {size(figures.held_bytes)} bytes held for them"),
    ]
