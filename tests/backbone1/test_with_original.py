"""Our server and our client with the independent peer in the other role: another process, another code, over real UDP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Literal

import pytest
import trio

from quicflow_trio import (
    Client,
    ClientConfig,
    ConnectionRefused,
    HandlerFailed,
    Message,
    MessageType,
    Request,
    Router,
    Server,
    ServerConfig,
    open_client,
    serve,
)
from quicflow_trio.testing import throwaway_tls
from tests.backbone1.original import wire
from tests.backbone1.peers import PeerProcess, open_peer

pytestmark = pytest.mark.realtime

V1: Literal["quic-backbone-v1"] = "quic-backbone-v1"
NAME = "c1"
STACKS = pytest.mark.parametrize("stack", ["aioquic", "qh3"])
PROMPT: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 5.0}
HI = b"hi".hex()


class Heard:
    """A router that answers with the payload, and has what came."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.router = Router()
        for kind in (MessageType.COMMAND, MessageType.EVENT, MessageType.QUERY):
            self.router.on(kind)(self._echo)

    async def _echo(self, request: Request) -> bytes:
        self.messages.append(request.message)
        if request.message.payload == b"fail":
            raise ValueError("not this one")
        return request.message.payload

    def numbers(self) -> list[int]:
        return sorted(int.from_bytes(message.payload[:8], "big") for message in self.messages)


@asynccontextmanager
async def open_our_server(
    *, config: dict[str, Any] | None = None, **client: Any
) -> AsyncIterator[tuple[Server, PeerProcess, Heard]]:
    """Serve, with a client of the original's connected."""
    if client.get("stack") == "qh3":
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")
    heard = Heard()
    async with trio.open_nursery() as nursery:
        start = partial(
            serve, heard.router, host="127.0.0.1", port=0, tls=throwaway_tls()[0], config=ServerConfig(**config or {})
        )
        server: Server = await nursery.start(start)
        async with open_peer("client", **{"id": NAME, "port": server.address[1], **client}) as peer:
            if client.get("retry", 1.0) is not None:
                await peer.wait("connected")
            yield server, peer, heard
        await server.aclose()


@asynccontextmanager
async def open_our_client(
    *, config: dict[str, Any] | None = None, **server: Any
) -> AsyncIterator[tuple[Client, PeerProcess, Heard]]:
    """Connect to a server of the original's."""
    if server.get("stack") == "qh3":
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")
    heard = Heard()
    async with (
        open_peer("server", **server) as peer,
        open_client(
            "127.0.0.1",
            peer.port,
            client_id=NAME,
            tls=throwaway_tls()[1],
            router=heard.router,
            protocol=V1,
            config=ClientConfig(**{"backoff_initial": 0.05, "backoff_max": 0.2, **(config or {})}),
        ) as client,
    ):
        with trio.fail_after(20):
            await client.wait_connected()
        yield client, peer, heard


def open_ours_as(role: str) -> AbstractAsyncContextManager[tuple[Server | Client, PeerProcess, Heard]]:
    return open_our_server() if role == "server" else open_our_client()


async def ask_and_tell(side: Any, count: int) -> None:
    """Send so many messages, every second one as a request; our streams' limit is a thousand."""
    limiter = trio.CapacityLimiter(64)

    async def one(number: int) -> None:
        payload = number.to_bytes(8, "big")
        async with limiter:
            if number % 2:
                assert (await side.request(Message.command(payload))).result == payload
            else:
                await (await side.send(Message.event(payload))).delivered()

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)


