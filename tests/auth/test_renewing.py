"""Identities end: fresh credentials in place, a close with a reason without them, and the way back."""

from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationFailed,
    AuthenticationRequest,
    Client,
    ClientConfig,
    ClientState,
    ConfigurationError,
    ConnectionLost,
    CredentialsRefused,
    CredentialsUnavailable,
    Identity,
    LocalProtocolError,
    Message,
    PermissionDenied,
    Permissions,
    Session,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.wire import Authentication, Hello, PeerLimits, PingFrame, Welcome
from tests.auth.tokens import authenticator, token, virtual_time
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import open_raw, open_raw_server, welcome

FAST = ClientConfig(backoff_initial=0.1, backoff_max=0.5, seed=1)


def hello(credentials: bytes = b"") -> Hello:
    return Hello(revision=2, client_id="worker", credentials=credentials, limits=PeerLimits(payload=1_048_576, lanes=16))


async def test_a_function_keeps_a_session_going_without_a_reconnect(autojump_clock: MockClock) -> None:
    clock = virtual_time()
    given = 0

    async def fresh() -> bytes:
        nonlocal given
        given += 1
        return token(now=clock(), valid_for=60)

    async with (
        open_machine(authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=fresh) as client,
    ):
        await client.wait_connected()
        session = machine.server.sessions["worker"]
        ends = []
        for _ in range(20):
            await trio.sleep(50)
            assert (await client.request(Message.command(b"x"))).result == b"x"
            ends.append(session.identity.claims["exp"])
        assert machine.server.sessions["worker"] is session
        assert client.statistics().connects == 1
        # Every 45 s: three quarters of a minute.
        assert given == 1 + 1000 // 45
        assert len(set(ends)) == len(ends)
        assert machine.server.metrics().authentications == {"accepted": given}
        assert machine.server.statistics().disconnects == {}
    # The ends of identities that were replaced do not stay in the heap.
    assert len(machine.server._admission.deadlines) < 100


async def test_the_end_of_an_identity_closes_the_connection_and_fresh_ones_open_the_next(autojump_clock: MockClock) -> None:
    clock = virtual_time()
    fails = True

    async def fresh() -> bytes:
        if fails and client.state.value is ClientState.CONNECTED:
            raise OSError("the issuer is away")
        return token(now=clock(), valid_for=60)

    async with (
        open_machine(authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=fresh, config=FAST) as client,
    ):
        await client.wait_connected()
        started = trio.current_time()
        await client.state.wait_value(ClientState.IDLE)
        assert trio.current_time() - started == pytest.approx(60, abs=0.1)
        assert machine.server.statistics().disconnects == {"server:credentials_expired": 1}
        assert client.statistics().history[-1].reason == "the credentials have expired"
        fails = False
        await client.wait_connected()
        assert trio.current_time() - started < 61
        await trio.sleep(200)
        assert client.statistics().connects == 2


async def test_renewing_is_tried_again_before_the_end(autojump_clock: MockClock) -> None:
    clock = virtual_time()
    tried: list[float] = []

    async def fresh() -> bytes:
        tried.append(trio.current_time())
        if 2 <= len(tried) <= 5:
            raise OSError("the issuer is away")
        return token(now=clock(), valid_for=60)

    async with (
        open_machine(authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=fresh) as client,
    ):
        await client.wait_connected()
        await trio.sleep(70)
        assert client.statistics().connects == 1
        pauses = [round(later - earlier) for earlier, later in itertools.pairwise(tried)]
        assert pauses[:5] == [45, 4, 3, 2, 2]


async def test_bytes_that_expire_are_final_when_nothing_fresher_can_be_had(autojump_clock: MockClock) -> None:
    clock = virtual_time()
    async with (
        open_machine(authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=token(valid_for=60), config=FAST) as client,
    ):
        await client.wait_connected()
        with pytest.raises(AuthenticationFailed, match="expired"):
            await client.wait_closed()
        # The end of the session is worth another attempt; that one is told that the token is too old.
        assert client.statistics().attempts == 2
        assert machine.server.metrics().authentications == {"accepted": 1, "expired": 1}


