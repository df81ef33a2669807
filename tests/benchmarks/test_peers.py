"""The comparison with other libraries: its messages and figures without IO, and each peer once, small, over loopback."""

from __future__ import annotations

import asyncio
import io
import json
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.harness.process import run_client
from benchmarks.harness.results import Sample
from benchmarks.peers import __main__ as session
from benchmarks.peers import programs
from benchmarks.peers.frames import Parser, frame
from benchmarks.peers.on_asyncio import HEAD, Answers, Waiters, count_of
from benchmarks.peers.work import WORKS, percentile

PARAMETERS = [pytest.param(peer, id=name) for name, peer in session.PEERS.items()]


@given(st.lists(st.binary(max_size=40), max_size=20), st.lists(st.integers(min_value=1, max_value=30), min_size=1, max_size=10))
def test_messages_survive_any_cutting_of_the_stream(messages: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(frame(message) for message in messages)
    parser, found, position, turn = Parser(), list[bytes](), 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        found += parser.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert found == messages


def test_a_reply_goes_to_the_waiter_of_its_id_and_to_no_other() -> None:
    async def run() -> None:
        waiters, answers = Waiters(), Answers()
        first, reply_to_first = waiters.request(b"first")
        second, reply_to_second = waiters.request(b"second")
        answer = answers.answer(second)
        assert answer is not None
        waiters.settle(answer)
        assert reply_to_second.done()
        assert not reply_to_first.done()
        # The same reply once more is one that nobody waits for.
        with pytest.raises(KeyError):
            waiters.settle(answer)
        assert answers.answer(first) == first[: HEAD.size]

    asyncio.run(run())


def test_one_way_messages_are_counted_and_not_answered() -> None:
    async def run() -> None:
        waiters, answers = Waiters(), Answers()
        assert [answers.answer(waiters.one_way(b"news")) for _ in range(3)] == [None] * 3
        question, reply = waiters.ask_count()
        answer = answers.answer(question)
        assert answer is not None
        waiters.settle(answer)
        assert count_of(await reply) == 3

    asyncio.run(run())


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages that cannot be imported, for the test."""
    names: set[str] = set()
    monkeypatch.setattr("benchmarks.peers.programs.find_spec", lambda name: None if name in names else find_spec(name))
    return names


def test_a_peer_that_is_not_installed_is_skipped_with_a_line_that_says_how_to_install_it(
    absent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent.add("websockets")
    monkeypatch.setattr(programs, "nats_server", lambda: None)
    console = Console(file=io.StringIO(), width=200)
    modules = [peer.module for peer in session.chosen(("websockets", "nats", "tls"), console)]
    assert modules == ["ours", "asyncio_tls"], "ours is always measured: the ratios are to it"
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["skipped websockets", "skipped NATS"]
    assert "nats-server" in lines[1]
    assert all("pip install -e .[peers]" in line for line in lines)


def test_the_ratio_is_ours_divided_by_the_peers() -> None:
    peers = [session.PEERS["ours"], session.PEERS["tls"]]
    found: dict[str, list[Sample]] = {}
    for work, (ours, theirs) in {
        "sequential: P50": (300.0, 150.0),
        "sequential: P99": (600.0, 200.0),
        "acked": (30.0, 20.0),
    }.items():
        head, _, part = work.partition(": ")
        title = session.TITLES["sequential" if part else "acked"]
        for peer, value in zip(peers, (ours, theirs), strict=True):
            found[f"{title}: {peer.title}" + (f": {part}" if part else "")] = [Sample(value)] * 3
            for side in session.CPU.values():
                found[f"{title}: {peer.title}: {side}"] = [Sample(value)] * 3
        assert head in WORKS
    rows, cpu = session.rows_of(peers, ("sequential", "acked"), found)
    report = session.PeersReport("peers", "title", rows, {}, {}, cpu=cpu)
    assert [report.ratio(row) for row in rows] == pytest.approx([1, 2, 1, 3, 1, 1.5])
    assert [row.better for row in rows] == ["lower"] * 4 + ["higher"] * 2
    assert len(report.as_json()["cpu"]) == len(cpu) == 12
    assert report.cpu_table().row_count == 4


@pytest.mark.realtime
@pytest.mark.parametrize("peer", PARAMETERS)
def test_a_peer_answers_every_request_and_counts_every_message(peer: session.Peer) -> None:
    if absent := programs.missing(peer.packages, broker=peer.broker):
        pytest.skip(f"not installed: {absent}")
    module = f"benchmarks.peers.{peer.module}"
    with session.server_of(peer) as hello:
        # The client itself compares replies with requests, and the receiver's count with what was sent.
        for work in ("acked", "one_way"):
            found = run_client(module, "client", "--hello", json.dumps(hello), "--work", work, "--count", "600")
            assert (found["work"], found["count"]) == (work, 600)
            assert found["end"] > found["start"]
