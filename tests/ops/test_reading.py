"""What can be read, over a real socket, and how a request is refused."""

from __future__ import annotations

import json

import httpx2
import pytest

from quicflow_trio.observe.history import SessionChange
from quicflow_trio.observe.metrics import MetricsSnapshot
from tests.ops.harness import BEARER, FakeClient, FakeServer, open_ops

pytestmark = pytest.mark.realtime

READING = ["/metrics", "/metrics.json", "/samples", "/clients", "/clients/a", "/openapi.json"]
COMMANDS = ["/clients/a/disconnect", "/clients/a/send", "/clients/a/request", "/broadcast", "/drain"]


async def test_health_and_readiness() -> None:
    async with open_ops() as ops:
        health = await ops.http.get("/healthz")
        assert health.status_code == 200
        assert health.json().keys() == {"status", "uptime_seconds", "version"}
        assert health.json()["status"] == "ok"
        assert health.json()["uptime_seconds"] >= 0
        ready = await ops.http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"ready": True})
        ops.server.draining = True
        ready = await ops.http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": "draining"})


async def test_metrics_for_prometheus_and_as_json() -> None:
    async with open_ops(FakeServer([FakeClient("a")], figures={"messages_sent": 7})) as ops:
        text = await ops.http.get("/metrics")
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "quicflow_connected_clients 1.0" in text.text
        assert "quicflow_messages_sent_total 7.0" in text.text
        plain = await ops.http.get("/metrics.json")
        assert plain.headers["content-type"] == "application/json"
        assert plain.json() == json.loads(json.dumps(MetricsSnapshot(connected_clients=1, messages_sent=7).as_json()))


async def test_clients_and_one_of_them() -> None:
    server = FakeServer([FakeClient("a"), FakeClient("b/c ü", 1)], gone=["left"])
    server.changes["left"] = (SessionChange(1.0, "connected", "127.0.0.1:9"), SessionChange(2.0, "closed", "bye"))
    async with open_ops(server) as ops:
        listed = (await ops.http.get("/clients")).json()
        assert [client["client_id"] for client in listed["clients"]] == ["a", "b/c ü"]
        one = await ops.http.get("/clients/b%2Fc%20%C3%BC")
        assert one.json() == {**listed["clients"][1], "history": []}
        left = (await ops.http.get("/clients/left")).json()
        assert left["state"] == "gone"
        assert left["bytes_sent"] is left["remote_address"] is None
        assert left["history"] == [
            {"at": 1.0, "change": "connected", "detail": "127.0.0.1:9"},
            {"at": 2.0, "change": "closed", "detail": "bye"},
        ]
        unknown = await ops.http.get("/clients/nobody")
        assert unknown.status_code == 404
        message = "no such client: 'nobody' is neither connected nor one that has left"
        assert unknown.json() == {"error": {"type": "ClientNotConnected", "message": message}}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/clients?limit=0", "limit"),
        ("/clients?limit=1001", "limit"),
        ("/clients?limit=1.5", "limit"),
        ("/clients?limit=nan", "limit"),
        ("/clients?offset=-1", "offset"),
        ("/clients?offset=x", "offset"),
        ("/clients?state=dead", "state"),
        ("/clients?sort=colour", "sort"),
        ("/clients?sort=--state", "sort"),
        ("/clients?fliter=x", "fliter"),
        ("/samples?seconds=901", "seconds"),
        ("/samples?minutes=1", "minutes"),
        ("/events?kind=birthday", "kind"),
        ("/events?clientid=a", "clientid"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(path: str, name: str) -> None:
    async with open_ops() as ops:
        answer = await ops.http.get(path)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "BadRequest"
        assert answer.json()["error"]["message"].startswith(f"{name}: ")


async def test_paths_and_methods_that_do_not_exist() -> None:
    async with open_ops() as ops:
        for path in ("/nothing", "/clients/", "/clients/a/b", "/healthz/", "/clients/a/kill"):
            answer = await ops.http.get(path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFound"), path
        for method, path in (("POST", "/metrics"), ("GET", "/drain"), ("DELETE", "/clients/a"), ("PUT", "/broadcast")):
            answer = await ops.http.request(method, path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (405, "MethodNotAllowed")
            assert answer.headers["allow"]


async def test_a_head_is_answered_without_a_body() -> None:
    async with open_ops() as ops:
        for path in ("/healthz", "/clients", "/events", "/"):
            answer = await ops.http.head(path)
            assert (answer.status_code, answer.content) == (200, b"")
        assert len(ops.server.hub) == 0


async def test_answers_are_for_operators_and_no_cache() -> None:
    async with open_ops() as ops:
        for path in ("/clients", "/nothing", "/healthz", "/"):
            headers = (await ops.http.get(path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in headers
            assert "server" not in headers


async def test_without_a_token_this_machine_reads_and_nobody_commands() -> None:
    async with open_ops(FakeServer([FakeClient("a")]), token=None) as ops:
        async with httpx2.AsyncClient(base_url=ops.url) as http:
            for path in READING:
                assert (await http.get(path)).status_code == 200
            for path in COMMANDS:
                answer = await http.post(path, headers=BEARER)
                assert answer.status_code == 403
                assert "OpsConfig(token=...)" in answer.json()["error"]["message"]
        assert ops.server.drains == []


@pytest.mark.parametrize("shown", [{}, {"Authorization": "Bearer guess"}, {"Authorization": "Basic b3Blbi1zZXNhbWU="}])
async def test_without_the_right_token_nobody_commands(shown: dict[str, str]) -> None:
    async with open_ops(FakeServer([FakeClient("a")])) as ops:
        async with httpx2.AsyncClient(base_url=ops.url, headers=shown) as http:
            for path in COMMANDS:
                answer = await http.post(path, json={"payload": "x"})
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                error = answer.json()["error"]
                assert error["type"] == "Unauthorized"
                assert ("the token given is not the server's" in error["message"]) == bool(shown)
            for path in READING:
                assert (await http.get(path)).status_code == 200
        assert ops.server.untouched


@pytest.mark.parametrize("header", [{"Host": "evil.example"}, {"X-Forwarded-For": "192.0.2.1"}, {"Sec-Fetch-Site": "cross-site"}])
async def test_what_does_not_come_from_this_machine_wants_the_token_to_read(header: dict[str, str]) -> None:
    async with open_ops(FakeServer([FakeClient("a")])) as ops, httpx2.AsyncClient(base_url=ops.url, headers=header) as http:
        for path in (*READING, "/events"):
            assert (await http.get(path)).status_code == 401
        for path in ("/healthz", "/readyz", "/"):
            assert (await http.get(path)).status_code == 200
        for path in READING:
            assert (await http.get(path, headers=BEARER)).status_code == 200


async def test_a_defect_is_a_500_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async with open_ops() as ops:
        ops.server.fails = ZeroDivisionError("a secret")
        answer = await ops.http.get("/metrics")
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "InternalError"
        assert "secret" not in answer.text
        ops.server.fails = None
        assert (await ops.http.get("/metrics")).status_code == 200
    assert "a request failed by a defect" in caplog.text
    assert "a secret" in caplog.text
