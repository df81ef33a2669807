"""A network in memory: hosts by name, seeded faults, partitions; in virtual time or real.

It has no task and needs no nursery. A datagram sent is an entry in the receiver's heap with the time at which it arrives, and
`receive` sleeps until the earliest is due. With Trio's scheduler seeded as well (`seeded`) and a `trio.testing.MockClock`, one seed
gives one run.
"""

from __future__ import annotations

import errno
import heapq
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import trio

from ..errors import ConfigurationError
from ..net.udp import DatagramSocket, Network, SocketStatistics, check_port
from ..quic.engine import Address
from .path import FAULT_RANGES, PathFaults, check_fault

__all__ = ["MemoryNetwork", "NetworkStatistics", "SentDatagram"]

_SERVER = "server"
_LOCALHOST = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})
_BATCH = 64  # datagrams per `receive`, as in `net.udp`
_LARGEST_PAYLOAD = 65_507  # 65,535 less the IPv4 and UDP headers
_FIRST_EPHEMERAL = 49_152  # RFC 6335 section 6
_LAST_PORT = 65_535
_LEAST_REORDER_SECONDS = 0.010


class SentDatagram(NamedTuple):
    """One line of a recording.

    Attributes:
        at: Trio's clock when it was sent, seconds.
        source: the sender's address.
        destination: where it was sent, whether or not it got there.
        length: payload, bytes.
    """

    at: float
    source: Address
    destination: Address
    length: int


@dataclass(slots=True, frozen=True)
class NetworkStatistics:
    """What became of every datagram. ``sent + duplicated`` is the sum of all the others but ``reordered`` and ``corrupted``.

    Attributes:
        sent: datagrams given to the network.
        delivered: datagrams handed out by ``receive``, second copies included.
        lost: datagrams dropped by ``loss``.
        duplicated: second copies made.
        reordered: copies held back by ``reorder``.
        cut: datagrams that met a partition, on sending or in flight.
        unroutable: datagrams to a port that nobody had bound, or that was closed before they were read.
        in_flight: datagrams under way, or arrived and not yet read.
        overflowed: datagrams dropped because the receiver's queue was full.
        corrupted: datagrams changed by ``corrupt``.
    """

    sent: int
    delivered: int
    lost: int
    duplicated: int
    reordered: int
    cut: int
    unroutable: int
    in_flight: int
    overflowed: int
    corrupted: int = 0


_COUNTED: Final = ("sent", "delivered", "lost", "duplicated", "reordered", "cut", "unroutable", "overflowed", "corrupted")

_Key = tuple[str, int]
_Entry = tuple[float, int, bytes, _Key]


