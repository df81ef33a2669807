"""Every kind of event is seen when real traffic causes it, on both sides; no subscriber can slow or break anything."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import FrozenInstanceError
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AckTimeout,
    AckTimeoutEvent,
    BroadcastEvent,
    Client,
    ClientConfig,
    ConnectEvent,
    DisconnectEvent,
    DisconnectReason,
    ErrorEvent,
    Event,
    HandlerFailed,
    HeartbeatTimeoutEvent,
    Message,
    MessageReceivedEvent,
    MessageSentEvent,
    MessageType,
    ReconnectEvent,
    Request,
    Router,
    Server,
    StateChangeEvent,
)
from quicflow_trio.observe.events import EVENTS, EventHub
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import PongFrame
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import open_raw
from tests.messages.harness import Gate

E = TypeVar("E", bound=Event)


class Record:
    """Every event of one side, as it comes."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        (event,) = self.of(kind)
        return event

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def recording(side: Server | Client, kinds: Sequence[type[Event]] | None = None) -> AsyncIterator[Record]:
    record = Record()
    async with trio.open_nursery() as nursery, side.open_events(max_buffer_size=10_000, kinds=kinds) as stream:

        async def read() -> None:
            async for event in stream:
                record.events.append(event)

        nursery.start_soon(read)
        yield record
        nursery.cancel_scope.cancel()


