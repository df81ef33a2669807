"""The connection cut at every packet of an exchange: whatever was lost with it, each call ends as it would have without."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Client,
    ClientConfig,
    ConnectionLost,
    Delivery,
    HandlerFailed,
    Message,
    MessageType,
    Peer,
    Request,
    Router,
    Server,
    ServerConfig,
)
from quicflow_trio.quic.engine import Address
from quicflow_trio.testing import MemoryNetwork, open_world, seeded
from tests.connections.machine import client_of, open_machine, until
from tests.connections.test_resuming import cut

SOON = ClientConfig(backoff_initial=0.01, backoff_max=0.1, seed=1, jitter=0)
AT_MOST_ONCE, REDELIVER = Delivery
PACKETS = 64
"""More than an exchange takes."""
CALLS: dict[str, object] = {
    "cast": {"client-0": b"lla"},
    "alone 1": b"alone",
    "alone 2": b"alone",
    **{
        f"{whose} {payload}": result
        for whose in ("client", "server")
        for payload, result in {
            "one": b"eno",
            "slow": b"wols",
            "bad": "ValueError: no",
            "much": b"hcum" * 300,
            "other": b"rehto",
            "events": None,
        }.items()
    },
}


class Side:
    """The handlers of one side: what they were given, lane by lane."""

    def __init__(self) -> None:
        self.runs: Counter[bytes] = Counter()
        self.order: list[bytes] = []
        self.redelivered: set[bytes] = set()
        self.at_once = 0
        self.router = Router()
        self.router.add(MessageType.EVENT, self.note)
        self.router.add(MessageType.QUERY, self.answer)
        self.router.add(MessageType.COMMAND, self.alone, serial=True)

    async def note(self, request: Request) -> None:
        self.runs[request.message.id] += 1
        self.order.append(request.message.payload)
        if request.redelivered:
            self.redelivered.add(request.message.id)

    async def answer(self, request: Request) -> bytes:
        await self.note(request)
        payload = request.message.payload
        await trio.sleep(0.02 if payload == b"slow" else 0)
        if payload == b"bad":
            raise ValueError("no")
        return payload[::-1] * (300 if payload == b"much" else 1)

    async def alone(self, request: Request) -> bytes:
        await self.note(request)
        self.at_once += 1
        await trio.sleep(0.005)
        assert self.at_once == 1
        self.at_once -= 1
        return b"alone"


class Packets:
    """Counts the packets of a network, and cuts it before one of them until it is told to `heal`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.seen = 0
        self.reached = trio.Event()
        self._network = network
        self._route = network._route
        self._stop = math.inf

    @contextmanager
    def cutting(self, number: float) -> Iterator[None]:
        """Let only so many packets pass."""
        self._stop = number
        object.__setattr__(self._network, "_route", self._pass)
        yield
        object.__setattr__(self._network, "_route", self._route)

    def heal(self) -> None:
        self._stop = math.inf

    def _pass(self, data: bytes, source: tuple[str, int], destination: Address) -> None:
        self.seen += 1
        if self.seen > self._stop:
            self.reached.set()
            return
        self._route(data, source, destination)


async def call(name: str, client: Client, server: Server) -> object:
    """Make one of the `CALLS`, and return how it ended."""
    if name == "cast":
        report = await server.broadcast(Message.query(b"all"), ack_timeout=math.inf)
        return {client_id: ack.result for client_id, ack in report.acked.items()}
    whose, what = name.split()
    if whose == "alone":
        return (await client.lane("alone").request(Message.command(what.encode()), ack_timeout=math.inf)).result
    peer: Peer = client if whose == "client" else server.session("client-0")
    if what == "events":
        for number in range(3):
            sent = await peer.lane("events").send(Message.event(b"%d" % number))
        await sent.delivered()
        return None
    try:
        lane = peer.lane("other") if what == "other" else peer
        return (await lane.request(Message.query(what.encode()), ack_timeout=math.inf)).result
    except HandlerFailed as exc:
        return str(exc)


async def exchange(client: Client, server: Server) -> dict[str, object]:
    """Make all calls, each a moment after the one before; the server takes new ones only while there is a connection."""
    results: dict[str, object] = {}

    async def make(name: str, wait: float) -> None:
        await trio.sleep(wait)
        await until(lambda: "client-0" in server.sessions, step=0.001)
        results[name] = await call(name, client, server)

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(CALLS):
            nursery.start_soon(make, name, number * 0.002)
    return results