@final
class MemoryNetwork:
    """A `Network` without an operating system, and the place where its weather is made.

    Addresses are ``(host name, port)``. Used as a `Network` itself it is the host ``"server"``; `host` gives any other, and
    `for_client` gives a client the host of its own name. Names: every host name resolves, whether or not somebody is there; the
    localhost forms (``localhost``, ``127.0.0.1``, ``::1``, ``0.0.0.0``, ``::``) resolve to ``"server"`` on every host, so that
    `open_client("localhost", ...)` finds the server. To bind, they mean the host's own name; another host's name cannot be bound.

    Faults are drawn from one generator in the order of sending. Each is an attribute that may be set at any time and holds for every
    path, except those that have faults of their own (`set_path`). With ``delay`` and
    ``jitter`` at 0 a datagram arrives at the instant it was sent: virtual time stands still while programs answer each other.

    Args:
        seed: seed of the faults.
        loss: share of the datagrams that vanish, 0 to 1.
        delay: seconds that each takes.
        jitter: up to this many more seconds, uniform.
        duplicate: share of them that arrive twice, each copy with its own jitter, 0 to 1.
        reorder: share of the copies held back by up to ``max(delay, 10 ms)``, 0 to 1.
        corrupt: share of them that arrive with one bit flipped, 0 to 1.
        queue_limit: datagrams that one socket holds, those in flight to it included; further ones are dropped and counted.

    Raises:
        ConfigurationError: a fault is outside its range, on construction or when set later.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        loss: float = 0.0,
        delay: float = 0.0,
        jitter: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
        queue_limit: int = 10_000,
    ) -> None:
        self.loss: float = loss
        self.duplicate: float = duplicate
        self.reorder: float = reorder
        self.corrupt: float = corrupt
        self.delay: float = delay
        self.jitter: float = jitter
        self.queue_limit: int = queue_limit
        self._random = random.Random(seed)
        self._sequence = 0
        self._sockets: dict[_Key, _MemorySocket] = {}
        self._hosts: dict[str, _Host] = {}
        self._isolated: set[str] = set()
        self._cuts: set[frozenset[str]] = set()
        self._paths: dict[tuple[str, str], PathFaults] = {}
        self._recordings: list[list[SentDatagram]] = []
        self._counts = dict.fromkeys(_COUNTED, 0)

    def __setattr__(self, name: str, value: object) -> None:
        if name in FAULT_RANGES:
            check_fault("MemoryNetwork", name, value)
        super().__setattr__(name, value)

    def host(self, name: str) -> Network:
        """Return the network as the host of this name sees it; the same object every time.

        Raises:
            ConfigurationError: the name is empty or one of the localhost forms, which belong to every host.
        """
        if not name or name in _LOCALHOST:
            raise ConfigurationError(f"host = {name!r}: expected a name that is not a form of localhost")
        return self._hosts.setdefault(name, _Host(self, name))

    def for_client(self, client_id: str) -> Network:
        """See `Network.for_client`: the host of the client's name."""
        return self.host(client_id)

    async def bind(self, host: str, port: int) -> DatagramSocket:
        """See `Network.bind`: on the host ``"server"``."""
        return await self.host(_SERVER).bind(host, port)

    async def resolve(self, host: str, port: int) -> list[Address]:
        """See `Network.resolve`: any name but an empty one."""
        return await self.host(_SERVER).resolve(host, port)

    async def bind_for(self, remote: Address) -> DatagramSocket:
        """See `Network.bind_for`: on the host ``"server"``."""
        return await self.host(_SERVER).bind_for(remote)

    def partition(self, a: str, b: str | None = None) -> None:
        """Cut both directions between two hosts, or one host from all others.

        Datagrams in flight are lost too; what has arrived and was not yet read is still read.
        """
        if b is None:
            self._isolated.add(a)
        else:
            self._cuts.add(frozenset((a, b)))
        for sock in self._sockets.values():
            self._counts["cut"] += sock.discard_in_flight(self._is_cut)

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Undo ``partition(a, b)``, or ``partition(a)`` (cuts between two hosts stay), or without arguments every partition.

        Raises:
            ValueError: ``b`` is given without ``a``.
        """
        if a is None and b is not None:
            raise ValueError("heal(b=...) without a: name both hosts, one host as a, or none")
        if a is None:
            self._isolated.clear()
            self._cuts.clear()
        elif b is None:
            self._isolated.discard(a)
        else:
            self._cuts.discard(frozenset((a, b)))

    def set_path(self, source: str, destination: str, faults: PathFaults | None) -> None:
        """Give the way from one host to another faults of its own; the way back is another path. None: those of the network again."""
        if faults is None:
            self._paths.pop((source, destination), None)
        else:
            self._paths[source, destination] = faults

    def readdress(self, name: str) -> None:
        """Let every socket that is open on a host be seen from a new port, as behind a NAT that has forgotten where they were.

        Programs there do not notice: ``socket.address`` stays. What was under way to the old ports is lost.
        """
        for sock in self._sockets_of(name):
            port = self._free_port(name)
            del self._sockets[sock.seen_as]
            self._counts["unroutable"] += sock.discard_in_flight(lambda _a, _b: True)
            sock.seen_as = (name, port)
            self._sockets[sock.seen_as] = sock

    def kill(self, name: str) -> None:
        """Cut off every socket that is open on a host now, for good: what a program that was killed leaves behind.

        Its last words reach nobody, and its ports are free for the next one at once. The program itself is for the caller to cancel.
        """
        for sock in self._sockets_of(name):
            del self._sockets[sock.seen_as]
            self._counts["unroutable"] += len(sock.queue)
            sock.queue.clear()
            sock.dead = True

    def open_sockets(self) -> list[Address]:
        """Return the addresses, as others see them, of the sockets that are open and not cut off."""
        return [*self._sockets]

    def record(self) -> list[SentDatagram]:
        """Return a list that from now on receives every datagram sent, whatever becomes of it."""
        recording: list[SentDatagram] = []
        self._recordings.append(recording)
        return recording

    def statistics(self) -> NetworkStatistics:
        """Return the counters so far."""
        return NetworkStatistics(**self._counts, in_flight=sum(len(sock.queue) for sock in self._sockets.values()))

    # What the hosts and sockets below call.
    def _open(self, name: str, port: int) -> DatagramSocket:
        check_port(port)
        key = (name, port or self._free_port(name))
        if key[1] == 0 or key in self._sockets:
            raise OSError(errno.EADDRINUSE, f"cannot bind {name} port {port}: {os.strerror(errno.EADDRINUSE)}")
        sock = self._sockets[key] = _MemorySocket(self, key)
        return sock

    def _route(self, data: bytes, source: _Key, destination: Address) -> None:
        now = trio.current_time()
        self._counts["sent"] += 1
        for recording in self._recordings:
            recording.append(SentDatagram(now, source, destination, len(data)))
        target = (destination[0], destination[1])
        if self._is_cut(source[0], target[0]):
            self._counts["cut"] += 1
            return
        faults = self._paths.get((source[0], target[0]), self)
        if self._random.random() < faults.loss:
            self._counts["lost"] += 1
            return
        # Not drawn where there is none, so that the runs of seeds from before there was such a fault stay as they were.
        if faults.corrupt and self._random.random() < faults.corrupt:
            self._counts["corrupted"] += 1
            data = self._with_flipped_bit(data)
        copies = 1
        if self._random.random() < faults.duplicate:
            self._counts["duplicated"] += 1
            copies = 2
        sock = self._sockets.get(target)
        for _ in range(copies):
            # Drawn for unbound ports too: whether somebody listens must not shift the luck of everybody else.
            due = now + self._travel_time(faults)
            if sock is None:
                self._counts["unroutable"] += 1
            elif len(sock.queue) >= self.queue_limit:
                self._counts["overflowed"] += 1
                sock.overflowed += 1
            else:
                self._sequence += 1
                sock.enqueue((due, self._sequence, data, source), now)

    def _travel_time(self, faults: PathFaults | MemoryNetwork) -> float:
        seconds = faults.delay + self._random.random() * faults.jitter
        if self._random.random() < faults.reorder:
            self._counts["reordered"] += 1
            seconds += self._random.random() * max(faults.delay, _LEAST_REORDER_SECONDS)
        return seconds

    def _with_flipped_bit(self, data: bytes) -> bytes:
        if not data:
            return data
        flipped = bytearray(data)
        flipped[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(flipped)

    def _sockets_of(self, name: str) -> list[_MemorySocket]:
        return [sock for (host, _port), sock in self._sockets.items() if host == name]

    def _is_cut(self, a: str, b: str) -> bool:
        return (a != b and (a in self._isolated or b in self._isolated)) or (bool(self._cuts) and frozenset((a, b)) in self._cuts)

    def _free_port(self, name: str) -> int:
        """Return an unbound ephemeral port, never a recently closed one while others are left; 0 when all are taken."""
        host = self._hosts[name]
        for _ in range(_FIRST_EPHEMERAL, _LAST_PORT + 1):
            port = host.next_port
            host.next_port = port + 1 if port < _LAST_PORT else _FIRST_EPHEMERAL
            if (name, port) not in self._sockets:
                return port
        return 0


@final
class _Host:
    """The network as one host sees it."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self.next_port: int = _FIRST_EPHEMERAL

    async def bind(self, host: str, port: int) -> DatagramSocket:
        await trio.lowlevel.checkpoint()
        if host != self._name and host not in _LOCALHOST:
            text = f"cannot bind {host} port {port} on host {self._name}: {os.strerror(errno.EADDRNOTAVAIL)}"
            raise OSError(errno.EADDRNOTAVAIL, text)
        return self._network._open(self._name, port)

    async def resolve(self, host: str, port: int) -> list[Address]:
        await trio.lowlevel.checkpoint()
        check_port(port)
        if not host:
            raise OSError(errno.EINVAL, "cannot resolve an empty host name")
        return [(_SERVER if host in _LOCALHOST else host, port)]

    async def bind_for(self, remote: Address) -> DatagramSocket:  # there is one family only
        return await self.bind(self._name, 0)

    def for_client(self, client_id: str) -> Network:  # whoever chose this host meant it
        return self


