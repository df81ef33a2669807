"""Handlers: order, fairness, the worker limit, the deadline, and whatever a handler may do to the worker that awaits it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import ClientConfig, HandlerFailed, Limits, Message, MessageType, Request, Router, ServerConfig
from quicflow_trio.background import open_background
from quicflow_trio.deadlines import Deadlines
from quicflow_trio.dispatch import YIELD_AFTER, Dispatcher
from quicflow_trio.errors import ProtocolError
from quicflow_trio.message import AckStatus
from quicflow_trio.observe.instruments import Instruments
from quicflow_trio.protocol.lane_receiver import LaneReceiver
from quicflow_trio.testing import MemoryNetwork, World, open_world
from quicflow_trio.wire import AckFrame, FrameReader, LaneOpen, decode, encode, encode_cancel, encode_message
from tests.messages.harness import assert_at_rest, until


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Failing handlers are logged; that is tested where it matters."""
    with caplog.at_level(logging.CRITICAL, "quicflow_trio.dispatch"):
        yield


# -- the dispatcher alone ----------------------------------------------------------------------------------------------
class Bench:
    """One dispatcher with lanes that are fed by hand."""

    def __init__(
        self, router: Router, *, workers: int = 4, handler_timeout: float = 30.0, queue_limit: int = 100, ack_limit: int = 1 << 20
    ) -> None:
        self.deadlines = Deadlines()
        self.done: list[LaneReceiver] = []
        self.broken: list[ProtocolError] = []
        self.dispatcher = Dispatcher(
            router,
            peer=None,  # type: ignore[arg-type]
            sender="peer",
            workers=workers,
            handler_timeout=handler_timeout,
            payload_limit=1000,
            queue_limit=queue_limit,
            ack_limit=ack_limit,
            deadlines=self.deadlines,
            progress=self.done.append,
            broken=lambda lane, error: self.broken.append(error),
            instruments=Instruments(),
            client_id="peer",
        )
        self._seqs: dict[LaneReceiver, int] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with open_background() as nursery:
            nursery.start_soon(self.deadlines.run)
            self.dispatcher.start(nursery)
            yield

    def lane(self, name: str = "") -> LaneReceiver:
        lane = LaneReceiver(4 * len(self._seqs), 10_000, 1 << 20)
        lane.feed(encode(LaneOpen(name)))
        self._seqs[lane] = 0
        return lane

    def feed(self, lane: LaneReceiver, *payloads: bytes, kind: int = 1, wants_ack: bool = True) -> None:
        for payload in payloads:
            self._seqs[lane] = seq = self._seqs[lane] + 1
            lane.feed(encode_message(seq, seq.to_bytes(16, "big"), kind, payload, wants_ack, 0))
        self.dispatcher.receive(lane)

    def acks(self, lane: LaneReceiver) -> list[AckFrame]:
        reader = FrameReader(1 << 20)
        reader.feed(lane.next_batch())
        return [frame for frame in map(decode, reader.frames()) if isinstance(frame, AckFrame)]