# -- 3,000 messages both ways, past the limit of 1,000 streams --------------------------------------------------------
async def both_ways(side: Any, peer: PeerProcess, heard: Heard, to: str) -> None:
    async def theirs() -> None:
        for wait_ack, fin, first in ((True, "after", 0), (True, "with", 750), (False, "with", 1500), (False, "late", 2250)):
            reply = await peer.ask("send", to=to, count=750, first=first, wait_ack=wait_ack, fin=fin)
            assert (reply["outcome"], reply["stuck"]) == ({"done": 750}, 0), reply

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs)
            nursery.start_soon(ask_and_tell, side, 3000)
    assert heard.numbers() == list(range(3000))
    figures = await peer.ask("figures")
    assert (figures["received"]["different"], figures["received"].get("repeated", 0)) == (3000, 0)
    assert figures.get("late_fins", 0) == 0, "FIN goes with the last byte: what comes later is never consumed"
    assert (figures.get("bad_frames", 0), figures["waiting"]) == (0, 0)


@STACKS
async def test_our_server_exchanges_3000_messages_both_ways(stack: str) -> None:
    async with open_our_server(stack=stack) as (server, peer, heard):
        await both_ways(server.session(NAME), peer, heard, "")


@STACKS
async def test_our_client_exchanges_3000_messages_both_ways(stack: str) -> None:
    async with open_our_client(stack=stack) as (client, peer, heard):
        await both_ways(client, peer, heard, NAME)


# -- every way to ask and to answer -----------------------------------------------------------------------------------
@pytest.mark.parametrize("role", ["server", "client"])
async def test_we_ask_and_the_original_answers_in_every_way(role: str) -> None:
    async with open_ours_as(role) as (ours, peer, _):
        side: Any = ours.session(NAME) if isinstance(ours, Server) else ours
        for answer, result in (("ack", b"hi"), ("bare", b""), ("response", b"hi"), ("json", b"hi")):
            for answer_fin in ("with", "late"):
                await peer.ask("become", answer=answer, answer_fin=answer_fin)
                assert (await side.request(Message.command(b"hi"), ack_timeout=10)).result == result, (answer, answer_fin)
        for answer in ("failure", "timeout", "fin"):
            await peer.ask("become", answer=answer, answer_fin="with")
            with pytest.raises(HandlerFailed) as failed:
                await side.request(Message.command(b"hi"), ack_timeout=10)
            assert failed.value.timed_out == (answer == "timeout")


@pytest.mark.parametrize("role", ["server", "client"])
async def test_the_original_asks_in_every_way_and_we_answer(role: str) -> None:
    async with open_ours_as(role) as (_, peer, heard):
        to = NAME if role == "client" else ""
        for fin in ("with", "late", "after"):
            reply = await peer.ask("one", payload=HI, to=to, fin=fin)
            assert (reply["frame"], reply["status"], reply["raw"]) == ("ack", wire.SUCCESS, HI)
            failed = await peer.ask("one", payload=b"fail".hex(), to=to, fin=fin)
            assert (failed["frame"], failed["status"]) == ("ack", wire.FAILURE)
        blind = await peer.ask("one", payload=HI, to=to, fin="with", blind=True, msg_id="not a uuid")
        assert (blind["raw"], blind["msg_id"]) == (HI, "not a uuid"), "its ACK has come on a new stream as well"
        assert len(heard.messages) == 7


async def test_results_come_in_the_form_that_the_original_reads() -> None:
    async with open_our_server(config={"v1_results": "json"}) as (_, peer, _heard):
        assert (await peer.ask("one", payload=HI))["result"] == HI


# -- the rest ---------------------------------------------------------------------------------------------------------
async def test_a_frame_may_be_split_anywhere_and_bad_ones_only_cost_their_stream() -> None:
    async with open_our_server() as (server, peer, heard):
        message = wire.Data("7e0e4d2a-8b1a-4a58-a9ac-0a9f3f3d9f11", NAME, "", wire.COMMAND, b"hi", True, 1_700_000_000_000)
        frame = wire.data(message, 1_700_000_000_000)
        answer = bytes.fromhex((await peer.ask("raw", pieces=[frame[at : at + 1].hex() for at in range(len(frame))]))["heard"])
        assert wire.read_ack(wire.read_frame(answer[4:]).payload) == wire.Ack(message.msg_id, wire.SUCCESS, b"hi")
        # None of any length, too long a one, cut off, no protobuf, another application's stream, an unknown type, a DATA that is none.
        bad = ["00000000", "ffffffff", "0000000508", "00000001ff", "515353480101", "000000020809", "00000006080312020aff"]
        for pieces in bad:
            assert (await peer.ask("raw", pieces=[pieces]))["heard"] == "", pieces
        assert (await peer.ask("one", payload=HI))["status"] == wire.SUCCESS
        assert len(heard.messages) == 2
        assert server.session(NAME).connected


