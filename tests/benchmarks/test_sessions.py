"""Each session runs from end to end, with next to nothing to do, and writes what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.harness.session import Common
from benchmarks.latency import steady
from benchmarks.profile import group_of, own_samples
from quicflow_trio import Message, MessageType, Request, Router, open_client, serve
from quicflow_trio.testing import MemoryNetwork, throwaway_tls

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, results: Path, *arguments: str) -> dict[str, Any]:
    """Run a session and return what it wrote."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--rounds", "1", "--results", str(results), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "wrote " in done.stdout
    found: dict[str, Any] = json.loads(next(results.glob("*.json")).read_text(encoding="utf-8"))
    return found


@pytest.mark.realtime
def test_throughput(tmp_path: Path) -> None:
    found = run("throughput", tmp_path, "--tasks", "4", "--messages", "400")
    assert [row["name"] for row in found["rows"]] == [
        "acked, 4 in flight",
        "the same, ack_timeout on each",
        "the same, fail_after around each",
        "acked, datagrams of 8,192",
        "one way",
        "sequential",
    ]
    assert all(row["unit"] == "msg/s" and row["median"] > 0 and len(row["samples"]) == 1 for row in found["rows"])
    assert found["rows"][0]["ratio"] == 1.0
    assert found["settings"] == {"tasks": 4, "messages": 40, "engines": [], "rounds": 1}


@pytest.mark.realtime
def test_latency(tmp_path: Path) -> None:
    found = run("latency", tmp_path, "--requests", "100", "--rate", "500", "--seconds", "1", "--connections", "5")
    rows = {row["name"]: row["median"] for row in found["rows"]}
    assert rows["round trip: P50"] <= rows["round trip: P99"]
    assert rows["at 500/s: P50"] <= rows["at 500/s: P99"] <= rows["at 500/s: max"]
    assert rows["connect P50"] > 0


@pytest.mark.realtime
def test_broadcast(tmp_path: Path) -> None:
    found = run("broadcast", tmp_path, "--clients", "3")
    rows = {row["name"]: row["median"] for row in found["rows"]}
    assert rows["3 clients: broadcast() returned"] > 0
    assert rows["3 clients: the last has it"] > 0


@pytest.mark.realtime
def test_growth(tmp_path: Path) -> None:
    run("growth", tmp_path, "--clients", "1", "--clients", "3", "--messages", "2000")
    by_clients, by_messages = (
        json.loads((tmp_path / f"growth-{name}.json").read_text(encoding="utf-8")) for name in ("clients", "messages")
    )
    assert [row["name"] for row in by_clients["rows"]] == ["1 connected", "3 connected"]
    assert [row["name"] for row in by_messages["rows"]][:2] == ["messages: 1 to 10", "messages: 11 to 20"]
    assert len(by_messages["rows"]) == 20


@pytest.mark.realtime
def test_codec(tmp_path: Path) -> None:
    found = run("codec", tmp_path, "--size", "200", "--loops", "100")
    assert [row["name"] for row in found["rows"]][:2] == ["encode message, 200 bytes", "decode message, 200 bytes"]
    assert {row["unit"] for row in found["rows"]} == {"ns"}


@pytest.mark.realtime
def test_ops(tmp_path: Path) -> None:
    found = run("ops", tmp_path, "--clients", "20", "--requests", "100")
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["acked, ops on"]["against"] == "acked, ops off"
    assert "GET /metrics" in rows


def test_quick_is_a_tenth_of_the_work_in_one_round() -> None:
    assert (Common(quick=True).rounds_or(5), Common(quick=True).scaled(5_000)) == (1, 500)
    assert (Common(quick=True, rounds=3).rounds_or(5), Common(quick=True).scaled(5)) == (3, 1)
    assert (Common().rounds_or(5), Common().scaled(5_000)) == (5, 5_000)


@pytest.mark.realtime
async def test_a_steady_load_counts_from_the_moment_each_request_was_due() -> None:
    router = Router()

    @router.on(MessageType.COMMAND)
    async def late(_: Request) -> None:
        await trio.sleep(0.05)

    network = MemoryNetwork()
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await serve(router, host="127.0.0.1", port=8474, tls=server_tls, network=network)

        nursery.start_soon(run)
        async with open_client("127.0.0.1", 8474, client_id="x", tls=client_tls, network=network) as client:
            await client.request(Message.command(b""))
            spans = await steady(client, 100, 20)
        nursery.cancel_scope.cancel()
    assert len(spans) == 20, "the half second before is not counted"
    assert all(end - start >= 0.05 for start, end in spans)
    assert sorted(start for start, _ in spans)[1] - min(start for start, _ in spans) == pytest.approx(0.01)


def test_profiles_count_the_innermost_function_and_leave_out_the_start() -> None:
    stacks = [
        "<module> (benchmarks/server.py:90);_run (trio/_core/_run.py:1);send (quicflow_trio/peer.py:120) 7",
        "<module> (benchmarks/server.py:90);_find_and_load (<frozen importlib._bootstrap>:1165) 100",
        "WorkerThread._work (trio/_core/_thread_cache.py:209) 50",
        "x (benchmarks/a.py:1);encrypt (aioquic/quic/crypto.py:7) 3",
    ]
    assert own_samples(stacks) == {
        ("ours", "send (quicflow_trio/peer.py:120)"): 7,
        ("aioquic", "encrypt (aioquic/quic/crypto.py:7)"): 3,
    }
    assert group_of("heappush (heapq.py:1)") == "standard library, others"
