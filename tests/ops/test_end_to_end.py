"""A real server over UDP, with a real client, operated over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import pytest
import trio

from quicflow_trio import Client, Message, Server, TLSConfig, open_client, serve
from quicflow_trio.config import OpsConfig
from quicflow_trio.ops.view import ServerView
from quicflow_trio.testing import echo_router, throwaway_tls
from tests.ops.harness import BEARER, TOKEN, Wire, until
from tests.ops.test_hostile import PREFACE, SETTINGS, priority_frames

pytestmark = pytest.mark.realtime


@asynccontextmanager
async def open_server() -> AsyncIterator[tuple[Server, TLSConfig, httpx2.AsyncClient]]:
    """Run a server with an ops side; it has to be over ten seconds after the block."""
    server_tls, client_tls = throwaway_tls()
    run = partial(serve, echo_router(), host="127.0.0.1", port=0, tls=server_tls, ops=OpsConfig("127.0.0.1:0", token=TOKEN))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(run)
            assert server.ops_url is not None
            async with httpx2.AsyncClient(base_url=server.ops_url, headers=BEARER) as http:
                yield server, client_tls, http
            await server.aclose()


def connect(server: Server, tls: TLSConfig, client_id: str) -> Any:
    return open_client(*server.address, client_id=client_id, tls=tls, router=echo_router())


async def get(http: httpx2.AsyncClient, path: str) -> Any:
    answer = await http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_server_is_what_the_ops_side_wants() -> None:
    # For the type checker.
    def view_of(server: Server) -> ServerView:
        return server

    assert callable(view_of)


async def test_a_client_appears_answers_and_leaves_its_history() -> None:
    async with open_server() as (server, tls, http):
        client: Client
        async with connect(server, tls, "robot/1") as client:
            await client.wait_connected()
            await client.request(Message.command(b"hello"))
            (shown,) = (await get(http, "/clients"))["clients"]
            assert (shown["client_id"], shown["state"]) == ("robot/1", "connected")
            assert shown["remote_address"].startswith("127.0.0.1:")
            assert shown["messages_received"] == 1
            answer = await http.post("/clients/robot%2F1/request", json={"payload": "ping", "type": "query", "lane": "ops"})
            assert answer.json()["result"] == "ping"
            sent = await http.post("/clients/robot%2F1/send", json={"payload_base64": "AAE="})
            assert len(bytes.fromhex(sent.json()["message_id"])) == 16
            spread = await http.post("/broadcast", json={"payload": "all", "type": "query", "ack_timeout": 5})
            assert spread.json()["acked"]["robot/1"]["result"] == "all"
            metrics = await get(http, "/metrics.json")
            assert metrics["connected_clients"] == metrics["broadcasts_sent"] == 1
            assert metrics["promise_completed"] == 2
            assert "quicflow_connected_clients 1.0" in (await http.get("/metrics")).text
        await until(lambda: not server.known_sessions())
        left = await get(http, "/clients/robot%2F1")
        assert left["state"] == "gone"
        assert [change["change"] for change in left["history"]] == ["connected", "disconnected"]
        assert (await get(http, "/clients?state=gone"))["total"] == 1


async def test_events_of_a_client_that_an_operator_disconnects() -> None:
    async with open_server() as (server, tls, http):
        async with await trio.open_tcp_stream("127.0.0.1", int(str(server.ops_url).rpartition(":")[2])) as stream:
            wire = Wire(stream)
            await wire.get("/events?client_id=a")
            await wire.until(": events follow\n\n")
            async with connect(server, tls, "a") as client:
                await client.wait_connected()
                await wire.until("event: connect\ndata: ")
                assert (await http.post("/clients/a/disconnect", json={"reason": "for a test"})).status_code == 200
                await wire.until("event: disconnect\ndata: ")
                assert "for a test" in json.loads(await wire.until("\n\n"))["detail"]
        history = (await get(http, "/clients/a"))["history"]
        assert any("for a test" in change["detail"] for change in history)


async def test_a_drain_by_http_ends_the_server_and_the_ops_side_with_it() -> None:
    async with open_server() as (server, tls, http):
        async with connect(server, tls, "a") as client:
            await client.wait_connected()
            assert (await http.post("/drain", json={"grace": 5})).status_code == 202
            with trio.fail_after(10):
                await server.aclose()
        with pytest.raises(httpx2.TransportError):
            await http.get("/healthz")


async def test_hostile_connections_to_the_ops_side_do_not_touch_the_messages() -> None:
    async with open_server() as (server, tls, http), connect(server, tls, "a") as client:
        await client.wait_connected()
        for _ in range(5):
            port = int(str(server.ops_url).rpartition(":")[2])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(PREFACE + SETTINGS + priority_frames(2000))
                assert (await client.request(Message.command(b"still here"))).result == b"still here"
        assert (await http.get("/readyz")).status_code == 200
        assert (await get(http, "/clients"))["total"] == 1


async def test_no_asyncio_loop_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an asyncio loop was made")

    monkeypatch.setattr(asyncio.BaseEventLoop, "__init__", refuse)
    async with open_server() as (server, tls, http), connect(server, tls, "a") as client:
        await client.wait_connected()
        for path in ("/", "/clients", "/clients/a", "/metrics", "/samples", "/openapi.json", "/nothing"):
            await http.get(path)
        await http.post("/clients/a/request", json={"payload": "x"})
    assert asyncio._get_running_loop() is None
