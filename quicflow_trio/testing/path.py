"""What may happen to datagrams on the way from one host to another: `PathFaults`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from ..errors import ConfigurationError

__all__ = ["FAULT_RANGES", "PathFaults", "check_fault"]

# The largest value of each fault; the least is 0.
FAULT_RANGES: Final = {"loss": 1.0, "duplicate": 1.0, "reorder": 1.0, "corrupt": 1.0, "delay": 3600.0, "jitter": 3600.0}


def check_fault(owner: str, name: str, value: object) -> None:
    """Refuse a value that the fault of this name cannot have.

    Raises:
        ConfigurationError: it is outside the fault's range.
    """
    highest = FAULT_RANGES[name]
    if not (isinstance(value, (int, float)) and 0 <= value <= highest):
        raise ConfigurationError(f"{owner}.{name} = {value!r}: expected a number from 0 to {highest:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFaults:
    """The faults of one direction between two hosts, see `MemoryNetwork.set_path`.

    Attributes:
        loss: share of the datagrams that vanish, 0 to 1.
        delay: seconds that each takes.
        jitter: up to this many more seconds, uniform.
        duplicate: share of them that arrive twice, each copy with its own jitter, 0 to 1.
        reorder: share of the copies held back by up to ``max(delay, 10 ms)``, 0 to 1.
        corrupt: share of them that arrive with one bit flipped, 0 to 1.

    Raises:
        ConfigurationError: a fault is outside its range.
    """

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            check_fault(type(self).__name__, entry.name, getattr(self, entry.name))
