"""Which faults happen when, all from a seed: `Scenario`, `Fault`, `make_schedule`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConfigurationError

__all__ = ["LEVELS", "SERVER", "Fault", "Level", "Scenario", "client_name", "make_schedule"]

SERVER = "server"
_CALM_START = 30.0
_CALM_END = 60.0


def client_name(number: int) -> str:
    """Return the id, and the host, of a client."""
    return f"client-{number}"


class Level(NamedTuple):
    """How rough a simulation is.

    Attributes:
        faults: per client and hour, the server's and the world's included.
        bursts: of traffic, per client, hour and direction.
        calm: share of each fault's longest duration that it lasts at most.
    """

    faults: float
    bursts: float
    calm: float


LEVELS = {
    # What a fleet sees in the field: an outage or a restart now and then. For availability.
    "light": Level(faults=0.02, bursts=4.0, calm=0.5),
    "normal": Level(faults=8.0, bursts=20.0, calm=1.0),
    "heavy": Level(faults=60.0, bursts=120.0, calm=1.0),
    "none": Level(faults=0.0, bursts=20.0, calm=1.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulation, told whole.

    Attributes:
        seed: decides everything below.
        hours: simulated hours of traffic; the check at the end takes some minutes more.
        clients: how many clients.
        faults: name of a level in `LEVELS`.
        keep: numbers of the schedule's faults that happen; None means all.

    Raises:
        ConfigurationError: a value is out of range.
    """

    seed: int
    hours: float = 1.0
    clients: int = 4
    faults: str = "normal"
    keep: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.hours <= 24 * 366:
            raise ConfigurationError(f"Scenario.hours = {self.hours!r}: expected more than 0, at most 8,784")
        if not 1 <= self.clients <= 1000:
            raise ConfigurationError(f"Scenario.clients = {self.clients!r}: expected a whole number from 1 to 1,000")
        if self.faults not in LEVELS:
            raise ConfigurationError(f"Scenario.faults = {self.faults!r}: expected one of {', '.join(LEVELS)}")

    @property
    def level(self) -> Level:
        """How rough it is."""
        return LEVELS[self.faults]

    @property
    def seconds(self) -> float:
        """Seconds of traffic."""
        return self.hours * 3600

    @property
    def command(self) -> str:
        """The command that runs it again."""
        keep = "" if self.keep is None else f" --keep {','.join(map(str, self.keep)) or 'none'}"
        return (
            f"quicflow simulate --seed {self.seed} --hours {self.hours:g} --clients {self.clients} --faults {self.faults}{keep}"
        )


class Fault(NamedTuple):
    """One fault.

    Attributes:
        number: its place in the whole schedule of its seed.
        start: when it begins, seconds.
        seconds: how long it lasts; 0 for what happens at once.
        kind: a key of `KINDS`.
        host: whom it hits.
        value: how bad it is; the meaning is the kind's.
    """

    number: int
    start: float
    seconds: float
    kind: str
    host: str
    value: float

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"#{self.number} at {self.start:.1f} s{lasting}: {self.kind} {self.value:.3g} on {self.host}"


def _up_to(highest: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(0.02, 1.0) * highest


def _either_sign(highest: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(-highest, highest)


class _Kind(NamedTuple):
    weight: float
    longest: float
    value: Callable[[random.Random], float]
    hosts: str = "any"


# Kind: how often, how long at most (seconds), how bad, whom.
KINDS: dict[str, _Kind] = {
    "loss to the server": _Kind(2, 300, _up_to(0.5), "client"),
    "loss to the client": _Kind(2, 300, _up_to(0.5), "client"),
    "loss both ways": _Kind(2, 120, _up_to(0.5), "client"),
    "delay": _Kind(2, 300, _up_to(2.0), "client"),
    "jitter": _Kind(1, 300, _up_to(0.5), "client"),
    "duplication": _Kind(1, 300, _up_to(0.5), "client"),
    "reordering": _Kind(1, 300, _up_to(0.5), "client"),
    "corruption": _Kind(1, 300, _up_to(0.3), "client"),
    "partition": _Kind(4, 120, _up_to(1.0)),
    "new address": _Kind(2, 0, _up_to(1.0), "client"),
    # The value is how long the process is away.
    "kill": _Kind(3, 0, _up_to(60.0)),
    "stop": _Kind(1, 0, _up_to(20.0)),
    "slow handlers": _Kind(2, 120, _up_to(3.0)),
    "stuck handlers": _Kind(1, 60, _up_to(1.0)),
    "slow reader": _Kind(2, 60, _up_to(1.0)),
    "cancelled callers": _Kind(2, 120, _up_to(0.3)),
    "wall clock jump": _Kind(1, 0, _either_sign(86_400.0), "world"),
    "pause": _Kind(1, 0, _up_to(60.0), "world"),
}


def make_schedule(scenario: Scenario) -> tuple[Fault, ...]:
    """Return the faults of a scenario by their beginning; those that it does not keep are left out, and change no other."""
    rng = random.Random(f"schedule {scenario.seed}")
    level = scenario.level
    expected = level.faults * scenario.hours * scenario.clients
    count = int(expected) + (rng.random() < expected % 1)
    names = [*KINDS]
    weights = [KINDS[name].weight for name in names]
    last = max(scenario.seconds - _CALM_END, _CALM_START)
    drawn = []
    for _ in range(count):
        kind = rng.choices(names, weights)[0]
        _weight, longest, value, hosts = KINDS[kind]
        client = client_name(rng.randrange(scenario.clients))
        # The server is one of the hosts, however many clients there are: what hits it hits all.
        host = {"client": client, "world": "world"}.get(hosts, SERVER if rng.random() < 1 / (scenario.clients + 1) else client)
        drawn.append((rng.uniform(_CALM_START, last), rng.uniform(0.01, 1.0) * longest * level.calm, kind, host, value(rng)))
    drawn.sort()
    faults = tuple(Fault(number, *entry) for number, entry in enumerate(drawn))
    return faults if scenario.keep is None else tuple(fault for fault in faults if fault.number in scenario.keep)
