"""Clients, as the ops side lists them: filtered, sorted, page by page, and one with its history.

With thousands of sessions a list is made in slices, between which messages go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import trio

from ..errors import ClientNotConnected
from .fields import Fields
from .jsontext import SLICE, dump, dump_list
from .refusals import no_such_client
from .view import ClientView, ServerView

__all__ = ["ClientQuery", "describe", "list_clients", "one_client"]

STATES = ("connected", "away", "gone", "all")
FIGURES = (
    "messages_sent",
    "messages_received",
    "messages_failed",
    "bytes_sent",
    "bytes_received",
    "requests_waiting",
    "handlers_running",
    "outbox_messages",
    "outbox_bytes",
    "held_bytes",
    "lanes",
)
"""The figures of `PeerStatistics` that a client is shown with."""

Key = float | str | None


def _figure(name: str) -> Callable[[ClientView], Key]:
    def key(client: ClientView) -> Key:
        value: int = getattr(client.statistics(), name)
        return value

    return key


KEYS: dict[str, Callable[[ClientView], Key]] = {
    "client_id": lambda client: client.client_id,
    "connected_at": lambda client: client.connected_at,
    "rtt_ms": lambda client: client.rtt,
    "state": lambda client: "connected" if client.connected else "away",
    **{name: _figure(name) for name in ("messages_sent", "messages_received", "bytes_sent", "bytes_received", "outbox_bytes")},
}
"""What a list may be sorted by."""
SORTS = (*KEYS, *(f"-{name}" for name in KEYS))


@dataclass(frozen=True, slots=True)
class ClientQuery:
    """Which clients to list.

    Attributes:
        filter: part of the client id or the remote address, whatever its case; empty takes all.
        state: ``connected``, ``away``, ``gone`` or ``all``.
        sort: a name of `KEYS`.
        descending: true for the largest first.
        limit: clients on one page.
        offset: clients before the page.
    """

    filter: str
    state: str
    sort: str
    descending: bool
    limit: int
    offset: int

    @classmethod
    def of(cls, fields: Fields) -> ClientQuery:
        """Take it out of the parameters.

        Raises:
            Refusal: a parameter is unknown or out of its range.
        """
        sort = fields.choice("sort", "connected_at", SORTS)
        query = cls(
            filter=fields.text("filter", "").lower(),
            state=fields.choice("state", "connected", STATES),
            sort=sort.removeprefix("-"),
            descending=sort.startswith("-"),
            limit=fields.whole("limit", 100, 1, 1000),
            offset=fields.whole("offset", 0, 0, 10**9),
        )
        fields.end()
        return query


async def list_clients(view: ServerView, query: ClientQuery, timestamp: float) -> bytes:
    """Return one page of clients as JSON; ``timestamp`` (Unix seconds) is when the counters are read."""
    here: list[ClientView] = []
    gone: list[str] = []
    if query.state != "gone":
        here = await _sorted([client for client in view.known_sessions() if _matches(client, query)], query)
    if query.state in ("gone", "all"):
        gone = [client_id for client_id in view.departed() if query.filter in client_id.lower()]
        if query.sort == "client_id":
            gone.sort(reverse=query.descending)
    # Those that are gone have no other figure: they come last, the latest first.
    rows: list[ClientView | str] = [*here, *gone]
    page = rows[query.offset : query.offset + query.limit]
    clients = await dump_list(describe(row) for row in page)
    head = {"total": len(rows), "offset": query.offset, "limit": query.limit, "timestamp": timestamp}
    return dump(head)[:-1] + b',"clients":' + clients + b"}"


def one_client(view: ServerView, client_id: str) -> dict[str, object]:
    """Return one client with its history, also when it has left.

    Raises:
        Refusal: nothing is known of it.
    """
    changes = view.history(client_id)
    client: ClientView | str
    try:
        client = view.session(client_id)
    except ClientNotConnected:
        if not changes:
            # That it is not connected would be half of it: of one that has left this tells as well.
            raise no_such_client(client_id) from None
        client = client_id
    history = [{"at": change.at, "change": change.change, "detail": change.detail} for change in changes]
    return {**describe(client), "history": history}


def describe(client: ClientView | str) -> dict[str, object]:
    """Return a client as it is shown; one that is gone is only an id."""
    if isinstance(client, str):
        unknown = dict.fromkeys(("identity", "protocol", "remote_address", "connected_at", "last_heartbeat", "rtt_ms", *FIGURES))
        return {"client_id": client, "state": "gone", **unknown}
    statistics = client.statistics()
    rtt = client.rtt
    return {
        "client_id": client.client_id,
        "state": _state(client),
        "identity": client.identity.name or None,
        "protocol": client.protocol,
        "remote_address": _address(client),
        "connected_at": client.connected_at,
        "last_heartbeat": client.last_heartbeat,
        "rtt_ms": None if rtt is None else rtt * 1000,
        **{name: getattr(statistics, name) for name in FIGURES},
    }


def _state(client: ClientView) -> str:
    return "connected" if client.connected else "away"


def _address(client: ClientView) -> str | None:
    host, port = client.remote_address
    if not host:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _matches(client: ClientView, query: ClientQuery) -> bool:
    if query.state != "all" and _state(client) != query.state:
        return False
    return query.filter in client.client_id.lower() or query.filter in (_address(client) or "")


async def _sorted(clients: list[ClientView], query: ClientQuery) -> list[ClientView]:
    # By id first, since sorting is stable: pages must not overlap because many clients share a figure.
    clients.sort(key=lambda client: client.client_id)
    keys = await _spread(map(KEYS[query.sort], clients))
    known = [(key, client) for key, client in zip(keys, clients, strict=True) if key is not None]
    known.sort(key=_first, reverse=query.descending)
    unknown = [client for key, client in zip(keys, clients, strict=True) if key is None]
    return [client for _, client in known] + unknown


def _first(pair: tuple[float | str, ClientView]) -> tuple[float, str]:
    key = pair[0]
    return (0.0, key) if isinstance(key, str) else (key, "")


async def _spread(keys: Iterable[Key]) -> list[Key]:
    """Make a list, yielding to other tasks every few hundred entries: a key is a tenth of a row."""
    made: list[Key] = []
    source: Iterator[Key] = iter(keys)
    for key in source:
        made.append(key)
        if len(made) % (4 * SLICE) == 0:
            await trio.lowlevel.checkpoint()
    return made
