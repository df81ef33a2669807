"""A stand-in for a server's ops side: HTTP in a thread, answers from a table that a test changes as it likes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

__all__ = ["OpsStub", "client_json"]

Answer = tuple[int, dict[str, Any]]


def client_json(client_id: str, *, state: str = "connected", **figures: object) -> dict[str, Any]:
    """Return a client as the ops side describes it."""
    counters = (
        *("messages_sent", "messages_received", "messages_failed", "bytes_sent", "bytes_received", "requests_waiting"),
        *("handlers_running", "outbox_messages", "outbox_bytes", "held_bytes", "lanes"),
    )
    gone = state == "gone"
    return {
        "client_id": client_id,
        "state": state,
        "identity": None,
        "protocol": "quicflow/2",
        "remote_address": None if gone else "127.0.0.1:50000",
        "connected_at": None if gone else time.time() - 3725,
        "last_heartbeat": None if gone else time.time() - 5,
        "rtt_ms": None if gone else 0.42,
        **dict.fromkeys(counters, None if gone else 0),
        **figures,
    }


class OpsStub:
    """Answers as the ops side does.

    Attributes:
        clients: what it lists.
        metrics: its figures.
        samples: its last seconds.
        events: records of the stream, as bytes, sent to each who listens; `wake` after a change.
        answers: answers to commands by method and path; a number alone is a status without a body.
        raw: bytes to answer everything with, instead of HTTP of its own.
        calls: method, path with its query, and body of each request.
        token: what a command needs.
    """

    def __init__(self) -> None:
        self.clients: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {"connected_clients": 0, "uptime_seconds": 7.0, "timestamp": time.time()}
        self.samples: list[dict[str, Any]] = []
        self.events: list[bytes] = []
        self.answers: dict[tuple[str, str], Answer] = {}
        self.raw: bytes | None = None
        self.ready = True
        self.calls: list[tuple[str, str, Any]] = []
        self.token = "secret"
        self.needs_token = False
        self.stopped = threading.Event()
        self._changed = threading.Condition()
        self._round = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self.stopped.set()
        self._wake()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def emit(self, kind: str, **data: object) -> None:
        """Send an event to whoever listens, and to whoever will."""
        record = {"kind": kind, "at": 1_700_000_000.5, "client_id": "", **data}
        self.events.append(f"id: {len(self.events)}\nevent: {kind}\ndata: {json.dumps(record)}\n\n".encode())
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def hang_up(self) -> None:
        """End the streams that are open."""
        self._round += 1
        self._wake()

    def answer(self, method: str, target: str, body: Any, token: str | None) -> Answer:
        url = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if found := self.answers.get((method, url.path)):
            return found
        if (method == "POST" or self.needs_token) and token != f"Bearer {self.token}":
            return 401, {"error": {"type": "Unauthorized", "message": "this needs the bearer token"}}
        match url.path:
            case "/healthz":
                return 200, {"status": "ok", "uptime_seconds": 7.0, "version": "0.1.0"}
            case "/readyz":
                return (200, {"ready": True}) if self.ready else (503, {"ready": False, "reason": "draining"})
            case "/metrics.json":
                return 200, self.metrics
            case "/samples":
                return 200, {"interval": 1.0, "samples": self.samples}
            case "/clients":
                return 200, self._page(query)
        for client in self.clients:
            if url.path == f"/clients/{client['client_id']}":
                return 200, client | {"history": self.history}
        return 404, {"error": {"type": "ClientNotConnected", "message": f"nothing is known of {url.path}"}}

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        wanted = query.get("filter", "").lower()
        state = query.get("state", "connected")
        found = [each for each in self.clients if state in ("all", each["state"]) and wanted in each["client_id"].lower()]
        sort = query.get("sort", "connected_at")
        found.sort(key=lambda each: each[sort.removeprefix("-")] or 0, reverse=sort.startswith("-"))
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", 100))
        page = found[offset : offset + limit]
        return {"total": len(found), "offset": offset, "limit": limit, "timestamp": time.time(), "clients": page}

    def _stream(self, write: Callable[[bytes], object]) -> None:
        sent, mine = 0, self._round
        while not self.stopped.is_set() and mine == self._round:
            for record in self.events[sent:]:
                write(record)
                sent += 1
            with self._changed:
                self._changed.wait_for(partial(self._has_more, sent, mine), 0.2)

    def _has_more(self, sent: int, mine: int) -> bool:
        return len(self.events) > sent or self.stopped.is_set() or mine != self._round

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if stub.raw is not None:
                    self.wfile.write(stub.raw)
                    self.close_connection = True
                elif self.path.partition("?")[0] == "/events" and not stub.needs_token:
                    self.stream()
                else:
                    self.plain()

            do_POST = do_GET  # noqa: N815 - the library's name

            def plain(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                stub.calls.append((self.command, self.path, body))
                status, answer = stub.answer(self.command, self.path, body, self.headers.get("Authorization"))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def stream(self) -> None:
                stub.calls.append((self.command, self.path, None))
                self.close_connection = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    stub._stream(self.wfile.write)
                except OSError:
                    # The reader has left.
                    return

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        return Handler
