"""Events over HTTP: they come, what is lost is said, and nobody stays behind as a subscriber."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio.observe.events import EVENTS, DisconnectEvent, DisconnectReason, MessageSentEvent
from quicflow_trio.ops.events import BUFFER, EventFeed, EventQuery
from tests.ops.harness import FakeServer, OpsSide, open_ops, open_wire, records, until


class Reader:
    """Takes what an answer writes; stands still while `reading` is not set."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.reading = trio.Event()
        self.reading.set()

    async def send(self, message: Any) -> None:
        self.parts.append(message)
        self.times.append(trio.current_time())
        await self.reading.wait()

    @property
    def text(self) -> str:
        return b"".join(part.get("body", b"") for part in self.parts).decode()


async def receive() -> Any:
    await trio.sleep_forever()


def query(*kinds: Any, client_id: str | None = None) -> EventQuery:
    return EventQuery(frozenset(kinds), client_id)


def everything() -> EventQuery:
    return query(*EVENTS)


SCOPE: Any = {"type": "http", "method": "GET"}


async def test_an_event_is_written_at_once_and_further_ones_together(autojump_clock: MockClock) -> None:
    server = FakeServer()
    feed = EventFeed(cast(Any, server), 1)
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.answer(everything()), SCOPE, receive, reader.send)
        await trio.sleep(1)
        server.hub.emit(server.connect_event("a"))
        await trio.sleep(0.01)
        assert len(reader.parts) == 3, "head, opening comment, the event"
        for name in "bcd":
            server.hub.emit(server.connect_event(name))
            await trio.sleep(0.02)
        await trio.sleep(0.2)
        assert len(reader.parts) == 4, "a write for each would cost more than the messages"
        nursery.cancel_scope.cancel()
    found = records(reader.text)
    assert [(record["id"], record["event"]) for record in found] == [(str(number), "connect") for number in (1, 2, 3, 4)]
    assert json.loads(found[0]["data"]) == server.connect_event("a").as_json() | {"remote_address": ["127.0.0.1", 4]}
    assert (feed.open, len(server.hub)) == (0, 0)


async def test_only_the_kinds_and_the_client_that_were_asked_for(autojump_clock: MockClock) -> None:
    server = FakeServer()
    reader = Reader()
    gone = DisconnectEvent(at=2.0, client_id="a", reason=DisconnectReason.NORMAL, detail="bye\nevent: forged", by_peer=True)
    async with trio.open_nursery() as nursery:
        feed = EventFeed(cast(Any, server), 1)
        nursery.start_soon(feed.answer(query(DisconnectEvent, client_id="a")), SCOPE, receive, reader.send)
        await trio.sleep(1)
        for event in (server.connect_event("a"), gone, DisconnectEvent(**{**_fields(gone), "client_id": "b"})):
            server.hub.emit(event)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (record,) = records(reader.text)
    assert record["event"] == "disconnect"
    assert json.loads(record["data"])["detail"] == "bye\nevent: forged"


def _fields(event: DisconnectEvent) -> dict[str, Any]:
    plain = event.as_json() | {"reason": event.reason}
    del plain["kind"]
    return plain


async def test_silence_is_broken_by_a_comment(autojump_clock: MockClock) -> None:
    server = FakeServer()
    reader = Reader()
    async with trio.open_nursery() as nursery:
        # Events of another client come all the time; to this reader that is silence too.
        nursery.start_soon(
            EventFeed(cast(Any, server), 1).answer(query(DisconnectEvent, client_id="a")), SCOPE, receive, reader.send
        )
        for _ in range(47):
            await trio.sleep(1)
            server.hub.emit(DisconnectEvent(at=1, client_id="b", reason=DisconnectReason.NORMAL, detail="", by_peer=True))
        nursery.cancel_scope.cancel()
    assert reader.text.count(": nothing happened\n\n") == 3
    assert records(reader.text) == []


async def test_what_was_dropped_is_said(autojump_clock: MockClock) -> None:
    server = FakeServer()
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EventFeed(cast(Any, server), 1).answer(everything()), SCOPE, receive, reader.send)
        await trio.sleep(1)
        reader.reading = trio.Event()
        server.hub.emit(server.connect_event("first"))
        await trio.sleep(1)
        for number in range(BUFFER + 44):
            server.hub.emit(server.connect_event(str(number)))
        reader.reading.set()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    found = records(reader.text)
    dropped = [json.loads(record["data"]) for record in found if record["event"] == "dropped"]
    assert dropped == [{"dropped": 44}]
    assert len(found) == 1 + BUFFER + 1


