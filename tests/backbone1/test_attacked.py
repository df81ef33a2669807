"""What an attack on the second protocol has found: each with the test that would have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio import (
    Ack,
    AuthenticationRequest,
    ClientConfig,
    ClientState,
    ConnectionLost,
    HandlerFailed,
    Identity,
    Limits,
    Message,
    MessageType,
    Request,
    Router,
    ServerConfig,
    open_client,
)
from quicflow_trio.config import Protocol
from quicflow_trio.quic.aioquic_engine import Windows
from quicflow_trio.testing import MemoryNetwork
from quicflow_trio.wire import BackboneAck, BackboneData
from tests.auth.test_certificates import Files
from tests.backbone1.raw1 import answer, data, open_raw1, open_raw_server1, put, wire
from tests.backbone1.test_access import by_password
from tests.connections.machine import client_of, open_machine, until
from tests.connections.raw import Raw
from tests.messages.harness import Gate


@pytest.mark.parametrize(("duplicates", "second"), [("replace", "quicflow/2"), ("refuse", "quic-backbone-v1")])
async def test_who_comes_while_the_authenticator_thinks_is_not_replaced(
    autojump_clock: MockClock, tmp_path: Path, duplicates: Literal["replace", "refuse"], second: Protocol
) -> None:
    async def check(request: AuthenticationRequest) -> Identity:
        if not request.credentials:
            await trio.sleep(2)
        return Identity(name=request.client_id)

    files = Files(tmp_path)
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(v1_duplicates=duplicates)
    patient = ClientConfig(backoff_initial=60)
    come = partial(open_client, "server", client_id="worker", tls=files.client("worker"), config=patient)
    async with (
        open_machine(network, authenticate=check, tls=files.server(), config=config) as machine,
        come(network=network.host("a"), protocol="quic-backbone-v1"),
    ):
        await trio.sleep(0.5)
        async with come(network=network.host("b"), protocol=second, credentials=b"secret") as other:
            await trio.sleep(5)
            assert other.state.value is (ClientState.CONNECTED if second == "quicflow/2" else ClientState.IDLE)
            session = machine.server.sessions["worker"]
            assert session.protocol == second
            assert [change.change for change in session.history] == ["connected"]


@pytest.mark.parametrize("status", ["1e999", "Infinity", "[]", "null", "NaN"])
async def test_an_answer_whose_status_is_no_number_is_a_result_as_it_stands(autojump_clock: MockClock, status: str) -> None:
    network = MemoryNetwork(delay=0.001)

    def odd(raw: Raw, stream_id: int, message: BackboneData) -> None:
        result = b'{"msg_id":"%s","status":%s}' % (message.msg_id.encode(), status.encode())
        raw.write(stream_id, wire(BackboneAck(message.msg_id, 1, result)), fin=True)

    async with open_raw_server1(network, odd), client_of(network, protocol="quic-backbone-v1") as client:
        ack = await client.request(Message.command())
        assert isinstance(ack, Ack)
        assert status.encode() in ack.result
        assert client.metrics().internal_errors == 0


async def test_answers_that_are_not_taken_are_bounded(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def big(_: Request) -> bytes:
        return bytes(200_000)

    windows = Windows(stream_in=100, stream_out=100, connection=2_000_000_000, streams=1 << 40)
    async with open_machine(router=router) as machine, open_raw1(machine.network, windows=windows) as raw:
        raw.grants = False
        for number in range(100):
            put(raw, data(b"x", ack=True, msg_id=f"m{number}"))
            await trio.sleep(0.05)
        streams = machine.server.sessions["raw"]._connection.engine._core._streams.values()  # type: ignore[attr-defined]
        written = sum(stream.sender._buffer_stop - stream.sender._buffer_start for stream in streams)
        # Answers and copies, a limit each, and what was written when it was reached.
        assert written <= 2 * Limits().outbox_bytes + 1_000_000


async def test_credit_comes_back_when_a_handler_ends(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    limits = Limits(lanes=1, lane_window=16_384, payload=65_536)
    config = ServerConfig(handler_timeout=3600, limits=limits)
    async with open_machine(router=gate.router, config=config) as machine, open_raw1(machine.network) as raw:
        session = machine.server.sessions["raw"]
        put(raw, data(b"slow"))
        for number in range(150):
            put(raw, data(b"%05d" % number + bytes(10_000), type=2, msg_id=str(number)))
        await trio.sleep(10)
        gate.opened.set()
        await until(lambda: session.statistics().messages_received == 151, seconds=20)
        await until(lambda: session.statistics().held_bytes == 0, seconds=1)


async def test_more_requests_than_streams_and_handlers_slower_than_the_heartbeat(autojump_clock: MockClock) -> None:
    gate = Gate(serial=False)
    network = MemoryNetwork(delay=0.01)
    results: list[bytes] = []
    async with (
        open_machine(network, router=gate.router, config=ServerConfig(handler_timeout=3600)) as machine,
        client_of(network, protocol="quic-backbone-v1", config=ClientConfig(ack_timeout=300)) as client,
    ):

        async def ask() -> None:
            results.append((await client.request(Message.command())).result)

        async with trio.open_nursery() as nursery:
            for _ in range(1200):
                nursery.start_soon(ask)
            await trio.sleep(100)
            gate.opened.set()
        assert (len(results), client.statistics().connects) == (1200, 1)
        assert machine.server.statistics().disconnects == {}


async def test_a_message_over_the_servers_limit_was_not_delivered(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(delay=0.01)
    config = ServerConfig(limits=Limits(payload=10_000))
    async with open_machine(network, config=config), client_of(network, protocol="quic-backbone-v1") as client:
        sent = await client.send(Message.event(bytes(50_000)))
        with pytest.raises(ConnectionLost, match="thrown the message away"):
            await sent.delivered()
        with pytest.raises(HandlerFailed, match=r"the limit is 10,000"):
            await client.request(Message.command(bytes(50_000)))


async def test_frames_that_are_not_complete_count_for_the_whole_process(autojump_clock: MockClock) -> None:
    limits = Limits(lanes=1, lane_window=65_536, payload=65_536, total_bytes=1024 * 1024)
    async with (
        open_machine(config=ServerConfig(limits=limits)) as machine,
        open_raw1(machine.network, "one", host="one") as one,
        open_raw1(machine.network, "two", host="two") as two,
    ):
        for raw in (one, two):
            for _ in range(60):
                put(raw, wire(data(bytes(60_000)))[:50_000], fin=False)
        await trio.sleep(3)
        held = machine.server.metrics().held_bytes
        assert 200_000 < held <= 1024 * 1024
        one.engine.close(0, "client disconnect")
        one.kick()
        await until(lambda: len(machine.server.sessions) == 1, seconds=10)
        assert machine.server.metrics().held_bytes < held


async def test_a_giant_message_id_is_a_bad_frame(autojump_clock: MockClock) -> None:
    async with open_machine() as machine, open_raw1(machine.network) as raw:
        assert await answer(raw, put(raw, data(ack=True, msg_id="x" * 257))) is None
        assert await answer(raw, put(raw, data(ack=True, msg_id="x" * 256))) == BackboneAck("x" * 256, 1, b"hi")
        assert machine.server.metrics().decoding_errors == 1


@pytest.mark.parametrize("serial", [True, False])
async def test_a_stranger_holds_up_no_client_with_credentials(autojump_clock: MockClock, serial: bool) -> None:
    network = MemoryNetwork(delay=0.01)
    router = Router()

    async def slow(_: Request) -> None:
        await trio.sleep(20)

    async def quick(_: Request) -> bytes:
        return b"yes"

    router.add(MessageType.COMMAND, slow, serial=serial)
    router.add(MessageType.QUERY, quick)
    config = ServerConfig(allow_unauthenticated_v1=True)
    async with (
        open_machine(network, router=router, authenticate=by_password, config=config),
        open_raw1(network, "worker") as stranger,
    ):
        for _ in range(200):
            put(stranger, data())
        await trio.sleep(1)
        async with client_of(network, host="worker", credentials=b"secret") as client:
            with trio.fail_after(1):
                assert (await client.request(Message.query())).result == b"yes"


async def test_a_result_too_long_as_json_is_a_failure_that_says_so(autojump_clock: MockClock) -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def big(_: Request) -> bytes:
        return bytes(9_000_000)

    limits = Limits(payload=10_000_000)
    network = MemoryNetwork(delay=0.001)
    async with (
        open_machine(network, router=router, config=ServerConfig(v1_results="json", limits=limits)),
        client_of(network, protocol="quic-backbone-v1", config=ClientConfig(limits=limits)) as client,
    ):
        with pytest.raises(HandlerFailed, match=r"a result of 9,000,000 bytes takes 12,000,\d+ as JSON"):
            await client.request(Message.command())


async def test_a_request_too_large_of_a_negative_type_is_refused(autojump_clock: MockClock) -> None:
    config = ServerConfig(limits=Limits(payload=10_000))
    async with open_machine(config=config) as machine, open_raw1(machine.network) as raw:
        found = await answer(raw, put(raw, data(bytes(30_000), ack=True, type=-1)))
        assert found == BackboneAck("m1", 2, b"", "payload of 30,000 bytes, the limit is 10,000")