async def test_a_stream_of_another_application_is_finished_unread() -> None:
    async with open_our_client() as (client, peer, heard):
        for _ in range(20):
            assert (await peer.ask("raw", to=NAME, pieces=["515353480101", "aa" * 1000]))["heard"] == ""
        assert (await client.request(Message.command(b"hi"))).result == b"hi"
        assert heard.messages == []


async def test_messages_before_the_pong_are_taken() -> None:
    async with open_our_client(eager=5) as (client, _peer, heard):
        assert (await client.request(Message.command(b"hi"))).result == b"hi"
        assert heard.numbers() == list(range(5))


async def test_a_server_that_refuses_is_not_asked_again() -> None:
    async with open_peer("server", refuse="client ID is required") as peer:
        again_soon = ClientConfig(backoff_initial=0.05)
        async with open_client(
            "127.0.0.1", peer.port, client_id=NAME, tls=throwaway_tls()[1], protocol=V1, config=again_soon
        ) as client:
            with trio.fail_after(20), pytest.raises(ConnectionRefused, match="client ID is required"):
                await client.wait_connected()
            await peer.wait("closed")
            await trio.sleep(0.5)
        assert len([words for words in peer.events if words["event"] == "closed"]) == 1


async def test_our_server_refuses_with_the_original_s_words() -> None:
    async with open_our_server(id="", retry=None) as (_, peer, _heard):
        closed = await peer.wait("closed")
        assert (closed["code"], closed["reason"]) == (1, "client ID is required")


async def test_duplicates_are_refused_where_that_is_wanted() -> None:
    async with (
        open_our_server(config={"v1_duplicates": "refuse"}) as (server, peer, _),
        open_peer("client", id=NAME, port=server.address[1], retry=None) as second,
    ):
        closed = await second.wait("closed")
        assert (closed["code"], closed["reason"]) == (1, "failed to create session")
        assert (await peer.ask("one", payload=HI))["status"] == wire.SUCCESS


async def test_the_newest_takes_over() -> None:
    async with (
        open_our_server(retry=30.0) as (server, peer, _),
        open_peer("client", id=NAME, port=server.address[1]) as second,
    ):
        await second.wait("connected")
        await peer.wait("closed")
        assert (await server.session(NAME).request(Message.command(b"hi"))).result == b"hi"
        assert (await second.ask("figures"))["received"]["messages"] == 1


async def test_heartbeats_keep_both_of_our_roles_and_silence_ends_them() -> None:
    async with open_our_server(config=PROMPT, heartbeat=0.2) as (server, peer, _):
        await trio.sleep(1.5)
        assert (await peer.ask("figures"))["pongs"] >= 3
        assert server.session(NAME).connected
    async with open_our_client(config=PROMPT, heartbeat=5.0) as (_client, peer, _):
        await trio.sleep(2.0)
        assert (await peer.ask("figures"))["pings"] >= 3
        assert not [words for words in peer.events if words["event"] == "closed"]


async def test_our_client_comes_again_after_a_close_and_after_silence() -> None:
    async with open_our_client(config={"heartbeat_interval": 0.2, "heartbeat_timeout": 1.0}, heartbeat=2.0) as (client, peer, _):
        for count, quiet in ((2, False), (3, True)):
            await peer.ask("cut", to=NAME, quiet=quiet)
            await peer.wait("connected", count=count)
            with trio.fail_after(20):
                assert (await client.request(Message.command(b"hi"))).result == b"hi"