async def test_reauthenticate_with_bytes(autojump_clock: MockClock) -> None:
    clock = virtual_time()
    async with (
        open_machine(authenticate=authenticator(clock)) as machine,
        client_of(machine.network, credentials=token(valid_for=60, permissions=["query"])) as client,
    ):
        with pytest.raises(PermissionDenied):
            await client.request(Message.command())
        await trio.sleep(50)
        await client.reauthenticate(token(now=clock(), valid_for=60))
        assert (await client.request(Message.command(b"x"))).result == b"x"
        await trio.sleep(50)
        assert client.statistics().connects == 1
        # Refused ones change nothing, but are what the next connection would show.
        with pytest.raises(AuthenticationFailed, match="another client id"):
            await client.reauthenticate(token("another", now=clock()))
        assert (await client.request(Message.command(b"x"))).result == b"x"
        await client.reauthenticate(token(now=clock(), valid_for=60))
        with pytest.raises(ConfigurationError):
            await client.reauthenticate("text")  # type: ignore[arg-type]
        assert machine.server.metrics().authentications == {"accepted": 3, "refused": 1}


async def test_reauthenticate_asks_the_function(autojump_clock: MockClock) -> None:
    works = True

    async def fresh() -> bytes:
        if not works:
            raise OSError("the issuer is away")
        return token()

    async with open_machine(authenticate=authenticator()) as machine, client_of(machine.network, credentials=fresh) as client:
        await client.reauthenticate()
        works = False
        with pytest.raises(CredentialsUnavailable, match="the issuer is away"):
            await client.reauthenticate()
        assert machine.server.metrics().authentications == {"accepted": 2}


