"""Probes of all connections on a socket come out of one budget."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from quicflow_trio.quic.probes import BURST, PER_PACKET, PER_SECOND, ProbeBudget
from tests.quic.conftest import PairMaker
from tests.quic.harness import core_of, received


def taken(budget: ProbeBudget, now: float, *, repeated: bool = False) -> int:
    """Take until it is denied; return how many there were."""
    return next(number for number in itertools.count() if not budget.take(now, repeated=repeated))


def test_a_burst_and_so_many_per_second() -> None:
    budget = ProbeBudget()
    assert taken(budget, 1.0) == BURST
    assert budget.denied == 1
    assert taken(budget, 1.1) == pytest.approx(PER_SECOND / 10, abs=1)
    assert taken(budget, 100.0) == BURST, "what nobody took is not saved up"
    assert taken(budget, 50.0) == 0, "a clock that goes back gives nothing"


def test_what_is_sent_earns_probes() -> None:
    budget = ProbeBudget()
    taken(budget, 1.0)
    budget.sent(160)
    assert taken(budget, 1.0) == 160 * PER_PACKET
    budget.sent(1_000_000)
    assert taken(budget, 1.0) == BURST


def test_repeated_probes_leave_half_to_the_others() -> None:
    budget = ProbeBudget()
    assert taken(budget, 1.0, repeated=True) == pytest.approx(BURST / 2, abs=1)
    assert taken(budget, 1.0) == pytest.approx(BURST / 2, abs=1)


def lose_one(pair: PairMaker, probes: ProbeBudget) -> Any:
    """Return a pair whose server has sent one datagram that got lost."""
    both = pair(server={"idle_timeout": 120.0, "probes": probes}, client={"idle_timeout": 120.0})
    stream = both.server.open_stream()
    both.drop = lambda to_server, _data: not to_server
    both.server.write(stream, b"news")
    both.run(0.001)
    both.drop = lambda _to_server, _data: False
    return both


def test_a_denied_probe_is_made_up_for_later(pair: PairMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = ProbeBudget()
    both = lose_one(pair, probes)
    start = both.now
    asked: list[tuple[float, bool]] = []

    def deny_for_two_seconds(_: ProbeBudget, now: float, *, repeated: bool) -> bool:
        asked.append((now - start, repeated))
        return bool(now > start + 2.0)

    monkeypatch.setattr(ProbeBudget, "take", deny_for_two_seconds)
    both.run(10.0)
    assert received(both.client_events, 1) == b"news"
    times = [at for at, _ in asked]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps), "each comes later than the one before"
    assert len(gaps) >= 3
    assert [repeated for _, repeated in asked] == [False] + [True] * len(gaps)


def test_peers_that_confirm_each_probe_leave_half_to_the_others(pair: PairMaker) -> None:
    """Twenty peers that answer every message late make thirty probes a second each; whoever really loses a packet gets its probe."""
    probes = ProbeBudget()
    losses = [core_of(pair(server={"probes": probes}).server)._loss for _ in range(21)]
    assert all(loss.handshake_confirmed for loss in losses)
    *slow, honest = losses
    denied = 0
    for step in range(300):
        now = 100.0 + step / 30
        # What a probe asks for was confirmed since: each begins anew.
        denied += sum(loss._is_denied(now) for loss in slow)  # type: ignore[attr-defined]
        if step % 60 == 0:
            assert not honest._is_denied(now)  # type: ignore[attr-defined]
    assert denied > 500, "there were more than the budget allows"
