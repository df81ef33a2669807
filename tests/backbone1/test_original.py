"""The independent peer, held against the facts and against itself, before ours is held against it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.backbone1.original import wire
from tests.backbone1.peers import PeerProcess, open_peer

NOW = 1_700_000_000_000
VECTORS = {
    "PING": ("0000000f080112040a0263311880d095ffbc31", wire.ping("c1", NOW)),
    "PONG": ("00000012080212070880d095ffbc311880d095ffbc31", wire.pong(NOW)),
    "DATA": (
        "0000002a0803121f0a026d3112067365727665721a02633120012a02686930013880d095ffbc311880d095ffbc31",
        wire.data(wire.Data("m1", "server", "c1", wire.COMMAND, b"hi", True, NOW), NOW),
    ),
    "ACK": ("000000150804120a0a026d3110011a026f6b1880d095ffbc31", wire.ack(wire.Ack("m1", wire.SUCCESS, b"ok"), NOW)),
}
PAIRS = [("aioquic", "aioquic"), ("qh3", "aioquic"), ("aioquic", "qh3")]
stacks = pytest.mark.parametrize("stacks", PAIRS, ids="-".join)


# -- the codec ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", VECTORS)
def test_frames_are_encoded_as_observed(name: str) -> None:
    observed, made = VECTORS[name]
    assert made.hex() == observed


def test_frames_are_decoded_as_observed() -> None:
    bodies = {name: bytes.fromhex(observed)[4:] for name, (observed, _) in VECTORS.items()}
    assert all(wire.body_length(bytes.fromhex(observed)[:4]) == len(bodies[name]) for name, (observed, _) in VECTORS.items())
    frames = {name: wire.read_frame(body) for name, body in bodies.items()}
    assert {name: (frame.type, frame.timestamp) for name, frame in frames.items()} == {
        name: (number, NOW) for number, name in enumerate(VECTORS, 1)
    }
    assert wire.read_ping(frames["PING"].payload) == "c1"
    assert wire.read_pong(frames["PONG"].payload) == NOW
    assert wire.read_data(frames["DATA"].payload) == wire.Data("m1", "server", "c1", wire.COMMAND, b"hi", True, NOW)
    assert wire.read_ack(frames["ACK"].payload) == wire.Ack("m1", wire.SUCCESS, b"ok")


@pytest.mark.parametrize("body", ["08", "0a05", "0a0561", "0b", "00", "08ffffffffffffffffffff01"])
def test_what_is_cut_off_is_no_frame(body: str) -> None:
    with pytest.raises(wire.BadFrame):
        wire.read_frame(bytes.fromhex(body))


@pytest.mark.parametrize("length", [0, wire.LARGEST + 1])
def test_lengths_outside_the_limits_are_refused(length: int) -> None:
    with pytest.raises(wire.BadFrame):
        wire.body_length(length.to_bytes(4, "big"))


# -- client and server, with each other ----------------------------------------------------------------------------------
@asynccontextmanager
async def open_pair(
    stacks: tuple[str, str] = ("aioquic", "aioquic"),
    *,
    client: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
) -> AsyncIterator[tuple[PeerProcess, PeerProcess]]:
    if "qh3" in stacks:
        pytest.importorskip("qh3", reason="qh3 is an extra and not installed")
    async with (
        open_peer("server", stack=stacks[1], **(server or {})) as serving,
        open_peer("client", stack=stacks[0], id="c1", port=serving.port, **(client or {})) as connecting,
    ):
        await connecting.wait("connected")
        yield connecting, serving


async def send_both_ways(client: PeerProcess, server: PeerProcess, **arguments: Any) -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = []

    async def send(peer: PeerProcess) -> None:
        outcomes.append((await peer.ask("send", **arguments))["outcome"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, client)
        nursery.start_soon(send, server)
    return outcomes


@pytest.mark.realtime
@stacks
async def test_3000_messages_both_ways_pass_the_limit_of_1000_streams(stacks: tuple[str, str]) -> None:
    async with open_pair(stacks) as (client, server):
        with trio.fail_after(90):
            for first, wait_ack in ((0, True), (1500, False)):
                assert await send_both_ways(client, server, count=1500, first=first, wait_ack=wait_ack) == [{"done": 1500}] * 2
        for peer in (client, server):
            figures = await peer.ask("figures")
            assert figures["received"]["different"] == 3000
            assert "repeated" not in figures["received"]
            assert (figures["exchanges"], figures["waiting"]) == (0, 0)
            assert figures["ours"] == [], "it shares none of our code"
        await client.stop()
        closed = await server.wait("closed")
        assert (closed["id"], closed["code"], closed["reason"]) == ("c1", 0, "client disconnect")


@pytest.mark.realtime
async def test_a_late_fin_is_never_consumed_and_message_1001_waits_for_ever() -> None:
    async with open_pair() as (client, server):
        # The introduction and 999 messages; and one more, as the introduction's FIN came with its frame.
        reply = await client.ask("send", count=1100, wait_ack=True, fin="after", patience=2)
        figures = await server.ask("figures")
        assert (reply["outcome"], reply["stuck"]) == ({"done": 1000}, 64)
        assert (figures["received"]["different"], figures["credit_kept"]) == (1000, 1000)


ANSWERS: dict[str, dict[str, Any]] = {
    "ack": {"frame": "ack", "status": wire.SUCCESS, "raw": b"hi".hex(), "result": None},
    "bare": {"frame": "ack", "status": wire.SUCCESS, "raw": ""},
    "response": {"frame": "response", "status": wire.SUCCESS, "raw": b"hi".hex(), "result": None},
    "json": {"frame": "response", "status": wire.SUCCESS, "result": b"hi".hex()},
    "failure": {"frame": "ack", "status": wire.FAILURE, "error": "the handler failed"},
    "timeout": {"frame": "ack", "status": wire.TIMEOUT, "error": "the handler took too long"},
    "fin": {"frame": "none", "status": wire.FAILURE, "error": "no answer"},
    "elsewhere": {"frame": "ack", "status": wire.SUCCESS, "raw": b"hi".hex()},
}


@pytest.mark.realtime
async def test_every_way_to_answer() -> None:
    async with open_pair() as (client, server):
        for asking, answering, to in ((client, server, ""), (server, client, "c1")):
            for (answer, seen), answer_fin in itertools.product(ANSWERS.items(), ("with", "late")):
                await answering.ask("become", answer=answer, answer_fin=answer_fin)
                for fin in ("with", "late", "after"):
                    reply = await asking.ask("one", payload=b"hi".hex(), to=to, fin=fin, blind=answer == "elsewhere")
                    assert {name: reply.get(name) for name in seen} == seen


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"server": {"refuse": "failed to create session"}}, "failed to create session"),
        ({"client": {"id": ""}}, "client ID is required"),
    ],
)
async def test_refusals_carry_code_one_and_a_reason(settings: dict[str, Any], reason: str) -> None:
    client = {"id": "c1", **settings.get("client", {})}
    async with (
        open_peer("server", **settings.get("server", {})) as server,
        open_peer("client", port=server.port, retry=None, **client) as refused,
    ):
        closed = await refused.wait("closed")
        assert (closed["code"], closed["reason"]) == (1, reason)


@pytest.mark.realtime
async def test_a_second_client_of_the_same_id_is_refused() -> None:
    async with open_pair() as (client, server), open_peer("client", id="c1", port=server.port, retry=None) as second:
        closed = await second.wait("closed")
        assert (closed["code"], closed["reason"]) == (1, "failed to create session")
        assert (await client.ask("one", payload=""))["status"] == wire.SUCCESS, "the first goes on"


@pytest.mark.realtime
async def test_pings_keep_a_client_and_silence_drops_it() -> None:
    async with open_pair(client={"heartbeat": 0.05}, server={"heartbeat": 1.0, "eager": 3}) as (client, server):
        await trio.sleep(2.5)
        figures = await client.ask("figures")
        assert figures["pongs"] > 5
        assert figures["received"]["different"] == 3, "messages before the PONG"
        assert not [words for words in server.events if words["event"] == "closed"]
        async with open_peer("client", id="silent", port=server.port, heartbeat=60, retry=None) as silent:
            closed = await silent.wait("closed")
            assert (closed["code"], closed["reason"]) == (0, "heartbeat timeout")


@pytest.mark.realtime
async def test_a_client_comes_again_after_its_connection_was_cut() -> None:
    async with open_pair(client={"retry": 0.05}) as (client, server):
        for cut in range(3):
            await server.ask("cut", to="c1")
            await client.wait("connected", count=cut + 2)
        reply = await client.ask("send", count=100, again=True)
        assert reply["outcome"]["done"] == 100


@pytest.mark.realtime
async def test_a_frame_may_be_split_anywhere_and_bad_ones_are_finished() -> None:
    async with open_pair(server={"answer": "bare"}) as (client, server):
        frame = wire.data(wire.Data("m1", "c1", "", wire.COMMAND, b"hi", True, NOW), NOW)
        heard = (await client.ask("raw", pieces=[frame[at : at + 1].hex() for at in range(len(frame))], fin="late"))["heard"]
        answer = bytes.fromhex(heard)
        assert wire.read_ack(wire.read_frame(answer[4:]).payload) == wire.Ack("m1", wire.SUCCESS)
        for bad in ("00000000", "ffffffff", "00000001ff", "515353480101", "0000000208", (b"\0\0\0\2\x08\x09").hex()):
            assert (await client.ask("raw", pieces=[bad]))["heard"] == ""
        assert (await client.ask("one", payload="00"))["status"] == wire.SUCCESS
        assert (await server.ask("figures"))["bad_frames"] >= 4
