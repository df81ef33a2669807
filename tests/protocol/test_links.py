"""One side's half of a session from one connection to the next: what it takes for possible, what it says, when it is quiet."""

from __future__ import annotations

from functools import partial

import pytest

from quicflow_trio.config import Limits, ServerConfig
from quicflow_trio.deadlines import Deadlines
from quicflow_trio.errors import ClientNotConnected, ConnectionLost
from quicflow_trio.link import Link
from quicflow_trio.message import Delivery, Message
from quicflow_trio.observe.instruments import Instruments
from quicflow_trio.protocol.credit import CreditBudget
from quicflow_trio.protocol.lane_receiver import LaneReceiver
from quicflow_trio.protocol.outgoing import Outgoing, OutgoingRequest, OutgoingState
from quicflow_trio.protocol.waiting import WaitingTable
from quicflow_trio.wire import LaneState
from tests.protocol.test_sessions_model import World

GONE = partial(ConnectionLost, "gone")


def make_link() -> Link:
    return Link(
        ServerConfig(limits=Limits()),
        table=WaitingTable(10, 10),
        deadlines=Deadlines(),
        budget=CreditBudget(1 << 30),
        client_id="a",
        instruments=Instruments(),
        away=partial(ClientNotConnected, "a"),
    )


def put(link: Link, payload: bytes, lane: str = "", delivery: Delivery = Delivery.AT_MOST_ONCE) -> Outgoing:
    outgoing = Outgoing(link.lanes.get(lane) or link.add_lane(lane), Message.event(payload, delivery=delivery))
    outgoing.lane.offer(outgoing)
    return outgoing


async def test_a_state_of_an_unknown_lane_cannot_be() -> None:
    link = make_link()
    assert link.can_resume(())
    assert link.can_resume((LaneState(""),))
    assert not link.can_resume((LaneState("made up"),))
    link.add_lane("new")
    assert link.can_resume(()), "opened here while there was no connection"


@pytest.mark.parametrize(("number", "fits"), [(170, True), (250, False)])
async def test_lanes_beyond_the_room_in_a_hello_do_not_resume(number: int, fits: bool) -> None:
    link = make_link()
    for index in range(number):
        lane = link.session_lanes[str(index)] = LaneReceiver(4, 1000, 1000)
        lane.name = f"{index:0120}"
    assert link.can_resume(()) is fits


async def test_what_may_be_redelivered_moves_to_the_next_session_and_the_rest_fails_with_its_own() -> None:
    older, newer = make_link(), make_link()
    written, lost = put(older, b"written", "x", Delivery.REDELIVER), put(older, b"lost", "x")
    older.lanes["x"].next_batch(1 << 20)
    queued, failed = put(older, b"queued", "x", Delivery.REDELIVER), put(older, b"failed")
    newer.inherit(older)
    older.end(partial(ClientNotConnected, "a"), under_way=GONE)
    assert [one.state for one in (written, queued, lost, failed)] == [OutgoingState.QUEUED] * 2 + [OutgoingState.FAILED] * 2
    assert (written.redelivered, queued.redelivered) == (True, False)
    assert [one.lane for one in (written, queued)] == [newer.lanes["x"]] * 2
    assert newer.instruments.counters.messages_redelivered == 1
    assert older.instruments.counters.messages_lost == 2
    with pytest.raises(ClientNotConnected):
        older.check(Message.event())


async def test_an_interruption_is_told_when_the_session_does_not_go_on() -> None:
    """A pause fails nothing; the next connection may."""
    world = World(1, restarts=True)
    link = world.client.link
    outgoing = put(link, b"x")
    assert world.line is not None
    world.line.flush()
    link.pause("cut in a test")
    assert outgoing.state is OutgoingState.WRITTEN
    world.session, world.line = None, None
    world.begin(is_client=False, side=world.server)
    world.reconnect()
    assert outgoing.error is not None
    assert "cut in a test" in str(outgoing.error())


@pytest.mark.parametrize("what", ["a handler", "an answer that waits", "an answer that was written and lost"])
async def test_a_connection_is_not_quiet_before_the_lanes_of_the_last_one_are_open_again(what: str) -> None:
    """A drain that took it for quiet would end the session in front of the answers that it keeps."""
    world = World(2)
    sent = world.submit(world.client, world.client.link.lanes[""], Message.command(b"\xff\xff"), wants_ack=True)
    assert world.line is not None
    world.line.flush()
    while world.line.step(world.random):
        pass
    (handlers,) = world.server.handlers
    handlers.start(handlers.ready()[0])
    if what == "an answer that was written and lost":
        world.end_handler(handlers, handlers.under_way[0])
        world.line.flush()
    world.notice(world.client)
    world.notice(world.server)
    if what == "an answer that waits":
        world.end_handler(handlers, handlers.under_way[0])
    line = world.cut_and_reconnect()
    streams = line.carriers[1].streams
    assert streams is not None
    before = streams.quiet
    world.settle()
    assert (before, streams.quiet) == (False, True)
    assert isinstance(sent.outgoing, OutgoingRequest)
    world.check_answer(sent, sent.outgoing)
