"""Figures over time, in virtual time."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from quicflow_trio.ops.samples import KEPT, Sampler
from tests.ops.harness import FakeClient, FakeServer


async def test_a_sample_holds_what_happened_within_its_second(autojump_clock: MockClock) -> None:
    server = FakeServer([FakeClient("a")])
    server.figures = {"messages_sent": 100, "messages_received": 5, "bytes_sent": 1000, "bytes_received": 50, "timestamp": 9.0}
    for _ in range(100):
        server.latency.observe(5.0)  # Before it began: the quantiles are not those since the start.
    sampler = Sampler(cast(Any, server))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        await trio.sleep(0.5)
        assert sampler.recent(10) == []
        for _ in range(99):
            server.latency.observe(0.001)
        server.figures = {
            "messages_sent": 400,
            "messages_received": 15,
            "bytes_sent": 3000,
            "bytes_received": 150,
            "timestamp": 10.0,
            "promise_active": 3,
        }
        await trio.sleep(1)
        (sample,) = sampler.recent(10)
        assert sample.pop("p50_ms") == pytest.approx(1.0, rel=0.1)
        assert sample.pop("p99_ms") == pytest.approx(1.0, rel=0.1)
        assert sample == {
            "at": 10.0,
            "connected_clients": 1,
            "sent_per_second": 300.0,
            "received_per_second": 10.0,
            "bytes_per_second": 2100.0,
            "promise_active": 3,
        }
        await trio.sleep(1)
        assert len(sampler.recent(10)) == 2
        still = sampler.recent(1)[0]
        assert (still["p50_ms"], still["p99_ms"], still["sent_per_second"]) == (None, None, 0.0)
        nursery.cancel_scope.cancel()


async def test_fifteen_minutes_are_kept(autojump_clock: MockClock) -> None:
    server = FakeServer()
    sampler = Sampler(cast(Any, server))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sampler.run)
        for second in range(KEPT + 10):
            server.figures = {"timestamp": float(second)}
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    kept = sampler.recent(KEPT)
    assert len(kept) == KEPT
    assert [sample["at"] for sample in sampler.recent(3)] == [sample["at"] for sample in kept[-3:]]
    assert kept == sorted(kept, key=lambda sample: cast(float, sample["at"]))