async def cut_short(number: float, *, server_notices: bool, engine: str = "aioquic") -> tuple[dict[str, object], Packets]:
    """Run one exchange, cut before a packet; check what the handlers saw."""
    server_side, client_side = Side(), Side()
    network = MemoryNetwork(delay=0.004)
    with seeded(1):
        async with open_world(
            network=network,
            router=server_side.router,
            client_router=client_side.router,
            client_config=ClientConfig(backoff_initial=0.01, backoff_max=0.1, seed=1, jitter=0, engine=engine),
            server_config=ServerConfig(engine=engine),
        ) as world:
            client, session = world.clients["client-0"], world.server.sessions["client-0"]
            await trio.sleep(1)
            packets = Packets(network)

            async def disturb() -> None:
                await packets.reached.wait()
                await trio.sleep(0.02)
                if server_notices:
                    cut(session._connection)
                    await trio.sleep(0.001)
                packets.heal()
                cut(client._supervisor.connection)

            with packets.cutting(number):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(disturb)
                    with trio.fail_after(200):
                        results = await exchange(client, world.server)
                    nursery.cancel_scope.cancel()
            assert world.server.session("client-0") is session
            assert set(server_side.runs.values()) == set(client_side.runs.values()) == {1}
            assert (server_side.runs.total(), client_side.runs.total()) == (10, 9)
            for side in (server_side, client_side):
                numbers = [payload for payload in side.order if payload in (b"0", b"1", b"2")]
                assert [payload for payload in numbers if payload == b"0"] == [b"0"]
                assert numbers.index(b"0") < len(numbers) - 1
            assert world.server.metrics().messages_lost == client.metrics().messages_lost == 0
    return results, packets


async def test_an_exchange_takes_fewer_packets_than_are_tried(autojump_clock: MockClock) -> None:
    results, packets = await cut_short(math.inf, server_notices=True)
    assert results == CALLS
    assert 40 < packets.seen < PACKETS


@pytest.mark.parametrize("number", range(PACKETS))
async def test_a_cut_before_any_packet_changes_no_result(autojump_clock: MockClock, number: int) -> None:
    """Noticed by both sides, or by the client alone: the server has the old connection for alive when the new one comes."""
    for server_notices in (True, False):
        results, packets = await cut_short(number, server_notices=server_notices)
        assert results == CALLS
        assert packets.reached.is_set() is (packets.seen > number)


@pytest.mark.parametrize("number", range(5, 45, 8))
async def test_cuts_with_the_other_engine(autojump_clock: MockClock, number: int) -> None:
    pytest.importorskip("qh3")
    results, packets = await cut_short(number, server_notices=False, engine="qh3")
    assert results == CALLS
    assert packets.reached.is_set()


async def ask(client: Client, message: Message, outcomes: dict[bytes, object]) -> None:
    try:
        outcomes[message.id] = (await client.request(message, ack_timeout=math.inf)).result
    except ConnectionLost:
        outcomes[message.id] = ConnectionLost


@pytest.mark.parametrize("number", range(12))
async def test_a_restart_before_any_packet_is_told_or_mended(autojump_clock: MockClock, number: int) -> None:
    """The server is killed and started again: at most once, or `ConnectionLost` at once; or once more, flagged, where that was asked."""
    side = Side()
    outcomes: dict[bytes, object] = {}
    payloads = (b"one", b"slow", b"much")
    again, once = ([Message.query(payload, delivery=delivery) for payload in payloads] for delivery in (REDELIVER, AT_MOST_ONCE))
    told_again, told_once = Message.event(b"0", delivery=REDELIVER), Message.event(b"0")
    async with (
        open_machine(MemoryNetwork(delay=0.004), router=side.router) as machine,
        client_of(machine.network, config=SOON) as client,
    ):
        await client.wait_connected()
        await trio.sleep(1)
        packets = Packets(machine.network)
        with packets.cutting(number), trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for message in (*again, *once):
                    nursery.start_soon(ask, client, message, outcomes)
                    await trio.sleep(0.002)
                sent = await client.send(told_again)
                await client.send(told_once)
                await packets.reached.wait()
                await machine.kill()
                packets.heal()
                await machine.start()
                cut(client._supervisor.connection)
            await sent.delivered()
        await trio.sleep(1)
    for message in again:
        assert outcomes[message.id] in (message.payload[::-1], message.payload[::-1] * 300)
    for message in (*again, told_again):
        assert side.runs[message.id] == 1 or (side.runs[message.id] == 2 and message.id in side.redelivered)
    for message in (*once, told_once):
        assert side.runs[message.id] <= 1
        assert message.id not in side.redelivered
    for message in once:
        assert outcomes[message.id] is ConnectionLost or side.runs[message.id] == 1
    assert ConnectionLost in outcomes.values() or number > 8
