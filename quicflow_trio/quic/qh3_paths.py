"""Addresses for a core that takes numeric ones only: each host gets a made-up IPv4 address, and what is sent there the real one."""

from __future__ import annotations

from typing import Final

from .engine import Address

__all__ = ["Paths"]

_REMEMBERED: Final = 64
"""Addresses of a peer that are remembered: anybody can send to us from any number of them. The core itself follows a peer to 4."""


class Paths:
    """Made-up addresses of one connection's peer. They are never bound or dialled: the core compares them, to notice a move."""

    def __init__(self) -> None:
        self._made: dict[Address, tuple[str, int]] = {}
        self._real: dict[tuple[str, int], Address] = {}
        self._hosts: dict[str, str] = {}
        self._number = 0

    def made_up(self, address: Address, active: Address | None) -> tuple[str, int]:
        """Return the address to name to the core; ``active`` is where it sends to now, which is never forgotten."""
        made = self._made.get(address)
        if made is None:
            if len(self._made) >= _REMEMBERED:
                self._forget(next(known for known in self._made if known != active))
            host = self._hosts.get(address[0])
            if host is None:
                self._number = self._number % 0xFFFFFE + 1
                number = self._number
                host = self._hosts[address[0]] = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            made = self._made[address] = (host, address[1])
            self._real[made] = address
        return made

    def _forget(self, address: Address) -> None:
        del self._real[self._made.pop(address)]
        if all(known[0] != address[0] for known in self._made):
            del self._hosts[address[0]]

    def real(self, made_up: tuple[str, int]) -> Address | None:
        """Return what stands behind a made-up address; None when it is forgotten."""
        return self._real.get(made_up)
