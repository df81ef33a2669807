"""The list of clients: which, in which order, which page. Without a socket."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import trio

from quicflow_trio.ops.clients import FIGURES, ClientQuery, describe, list_clients
from quicflow_trio.ops.fields import Fields
from tests.ops.harness import FakeClient, FakeServer


async def listed(server: FakeServer, **parameters: str) -> dict[str, Any]:
    answer = await list_clients(cast(Any, server), ClientQuery.of(Fields(parameters, as_text=True)), 99.5)
    page: dict[str, Any] = json.loads(answer)
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [client["client_id"] for client in page["clients"]]


def some() -> FakeServer:
    clients = [FakeClient("alpha", 2), FakeClient("Beta", 0), FakeClient("gamma", 1, connected=False)]
    clients[1].rtt = None
    clients[2].remote_address = ("2001:db8::1", 443)
    return FakeServer(clients, gone=["zeta", "eta"])


async def test_what_a_client_is_shown_with() -> None:
    page = await listed(FakeServer([FakeClient("alpha", 2)]))
    assert page == {
        "total": 1,
        "offset": 0,
        "limit": 100,
        "timestamp": 99.5,
        "clients": [
            {
                "client_id": "alpha",
                "state": "connected",
                "identity": None,
                "protocol": "quicflow/2",
                "remote_address": "127.0.0.1:5002",
                "connected_at": 1002.0,
                "last_heartbeat": 1500.0,
                "rtt_ms": 6.0,
                "messages_sent": 12,
                "messages_received": 22,
                "messages_failed": 1,
                "bytes_sent": 1000,
                "bytes_received": 2002,
                "requests_waiting": 3,
                "handlers_running": 2,
                "outbox_messages": 4,
                "outbox_bytes": 498,
                "held_bytes": 7,
                "lanes": 1,
            }
        ],
    }


def test_one_that_is_gone_has_the_same_fields() -> None:
    gone = describe("left")
    assert gone.keys() == describe(cast(Any, FakeClient("here"))).keys()
    assert {name for name, value in gone.items() if value is not None} == {"client_id", "state"}
    assert set(FIGURES) < gone.keys()


def test_one_whose_address_is_not_known_has_none() -> None:
    client = FakeClient("new")
    client.remote_address = ("", 0)
    assert describe(cast(Any, client))["remote_address"] is None


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("connected", ["Beta", "alpha"]),
        ("away", ["gamma"]),
        ("gone", ["zeta", "eta"]),
        ("all", ["Beta", "gamma", "alpha", "zeta", "eta"]),
    ],
)
async def test_states(state: str, found: list[str]) -> None:
    page = await listed(some(), state=state)
    assert (ids(page), page["total"]) == (found, len(found))


@pytest.mark.parametrize(
    ("text", "found"),
    [("BET", ["Beta"]), ("ta", ["Beta", "eta", "zeta"]), ("[2001:DB8::1]:443", ["gamma"]), (":5000", ["Beta"]), ("none", [])],
)
async def test_the_filter_looks_at_id_and_address_whatever_the_case(text: str, found: list[str]) -> None:
    page = await listed(some(), filter=text, state="all", sort="client_id")
    assert sorted(ids(page)) == sorted(found)


@pytest.mark.parametrize(
    ("sort", "found"),
    [
        ("client_id", ["Beta", "alpha", "gamma", "eta", "zeta"]),
        ("-client_id", ["gamma", "alpha", "Beta", "zeta", "eta"]),
        ("connected_at", ["Beta", "gamma", "alpha", "zeta", "eta"]),
        ("-connected_at", ["alpha", "gamma", "Beta", "zeta", "eta"]),
        # What is not known is last in both directions: it is neither small nor large.
        ("rtt_ms", ["gamma", "alpha", "Beta", "zeta", "eta"]),
        ("-rtt_ms", ["alpha", "gamma", "Beta", "zeta", "eta"]),
        ("messages_sent", ["Beta", "gamma", "alpha", "zeta", "eta"]),
        ("-messages_received", ["alpha", "gamma", "Beta", "zeta", "eta"]),
        # All the same: by id.
        ("bytes_sent", ["Beta", "alpha", "gamma", "zeta", "eta"]),
        ("-bytes_sent", ["Beta", "alpha", "gamma", "zeta", "eta"]),
        ("-bytes_received", ["alpha", "gamma", "Beta", "zeta", "eta"]),
        ("outbox_bytes", ["alpha", "gamma", "Beta", "zeta", "eta"]),
        ("state", ["gamma", "Beta", "alpha", "zeta", "eta"]),
    ],
)
async def test_sorting(sort: str, found: list[str]) -> None:
    assert ids(await listed(some(), sort=sort, state="all")) == found


async def test_pages_neither_overlap_nor_leave_anyone_out() -> None:
    clients = [FakeClient(f"client-{number:03}") for number in range(250)]
    server = FakeServer(clients[::-1], gone=["last"])
    seen: list[str] = []
    for offset in range(0, 300, 60):
        page = await listed(server, sort="-bytes_sent", state="all", limit="60", offset=str(offset))
        assert page["total"] == 251
        seen += ids(page)
    assert seen == [client.client_id for client in clients] + ["last"]
    assert ids(await listed(server, offset="1000")) == []


async def test_a_long_list_lets_other_tasks_run_in_between() -> None:
    server = FakeServer([FakeClient(f"client-{number}", number) for number in range(1000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await listed(server, limit="1000", sort="-messages_sent")
        nursery.cancel_scope.cancel()
    assert turns >= 6


async def test_a_client_that_leaves_while_the_list_is_made_is_no_trouble() -> None:
    server = FakeServer([FakeClient(f"client-{number}", number) for number in range(200)])

    async def leave() -> None:
        server.clients.clear()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        page = await listed(server)
    assert len(page["clients"]) == 100
