"""Who gets a session: what the authenticator is asked, what its answers do, and that nobody waits for anybody else's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    AuthenticationFailed,
    AuthenticationRequest,
    ClientConfig,
    ClientState,
    ConfigurationError,
    ConnectionClosed,
    CredentialsRefused,
    Identity,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    Session,
    SessionReplaced,
)
from quicflow_trio.protocol.state import CloseCode
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import Hello, PeerLimits, Welcome
from tests.auth.tokens import authenticator, token
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import open_raw

FAST = ClientConfig(backoff_initial=0.1, backoff_max=0.5, seed=1)


def hello(client_id: str = "worker", credentials: bytes = b"") -> Hello:
    return Hello(revision=2, client_id=client_id, credentials=credentials, limits=PeerLimits(payload=1_048_576, lanes=16))


async def test_what_the_authenticator_is_asked_and_what_a_handler_sees(autojump_clock: MockClock) -> None:
    asked: list[AuthenticationRequest] = []
    router = Router()

    async def check(request: AuthenticationRequest) -> Identity:
        asked.append(request)
        await trio.sleep(1)
        return Identity(name="Worker One", claims={"team": "blue"})

    @router.on(MessageType.QUERY)
    async def who(request: Request) -> bytes:
        assert isinstance(request.peer, Session)
        identity = request.peer.identity
        return f"{identity.name}, {identity.claims['team']}".encode()

    async with open_machine(router=router, authenticate=check) as machine:
        async with client_of(machine.network, credentials=b"secret") as client:
            assert (await client.request(Message.query())).result == b"Worker One, blue"
        (request,) = asked
        assert (request.client_id, request.credentials, request.certificate, request.names) == (
            "worker",
            b"secret",
            None,
            frozenset(),
        )
        assert request.address == ("worker", request.address[1])
        assert request.identity is None
        assert "secret" not in repr(request)
        assert machine.server.metrics().authentications == {"accepted": 1}


async def test_a_refusal_is_permanent_and_says_why(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_machine(authenticate=authenticator()) as machine:
        async with client_of(machine.network, credentials=token("somebody else")) as client:
            with pytest.raises(AuthenticationFailed, match="another client id"):
                await client.request(Message.command())
        assert client.statistics().attempts == 1
        figures = machine.server.statistics()
        assert figures.refused == {"server:authentication_failed": 1}
        assert (figures.connected, figures.away, figures.half_open) == (0, 0, 0)
        assert machine.server.metrics().authentications == {"refused": 1}
    lines = [record.getMessage() for record in caplog.records if "credentials refused" in record.getMessage()]
    assert len(lines) == 1
    assert token("somebody else").decode() not in caplog.text


async def test_the_cause_of_a_refusal_is_for_the_log_only(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with open_machine(authenticate=authenticator()) as machine, open_raw(machine.network) as raw:
        raw.open(hello(credentials=token(aud="another")))
        assert (await raw.ended()).reason == "the token is not accepted"
    assert "Audience doesn't match" in caplog.text


@pytest.mark.parametrize("kind", ["raises", "hangs", "returns nothing", "raises in a nursery"])
async def test_an_authenticator_that_fails_refuses_for_now(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    broken = True

    async def check(request: AuthenticationRequest) -> Identity:
        if broken and kind == "raises":
            raise ZeroDivisionError("no database")
        if broken and kind == "hangs":
            await trio.sleep_forever()
        if broken and kind == "returns nothing":
            return None  # type: ignore[return-value]
        if broken and kind == "raises in a nursery":
            async with trio.open_nursery():
                raise ZeroDivisionError("no database")
        return Identity(name="x")

    config = ServerConfig(authenticate_timeout=2.0)
    async with open_machine(authenticate=check, config=config) as machine, client_of(machine.network, config=FAST) as client:
        await until(lambda: client.statistics().attempts > 3)
        assert client.state.value is not ClientState.CONNECTED
        server = machine.server
        outcome = "timed_out" if kind == "hangs" else "failed"
        assert server.metrics().authentications[outcome] >= 3
        assert set(server.statistics().refused) == {"server:authentication_unavailable"}
        assert server.metrics().internal_errors == 0
        broken = False
        await client.wait_connected()
        assert (await client.request(Message.command(b"x"))).result == b"x"
        assert len(server.statistics().refused) == 1
    assert "authenticator" in caplog.text


async def test_a_slow_authenticator_holds_up_nobody_else(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        if request.client_id == "slow":
            await trio.sleep(4)
        return Identity(name=request.client_id)

    async with open_machine(authenticate=check) as machine, client_of(machine.network, "slow") as slow:
        await trio.sleep(0.1)
        started = trio.current_time()
        async with client_of(machine.network, "quick") as quick:
            for _ in range(10):
                await quick.request(Message.command())
        assert trio.current_time() - started < 0.5
        await slow.wait_connected()
        assert 4 <= trio.current_time() - started + 0.1 < 4.2


async def test_while_it_is_asked_a_client_may_say_nothing(autojump_clock: MockClock) -> None:
    calls = 0

    async def check(request: AuthenticationRequest) -> Identity:
        nonlocal calls
        calls += 1
        await trio.sleep(1)
        return Identity(name="x")

    async with open_machine(authenticate=check) as machine, open_raw(machine.network) as raw:
        raw.open(hello())
        await trio.sleep(0.5)
        raw.write(0, hello())
        ended = await raw.ended()
        assert (ended.code, ended.reason) == (CloseCode.PROTOCOL_ERROR, "a second hello")
        await trio.sleep(2)
        assert calls == 1
        assert raw.frames() == []
        assert machine.server.sessions == {}
        assert machine.server.metrics().authentications == {}, "it was cancelled with the connection"


async def test_who_leaves_while_it_is_asked_leaves_nothing(autojump_clock: MockClock) -> None:
    ended: list[str] = []

    async def check(request: AuthenticationRequest) -> Identity:
        try:
            await trio.sleep(3)
        finally:
            ended.append(request.client_id)
        return Identity(name="x")

    async with open_machine(authenticate=check) as machine:
        async with open_raw(machine.network) as raw:
            raw.open(hello())
            await trio.sleep(1)
        await until(lambda: ended)
        assert machine.server._admission._gatekeeper._visits == {}
        assert machine.server.statistics().half_open == 0


async def test_draining_while_it_is_asked(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        await trio.sleep(1)
        return Identity(name="x")

    async with open_machine(authenticate=check) as machine, open_raw(machine.network) as raw:
        raw.open(hello())
        await trio.sleep(0.5)
        await machine.server.drain(grace=5)
        assert (await raw.ended()).code == CloseCode.SHUTDOWN
        assert not [frame for frame in raw.frames() if isinstance(frame, Welcome)]


async def test_the_oldest_that_is_asked_about_makes_room(autojump_clock: MockClock) -> None:
    # The bound on half-open connections is the bound on calls of the authenticator.
    asked: list[str] = []

    async def check(request: AuthenticationRequest) -> Identity:
        asked.append(request.client_id)
        await trio.sleep(4)
        return Identity(name=request.client_id)

    config = ServerConfig()
    config = replace(config, limits=replace(config.limits, half_open=1))
    async with open_machine(authenticate=check, config=config) as machine, open_raw(machine.network, "one") as first:
        first.open(hello("first"))
        await trio.sleep(1)
        async with open_raw(machine.network, "two") as second:
            second.open(hello("second"))
            assert (await first.ended()).code == CloseCode.OVERLOADED
            await second.frame(Welcome)
            assert list(machine.server.sessions) == ["second"]


async def test_takeover_needs_credentials_for_that_id(autojump_clock: MockClock) -> None:
    async with (
        open_machine(authenticate=authenticator()) as machine,
        client_of(machine.network, host="older", credentials=token()) as older,
    ):
        await older.wait_connected()
        session = machine.server.sessions["worker"]
        for bad in (b"", token("attacker"), token(valid_for=-1), token(key="guessed, but at least thirty-two bytes long")):
            async with client_of(machine.network, host="attacker", credentials=bad) as attacker:
                with pytest.raises(AuthenticationFailed):
                    await attacker.wait_connected()
        assert machine.server.sessions["worker"] is session
        assert (await older.request(Message.command(b"still here"))).result == b"still here"
        assert older.statistics().attempts == 1
        assert [change.change for change in session.history] == ["connected"]
        async with client_of(machine.network, host="newer", credentials=token()) as newer:
            await newer.wait_connected()
            with pytest.raises(SessionReplaced):
                await older.wait_closed()


async def test_a_function_is_asked_before_each_attempt(autojump_clock: MockClock) -> None:
    shown: list[bytes] = []
    given = 0

    async def check(request: AuthenticationRequest) -> Identity:
        shown.append(request.credentials)
        return Identity(name="x")

    async def fresh() -> bytes:
        nonlocal given
        given += 1
        if given == 2:
            raise OSError("the issuer is away")
        if given == 3:
            await trio.sleep_forever()
        return b"number %d" % given

    config = replace(FAST, authenticate_timeout=1.0)
    async with (
        open_machine(authenticate=check) as machine,
        client_of(machine.network, credentials=fresh, config=config) as client,
    ):
        await client.wait_connected()
        await machine.server.sessions["worker"].close()
        await client.state.wait_value(ClientState.IDLE)
        await client.wait_connected()
        assert shown == [b"number 1", b"number 4"]
        reasons = [change.reason for change in client.statistics().history]
        assert any("the issuer is away" in reason for reason in reasons)
        assert any("no fresh credentials within 1 s" in reason for reason in reasons)
        assert client.metrics().internal_errors == 0


async def test_credentials_that_cannot_be_shown(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    for wrong in ("text", b"x" * 40_000, None):
        with pytest.raises(ConfigurationError, match="credentials"):
            async with client_of(network, credentials=wrong):  # type: ignore[arg-type]
                pass

    async def endless() -> bytes:
        return b"x" * 40_000

    async with open_machine(network, authenticate=authenticator()), client_of(network, credentials=endless) as client:
        await trio.sleep(5)
        assert client.statistics().attempts > 1
        assert "expected at most" in client.statistics().history[-1].reason


async def test_leaving_while_credentials_are_fetched(autojump_clock: MockClock) -> None:
    async def never() -> bytes:
        await trio.sleep(10_000)
        return b""

    async with open_machine(authenticate=authenticator()) as machine:
        async with client_of(machine.network, credentials=never) as client:
            await trio.sleep(1)
        with pytest.raises(ConnectionClosed):
            await client.wait_connected()


def test_what_serve_refuses() -> None:
    with pytest.raises(ConfigurationError, match="authenticate_timeout"):
        ServerConfig(authenticate_timeout=math.nan)
    with pytest.raises(ConfigurationError, match=r"ServerConfig\.rate"):
        ServerConfig(rate=5)  # type: ignore[arg-type]


async def test_an_authenticator_must_be_a_function() -> None:
    with pytest.raises(ConfigurationError, match="authenticate"):
        async with open_machine(authenticate="everybody"):  # type: ignore[arg-type]
            pass


async def test_a_long_reason_of_odd_text_still_arrives(autojump_clock: MockClock) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        raise CredentialsRefused("no\n\udcff" + "é" * 5000)

    async with open_machine(authenticate=check) as machine, open_raw(machine.network) as raw:
        raw.open(hello())
        ended = await raw.ended()
        assert ended.code == CloseCode.AUTHENTICATION_FAILED
        assert ended.reason.startswith("no\n?éé")
        assert 200 < len(ended.reason.encode()) <= 256