# -- each kind -----------------------------------------------------------------------------------------------------------
async def test_a_client_comes_and_goes(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, recording(machine.server) as there:
        async with client_of(machine.network) as client, recording(client) as here:
            await client.wait_connected()
            await trio.sleep(0.1)
            assert there.kinds() == ["connect"]
            assert there.one(ConnectEvent).client_id == "worker"
            assert there.one(ConnectEvent).remote_address == ("worker", 49152)
            assert here.one(ConnectEvent).remote_address == ("server", 8474)
        await until(lambda: there.of(DisconnectEvent))
        end = there.one(DisconnectEvent)
        assert (end.client_id, end.reason, end.detail, end.by_peer) == (
            "worker",
            DisconnectReason.NORMAL,
            "client disconnect",
            True,
        )
        assert there.one(ConnectEvent).at < end.at


async def test_a_disconnect_has_its_reason_on_both_sides(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, recording(machine.server) as there, client_of(machine.network) as client:
        async with recording(client) as here:
            await client.wait_connected()
            await machine.server.session("worker").close("go away\x1b[2J")
            await until(lambda: here.of(DisconnectEvent))
            await trio.sleep(0.1)
        for record, by_peer in ((there, False), (here, True)):
            end = record.of(DisconnectEvent)[0]
            assert (end.reason, end.by_peer) == (DisconnectReason.NORMAL, by_peer)
            assert end.detail == "go away\\x1b[2J"  # escaped: it may be shown as it is


async def test_a_takeover(autojump_clock: MockClock) -> None:
    async with (
        open_machine() as machine,
        recording(machine.server) as there,
        client_of(machine.network, "same", host="first") as first,
    ):
        await first.wait_connected()
        async with client_of(machine.network, "same", host="second") as second:
            await second.wait_connected()
            await trio.sleep(1)
            assert there.of(DisconnectEvent)[0].reason is DisconnectReason.SESSION_REPLACED
            # Whoever keeps a set of the connected adds and takes out in this order, and has the client in it.
            assert there.kinds() == ["connect", "disconnect", "connect", "reconnect"]
            assert there.one(ReconnectEvent).away == 0.0
            assert len(there.of(ConnectEvent)) == 2
        with pytest.raises(Exception, match="newer connection"):
            await first.wait_closed()


async def test_heartbeat_timeout_and_reconnect(autojump_clock: MockClock) -> None:
    async with (
        open_machine() as machine,
        recording(machine.server) as there,
        client_of(machine.network, config=ClientConfig(jitter=0)) as client,
        recording(client) as here,
    ):
        await client.wait_connected()
        machine.network.partition("worker")
        await trio.sleep(60)
        machine.network.heal()
        await until(lambda: client.statistics().connects == 2, seconds=120)
        await trio.sleep(1)
        for record in (there, here):
            silent = record.one(HeartbeatTimeoutEvent)
            assert silent.client_id == "worker"
            assert silent.silence == pytest.approx(45, abs=0.1)
            end, again = record.one(DisconnectEvent), record.one(ReconnectEvent)
            assert end.reason is DisconnectReason.HEARTBEAT_TIMEOUT
            assert not end.by_peer
            # The one comes before the other, and says how long it took.
            assert record.events.index(silent) < record.events.index(end) < record.events.index(again)
            assert again.away == pytest.approx(again.at - end.at, abs=0.001)
        assert here.one(ReconnectEvent).attempts == client.statistics().attempts - 1
        assert there.one(ReconnectEvent).attempts == 0


async def test_each_state_of_a_client(autojump_clock: MockClock) -> None:
    async with open_machine(start=False) as machine:
        config = ClientConfig(handshake_timeout=1, backoff_initial=1, jitter=0)
        async with client_of(machine.network, config=config) as client, recording(client) as here:
            await trio.sleep(1.5)
            await machine.start()
            await client.wait_connected()
            await trio.sleep(0.1)
            changes = [(change.old, change.new) for change in here.of(StateChangeEvent)]
            assert changes == [("connecting", "idle"), ("idle", "connecting"), ("connecting", "connected")] or changes == [
                ("idle", "connecting"),
                ("connecting", "idle"),
                ("idle", "connecting"),
                ("connecting", "connected"),
            ]
            failed = [change for change in here.of(StateChangeEvent) if change.new == "idle"]
            assert failed[0].reason
            assert here.one(ErrorEvent).error == "network"


async def test_each_state_of_a_server(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        record = Record()
        async with machine.server.open_events() as events:
            await machine.server.drain(grace=1)
            async for event in events:  # ends by itself: the server has stopped
                record.events.append(event)
        changes = [(change.client_id, change.old, change.new) for change in record.of(StateChangeEvent)]
        assert changes == [("", "listening", "draining"), ("", "draining", "stopped")]


async def test_messages(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        server, client = world.server, world.clients["client-0"]
        async with recording(server) as there, recording(client) as here:
            asked = Message.query(b"question")
            await client.request(asked)
            told = Message.event(b"xyz")
            await client.lane("side").send(told)
            await server.sessions["client-0"].send(Message.command(b"back"))
            await trio.sleep(0.5)
        for first, second in (here.of(MessageSentEvent), there.of(MessageReceivedEvent)):
            assert (first.message_id, first.type, first.size, first.lane, first.wants_ack) == (asked.id, "query", 8, "", True)
            assert (second.message_id, second.type, second.size, second.lane) == (told.id, "event", 3, "side")
            assert not second.wants_ack
            assert first.client_id == "client-0"
        assert here.one(MessageReceivedEvent).type == there.one(MessageSentEvent).type == "command"


async def test_many_messages_are_one_event_each_and_in_order(autojump_clock: MockClock) -> None:
    async with open_world(network=MemoryNetwork(delay=0.01, loss=0.1, seed=5)) as world:
        client = world.clients["client-0"]
        async with recording(world.server) as there, recording(client) as here:
            messages = [Message.event(b"%d" % number) for number in range(1000)]
            for message in messages:
                await client.send(message)
            await until(lambda: len(there.of(MessageReceivedEvent)) == 1000)
            ids = [message.id for message in messages]
            assert [event.message_id for event in here.of(MessageSentEvent)] == ids
            assert [event.message_id for event in there.of(MessageReceivedEvent)] == ids


async def test_a_broadcast(autojump_clock: MockClock) -> None:
    async with open_world(clients=2) as world, recording(world.server) as there:
        message = Message.event(b"news")
        await world.server.broadcast(message, to=["client-0", "client-1", "nobody"])
        acked = Message.event(b"acked")
        await world.server.broadcast(acked, ack_timeout=5)
        await trio.sleep(0.1)
        first, second = there.of(BroadcastEvent)
        assert (first.message_id, first.type, first.size, first.targets, first.sent) == (message.id, "event", 4, 3, 2)
        assert (second.message_id, second.targets, second.sent) == (acked.id, 2, 2)


async def test_an_ack_timeout(autojump_clock: MockClock) -> None:
    gate = Gate()
    async with open_world(router=gate.router, client_router=gate.router) as world:
        client = world.clients["client-0"]
        async with recording(client) as here, recording(world.server) as there:
            message = Message.command(b"slow")
            with pytest.raises(AckTimeout):
                await client.request(message, ack_timeout=2)
            report = await world.server.broadcast(Message.command(b"all"), ack_timeout=3)
            assert isinstance(report.failed["client-0"], AckTimeout)
            await trio.sleep(0.1)
            timeout = here.one(AckTimeoutEvent)
            assert (timeout.client_id, timeout.message_id, timeout.ack_timeout) == ("client-0", message.id, 2)
            assert there.one(AckTimeoutEvent).ack_timeout == 3
        gate.opened.set()


async def test_errors(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def fail(request: Request) -> None:
        raise LookupError("no\x07 such thing")

    async with open_world(router=router, network=MemoryNetwork(delay=0.01)) as world, recording(world.server) as there:
        with pytest.raises(HandlerFailed):
            await world.clients["client-0"].request(Message.command())
        async with open_raw(world.network) as raw:
            await raw.greet()
            raw.write(0, PongFrame(1))
            await raw.ended()
        await trio.sleep(0.1)
        failed, broken = there.of(ErrorEvent)
        assert (failed.client_id, failed.error, failed.detail) == (
            "client-0",
            "handler_failed",
            "LookupError: no\\x07 such thing",
        )
        assert (broken.client_id, broken.error) == ("raw", "protocol")
        assert "PongFrame" in broken.detail


def test_each_kind_has_a_test() -> None:
    from pathlib import Path

    text = Path(__file__).read_text(encoding="utf-8")
    for kind in EVENTS:
        assert text.count(kind.__name__) > 1, kind
    assert len({kind.kind for kind in EVENTS}) == len(EVENTS) == 10


# -- the stream ----------------------------------------------------------------------------------------------------------
async def test_a_subscriber_that_does_not_read_stalls_nobody(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        client = world.clients["client-0"]
        async with world.server.open_events(max_buffer_size=10) as lazy, recording(world.server) as eager:
            for number in range(500):
                await client.request(Message.command(b"%d" % number))
            assert len(eager.of(MessageReceivedEvent)) == 500
            assert lazy.dropped == 490
            # What it has are the oldest: it can tell where the gap begins.
            assert [await anext(lazy) for _ in range(10)] == eager.events[:10]


async def test_only_the_kinds_that_were_asked_for(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, recording(machine.server, [ConnectEvent]) as there:
        async with client_of(machine.network) as client:
            await client.request(Message.command())
        await trio.sleep(1)
        assert there.kinds() == ["connect"]


async def test_messages_make_no_events_while_nobody_wants_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr(EventHub, "emit", lambda hub, event: made.append(event))
    async with open_world() as world:
        client = world.clients["client-0"]
        made.clear()
        await client.request(Message.command())
        assert made == []
        async with world.server.open_events(kinds=[ConnectEvent, DisconnectEvent]):
            await client.request(Message.command())
            assert made == []
        async with world.server.open_events():
            await client.request(Message.command())
        assert [type(event) for event in made] == [MessageReceivedEvent]
        made.clear()
        await client.request(Message.command())
        assert made == []


async def test_a_subscriber_may_be_cancelled_anywhere(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for count in range(5):
            with trio.move_on_after(0.01 * count):
                async with world.server.open_events() as events:
                    async for _ in events:
                        pass
            assert world.server.metrics().event_subscribers == 0
            await world.clients["client-0"].request(Message.command())


async def test_a_stream_ends_with_its_side(autojump_clock: MockClock) -> None:
    async with open_machine() as machine:
        async with client_of(machine.network) as client:
            await client.wait_connected()
            stream = client.open_events()
            events = await stream.__aenter__()
        seen = [event.kind async for event in events]
        # Buffered ones first, then the end, and not a wait for ever.
        assert seen == ["disconnect", "state_change"]
        async with client.open_events() as late:
            assert [event async for event in late] == []
        await stream.__aexit__(None, None, None)


async def test_wrong_arguments(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with pytest.raises(TypeError, match="expected classes of events"):
            async with world.server.open_events(kinds=["connect"]):  # type: ignore[list-item]
                pass
        with pytest.raises(ValueError, match="max_buffer_size = 0"):
            async with world.server.open_events(max_buffer_size=0):
                pass


async def test_events_are_frozen_and_plain(autojump_clock: MockClock) -> None:
    event = MessageSentEvent(at=1.0, client_id="a", message_id=b"\x01" * 16, type="event", size=3, lane="", wants_ack=False)
    with pytest.raises(FrozenInstanceError):
        event.size = 4  # type: ignore[misc]
    end = DisconnectEvent(at=1.0, client_id="a", reason=DisconnectReason.NORMAL, detail="", by_peer=True)
    address = ConnectEvent(at=1.0, client_id="a", remote_address=("::1", 5), protocol="quicflow/2")
    assert json.loads(json.dumps(event.as_json()))["message_id"] == "01" * 16
    assert end.as_json()["reason"] == "normal"
    assert json.loads(json.dumps(address.as_json()))["remote_address"] == ["::1", 5]
    assert [kind.kind for kind in EVENTS] == [
        "connect",
        "disconnect",
        "heartbeat_timeout",
        "reconnect",
        "state_change",
        "message_sent",
        "message_received",
        "broadcast",
        "ack_timeout",
        "error",
    ]
