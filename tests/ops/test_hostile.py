"""The guard: whatever one connection does, it ends alone. Other connections, the ops side and the program around it go on."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio

from tests.ops.harness import BEARER, FakeClient, FakeServer, OpsSide, open_ops, open_wire, read_all, until

pytestmark = pytest.mark.realtime

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
AUTHORIZED = f"Authorization: {BEARER['Authorization']}\r\n".encode()


def priority_frames(count: int) -> bytes:
    """PRIORITY frames (RFC 9113 section 6.3) for streams that do not exist: Hypercorn remembers each, up to a thousand."""
    return b"".join(struct.pack(">BHBBIIB", 0, 5, 2, 0, 2 * number + 1, 0, 15) for number in range(count))


async def still_fine(ops: OpsSide) -> None:
    """The ops side answers, on a connection from before and on a new one, and nobody has ended it."""
    assert (await ops.http.get("/clients")).status_code == 200
    async with open_wire(ops, "/healthz") as wire:
        await wire.until("HTTP/1.1 200")
    assert not ops.ended.is_set()


async def test_two_thousand_priority_frames_end_their_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    async with open_ops() as ops, open_wire(ops, "/events") as bystander:
        await bystander.until(": events follow\n\n")
        assert (await ops.http.get("/healthz")).status_code == 200
        for _ in range(3):
            async with await ops.dial() as stream:
                await stream.send_all(PREFACE + SETTINGS + priority_frames(2000))
                await read_all(stream)
        await still_fine(ops)
        ops.server.hub.emit(ops.server.connect_event("a"))
        await bystander.until("event: connect")
    assert "a connection failed and was closed" in caplog.text
    assert "TooManyStreamsError" in caplog.text
    assert "failed=3" in caplog.text


GARBAGE = {
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "a TLS client hello": bytes.fromhex("16030100c8010000c40303") + bytes(range(200)),
    "no line ends": b"A" * 100_000,
    "no method": b"\r\n\r\n\r\n",
    "a version of its own": b"GET / HTTP/9.9\r\n\r\n",
    "no host": b"GET /clients HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /clients HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "too much head": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: " + b"z" * 30_000 + b"\r\n\r\n",
    "too many heads": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
    "a path of bytes": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a whole URL": b"GET http://localhost/clients HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two lengths": b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a negative length": b"POST /drain HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    "a bad chunk": b"POST /drain HTTP/1.1\r\nHost: a\r\n" + AUTHORIZED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an end within the body": b"POST /drain HTTP/1.1\r\nHost: a\r\n" + AUTHORIZED + b"Content-Length: 100\r\n\r\nhello",
    "more after a request": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n\x00\x01\x02",
    "a WebSocket": b"GET /events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\xff\xff\xff\xff",
    "half a WebSocket": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "an upgrade with bad settings": b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: %%%\r\n\r\n",
    "HTTP/2 and noise": PREFACE + bytes(range(256)) * 20,
    "HTTP/2 with a huge frame": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "HTTP/2 with data for nobody": PREFACE + SETTINGS + b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x",
    "HTTP/2 with no path": PREFACE + SETTINGS + b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82",
    "HTTP/2 that depends on itself": PREFACE + SETTINGS + struct.pack(">BHBBIIB", 0, 5, 2, 0, 1, 1, 15),
    "HTTP/2 pings": PREFACE + SETTINGS + (b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)) * 5000,
    "HTTP/2 settings": PREFACE + SETTINGS * 5000,
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_ends_its_connection_only(name: str) -> None:
    async with open_ops(keep_alive=0.3, request_timeout=0.3) as ops:
        async with await ops.dial() as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send_what_is_taken, stream, GARBAGE[name])
            await read_all(stream)
            nursery.cancel_scope.cancel()
        async with await ops.dial() as stream:
            await _send_what_is_taken(stream, GARBAGE[name])
            # And gone, without waiting for an answer.
        await still_fine(ops)
        assert ops.server.drains == []


async def _send_what_is_taken(stream: trio.SocketStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        return  # It was refused before its end.


class H2Client:
    """HTTP/2 without TLS, by prior knowledge."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()
        self.events: list[Any] = []

    async def get(self, path: str) -> int:
        number = self.h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "localhost")]
        self.h2.send_headers(number, head, end_stream=True)
        await self.flush()
        return number

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def until(self, kind: type[h2.events.Event], number: int) -> Any:
        while True:
            for event in self.events:
                if isinstance(event, kind) and getattr(event, "stream_id", 0) == number:
                    return event
            data = await self.stream.receive_some()
            assert data, "the connection has ended"
            self.events += self.h2.receive_data(data)
            await self.flush()


