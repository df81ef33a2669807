"""The pair of engines that users get: connected as a backbone's client and server would be, in virtual time."""

from __future__ import annotations

import pytest

from quicflow_trio.quic.engine import HandshakeCompleted, StreamData
from quicflow_trio.testing import EnginePair


def received(pair: EnginePair, stream_id: int) -> bytes:
    return b"".join(event.data for event in pair.server_events if isinstance(event, StreamData) and event.stream_id == stream_id)


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_what_one_side_writes_arrives(loss: float) -> None:
    pair = EnginePair.connected(loss=loss, seed=7)
    assert any(isinstance(event, HandshakeCompleted) for event in pair.client_events)
    stream_id = pair.client.open_stream()
    pair.client.write(stream_id, bytes(100_000))
    pair.run(60, until=lambda: len(received(pair, stream_id)) == 100_000)
    assert received(pair, stream_id) == bytes(100_000)


def test_one_seed_gives_one_trace() -> None:
    traces = []
    for _ in range(2):
        pair = EnginePair.connected(loss=0.2, seed=3)
        pair.client.write(pair.client.open_stream(), bytes(10_000))
        pair.run(10)
        traces.append(pair.trace)
    assert traces[0] == traces[1]


def test_a_livelock_fails_instead_of_hanging() -> None:
    pair = EnginePair.connected()
    pair.client.write(pair.client.open_stream(), bytes(100_000))
    with pytest.raises(AssertionError, match="no end after 2 rounds"):
        pair.run(10, rounds=2)