async def test_a_flood_is_read_at_a_pace_that_leaves_time_for_the_messages(autojump_clock: MockClock) -> None:
    server = FakeServer()
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EventFeed(cast(Any, server), 1).answer(query(MessageSentEvent)), SCOPE, receive, reader.send)
        for _ in range(100):
            await trio.sleep(0.01)
            for _ in range(200):
                server.hub.emit(server.sent_event("a"))
        nursery.cancel_scope.cancel()
    # 20,000 events in a second, of which 128 go out each tenth, and 256 stay in the buffer.
    assert 20_000 - server.hub.dropped < 10 * 128 + 256 + 200
    writes = [time for time, part in zip(reader.times, reader.parts, strict=True) if len(part.get("body", b"")) > 100]
    assert all(later - earlier > 0.09 for earlier, later in pairwise(writes))


async def test_at_the_end_what_was_gathered_is_written_and_the_answer_closed(autojump_clock: MockClock) -> None:
    server = FakeServer()
    feed = EventFeed(cast(Any, server), 1)
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.answer(everything()), SCOPE, receive, reader.send)
        await trio.sleep(1)
        server.hub.emit(server.connect_event("a"))
        await trio.sleep(0.01)
        server.hub.emit(server.connect_event("b"))
        await trio.sleep(0.01)
        feed.end()
    assert [json.loads(record["data"])["client_id"] for record in records(reader.text)] == ["a", "b"]
    assert reader.parts[-1]["more_body"] is False


async def test_the_answer_ends_with_the_server_of_the_events(autojump_clock: MockClock) -> None:
    server = FakeServer()
    reader = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EventFeed(cast(Any, server), 1).answer(everything()), SCOPE, receive, reader.send)
        await trio.sleep(1)
        server.hub.emit(server.connect_event("a"))
        server.hub.close()
    assert len(records(reader.text)) == 1
    assert reader.parts[-1]["more_body"] is False


async def subscribers(ops: OpsSide, number: int) -> None:
    await until(lambda: len(ops.server.hub) == number)


@pytest.mark.realtime
async def test_events_come_over_http() -> None:
    async with open_ops() as ops:
        async with open_wire(ops, "/events") as wire:
            head = await wire.until("\r\n\r\n")
            assert head.startswith("HTTP/1.1 200")
            assert "content-type: text/event-stream" in head.lower()
            await wire.until(": events follow\n\n")
            ops.server.hub.emit(ops.server.sent_event("silent"))
            ops.server.hub.emit(ops.server.connect_event("a"))
            await wire.until("id: 1\nevent: connect\ndata: ")
            assert json.loads(await wire.until("\n\n"))["client_id"] == "a"
        async with open_wire(ops, "/events?kind=message_sent&kind=connect&client_id=b") as wire:
            await wire.until(": events follow\n\n")
            for event in (ops.server.connect_event("a"), ops.server.sent_event("b")):
                ops.server.hub.emit(event)
            await wire.until("id: 1\nevent: message_sent\ndata: ")


@pytest.mark.realtime
async def test_a_reader_that_goes_away_leaves_no_subscriber() -> None:
    async with open_ops() as ops:
        for _ in range(3):
            async with open_wire(ops, "/events"):
                await subscribers(ops, 1)
            await subscribers(ops, 0)


@pytest.mark.realtime
async def test_a_reader_that_asked_for_more_on_the_same_connection_leaves_none_either() -> None:
    # Hypercorn reads no further while a request waits behind the stream, and does not see the end; the next write does.
    async with open_ops() as ops:
        async with open_wire(ops, "/events") as wire:
            await wire.get("/healthz")
            await subscribers(ops, 1)
        with trio.move_on_after(10):
            while len(ops.server.hub):
                ops.server.hub.emit(ops.server.connect_event("a"))
                await trio.sleep(0.02)
        assert len(ops.server.hub) == 0


@pytest.mark.realtime
async def test_one_stream_too_many_is_refused_and_a_place_is_free_again() -> None:
    async with open_ops(max_streams=2) as ops:
        async with open_wire(ops, "/events") as first:
            await first.until(": events follow")
            async with open_wire(ops, "/events") as second:
                await second.until(": events follow")
                answer = await ops.http.get("/events")
                assert (answer.status_code, answer.json()["error"]["type"]) == (503, "TooManyStreams")
                assert len(ops.server.hub) == 2
            await subscribers(ops, 1)
            async with open_wire(ops, "/events") as third:
                await third.until("HTTP/1.1 200")
        assert (await ops.http.get("/healthz")).status_code == 200


@pytest.mark.realtime
async def test_the_streams_end_properly_when_the_ops_side_does() -> None:
    async with open_ops() as ops, open_wire(ops, "/events") as wire:
        await wire.until(": events follow\n\n")
        ops.scope.cancel()
        await wire.until("\r\n0\r\n\r\n")  # The last chunk of a chunked answer, and not a connection cut off.
        await ops.ended.wait()
        assert len(ops.server.hub) == 0