async def test_http2_works_and_a_stream_that_is_reset_leaves_no_subscriber() -> None:
    async with open_ops() as ops, await ops.dial() as stream:
        client = H2Client(stream)
        events = await client.get("/events")
        health = await client.get("/healthz")
        await client.until(h2.events.StreamEnded, health)
        await client.until(h2.events.DataReceived, events)
        ops.server.hub.emit(ops.server.connect_event("a"))
        await until(lambda: len(ops.server.hub) == 1)
        client.h2.reset_stream(events)
        await client.flush()
        await until(lambda: len(ops.server.hub) == 0)
        again = await client.get("/clients")
        await client.until(h2.events.StreamEnded, again)


async def test_an_http2_client_that_opens_no_window_is_cut_off() -> None:
    clients = [FakeClient(f"client-{number}") for number in range(1000)]
    async with open_ops(FakeServer(clients), request_timeout=0.3, keep_alive=0.3) as ops, await ops.dial() as stream:
        client = H2Client(stream)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
        await client.get("/clients?limit=1000")
        await read_all(stream)
        await still_fine(ops)


async def test_a_head_that_never_ends_is_cut_off() -> None:
    async with open_ops(keep_alive=0.3) as ops, await ops.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(trio.BrokenResourceError), trio.fail_after(10):
            while True:  # A byte now and then does not keep it open.
                await stream.send_all(b"a: b\r\n")
                await trio.sleep(0.02)
        await still_fine(ops)


async def test_connections_that_say_nothing_are_closed_and_make_room() -> None:
    async with open_ops(keep_alive=0.3, max_connections=3) as ops:
        silent = [await ops.dial() for _ in range(3)]
        for stream in silent:
            assert await read_all(stream) == b""
            await stream.aclose()
        await still_fine(ops)


async def test_a_body_that_never_ends_is_refused() -> None:
    async with open_ops(request_timeout=0.2) as ops, await ops.dial() as stream:
        await stream.send_all(b"POST /drain HTTP/1.1\r\nHost: a\r\n" + AUTHORIZED + b"Content-Length: 10\r\n\r\n{")
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"RequestTimeout" in answer
        await still_fine(ops)
        assert ops.server.drains == []


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_and_the_refusal_arrives(chunked: bool) -> None:
    async with open_ops(max_body=100_000) as ops:
        body = b'{"reason": "' + b"x" * 3_000_000 + b'"}'

        async def pieces() -> Any:
            for start in range(0, len(body), 50_000):
                yield body[start : start + 50_000]

        answer = await ops.http.post("/clients/a/disconnect", content=pieces() if chunked else body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "BodyTooLarge")
        await still_fine(ops)


async def test_a_long_body_that_nobody_reads_does_not_jam_the_connection() -> None:
    # Hypercorn queues ten pieces for a handler and then waits, also for one that has answered already.
    async with open_ops(max_connections=2) as ops:
        for path, headers, status in (
            ("/nothing", {}, 404),
            ("/drain", {"Authorization": "Bearer wrong"}, 401),
            ("/clients", {}, 405),
        ):
            for _ in range(3):
                answer = await ops.http.post(path, content=bytes(2_000_000), headers=headers)
                assert answer.status_code == status
        await still_fine(ops)


async def test_one_who_does_not_read_is_cut_off() -> None:
    clients = [FakeClient(f"client-{number}") for number in range(1000)]
    async with open_ops(FakeServer(clients), request_timeout=0.3) as ops, await ops.dial() as stream:
        await stream.send_all(b"GET /clients?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        await trio.sleep(1)
        # What the buffers hold comes, and then the end: not the answers to a hundred requests.
        assert (await read_all(stream)).count(b"HTTP/1.1 200") < 100
        await still_fine(ops)


async def test_one_connection_too_many_is_told_so() -> None:
    async with open_ops(max_connections=2) as ops:
        async with open_wire(ops, "/healthz") as first, open_wire(ops, "/healthz") as second:
            await first.until("HTTP/1.1 200")
            await second.until("HTTP/1.1 200")
            async with await ops.dial() as third:
                answer = await read_all(third)
                assert answer.startswith(b"HTTP/1.1 503")
                assert b"TooManyConnections" in answer
            await first.get("/healthz")
            await first.until("HTTP/1.1 200")
        # The places are free once the others are gone, long before their keep-alive time.
        await trio.sleep(0.1)
        for _ in range(5):
            async with open_wire(ops, "/healthz") as wire:
                await wire.until("HTTP/1.1 200")
            await trio.sleep(0.02)