class Scene:
    """Handlers that note when they start and end, and stand still until they are told to go on."""

    def __init__(self) -> None:
        self.started: list[bytes] = []
        self.ended: list[bytes] = []
        self.events: dict[bytes, trio.Event] = {}
        self.router = Router()
        self.router.add(MessageType.COMMAND, self.handle)
        self.router.add(MessageType.EVENT, self.handle, serial=True)

    def let(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.events.setdefault(payload, trio.Event()).set()

    async def handle(self, request: Request) -> bytes:
        payload = request.message.payload
        self.started.append(payload)
        try:
            await self.events.setdefault(payload, trio.Event()).wait()
        finally:
            self.ended.append(payload)
        return payload


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_handlers_of_a_lane_start_in_order_and_overlap(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router, workers=3)
    async with bench.running():
        lane = bench.lane()
        bench.feed(lane, b"1", b"2", b"3", b"4")
        await settle()
        assert scene.started == [b"1", b"2", b"3"], "the limit"
        assert bench.dispatcher.running == 3
        scene.let(b"2")
        await settle()
        assert scene.started == [b"1", b"2", b"3", b"4"]
        scene.let(b"1", b"3", b"4")
        await bench.dispatcher.wait_idle()
        assert bench.acks(lane)[0].seq == 2, "acks go out as handlers end"
        assert (bench.dispatcher.running, bench.dispatcher.idle, bench.dispatcher.received) == (0, True, 4)


async def test_a_serial_handler_runs_to_its_end_before_the_next_of_its_lane(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router)
    async with bench.running():
        lane, other = bench.lane(), bench.lane("other")
        bench.feed(lane, b"a", kind=1)
        bench.feed(lane, b"b", b"c", kind=2)
        bench.feed(lane, b"d", kind=1)
        bench.feed(other, b"x", kind=2)
        await settle()
        assert scene.started == [b"a", b"x", b"b"], "the lane waits behind b, the other lane does not"
        scene.let(b"b")
        await settle()
        assert scene.started[3:] == [b"c"]
        scene.let(b"c")
        await settle()
        assert scene.started[4:] == [b"d"]
        scene.let(b"a", b"d", b"x")
        await bench.dispatcher.wait_idle()


async def test_with_all_workers_taken_every_other_lane_may_still_run_one(autojump_clock: MockClock) -> None:
    """Otherwise handlers that wait for something of another lane would wait for ever."""
    scene = Scene()
    bench = Bench(scene.router, workers=2)
    async with bench.running():
        busy, quiet, late = bench.lane("busy"), bench.lane("quiet"), bench.lane("late")
        bench.feed(busy, *(b"%d" % number for number in range(10)))
        await settle()
        assert scene.started == [b"0", b"1"]
        bench.feed(quiet, b"q1", b"q2")
        bench.feed(late, b"l1")
        await settle()
        assert scene.started[2:] == [b"q1", b"l1"]
        assert bench.dispatcher.running == 4
        # The limit holds again as they end: the one of the quiet lane makes no place for the busy one.
        scene.let(b"l1")
        await settle()
        assert len(scene.started) == 4
        scene.let(b"q1")
        await settle()
        assert scene.started[4:] == [b"q2"]
        scene.let(b"q2", *(b"%d" % number for number in range(10)))
        await bench.dispatcher.wait_idle()
        assert [one for one in scene.started if one.isdigit()] == [b"%d" % number for number in range(10)]


async def test_lanes_take_turns(autojump_clock: MockClock) -> None:
    """One worker, one lane with a thousand messages in front: the others' messages do not wait for all of them."""
    order: list[bytes] = []
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> None:
        order.append(request.message.payload)

    bench = Bench(router, workers=1, queue_limit=2000)
    full, small = bench.lane("full"), bench.lane("small")
    bench.feed(full, *(b"full" for _ in range(1000)))
    bench.feed(small, *(b"small" for _ in range(10)))
    async with bench.running():
        await bench.dispatcher.wait_idle()
    assert order[:20] == [b"full", b"small"] * 10


async def test_handlers_that_never_wait_let_other_tasks_run(autojump_clock: MockClock) -> None:
    router = Router()
    router.add(MessageType.COMMAND, nothing)
    bench = Bench(router, queue_limit=10_000)
    lane = bench.lane()
    bench.feed(lane, *(b"" for _ in range(50 * YIELD_AFTER)))
    turns = 0
    async with bench.running():
        while not bench.dispatcher.idle:
            turns += 1
            await trio.lowlevel.checkpoint()
    assert turns >= 50


async def nothing(request: Request) -> None:
    """Handle by doing nothing."""


async def test_the_queue_is_bounded_and_the_rest_stays_raw(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router, workers=1, queue_limit=5)
    async with bench.running():
        lane = bench.lane()
        # The lane's opening is a frame as well.
        bench.feed(lane, *(b"%02d" % number for number in range(40)))
        assert len(lane.queue) <= 5
        assert lane.undecoded
        await settle()
        bench.feed(lane, b"more")
        assert len(lane.queue) <= 5
        scene.let(b"more", *(b"%02d" % number for number in range(40)))
        await bench.dispatcher.wait_idle()
    assert scene.started == [b"%02d" % number for number in range(40)] + [b"more"]
    assert lane.held_bytes == 0


async def test_a_cancellation_stops_a_running_handler_and_skips_a_queued_one(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router, workers=1)
    async with bench.running():
        lane = bench.lane()
        bench.feed(lane, b"1", b"2", b"3")
        await settle()
        lane.feed(encode_cancel(2) + encode_cancel(1))
        bench.dispatcher.receive(lane)
        await settle()
        assert (scene.ended, scene.started) == ([b"1"], [b"1", b"3"])
        scene.let(b"3")
        await bench.dispatcher.wait_idle()
        assert [ack.seq for ack in bench.acks(lane)] == [3], "who cancelled wants no ack"
        assert (bench.dispatcher.cancelled, lane.held_bytes) == (2, 0)


async def test_a_lane_whose_acks_are_not_read_starts_no_further_handler(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        return bytes(500)

    bench = Bench(router, ack_limit=2000)
    async with bench.running():
        lane, other = bench.lane(), bench.lane("other")
        bench.feed(lane, *(b"" for _ in range(20)))
        await settle()
        assert bench.dispatcher.received == 4
        bench.feed(other, b"")
        await settle()
        assert bench.dispatcher.received == 5, "another lane has its own acks"
        while len(lane.queue):
            before = bench.dispatcher.received
            bench.acks(lane)
            bench.dispatcher.resume(lane)
            await settle()
            assert bench.dispatcher.received == min(before + 4, 21)
        await bench.dispatcher.wait_idle()
        # A connection that is gone reads none either, but the handlers owe it nothing.
        bench.feed(other, *(b"" for _ in range(20)))
        await settle()
        assert not bench.dispatcher.idle
        other.detach()
        bench.dispatcher.resume(other)
        await bench.dispatcher.wait_idle()


async def test_nonsense_behind_good_messages_keeps_the_count(autojump_clock: MockClock) -> None:
    """The good ones in front of it are handled: whoever waits for the last handler must be told."""
    scene = Scene()
    scene.let(b"good")
    for queue_limit in (100, 2):
        bench = Bench(scene.router, queue_limit=queue_limit)
        async with bench.running():
            lane = bench.lane()
            lane.feed(b"".join(encode_message(seq, bytes(16), 1, b"good", True, 0) for seq in (1, 2, 3, 5)))
            with contextlib.suppress(ProtocolError):
                bench.dispatcher.receive(lane)
            bench.dispatcher.resume(lane)
            with trio.fail_after(1):
                await bench.dispatcher.wait_idle()
            assert bench.dispatcher.received in (1, 3)
            assert bench.dispatcher._pending == 0
    assert isinstance(bench.broken[0], ProtocolError)


async def test_without_a_nursery_nothing_starts(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router)
    lane = bench.lane()
    bench.feed(lane, b"1")
    assert not bench.dispatcher.idle
    async with bench.running():
        await settle()
        assert scene.started == [b"1"]
        bench.dispatcher.stop()
        bench.feed(lane, b"2")
        scene.let(b"1", b"2")
        await settle()
        assert scene.started == [b"1"]


# -- the deadline ------------------------------------------------------------------------------------------------------
async def test_the_deadline_is_exact_for_each_and_harms_no_other(autojump_clock: MockClock) -> None:
    ends: dict[bytes, float] = {}
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        try:
            await trio.sleep(float(request.message.payload))
        finally:
            ends[request.message.payload] = trio.current_time()
        return b"in time"

    bench = Bench(router, workers=2, handler_timeout=10.0)
    async with bench.running():
        lane = bench.lane()
        start = trio.current_time()
        bench.feed(lane, b"99", b"3", b"98", b"9.5", b"4", b"97")
        await bench.dispatcher.wait_idle()
        spent = {payload: end - start for payload, end in ends.items()}
        # Two workers: 99 (cut at 10), 9.5 (to 19.5), 97 (cut at 29.5) beside 3 (to 3), 98 (cut at 13), 4 ...
        assert spent[b"99"] == pytest.approx(10)
        assert spent[b"3"] == pytest.approx(3)
        assert spent[b"98"] == pytest.approx(13)
        assert spent[b"9.5"] == pytest.approx(19.5)
        assert spent[b"4"] == pytest.approx(17)
        assert spent[b"97"] == pytest.approx(27)
        statuses = {ack.seq: ack.status for ack in bench.acks(lane)}
        assert statuses == {1: 3, 2: 1, 3: 3, 4: 1, 5: 1, 6: 3}
        assert (bench.dispatcher.timeouts, bench.dispatcher.failed) == (3, 3)
        await trio.sleep(20)
        assert not bench.dispatcher._watch.live, "with nothing to watch, the watch ends"


async def test_without_a_deadline_a_handler_may_run_for_ever(autojump_clock: MockClock) -> None:
    scene = Scene()
    bench = Bench(scene.router, handler_timeout=math.inf)
    async with bench.running():
        bench.feed(bench.lane(), b"1")
        await trio.sleep(80_000)
        assert bench.dispatcher.running == 1
        assert len(bench.deadlines) == 0


async def test_a_handler_that_swallows_its_cancellation_is_believed(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> bytes:
        with trio.CancelScope() as scope:
            try:
                await trio.sleep(5)
            except trio.Cancelled:
                scope.cancel()
                raise
        return b"swallowed nothing" if not scope.cancelled_caught else b"odd"

    @router.on(MessageType.QUERY)
    async def stubborn(request: Request) -> bytes:
        try:
            await trio.sleep(5)
        except trio.Cancelled:  # noqa: ASYNC103  a stubborn handler
            return b"nevertheless"  # noqa: ASYNC104
        return b"rested"

    bench = Bench(router, workers=1, handler_timeout=1.0)
    async with bench.running():
        lane = bench.lane()
        bench.feed(lane, b"", kind=3)
        bench.feed(lane, b"")
        bench.feed(lane, b"", kind=3)
        await bench.dispatcher.wait_idle()
        assert [(ack.status, ack.result) for ack in bench.acks(lane)] == [(1, b"nevertheless"), (3, b""), (1, b"nevertheless")]


async def test_a_handler_that_shields_itself_ends_when_it_likes_and_its_worker_goes_on(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def shielded(request: Request) -> bytes:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        return b"done"

    @router.on(MessageType.QUERY)
    async def slow(request: Request) -> bytes:
        await trio.sleep(0.5)
        return b"quick"

    bench = Bench(router, workers=1, handler_timeout=1.0)
    async with bench.running():
        lane = bench.lane()
        start = trio.current_time()
        bench.feed(lane, b"")
        bench.feed(lane, b"", b"", kind=3)
        await bench.dispatcher.wait_idle()
        assert trio.current_time() - start == pytest.approx(6)
        assert [(ack.status, ack.result) for ack in bench.acks(lane)] == [(1, b"done"), (1, b"quick"), (1, b"quick")]


# -- what handlers raise and return ------------------------------------------------------------------------------------
class Spiteful(Exception):
    """An error that cannot be put into words."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def raise_group() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_soon)
        nursery.start_soon(fail_soon)


class OddGroup(BaseExceptionGroup[ValueError]):
    """A group of plain errors that is no Exception itself."""


async def fail_soon() -> None:
    await trio.lowlevel.checkpoint()
    raise ValueError("in a child")


async def fail_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while cleaning up")


async def raise_group_when_cancelled() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail_when_cancelled)
        nursery.start_soon(trio.sleep_forever)


async def end_its_own_scope() -> None:
    with trio.move_on_after(1):
        await trio.sleep_forever()


ERRORS: dict[bytes, BaseException] = {
    b"value error": ValueError("bad value"),
    b"spiteful": Spiteful(),
    b"surrogates": ValueError("\ud800 half a character " + "é" * 5000),
    b"odd group": OddGroup("odd", [ValueError("inside")]),
}
ACTIONS: dict[bytes, Callable[[], Awaitable[None]]] = {
    b"group": raise_group,
    b"cancelled group": raise_group_when_cancelled,
    b"fail when cancelled": fail_when_cancelled,
    b"own cancellation": end_its_own_scope,
}
RESULTS: dict[bytes, object] = {
    b"own cancellation": b"on time",
    b"str": "text",
    b"int": 7,
    b"bytearray": bytearray(b"array"),
    b"memoryview": memoryview(b"view"),
    b"subclass": type("Bytes", (bytes,), {})(b"sub"),
    b"long": bytes(5001),
    b"long array": bytearray(5001),
    b"longest": bytes(5000),
}


def tricks() -> Router:
    """Commands that say what their handler does."""
    router = Router()

    async def handle(request: Request) -> object:
        trick = request.message.payload
        if trick in ERRORS:
            raise ERRORS[trick]
        if trick in ACTIONS:
            await ACTIONS[trick]()
        return RESULTS.get(trick)

    def not_async(request: Request) -> bytes:
        return b"not awaitable"

    router.add(MessageType.COMMAND, handle)  # type: ignore[arg-type]
    router.add(MessageType.EVENT, not_async)  # type: ignore[arg-type]
    return router


@contextlib.asynccontextmanager
async def trick_world(**config: float) -> AsyncIterator[World]:
    limits = Limits(payload=5000)
    server_config = ServerConfig(limits=limits, handler_timeout=5.0, **config)  # type: ignore[arg-type]
    async with open_world(
        network=MemoryNetwork(delay=0.01),
        router=tricks(),
        client_router=tricks(),
        server_config=server_config,
        client_config=ClientConfig(limits=limits, handler_timeout=5.0),
    ) as world:
        yield world


FAILURES = {
    b"value error": "ValueError: bad value",
    b"group": "ExceptionGroup: ",
    b"odd group": "ExceptionGroup: odd",
    b"spiteful": "Spiteful",
    b"surrogates": "ValueError: ",
    b"str": "TypeError: the handler returned str",
    b"int": "TypeError: the handler returned int",
    b"long": "ValueError: the handler returned 5,001 bytes, the limit is 5,000",
    b"long array": "ValueError: the handler returned 5,001 bytes",
    b"cancelled group": "ExceptionGroup: ",
    b"fail when cancelled": "ValueError: while cleaning up",
}


async def test_whatever_a_handler_does_becomes_an_ack(autojump_clock: MockClock) -> None:
    async with trick_world() as world:
        for peer in (world.clients["client-0"], world.server.sessions["client-0"]):
            for payload, start in FAILURES.items():
                with pytest.raises(HandlerFailed) as caught:
                    await peer.request(Message.command(payload))
                assert caught.value.reason.startswith(start), payload
                assert len(caught.value.reason.encode()) <= 512
                assert not caught.value.timed_out
            for payload, result in [
                (b"bytearray", b"array"),
                (b"memoryview", b"view"),
                (b"subclass", b"sub"),
                (b"own cancellation", b"on time"),
                (b"longest", bytes(5000)),
            ]:
                assert (await peer.request(Message.command(payload))).result == result
            with pytest.raises(HandlerFailed, match="TypeError"):
                await peer.request(Message.event())
            with pytest.raises(HandlerFailed, match="no handler for QUERY"):
                await peer.request(Message.query())
            await peer.send(Message.query())
            with pytest.raises(HandlerFailed, match="no handler for RESPONSE"):
                await peer.request(Message(MessageType.RESPONSE, b""))
        await trio.sleep(1)
        assert_at_rest(world)
        assert world.clients["client-0"].statistics().connects == 1


async def test_a_type_of_a_later_revision_is_refused_by_its_number(autojump_clock: MockClock) -> None:
    bench = Bench(tricks())
    async with bench.running():
        lane = bench.lane()
        bench.feed(lane, b"", kind=77)
        await bench.dispatcher.wait_idle()
        assert [(ack.status, ack.error) for ack in bench.acks(lane)] == [(2, "no handler for message type 77")]


async def test_a_failing_handler_is_logged_with_its_traceback(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tricks())
    with caplog.at_level(logging.ERROR, "quicflow_trio.dispatch"):
        async with bench.running():
            bench.feed(bench.lane(), b"value error")
            await bench.dispatcher.wait_idle()
    [record] = caplog.records
    assert record.getMessage().startswith("handler failed client_id=peer type=command message_id=")
    assert record.exc_info is not None


@pytest.mark.parametrize("payload", [b"cancelled group", b"fail when cancelled"])
async def test_a_handler_that_fails_as_its_session_ends_harms_nobody(autojump_clock: MockClock, payload: bytes) -> None:
    """Its error, mixed with the cancellation, must not come out of `open_client` or `serve`: they have nothing to do with it."""
    for from_server in (False, True):
        async with trick_world() as world:
            client, session = world.clients["client-0"], world.server.sessions["client-0"]
            peer = session if from_server else client
            await peer.send(Message.command(payload))
            await trio.sleep(1)
            # Leaving the world closes the client and drains the server, both with a handler that runs.
            client._supervisor._config = ClientConfig(close_grace=0.1)
            if not from_server:
                await world.server.aclose()
    async with trick_world() as world:
        await world.clients["client-0"].send(Message.command(payload))
        await trio.sleep(1)
        assert world.server.sessions["client-0"].statistics().handlers_running == 1
        await world.server.drain(grace=0.5)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_in_a_handler_ends_the_server(autojump_clock: MockClock, kind: type[BaseException]) -> None:
    """It is for the program: a server that swallowed Ctrl-C could not be stopped."""
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> None:
        raise kind

    with pytest.RaisesGroup(kind, flatten_subgroups=True):
        async with open_world(router=router) as world:
            await world.clients["client-0"].send(Message.command())
            await trio.sleep(5)


async def test_an_interrupt_in_a_clients_handler_ends_its_block(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> None:
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with open_world(client_router=router) as world:
            await world.server.sessions["client-0"].send(Message.command())
            await trio.sleep(5)


async def test_an_interrupt_in_a_handlers_nursery_is_for_the_program_too(autojump_clock: MockClock) -> None:
    router = Router()

    async def interrupt() -> None:
        await trio.sleep(1)
        raise KeyboardInterrupt

    @router.on(MessageType.COMMAND)
    async def handle(request: Request) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            nursery.start_soon(fail_when_cancelled)

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with open_world(router=router) as world:
            await world.clients["client-0"].send(Message.command())
            await trio.sleep(5)


async def test_a_lost_connection_cancels_no_handler_and_drops_no_message(autojump_clock: MockClock) -> None:
    scene = Scene()
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(workers=1, handler_timeout=math.inf)
    async with open_world(network=network, router=scene.router, server_config=config) as world:
        client, session = world.clients["client-0"], world.server.sessions["client-0"]
        for number in range(5):
            sent = await client.send(Message.command(b"%d" % number))
        await sent.delivered()
        network.partition("client-0")
        await until(lambda: not session.connected)
        assert (scene.started, scene.ended) == ([b"0"], [])
        scene.let(*(b"%d" % number for number in range(5)))
        await until(lambda: len(scene.ended) == 5)
        assert scene.ended == [b"%d" % number for number in range(5)]
        assert session.statistics().held_bytes == 0
        network.heal()
        await until(lambda: client.state.value.value == "connected", seconds=200)


async def test_statuses_are_what_the_frame_says() -> None:
    assert (int(AckStatus.SUCCESS), int(AckStatus.FAILURE), int(AckStatus.TIMEOUT)) == (1, 2, 3)
