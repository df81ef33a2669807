"""`quicflow clients`: the clients of a running server."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter, validators

from .common import ExitCode, JsonFlag, shown, until_signalled
from .remote.columns import print_columns
from .remote.connection import OpsClient, OpsOptions, open_ops
from .remote.errors import parsed, with_json_errors
from .remote.figures import NONE, ago, count, milliseconds, size, span
from .remote.records import ClientPage, objects

__all__ = ["SORT_KEYS", "SortKey", "app"]

EPILOGUE = """Sent and received are the server's: messages to the client and from it, since
its session began. RTT is in milliseconds, outbox in bytes that wait to be sent
to it. A --sort of -KEY is descending.

Exit codes: 0 printed (also when there are none), 2 usage, 3 no connection or
not allowed, 4 no answer in time.

Examples:
  quicflow clients
  quicflow clients --sort=-outbox_bytes --limit 10
  quicflow clients --filter sensor- --state all --json
"""

SortKey = Literal[
    "client_id",
    "connected_at",
    "rtt_ms",
    "messages_sent",
    "messages_received",
    "bytes_sent",
    "bytes_received",
    "outbox_bytes",
    "state",
]
SORT_KEYS: tuple[SortKey, ...] = (
    "connected_at",
    "client_id",
    "state",
    "rtt_ms",
    "messages_sent",
    "messages_received",
    "bytes_sent",
    "bytes_received",
    "outbox_bytes",
)
PAGE = 1000
"""Clients in one answer at most."""

app: App = App(name="clients", help_epilogue=EPILOGUE)


def _check_sort(_type: object, value: str) -> None:
    if value.removeprefix("-") not in SORT_KEYS:
        raise ValueError(f"{value!r} is none of {', '.join(SORT_KEYS)}")


@app.default
async def clients(
    *,
    filter: str = "",
    state: Literal["connected", "away", "gone", "all"] = "connected",
    sort: Annotated[str, Parameter(validator=_check_sort, allow_leading_hyphen=True)] = "connected_at",
    limit: Annotated[int, Parameter(validator=validators.Number(gte=1, lte=1_000_000))] = 100,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """List the clients of a running server.

    Args:
        filter: only those whose id or address contains this, in upper or lower case.
        state: connected, away (a connection was lost, the session is kept), gone (left for good), or all.
        sort: connected_at, client_id, state, rtt_ms, messages_sent, messages_received, bytes_sent, bytes_received or outbox_bytes.
        limit: how many at most.
        options: the server.
        json_output: print one JSON object with "total", "timestamp" and "clients"; of a failure one with "ok": false, "status" and "error".
    """
    run = partial(_clients, options, {"filter": filter, "state": state, "sort": sort}, limit, json_output)
    return await until_signalled(partial(with_json_errors, run, json_output))


async def _clients(options: OpsOptions, query: dict[str, str], limit: int, json_output: bool) -> int:
    async with open_ops(options) as ops:
        answer = await fetch_clients(ops, query, limit)
    page = parsed(ops.url, ClientPage.parse, answer)
    if json_output:
        print(json.dumps(answer))
        return ExitCode.OK
    rows = [
        (
            shown(client.client_id),
            client.state,
            shown(client.remote_address) or NONE,
            span(ago(page.timestamp, client.connected_at)),
            milliseconds(client.rtt_ms),
            count(client.messages_sent),
            count(client.messages_received),
            count(client.messages_failed),
            size(client.outbox_bytes),
            size(client.bytes_sent),
            size(client.bytes_received),
            shown(client.protocol) or NONE,
        )
        for client in page.clients
    ]
    if rows:
        headings = (
            "CLIENT",
            "STATE",
            "ADDRESS",
            "SINCE",
            "RTT",
            "SENT",
            "RECEIVED",
            "FAILED",
            "OUTBOX",
            "BYTES SENT",
            "RECEIVED",
            "PROTOCOL",
        )
        print_columns(headings, rows, left=3)
    # Beside the list and not in it: `quicflow clients | wc -l` shall count no remark.
    if page.total > len(rows):
        print(f"{len(rows):,} of {page.total:,}; --limit {page.total} shows all", file=sys.stderr)
    elif not rows:
        which = {"all": "known", "gone": "known to have left"}.get(query["state"], query["state"])
        print(f"no client{' that matches' if query['filter'] else ''} is {which}", file=sys.stderr)
    return ExitCode.OK


async def fetch_clients(ops: OpsClient, query: dict[str, str], limit: int) -> dict[str, Any]:
    """Return the server's list, put together from as many pages as it takes.

    Raises:
        OpsUnreachable: nothing that can be read came in time.
        OpsRefused: the server answered with an error.
    """
    answer = await ops.get("/clients", **query, limit=min(limit, PAGE))
    found = parsed(ops.url, lambda source: objects(source, "clients"), answer)
    while len(found) < limit and len(found) % PAGE == 0 and found:
        more = await ops.get("/clients", **query, limit=min(limit - len(found), PAGE), offset=len(found))
        page = parsed(ops.url, lambda source: objects(source, "clients"), more)
        if not page:
            break
        found = [*found, *page]
    return answer | {"clients": found, "limit": limit}
