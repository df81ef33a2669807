"""What operators command: what is done, and what each refusal looks like."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio

from quicflow_trio import (
    AckTimeout,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    HandlerFailed,
    LaneLimitReached,
    LocalProtocolError,
    MessageType,
    SlowConsumer,
    WaitingTableFull,
)
from quicflow_trio.ops import commands
from tests.ops.harness import BEARER, FakeClient, FakeServer, open_ops, until

pytestmark = pytest.mark.realtime


def one() -> FakeServer:
    return FakeServer([FakeClient("a"), FakeClient("b/c", 1)])


async def test_disconnect() -> None:
    async with open_ops(one()) as ops:
        answer = await ops.http.post("/clients/b%2Fc/disconnect", json={"reason": "maintenance"})
        assert (answer.status_code, answer.json()) == (200, {"client_id": "b/c", "disconnected": True})
        assert (await ops.http.post("/clients/a/disconnect")).status_code == 200
        assert [client.closed for client in ops.server.clients] == [["closed by an operator"], ["maintenance"]]


async def test_send() -> None:
    async with open_ops(one()) as ops:
        plain = await ops.http.post("/clients/a/send", json={"payload": "grüße", "type": "command"})
        laned = await ops.http.post("/clients/a/send", json={"payload_base64": "/wA=", "lane": "bulk"})
        (lane, first), (other, second) = ops.server.clients[0].sent
        assert (lane, first.type, first.payload) == ("", MessageType.COMMAND, "grüße".encode())
        assert (other, second.type, second.payload) == ("bulk", MessageType.EVENT, b"\xff\x00")
        assert plain.json() == {"message_id": first.id.hex()}
        assert laned.json() == {"message_id": second.id.hex()}


async def test_send_gives_up_when_the_outbox_stays_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "SEND_PATIENCE", 0.05)
    async with open_ops(one()) as ops:
        ops.server.clients[0].waits = trio.Event()
        answer = await ops.http.post("/clients/a/send", json={"payload": "x"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "SlowConsumer")
        assert ops.server.clients[0].waiting == 0


async def test_request() -> None:
    async with open_ops(one()) as ops:
        text = (await ops.http.post("/clients/a/request", json={"payload": "abc", "type": "query", "ack_timeout": 2})).json()
        assert text.pop("latency_ms") >= 0
        message = ops.server.clients[0].sent[0][1]
        assert text == {
            "message_id": message.id.hex(),
            "status": "success",
            "result": "cba",
            "result_base64": base64.b64encode(b"cba").decode(),
        }
        binary = (await ops.http.post("/clients/a/request", json={"payload_base64": "/w==", "lane": "x"})).json()
        assert (binary["result"], binary["result_base64"]) == (None, "/w==")


async def test_broadcast() -> None:
    async with open_ops(FakeServer([FakeClient("a"), FakeClient("binary")])) as ops:
        quiet = (await ops.http.post("/broadcast", json={"payload": "x", "to": None, "ack_timeout": None})).json()
        assert (quiet["sent"], quiet["acked"], quiet["failed"]) == (2, {}, {})
        asked = (
            await ops.http.post("/broadcast", json={"payload": "x", "to": ["a", "binary", "gone"], "ack_timeout": 1.5})
        ).json()
        assert asked["acked"] == {
            "a": {"result": "ok", "result_base64": "b2s="},
            "binary": {"result": None, "result_base64": "/w=="},
        }
        assert asked["failed"] == {"gone": {"type": "ClientNotConnected", "message": "client 'gone' is not connected"}}
        assert asked["message_id"] == ops.server.broadcasts[1][0].id.hex()
        assert [(to, timeout) for _, to, timeout in ops.server.broadcasts] == [(None, None), (["a", "binary", "gone"], 1.5)]


async def test_drain_answers_at_once_and_begins_once() -> None:
    async with open_ops() as ops:
        answer = await ops.http.post("/drain", json={"grace": 5, "retry_after": 2.5})
        assert (answer.status_code, answer.json()) == (202, {"draining": True})
        assert (await ops.http.get("/readyz")).status_code == 503
        assert (await ops.http.post("/drain")).status_code == 202
        assert ops.server.drains == [(5, 2.5)]


async def test_a_drain_that_fails_is_logged_and_can_be_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with open_ops() as ops:
        ops.server.fails = RuntimeError("stuck")
        await ops.http.post("/drain")
        assert "draining failed" in caplog.text
        ops.server.fails, ops.server.draining = None, False
        await ops.http.post("/drain")
        assert ops.server.drains == [(30.0, 1.0), (30.0, 1.0)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("lane name too long"), 400),
        (ConnectionLost("gone"), 409),
        (ConnectionClosed("closed"), 409),
        (LaneLimitReached("16"), 409),
        (HandlerFailed("no"), 502),
        (SlowConsumer("full"), 503),
        (WaitingTableFull("full"), 503),
        (AckTimeout("late"), 504),
        (LocalProtocolError("odd"), 500),
    ],
)
@pytest.mark.parametrize("path", ["/clients/a/send", "/clients/a/request"])
async def test_each_error_of_the_library_has_its_status(path: str, error: Exception, status: int) -> None:
    async with open_ops(one()) as ops:
        ops.server.clients[0].fails = error
        answer = await ops.http.post(path, json={"payload": "x"})
        assert answer.status_code == status
        assert answer.json() == {"error": {"type": type(error).__name__, "message": str(error)}}


async def test_unknown_clients_and_large_payloads() -> None:
    async with open_ops(one()) as ops:
        for command in ("disconnect", "send", "request"):
            answer = await ops.http.post(f"/clients/nobody/{command}", json={"payload": "x"} if command != "disconnect" else {})
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "ClientNotConnected")
        answer = await ops.http.post("/clients/a/send", json={"payload": "x" * (1024 * 1024 + 1)})
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "PayloadTooLarge")
        largest = base64.b64encode(bytes(1024 * 1024)).decode()
        assert (await ops.http.post("/clients/a/send", json={"payload_base64": largest})).status_code == 200


SEND = "/clients/a/send"
REQUEST = "/clients/a/request"


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (SEND, {}, "payload: "),
        (SEND, {"payload": "x", "payload_base64": "eA=="}, "payload: "),
        (SEND, {"payload": 5}, "payload: "),
        (SEND, {"payload": None}, "payload: "),
        (SEND, {"payload": "\ud800"}, "payload: "),
        (SEND, {"payload_base64": "%%%"}, "payload_base64: "),
        (SEND, {"payload_base64": "é"}, "payload_base64: "),
        (SEND, {"payload": "x", "type": "shout"}, "type: expected one of event, command, query"),
        (SEND, {"payload": "x", "type": ["event"]}, "type: "),
        (SEND, {"payload": "x", "lane": 7}, "lane: "),
        (SEND, {"payload": "x", "ack_timeout": 1}, "ack_timeout: there is no such field"),
        (REQUEST, {"payload": "x", "ack_timeout": 0}, "ack_timeout: "),
        (REQUEST, {"payload": "x", "ack_timeout": True}, "ack_timeout: "),
        (REQUEST, {"payload": "x", "ack_timeout": "soon"}, "ack_timeout: "),
        (REQUEST, {"payload": "x", "ack_timeout": "2"}, "ack_timeout: "),
        (REQUEST, {"payload": "x", "ack_timeout": 301}, "ack_timeout: expected a number from 0.001 to 300"),
        (REQUEST, {"payload": "x", "colour": "red"}, "colour: "),
        ("/broadcast", {"payload": "x", "to": "a"}, "to: "),
        ("/broadcast", {"payload": "x", "to": [1]}, "to: "),
        ("/broadcast", {"payload": "x", "ack_timeout": -1}, "ack_timeout: "),
        ("/clients/a/disconnect", {"reason": "x" * 201}, "reason: expected text of at most 200 characters"),
        ("/clients/a/disconnect", {"reasn": "x"}, "reasn: "),
        ("/drain", {"grace": -1}, "grace: "),
        ("/drain", {"grace": "1e999"}, "grace: "),
        ("/drain", {"retry_after": [1]}, "retry_after: "),
    ],
)
async def test_a_wrong_field_is_refused_by_name(path: str, body: dict[str, Any], named: str) -> None:
    async with open_ops(one()) as ops:
        answer = await ops.http.post(path, content=json.dumps(body))
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(named)
        assert ops.server.untouched


@pytest.mark.parametrize(
    "body",
    [b"{", b"payload=x", b"\xff\xfe", b"[]", b'"x"', b"5", b"[" * 100_000, b'{"payload": NaN}', b"9" * 5000, b'{"a":1}{"b":2}'],
)
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async with open_ops(one()) as ops:
        answer = await ops.http.post("/drain", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("the body is not")
        assert ops.server.drains == []


async def test_a_caller_that_goes_away_cancels_its_request() -> None:
    async with open_ops(one()) as ops:
        client = ops.server.clients[0]
        client.waits = trio.Event()
        stream = await ops.dial()
        body = b'{"payload": "x"}'
        head = f"POST /clients/a/request HTTP/1.1\r\nHost: x\r\nAuthorization: {BEARER['Authorization']}\r\nContent-Length: 16\r\n\r\n"
        await stream.send_all(head.encode() + body)
        await until(lambda: client.waiting == 1)
        await stream.aclose()
        await until(lambda: client.waiting == 0)