async def test_a_server_that_asks_for_none_takes_any(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, client_of(machine.network, credentials=b"anything") as client:
        await client.reauthenticate(b"something")
        assert machine.server.sessions["worker"].identity.name == ""


async def test_the_connection_ends_while_they_are_looked_at(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        if request.identity is not None:
            await trio.sleep(4)
        return Identity(name="x")

    async def close_soon(session: Session) -> None:
        await trio.sleep(1)
        await session.close()

    async with open_machine(authenticate=check) as machine, client_of(machine.network, config=FAST) as client:
        await client.wait_connected()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_soon, machine.server.sessions["worker"])
            with pytest.raises(ConnectionLost):
                await client.reauthenticate(b"x")
        await client.wait_connected()
        await client.reauthenticate(b"x")


async def test_an_identity_that_ends_while_fresh_ones_are_looked_at(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        if request.identity is not None:
            await trio.sleep(4)
        return Identity(name="x", valid_for=10)

    async with open_machine(authenticate=check) as machine, client_of(machine.network, config=FAST) as client:
        await client.wait_connected()
        await trio.sleep(8)
        with pytest.raises(ConnectionLost):
            await client.reauthenticate(b"x")
        assert machine.server.statistics().disconnects == {"server:credentials_expired": 1}


async def test_the_caller_is_cancelled_and_the_latest_count(autojump_clock: MockClock) -> None:
    looked_at: list[bytes] = []

    async def check(request: AuthenticationRequest) -> Identity:
        if request.identity is not None:
            await trio.sleep(1)
            looked_at.append(request.credentials)
        return Identity(name=request.credentials.decode())

    async with open_machine(authenticate=check) as machine, client_of(machine.network, credentials=b"zero") as client:
        await client.wait_connected()
        with trio.move_on_after(0.5):
            await client.reauthenticate(b"first")
        await client.reauthenticate(b"second")
        assert looked_at == [b"second"]
        assert machine.server.sessions["worker"].identity.name == "second"


async def test_two_callers_take_turns(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        await trio.sleep(1)
        return Identity(name="x")

    async with open_machine(authenticate=check) as machine, client_of(machine.network) as client:
        await client.wait_connected()
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client.reauthenticate, b"x")
        assert trio.current_time() - started == pytest.approx(3, abs=0.2)


async def test_cancelled_at_any_moment_nothing_is_left(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        await trio.sleep(0.05)
        return Identity(name="x", valid_for=1000)

    async with open_machine(authenticate=check) as machine, client_of(machine.network) as client:
        await client.wait_connected()
        for step in range(12):
            await trio.sleep(2)
            with trio.move_on_after(step * 0.01):
                await client.reauthenticate(b"x")
            assert client._credentials._renewal is None
            assert not client._credentials._lock.locked()
        await trio.sleep(2)
        await client.reauthenticate(b"x")
        assert client.statistics().connects == 1


# -- a server by hand, and a client by hand ------------------------------------------------------------------------------
async def test_an_older_server_cannot(autojump_clock: MockClock) -> None:
    from dataclasses import replace

    from quicflow_trio.quic.engine import EngineEvent, StreamData
    from quicflow_trio.testing import MemoryNetwork
    from tests.connections.raw import Raw

    network = MemoryNetwork(delay=0.01)

    def answer(raw: Raw, event: EngineEvent) -> None:
        if isinstance(event, StreamData) and isinstance(raw.frames()[-1], Hello):
            raw.write(0, replace(welcome(), revision=1))

    async with open_raw_server(network, answer), client_of(network) as client:
        await client.wait_connected()
        with pytest.raises(LocalProtocolError, match="cannot renew"):
            await client.reauthenticate(b"x")


async def test_what_goes_over_the_wire(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        if request.credentials == b"bad":
            raise CredentialsRefused("no")
        return Identity(name="x", valid_for=0.0001 if request.credentials == b"short" else 90)

    async with open_machine(authenticate=check) as machine, open_raw(machine.network) as raw:
        raw.open(hello())
        await raw.frame(Welcome)
        assert await raw.frame(Authentication) == Authentication(valid_for_ms=90_000)
        raw.write(0, Authentication(7, b"good"))
        assert await raw.frame(Authentication, count=2) == Authentication(7, valid_for_ms=90_000)
        raw.write(0, Authentication(8, b"bad"))
        assert await raw.frame(Authentication, count=3) == Authentication(8, error="no")
        raw.write(0, Authentication(9, b"short"))
        assert await raw.frame(Authentication, count=4) == Authentication(9, valid_for_ms=1)
        assert (await raw.ended()).code == CloseCode.CREDENTIALS_EXPIRED


async def test_a_flood_of_renewals_calls_the_authenticator_a_few_times(autojump_clock: MockClock) -> None:
    calls = 0

    async def check(request: AuthenticationRequest) -> Identity:
        nonlocal calls
        calls += 1
        return Identity(name="x")

    async with open_machine(authenticate=check) as machine, open_raw(machine.network) as raw:
        raw.open(hello())
        await raw.frame(Welcome)
        for number in range(1, 501):
            raw.write(0, Authentication(number, b"x"))
            if number % 50 == 0:
                raw.write(0, PingFrame(number))
                await trio.sleep(0.1)
        await trio.sleep(1)
        refused = [frame for frame in raw.frames() if isinstance(frame, Authentication) and "too many" in frame.error]
        assert len(refused) > 480
        assert calls <= 1 + 11
        assert machine.server.sessions["worker"].connected


async def test_a_word_of_the_server_that_was_not_asked_for(autojump_clock: MockClock) -> None:
    # As good as none: it can only bring the next renewal forward or put it off.
    async with open_machine() as machine, client_of(machine.network) as client:
        await client.wait_connected()
        connection = machine.server.sessions["worker"]._connection
        for frame in (Authentication(99), Authentication(0, error="no"), Authentication(5, valid_for_ms=2**63)):
            connection.send(frame)
        await trio.sleep(1)
        assert (await client.request(Message.command(b"x"))).result == b"x"


async def test_permissions_that_are_taken_away_count_at_once(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        return Identity(name="x", permissions=Permissions("*" if request.identity is None else "query"))

    async def ask(client: Client) -> None:
        await client.request(Message.command())

    async with open_machine(authenticate=check) as machine, client_of(machine.network) as client:
        await ask(client)
        await client.reauthenticate(b"x")
        with pytest.raises(PermissionDenied):
            await ask(client)
        await until(lambda: machine.server.metrics().messages_refused == {"permission": 1})