@final
class _MemorySocket:
    """A `DatagramSocket` in memory."""

    def __init__(self, network: MemoryNetwork, address: _Key) -> None:
        self.queue: list[_Entry] = []
        self.overflowed: int = 0
        self.seen_as: _Key = address
        self.dead: bool = False
        self._network = network
        self._address = address
        self._closed = False
        self._waiting: trio.CancelScope | None = None
        self._datagrams_in = self._datagrams_out = 0
        self._bytes_in = self._bytes_out = 0
        self._send_errors: dict[str, int] = {}

    @property
    def address(self) -> Address:
        return self._address

    async def receive(self) -> list[tuple[bytes, Address]]:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._waiting is not None:
            raise trio.BusyResourceError("another task is receiving from this socket already")
        if batch := self._take():
            await trio.lowlevel.cancel_shielded_checkpoint()
            return batch
        while True:
            # The scope is the wake-up: its deadline is the next arrival, and `enqueue` and `close` move or cancel it.
            with trio.CancelScope(deadline=self.queue[0][0] if self.queue else float("inf")) as self._waiting:
                try:
                    await trio.sleep_forever()
                finally:
                    self._waiting = None
            if batch := self._take():
                return batch

    def send_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        self._check_open()
        for data, destination in datagrams:
            if len(data) > _LARGEST_PAYLOAD:
                self._send_errors["EMSGSIZE"] = self._send_errors.get("EMSGSIZE", 0) + 1
                continue
            self._datagrams_out += 1
            self._bytes_out += len(data)
            if not self.dead:
                self._network._route(data, self.seen_as, destination)
        return len(datagrams)

    async def wait_writable(self) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()

    def statistics(self) -> SocketStatistics:
        return SocketStatistics(
            datagrams_in=self._datagrams_in,
            datagrams_out=self._datagrams_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            send_errors=dict(self._send_errors),
            receive_errors={},
            receive_drops=self.overflowed,
        )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self.dead:
            del self._network._sockets[self.seen_as]
        self._network._counts["unroutable"] += len(self.queue)
        self.queue.clear()
        if self._waiting is not None:
            self._waiting.cancel()

    def enqueue(self, entry: _Entry, now: float) -> None:
        heapq.heappush(self.queue, entry)
        if self._waiting is not None:
            if entry[0] <= now:
                self._waiting.cancel()
            else:
                self._waiting.deadline = min(self._waiting.deadline, entry[0])

    def discard_in_flight(self, is_cut: Callable[[str, str], bool]) -> int:
        """Drop what has not arrived yet from hosts that are cut off, and return how many that were."""
        if not self.queue:
            return 0  # also keeps `partition` usable before Trio runs
        now = trio.current_time()
        kept = [entry for entry in self.queue if entry[0] <= now or not is_cut(entry[3][0], self._address[0])]
        dropped = len(self.queue) - len(kept)
        self.queue = kept
        heapq.heapify(self.queue)
        return dropped

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this socket is closed")

    def _take(self) -> list[tuple[bytes, Address]]:
        self._check_open()
        now = trio.current_time()
        batch: list[tuple[bytes, Address]] = []
        while self.queue and self.queue[0][0] <= now and len(batch) < _BATCH:
            _due, _sequence, data, source = heapq.heappop(self.queue)
            batch.append((data, source))
            self._bytes_in += len(data)
        self._datagrams_in += len(batch)
        self._network._counts["delivered"] += len(batch)
        return batch
