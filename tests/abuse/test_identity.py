"""Who somebody claims to be, and what is claimed about messages (rows 27, 29 to 32 and 39 of the abuse list)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from dataclasses import replace

import pytest
import structlog
import trio
from trio.testing import MockClock

from quicflow_trio import HandlerFailed, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.observe import logs
from quicflow_trio.observe.history import HistoryBook
from quicflow_trio.observe.logs import Limiter
from quicflow_trio.observe.prometheus import metrics_text
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.sessions import FINISHING
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import AckFrame, LaneOpen, LaneState, MessageFrame, ReceiptFrame, Welcome, encode
from tests.abuse.siege import MIB, besieged, closed_soon
from tests.abuse.test_frames import message
from tests.connections.raw import hello, open_raw
from tests.wire.reference import field, varint

# -- row 27: client ids ------------------------------------------------------------------------------------------------
PLACE = "@@@@"
BAD_IDS: dict[str, tuple[bytes, CloseCode]] = {
    "empty": (b"", CloseCode.REJECTED),
    "257 bytes": (b"a" * 257, CloseCode.REJECTED),
    "1 MB": (b"a" * 1_000_000, CloseCode.FRAME_TOO_LARGE),
    "NUL": (b"a\0b", CloseCode.REJECTED),
    "a line break": (b"a\nWARNING forged", CloseCode.REJECTED),
    "an escape sequence": (b"\x1b[2Jgone", CloseCode.REJECTED),
    "right-to-left override": ("a\u202egpj".encode(), CloseCode.REJECTED),
    "spaces around": (b" admin", CloseCode.REJECTED),
    "invalid UTF-8": (b"\xff\xfe\xfd\xfc", CloseCode.PROTOCOL_ERROR),
    "half a surrogate pair": (b"\xed\xa0\x80", CloseCode.PROTOCOL_ERROR),
    "overlong NUL": (b"\xc0\x80", CloseCode.PROTOCOL_ERROR),
}


def hello_of(client_id: bytes) -> bytes:
    """Encode a hello whose id may be any bytes."""
    body = encode(hello(PLACE))[4:]
    inner = body[2:]
    was = varint(2 << 3 | 2) + varint(len(PLACE)) + PLACE.encode()
    assert (body[1], inner.count(was)) == (len(inner), 1)
    inner = inner.replace(was, varint(2 << 3 | 2) + varint(len(client_id)) + client_id)
    body = body[:1] + varint(len(inner)) + inner
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("what", BAD_IDS)
async def test_27_a_client_id_that_is_none(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, what: str) -> None:
    """Bound: refused at the hello; nothing of it stands raw in a log line, a label or a list."""
    client_id, code = BAD_IDS[what]
    caplog.set_level(logging.DEBUG, "quicflow_trio")
    async with besieged(expect={f"connections_refused:server:{code.name.lower()}": 1, "total_connections": 0}) as siege:
        async with open_raw(siege.network) as raw:
            raw.open(hello_of(client_id))
            assert (await closed_soon(raw)).code == code
        assert [session.client_id for session in siege.server.known_sessions()] == ["client-0"]
        assert list(siege.server.metrics().connections_refused) == [f"server:{code.name.lower()}"]
    for record in caplog.records:
        line = record.getMessage()
        assert line.isprintable(), line
        assert len(line) < 2000
    if len(client_id) > 2:
        assert client_id not in metrics_text(siege.server.metrics())


# -- row 29: the same client id from a second connection ---------------------------------------------------------------
async def test_29_a_second_connection_with_the_same_id_takes_over(autojump_clock: MockClock) -> None:
    """Bound: without an `authenticate` anybody may; the older is told at once why, and no message of it is lost in silence."""
    async with besieged(expect={"disconnects:server:session_replaced": 1}) as siege, open_raw(siege.network, "first") as first:
        await first.greet("worker")
        older = siege.server.sessions["worker"]
        asked = trio.Event()

        async def ask() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await older.request(Message.command(b"under way"))
            asked.set()

        async with trio.open_nursery() as nursery, open_raw(siege.network, "second") as second:
            nursery.start_soon(ask)
            await first.frame(MessageFrame, 1)
            await second.greet("worker")
            ended = await closed_soon(first)
            assert (ended.application, ended.code) == (True, CloseCode.SESSION_REPLACED)
            await asked.wait()
            assert siege.server.sessions["worker"] is not older
            assert siege.server.sessions["worker"].remote_address[0] == "second"


async def test_29_a_storm_of_takeovers(autojump_clock: MockClock) -> None:
    """Bound: one session is left of thirty, and all others are closed by name."""
    async with besieged(expect={"disconnects:server:session_replaced": 29}) as siege, contextlib.AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(open_raw(siege.network, f"raw-{number}")) for number in range(30)]
        for raw in raws:
            await raw.greet("worker")
        await trio.sleep(1)
        assert len(siege.server.known_sessions()) == 2
        assert [raw.engine.closing for raw in raws] == [True] * 29 + [False]


# -- row 30: a sender id that is not the session's --------------------------------------------------------------------
async def test_30_a_forged_sender(autojump_clock: MockClock) -> None:
    """Bound: a message's sender is its session's client id. The wire has no field for one; made-up fields are skipped."""
    senders: list[str] = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def note(request: Request) -> bytes:
        senders.append(request.message.sender)
        return request.message.sender.encode()

    async with besieged(router=router) as siege, open_raw(siege.network) as raw:
        await raw.greet("worker")
        body = encode(message(1, b"x", ack=True))[4:]
        stream_id = raw.open(LaneOpen())
        for number in range(8, 30):
            seq = number - 7
            inner = encode(message(seq, b"x", ack=True))[6:] + field(number, b"client-0") + field(number, b"admin")
            forged = body[:1] + varint(len(inner)) + inner + field(number + 20, b"admin")
            if number in (8, 9):
                # Numbers that the schema has, or may have, are for its own use.
                inner = encode(message(seq, b"x", ack=True))[6:]
                forged = body[:1] + varint(len(inner)) + inner
            raw.write(stream_id, len(forged).to_bytes(4, "big") + forged)
        ack = await raw.frame(AckFrame, stream_id, 1)
        assert ack.result == b"worker"
        await trio.sleep(1)
        assert Counter(senders) == {"worker": 22}


# -- row 31: acks that are not the peer's to give ------------------------------------------------------------------------
async def test_31_acks_for_the_messages_of_others(autojump_clock: MockClock) -> None:
    """Bound: a waiter belongs to (session, lane, number): unknown, foreign, repeated and late acks are ignored and counted."""
    results: dict[str, str] = {}
    async with besieged(expect={"acks_late": 4, "decoding_errors": 0, "promise_timeouts": 1}) as siege:

        async def ask(client_id: str, seconds: float = 20.0) -> None:
            try:
                ack = await siege.server.sessions[client_id].request(Message.command(client_id.encode()), ack_timeout=seconds)
                results[client_id] = ack.result.decode()
            except (HandlerFailed, trio.TooSlowError) as exc:
                results[client_id] = type(exc).__name__

        async with open_raw(siege.network, "a") as a, open_raw(siege.network, "b") as b, trio.open_nursery() as nursery:
            await a.greet("a")
            await b.greet("b")
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b", 3.0)
            mine = await a.frame(MessageFrame, 1)
            theirs = await b.frame(MessageFrame, 1)
            assert mine.seq == theirs.seq, "numbers alone do not tell them apart: the session does"
            # b never answers its own; a answers its own, then what it never got, then its own once more.
            a.write(1, AckFrame(1, 1, 1, b"true"), AckFrame(2, 77, 1, b"unknown"), AckFrame(3, 1, 2, b"", "again"))
            await trio.sleep(1)
            assert results == {"a": "true"}
            await trio.sleep(3)
            assert results == {"a": "true", "b": "AckTimeout"}
            b.write(1, AckFrame(1, 1, 1, b"too late"), AckFrame(2, 1, 1, b"again"), ReceiptFrame(1, 1))
            await trio.sleep(0.5)
        assert results == {"a": "true", "b": "AckTimeout"}


# -- row 32: the same message again ---------------------------------------------------------------------------------------
def counting() -> tuple[Router, Counter[bytes]]:
    runs: Counter[bytes] = Counter()
    router = Router()

    @router.on(MessageType.COMMAND)
    async def count(request: Request) -> bytes:
        runs[request.message.id] += 1
        return request.message.payload

    return router, runs


async def test_32_the_same_number_again(autojump_clock: MockClock) -> None:
    """Bound: a number comes once on a connection. Sent again it is nonsense: the handler runs once, the connection is closed."""
    router, runs = counting()
    async with besieged(expect={"disconnects:server:protocol_error": 1}, router=router) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        stream_id = raw.open(LaneOpen(), message(1, b"once", ack=True))
        assert (await raw.frame(AckFrame, stream_id)).result == b"once"
        raw.write(stream_id, message(1, b"twice", ack=True))
        assert (await closed_soon(raw)).code == CloseCode.PROTOCOL_ERROR
        assert list(runs.values()) == [1]


async def test_32_a_number_of_an_earlier_connection(autojump_clock: MockClock) -> None:
    """Bound: the handler runs once. A client that lost the ack with its connection gets the stored one, not another of a second run.

    A message is the same when session, lane and number are. What the welcome says was received is not sent again; a client that does so
    is closed as in the test above.
    """
    router, runs = counting()
    async with besieged(expect={"disconnects:server:protocol_error": 1, "sessions_resumed": 2}, router=router) as siege:
        async with open_raw(siege.network, "first") as first, open_raw(siege.network, "second") as second:
            first.open(hello())
            welcome = await first.frame(Welcome)
            stream_id = first.open(LaneOpen(), message(1, b"once", ack=True))
            stored = await first.frame(AckFrame, stream_id)
            assert (stored.seq, stored.result) == (1, b"once")
            again = replace(hello(), session_token=welcome.session_token)
            second.open(again)
            assert (await second.frame(Welcome)).lanes == (LaneState("", 1, 1),)
            stream_id = second.open(LaneOpen(acked=0))
            assert await second.frame(AckFrame, stream_id) == stored
            async with open_raw(siege.network, "third") as third:
                third.open(again)
                assert (await third.frame(Welcome)).resumed
                third.open(LaneOpen(acked=0), message(1, b"twice", ack=True))
                assert (await closed_soon(third)).code == CloseCode.PROTOCOL_ERROR
        assert list(runs.values()) == [1]


async def test_32_the_same_id_under_another_number(autojump_clock: MockClock) -> None:
    """Bound: nothing is taken for something else. An id is the sender's word for a message, like its payload: it decides nothing here.

    Under another number it is another message, which its sender has to answer for: handled, and acked with a result of its own.
    """
    router, runs = counting()
    async with besieged(expect={"decoding_errors": 0}, router=router) as siege, open_raw(siege.network) as raw:
        await raw.greet()
        again = MessageFrame(2, (1).to_bytes(16, "big"), int(MessageType.COMMAND), b"twice", True, 1)
        stream_id = raw.open(LaneOpen(), message(1, b"once", ack=True), again)
        results = {ack.seq: ack.result for ack in [await raw.frame(AckFrame, stream_id, number) for number in (1, 2)]}
        assert results == {1: b"once", 2: b"twice"}
        assert list(runs.values()) == [2]


# -- row 29: takeovers in a row ------------------------------------------------------------------------------------------
async def test_29_who_comes_again_and_again_leaves_no_more_than_eight_sessions(autojump_clock: MockClock) -> None:
    """Bound: of the sessions that one client id has lost to itself, eight go on with their handlers; what older ones hold is given back."""
    started = []
    ended = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def stuck(request: Request) -> None:
        started.append(request.message.payload)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(request.message.payload)

    config = ServerConfig(session_ttl=120.0, workers=100, handler_timeout=math.inf)
    async with open_world(clients=0, network=MemoryNetwork(delay=0.01), router=router, server_config=config) as world:
        for number in range(30):
            async with open_raw(world.network, f"raw-{number}") as raw:
                await raw.greet("greedy")
                raw.open(LaneOpen(), message(1, b"%d" % number + bytes(10_000)))
                await trio.sleep(0.5)
        known = {session for session in world.server._admission.sessions() if session.client_id == "greedy"}
        assert len(started) == 30
        assert len(known) == FINISHING + 1
        assert [payload[:2] for payload in ended] == [payload[:2] for payload in started[: 30 - FINISHING - 1]]
        assert world.server.metrics().held_bytes < (FINISHING + 1) * 11_000
        await trio.sleep(130)
        assert not world.server._admission.sessions()
        assert not world.server._admission.registry._finishing


# -- row 39: a million distinct ids -------------------------------------------------------------------------------------
async def test_39_distinct_ids_and_reasons_make_no_distinct_labels(autojump_clock: MockClock) -> None:
    """Bound: the text of clients never makes a time series: forty of them add three labels, for the three ways in which they went."""
    async with besieged() as siege:
        before = metrics_text(siege.server.metrics()).count(b"\n")
        for number in range(40):
            async with open_raw(siege.network, f"raw-{number}") as raw:
                if number % 4 == 0:
                    raw.open(hello(f"raw\n{number}"))
                    await raw.ended()
                    continue
                await raw.greet(f"raw-{number}")
                if number % 4 == 1:
                    raw.write(0, bytes(4))
                    await raw.ended()
                elif number % 4 == 2:
                    raw.engine.close(5000 + number, f"reason {number}")
                    raw.kick()
                    await trio.sleep(0.05)
        await trio.sleep(1)
        text = metrics_text(siege.server.metrics())
        names = {line.split(b"}")[0] for line in text.splitlines() if b"reason=" in line}
        assert len(names) <= 12, names
        assert text.count(b"\n") <= before + 3 * 4
        assert b"raw-" not in text
        assert len(siege.server.departed()) == 30 - len(siege.server.known_sessions()) + 1


def test_39_two_hundred_thousand_ids_in_the_histories_and_the_log() -> None:
    """Bound: the histories of the last ten thousand that left, and a table of repeats that does not grow with ids."""
    book = HistoryBook()
    limiter = Limiter(lambda: 0.0)
    logger = logs.get_logger("abuse")
    passed = 0
    for number in range(200_000):
        client_id = f"client-{number}"
        book.enter(client_id)
        book.leave(client_id)
        if number % 10 == 0:
            fields = {"event": "a newer connection takes the session over", "client_id": client_id}
            with contextlib.suppress(structlog.DropEvent):
                limiter(logger._logger, "warning", fields)
                passed += 1
    assert len(book.gone()) == 10_000
    assert len(limiter) == 1
    assert passed <= 10


def test_39_an_id_of_the_largest_size_is_cut_in_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    logs.get_logger("abuse").warning("x", client_id="a" * MIB, forged="a\nb\x1b[2J")
    (record,) = caplog.records
    assert len(record.getMessage()) < 4096
    assert record.getMessage().isprintable()
