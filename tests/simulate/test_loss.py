"""All messages arrive exactly once over paths that lose up to 40 % both ways, and in time."""

from __future__ import annotations

import pytest

from benchmarks.lossy import MESSAGES, Congestion, deliver, quantile
from quicflow_trio import ClientConfig, ConfigurationError, ServerConfig
from quicflow_trio.quic.congestion import FLOOR_PACKETS, LossyCongestionControl
from quicflow_trio.quic.tls import TLSContext
from quicflow_trio.testing import throwaway_tls

SEEDS = 12
WITHIN = {0.0: 0.1, 0.05: 1.0, 0.1: 1.0, 0.2: 8.0, 0.3: 15.0, 0.4: 30.0}


@pytest.mark.parametrize("congestion", ["reno", "lossy"])
@pytest.mark.parametrize("loss", WITHIN)
def test_thirty_messages_arrive_once_and_in_time(loss: float, congestion: Congestion) -> None:
    outcomes = [deliver(seed, loss=loss, congestion=congestion) for seed in range(SEEDS)]
    for outcome in outcomes:
        assert outcome.runs == dict.fromkeys(range(MESSAGES), 1)
        assert len(outcome.acked) == MESSAGES
    assert quantile([seconds for outcome in outcomes for seconds in outcome.arrived], 0.99) < WITHIN[loss]
    assert quantile([seconds for outcome in outcomes for seconds in outcome.acked], 0.99) < WITHIN[loss]


def test_messages_of_several_packets_want_the_floor() -> None:
    def slowest(congestion: Congestion) -> float:
        return quantile(
            [max(deliver(seed, loss=0.4, size=3000, congestion=congestion).acked) for seed in range(5)],
            0.5,
        )

    assert slowest("lossy") * 5 < slowest("reno")


def test_the_window_never_falls_below_the_floor() -> None:
    control = LossyCongestionControl(max_datagram_size=1200)
    floor = FLOOR_PACKETS * 1200
    assert control.congestion_window == floor
    control.congestion_window = 3 * floor
    control.on_packets_lost(now=1.0, packets=[])
    assert control.congestion_window == 3 * floor, "nothing was lost"
    control.on_persistent_congestion()
    assert control.congestion_window == floor


def test_who_has_not_asked_for_it_gets_what_is_fair() -> None:
    server, client = throwaway_tls()
    for tls, make in ((server, "server_configurations"), (client, "client_configuration")):
        arguments = {"alpn": ["x"], "idle_timeout": 1.0, "datagram_size": 1200}
        if tls is client:
            arguments["server_name"] = "server"
        made = getattr(TLSContext(tls), make)(**arguments)
        assert (made[0] if tls is server else made).congestion_control_algorithm == "reno"


@pytest.mark.parametrize("config", [ClientConfig, ServerConfig])
def test_what_cannot_be_chosen_is_said_at_once(config: type[ClientConfig] | type[ServerConfig]) -> None:
    with pytest.raises(ConfigurationError, match="congestion = 'cubic': expected one of reno, lossy"):
        config(congestion="cubic")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="congestion = 'lossy': expected one of reno with the engine qh3"):
        config(congestion="lossy", engine="qh3")
