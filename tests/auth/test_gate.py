"""Permissions and rate limits where messages arrive: typed refusals, no handler started, and a flood that is throttled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationRequest,
    Authenticator,
    Client,
    ErrorEvent,
    Identity,
    Message,
    MessageType,
    PermissionDenied,
    Permissions,
    RateLimit,
    RateLimited,
    Request,
    Router,
    ServerConfig,
)
from quicflow_trio.gate import REFUSALS_PER_SECOND
from quicflow_trio.testing import MemoryNetwork, open_world
from quicflow_trio.wire import AckFrame, AckStatus, LaneOpen, MessageFrame, Welcome, retry_hint
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import hello, open_raw


def allowing(*rules: str, rate: RateLimit | None = None) -> Authenticator:
    async def check(request: AuthenticationRequest) -> Identity:
        return Identity(name=request.client_id, permissions=Permissions(*rules), rate=rate)

    return check


def command(seq: int, payload: bytes = b"", *, wants_ack: bool = False) -> MessageFrame:
    return MessageFrame(seq, seq.to_bytes(16, "big"), 1, payload, wants_ack, 0)


def counting_router(handled: Counter[str], *, serial: bool = False) -> Router:
    router = Router()

    async def take(request: Request) -> bytes:
        handled[request.message.sender] += 1
        return b"ok"

    for type in MessageType:
        router.add(type, take, serial=serial)
    return router


async def test_denied_messages_are_answered_and_counted(autojump_clock: MockClock) -> None:
    handled: Counter[str] = Counter()
    check = allowing("query", "command:orders/*")
    async with (
        open_machine(router=counting_router(handled), authenticate=check) as machine,
        client_of(machine.network) as client,
        machine.server.open_events(kinds=[ErrorEvent]) as events,
    ):
        await client.request(Message.query())
        await client.lane("orders/7").request(Message.command())
        with pytest.raises(PermissionDenied, match="command on the default lane is not permitted"):
            await client.request(Message.command())
        with pytest.raises(PermissionDenied, match="event on lane 'orders/7' is not permitted"):
            await client.lane("orders/7").request(Message.event())
        # One that nobody waits for is dropped.
        await (await client.send(Message.command())).delivered()
        await trio.sleep(1)
        assert handled == {"worker": 2}
        figures = machine.server.metrics()
        assert figures.messages_refused == {"permission": 3}
        assert (figures.messages_received, figures.messages_failed, figures.held_bytes, figures.dispatch_depth) == (2, 0, 0, 0)
        with trio.fail_after(5):
            event = await anext(events)
        assert isinstance(event, ErrorEvent)
        assert (event.error, event.client_id) == ("refused_permission", "worker")


async def test_what_the_server_sends_is_not_limited(autojump_clock: MockClock) -> None:
    check = allowing("query", rate=RateLimit(messages=1))
    async with open_machine(authenticate=check) as machine:
        handled: Counter[str] = Counter()
        async with client_of(machine.network, router=counting_router(handled)) as client:
            await client.wait_connected()
            for _ in range(10):
                await machine.server.sessions["worker"].request(Message.command())
        assert handled == {"server": 10}


@pytest.mark.parametrize("serial", [False, True])
async def test_over_the_rate_the_refusal_says_when(autojump_clock: MockClock, serial: bool) -> None:
    handled: Counter[str] = Counter()
    config = ServerConfig(rate=RateLimit(messages=10, burst=1))
    async with open_world(router=counting_router(handled, serial=serial), server_config=config) as world:
        client = world.clients["client-0"]
        for _ in range(10):
            await client.request(Message.command())
        with pytest.raises(RateLimited, match="try again in") as caught:
            await client.request(Message.command())
        wait = caught.value.retry_after
        assert 0 < wait <= 0.1
        assert handled["client-0"] == 10
        await trio.sleep(wait)
        await client.request(Message.command())
        assert world.server.metrics().messages_refused == {"rate": 1}


async def test_bytes_are_limited(autojump_clock: MockClock) -> None:
    config = ServerConfig(rate=RateLimit(bytes=100_000))
    async with open_world(server_config=config) as world:
        client = world.clients["client-0"]
        await client.request(Message.command(b"x" * 100_000))
        with pytest.raises(RateLimited) as caught:
            await client.request(Message.command(b"x" * 50_000))
        assert caught.value.retry_after == pytest.approx(0.5, abs=0.02)
        # The client's own lanes share the limit.
        with pytest.raises(RateLimited):
            await client.lane("other").request(Message.command(b"x" * 50_000))
        await trio.sleep(caught.value.retry_after)
        await client.request(Message.command(b"x" * 50_000))


async def test_reconnecting_does_not_fill_the_bucket(autojump_clock: MockClock) -> None:
    config = ServerConfig(rate=RateLimit(messages=0.1, burst=50))
    async with open_machine(config=config) as machine:
        for number in range(8):
            async with client_of(machine.network) as client:
                if number < 5:
                    await client.request(Message.command())
                else:
                    with pytest.raises(RateLimited):
                        await client.request(Message.command())


async def test_an_identity_may_have_a_limit_of_its_own(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        return Identity(name="x", rate=RateLimit(messages=1000) if request.client_id == "fast" else None)

    async with (
        open_machine(authenticate=check, config=ServerConfig(rate=RateLimit(messages=1))) as machine,
        client_of(machine.network, "fast") as fast,
        client_of(machine.network, "slow") as slow,
    ):
        for _ in range(50):
            await fast.request(Message.command())
        await slow.request(Message.command())
        with pytest.raises(RateLimited):
            await slow.request(Message.command())


async def test_without_limits_there_is_no_gate(autojump_clock: MockClock) -> None:
    async with open_machine(authenticate=allowing("*")) as machine, client_of(machine.network) as client:
        await client.request(Message.command())
        assert machine.server.sessions["worker"]._link.dispatcher.gate is None


async def flood(client: Client, outcomes: Counter[str]) -> None:
    try:
        await client.request(Message.command(), ack_timeout=1000)
    except RateLimited:
        outcomes["refused"] += 1
    else:
        outcomes["handled"] += 1


@pytest.mark.parametrize("serial", [False, True])
async def test_a_flood_is_refused_at_once_and_then_throttled(autojump_clock: MockClock, serial: bool) -> None:
    handled: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    config = ServerConfig(rate=RateLimit(messages=50))
    async with open_world(router=counting_router(handled, serial=serial), server_config=config) as world:
        client = world.clients["client-0"]
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3000):
                nursery.start_soon(flood, client, outcomes)
            await trio.sleep(0.5)
            early = outcomes.copy()
        spent = trio.current_time() - started
        assert sum(outcomes.values()) == 3000, "each has its answer"
        assert early["refused"] <= REFUSALS_PER_SECOND * 1.5 + 2
        # No more than both rates together, with their bursts.
        assert (50 + REFUSALS_PER_SECOND) * (spent + 1) + 2 >= 3000
        assert outcomes["handled"] == handled["client-0"] <= 50 * (spent + 1) + 1
        assert outcomes["handled"] >= 50 * spent * 0.9
        assert world.server.metrics().messages_refused == {"rate": outcomes["refused"]}
        # And when it is over the client is served as any other.
        await trio.sleep(2)
        assert (await client.request(Message.command())).result == b"ok"


async def test_denied_messages_are_throttled_as_well(autojump_clock: MockClock) -> None:
    async with open_machine(authenticate=allowing("query")) as machine, client_of(machine.network) as client:
        for _ in range(5000):
            await client.send(Message.command())
        await trio.sleep(2)
        assert machine.server.metrics().messages_refused["permission"] <= 4 * REFUSALS_PER_SECOND
        # Its other lanes rest one by one, as they offend.
        with trio.fail_after(1):
            await client.lane("other").request(Message.query())


async def test_a_lane_that_rests_when_its_connection_ends_leaves_nothing(autojump_clock: MockClock) -> None:
    config = ServerConfig(rate=RateLimit(messages=1), session_ttl=30)
    async with open_machine(config=config) as machine:
        async with open_raw(machine.network) as raw:
            await raw.greet()
            messages = [command(seq, b"x" * 50) for seq in range(1, 1001)]
            raw.open(LaneOpen(), *messages)
            await trio.sleep(0.5)
            assert machine.server.metrics().held_bytes > 10_000
            raw.engine.close(0x42, "gone")  # not done: the session is kept
            raw.kick()
            await until(lambda: not machine.server.sessions)
            assert machine.server.statistics().away == 1
        await trio.sleep(40)
        figures = machine.server.statistics()
        assert (figures.away, figures.held_bytes, figures.tasks) == (0, 0, 2)


async def test_the_next_connection_waits_behind_a_lane_that_rests(autojump_clock: MockClock) -> None:
    handled: Counter[str] = Counter()
    config = ServerConfig(rate=RateLimit(messages=1, burst=1))
    async with open_machine(router=counting_router(handled), config=config) as machine:
        for number in range(5):
            async with open_raw(machine.network, f"raw-{number}") as raw:
                await raw.greet()
                raw.open(LaneOpen(), *[command(seq) for seq in range(1, 501)])
                await trio.sleep(0.2)
        await trio.sleep(30)
        assert machine.server.metrics().messages_refused["rate"] <= 5 * 1.5 * REFUSALS_PER_SECOND + 31 * REFUSALS_PER_SECOND
        assert handled["raw"] <= 33
        async with open_raw(machine.network) as raw:
            await raw.greet()
            raw.open(LaneOpen(), command(1, wants_ack=True))
            ack = await raw.frame(AckFrame, 4)
            assert ack.status == AckStatus.SUCCESS


async def test_what_goes_over_the_wire(autojump_clock: MockClock) -> None:
    config = ServerConfig(rate=RateLimit(messages=2, burst=0.5))
    async with open_machine(config=config) as machine, open_raw(machine.network) as raw:
        await raw.greet()
        stream = raw.open(LaneOpen(), *[command(seq, wants_ack=True) for seq in (1, 2)])
        ack = await raw.frame(AckFrame, stream, count=2)
        assert ack.status == AckStatus.RATE_LIMITED
        assert retry_hint(ack.result) == pytest.approx(0.5, abs=0.01)
        assert "over the rate limit" in ack.error


async def test_an_older_client_sees_a_failure(autojump_clock: MockClock) -> None:
    # Of revision 1: it keeps the number of a status that it does not know, and the text.
    async with open_machine(authenticate=allowing("query")) as machine, open_raw(machine.network) as raw:
        raw.open(replace(hello(), revision=1))
        await raw.frame(Welcome)
        stream = raw.open(LaneOpen(), command(1, wants_ack=True))
        ack = await raw.frame(AckFrame, stream)
        assert (ack.status, ack.error) == (AckStatus.DENIED, "command on the default lane is not permitted")


async def test_a_broadcast_report_has_the_refusals_of_clients(autojump_clock: MockClock) -> None:
    # Our clients refuse nothing, but another implementation may.
    network = MemoryNetwork(delay=0.01)
    async with open_machine(network) as machine, open_raw(network) as raw:
        await raw.greet()

        async def refuse() -> None:
            await raw.wait(lambda: 1 in raw.streams)
            raw.write(1, AckFrame(1, 1, AckStatus.DENIED, b"", "not me"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            report = await machine.server.broadcast(Message.event(), ack_timeout=5)
        assert isinstance(report.failed["raw"], PermissionDenied)
