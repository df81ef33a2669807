"""UDP as the endpoint sees it: a contract that a simulated network can fulfil too, and the real thing on the stdlib socket.

Trio's own socket objects cost 6 to 9 us per datagram; a non-blocking stdlib socket that is drained after one ``wait_readable``
costs 1.6. Nothing that the network answers ends a loop here: ICMP errors are counted by name and the next datagram is tried.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import trio

from ..errors import ConfigurationError
from ..quic.engine import Address

__all__ = ["DatagramSocket", "Network", "SocketStatistics", "UdpNetwork", "UdpSocket", "check_port"]

# Datagrams per read: as many as others can wait for; and when one read after the other finds that many, more and more, up to what
# takes a millisecond or two. With ten thousand connections a pass of all tasks takes so long that the buffer overflows otherwise.
_BATCH = 64
_LARGEST_BATCH = 1024
# Into one buffer, from which each datagram is copied: `recvfrom` would ask malloc for so many bytes each time and give back all but the
# datagram's own, and those that stay for a while leave holes that no later read fits in: an eighth of the heap was in use. One for all
# sockets of a Trio run, for a process may have thousands, and another thread may have a run of its own.
_LARGEST_READ = 65_535
_buffer: trio.lowlevel.RunVar[memoryview] = trio.lowlevel.RunVar("receive buffer")
_BUFFER_BYTES = 8 * 1024 * 1024
_SMALLEST_BUFFER_BYTES = 256 * 1024

# ENOBUFS is what BSD says when the interface queue is full, and Linux when a qdisc is.
_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
_STARVED_SECONDS = 0.001

# Numbers of the Linux ABI (asm-generic/socket.h, linux/in.h, linux/in6.h): the socket module of Python 3.11 has no names for them.
_LINUX = sys.platform == "linux"
_SO_SNDBUFFORCE = (32,) if _LINUX else ()
_SO_RCVBUFFORCE = (33,) if _LINUX else ()
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("9I")  # linux/sock_diag.h, enum sk_meminfo; the last is SK_MEMINFO_DROPS
# The PROBE mode (3) sets DF but, other than DO, ignores the kernel's idea of the path MTU: anyone can forge the ICMP message behind it
# (RFC 9000 section 14.2.1). An IPv6 socket takes both options, since dual-stack traffic goes by the first.
_DONT_FRAGMENT = ((socket.IPPROTO_IP, 10, 3), (socket.IPPROTO_IPV6, 23, 3)) if _LINUX else ()


@dataclass(slots=True, frozen=True)
class SocketStatistics:
    """What one socket has seen since it was bound.

    Attributes:
        datagrams_in: datagrams handed out by ``receive``.
        datagrams_out: datagrams the kernel accepted.
        bytes_in: their UDP payload, bytes.
        bytes_out: their UDP payload, bytes.
        send_errors: datagrams dropped on sending, by errno name.
        receive_errors: errors read in place of a datagram (ICMP messages, mostly), by errno name.
        receive_drops: datagrams that arrived while the receive buffer was full; None where the platform does not tell.
    """

    datagrams_in: int
    datagrams_out: int
    bytes_in: int
    bytes_out: int
    send_errors: Mapping[str, int]
    receive_errors: Mapping[str, int]
    receive_drops: int | None


class DatagramSocket(Protocol):
    """One bound socket that exchanges datagrams with any number of peers. One task receives, one waits for room."""

    @property
    def address(self) -> Address:
        """The local address, as bound."""

    async def receive(self) -> list[tuple[bytes, Address]]:
        """Wait for at least one datagram, then take what is there, at most 1,024. Always a checkpoint.

        An empty list is the network's word that nobody listens at the other end; only a socket made by ``bind_for`` hears it. Anyone
        can forge it, so it is a reason to give up an attempt and never a connection that stands. Cancelled, it has taken nothing.

        Raises:
            trio.ClosedResourceError: the socket is closed, or was while this waited.
            trio.BusyResourceError: another task waits already.
        """

    def send_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        """Send in order and return how many were taken; fewer than given means that the send buffer is full.

        One that can never be sent (too long, unroutable, forbidden, refused) counts as taken; it is dropped and counted by reason.

        Raises:
            trio.ClosedResourceError: the socket is closed.
        """

    async def wait_writable(self) -> None:
        """Wait until ``send_nowait`` is worth another try. Always a checkpoint; a cancellation leaves nothing behind.

        Raises:
            trio.ClosedResourceError: the socket is closed, or was while this waited.
            trio.BusyResourceError: another task waits already.
        """

    def statistics(self) -> SocketStatistics:
        """Return the counters so far; also after closing."""

    def close(self) -> None:
        """Close at once, any number of times. Waiting tasks wake with ClosedResourceError."""


class Network(Protocol):
    """Where sockets and addresses come from."""

    async def bind(self, host: str, port: int) -> DatagramSocket:
        """Bind one local address; port 0 takes a free one.

        Raises:
            OSError: the address cannot be bound; the text says which and why.
            ConfigurationError: the port is outside 0 to 65535.
        """

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a name or literal, best first, at least one.

        Raises:
            OSError: there is none.
            ConfigurationError: the port is outside 0 to 65535.
        """

    async def bind_for(self, remote: Address) -> DatagramSocket:
        """Bind a free local port for the traffic with ``remote`` and nobody else.

        Raises:
            OSError: none can be bound, or there is no route to it.
        """

    def for_client(self, client_id: str) -> Network:
        """Return the network as this client sees it: itself, unless simulated clients live on hosts of their own."""


def check_port(port: int) -> None:
    """Refuse a port that no datagram can carry: ``bind`` and ``sendto`` would raise OverflowError, which is no OSError.

    Raises:
        ConfigurationError: it is outside 0 to 65535.
    """
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"port = {port!r}: expected a whole number from 0 to 65,535")


@final
class UdpSocket:
    """A `DatagramSocket` on the operating system. `UdpNetwork.bind` makes it.

    Args:
        sock: a bound UDP socket, which this object owns from here on.
        remote: the only peer, None for any number of them.
    """

    def __init__(self, sock: socket.socket, remote: Address | None = None) -> None:
        sock.setblocking(False)
        # A connected socket is told when nobody listens over there, hears nobody else, and sends a little faster.
        self._connected = remote is not None
        if remote is not None:
            sock.connect(remote)
        self._socket = sock
        self._buffer = _receive_buffer()
        self._address: Address = sock.getsockname()
        self._closed = False
        self._starved = False
        # False while the last read has emptied the socket: the next try would most likely find nothing.
        self._more = True
        self._limit = _BATCH
        self._datagrams_in = self._datagrams_out = 0
        self._bytes_in = self._bytes_out = 0
        self._send_errors: dict[str, int] = {}
        self._receive_errors: dict[str, int] = {}
        self._receive_drops: int | None = None

    @property
    def address(self) -> Address:
        """See `DatagramSocket.address`."""
        return self._address

    async def receive(self) -> list[tuple[bytes, Address]]:
        """See `DatagramSocket.receive`."""
        if self._more:
            await trio.lowlevel.checkpoint_if_cancelled()
            if (batch := self._drain()) is not None:
                # The yield comes after the read and cannot be cancelled: what was taken must not be lost.
                await trio.lowlevel.cancel_shielded_checkpoint()
                return batch
        while True:
            self._check_open()
            await trio.lowlevel.wait_readable(self._socket)
            if (batch := self._drain()) is not None:
                return batch

    def send_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        """See `DatagramSocket.send_nowait`."""
        self._check_open()
        sock = self._socket
        connected = self._connected
        for index, (data, address) in enumerate(datagrams):
            try:
                if connected:
                    sock.send(data)
                else:
                    sock.sendto(data, address)
            except OSError as error:
                if error.errno in _FULL:
                    self._starved = error.errno == errno.ENOBUFS
                    return index
                _count(self._send_errors, error)
            else:
                self._datagrams_out += 1
                self._bytes_out += len(data)
        return len(datagrams)

    async def wait_writable(self) -> None:
        """See `DatagramSocket.wait_writable`."""
        self._check_open()
        if self._starved:
            # After ENOBUFS the descriptor still polls as writable: without a pause, wait and send would spin.
            self._starved = False
            await trio.sleep(_STARVED_SECONDS)
            self._check_open()
        await trio.lowlevel.wait_writable(self._socket)

    def statistics(self) -> SocketStatistics:
        """See `DatagramSocket.statistics`."""
        if not self._closed:
            self._receive_drops = _kernel_drops(self._socket)
        return SocketStatistics(
            datagrams_in=self._datagrams_in,
            datagrams_out=self._datagrams_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            send_errors=dict(self._send_errors),
            receive_errors=dict(self._receive_errors),
            receive_drops=self._receive_drops,
        )

    def close(self) -> None:
        """See `DatagramSocket.close`."""
        if self._closed:
            return
        self._receive_drops = _kernel_drops(self._socket)
        self._closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this UDP socket is closed")

    def _drain(self) -> list[tuple[bytes, Address]] | None:
        """Read what is there; an empty list for the word that nobody listens, None when there was nothing."""
        self._check_open()
        refused = False
        receive, buffer = self._socket.recvfrom_into, self._buffer
        batch: list[tuple[bytes, Address]] = []
        self._more = True
        # Errors count towards the batch as well, so that a storm of them cannot keep the task from its checkpoint.
        for _ in range(self._limit):
            try:
                size, address = receive(buffer)
                batch.append((buffer[:size].tobytes(), address))
            except BlockingIOError:
                self._more = False
                self._limit = _BATCH
                break
            except OSError as error:
                refused |= self._connected and error.errno == errno.ECONNREFUSED
                _count(self._receive_errors, error)
        if self._more:
            self._limit = min(self._limit * 2, _LARGEST_BATCH)
        self._datagrams_in += len(batch)
        self._bytes_in += sum(len(data) for data, _ in batch)
        return batch if batch or refused else None


@final
class UdpNetwork:
    """The operating system's network. It has no state: any number of them are the same one."""

    async def bind(self, host: str, port: int) -> UdpSocket:
        """See `Network.bind`. Only the host ``"::"`` takes IPv4 as well as IPv6."""
        failure: OSError | None = None
        for address in await _addresses(host, port, socket.AI_PASSIVE):
            try:
                return _open(address, dual_stack=host == "::")
            except OSError as error:
                failure = error
        assert failure is not None
        raise failure

    async def resolve(self, host: str, port: int) -> list[Address]:
        """See `Network.resolve`. A literal is answered without a thread."""
        return await _addresses(host, port, 0)

    async def bind_for(self, remote: Address) -> UdpSocket:
        """See `Network.bind_for`."""
        await trio.lowlevel.checkpoint()
        return _open(("::", 0, 0, 0) if ":" in remote[0] else ("0.0.0.0", 0), dual_stack=False, remote=remote)

    def for_client(self, client_id: str) -> UdpNetwork:
        """See `Network.for_client`: every client shares the machine's network."""
        return self


def _receive_buffer() -> memoryview:
    """Return what the sockets of this Trio run read into, one after the other."""
    try:
        return _buffer.get()
    except LookupError:
        buffer = memoryview(bytearray(_LARGEST_READ))
        _buffer.set(buffer)
        return buffer


async def _addresses(host: str, port: int, flags: int) -> list[Address]:
    """Resolve for UDP. An empty answer and a malformed name become the OSError that a failed look-up is."""
    check_port(port)
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=flags)
    except ValueError as error:  # what IDNA complains of
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} is not a host name: {error}") from error
    addresses: list[Address] = []
    for family, _kind, _protocol, _name, address in found:
        if family in (socket.AF_INET, socket.AF_INET6) and address not in addresses:
            addresses.append(address)  # type: ignore[arg-type]  # (int, bytes) is what a build without IPv6 returns, as another family
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, f"{host!r} has no IPv4 or IPv6 address")
    return addresses


def _open(address: Address, *, dual_stack: bool, remote: Address | None = None) -> UdpSocket:
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
            sock.bind(address)
        except OSError as error:
            hint = ""
            if error.errno in (errno.EMFILE, errno.ENFILE):
                hint = "; raise the limit of open files (ulimit -n) or open fewer connections"
            # OSError picks its subclass (PermissionError ...) by the number, and `except` clauses above rely on that.
            text = f"cannot bind UDP {address[0]} port {address[1]}: {error.strerror}{hint}"
            raise OSError(error.errno, text) from error
        for level, option, value in _DONT_FRAGMENT:
            _try_options(sock, level, [(option, value)])
        sizes = [_BUFFER_BYTES]
        while sizes[-1] > _SMALLEST_BUFFER_BYTES:
            sizes.append(sizes[-1] // 2)
        for force, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            # Linux silently grants less than asked, others refuse what is too much: hence the halving.
            attempts = [(option, _BUFFER_BYTES) for option in force] + [(plain, size) for size in sizes]
            _try_options(sock, socket.SOL_SOCKET, attempts)
        udp = UdpSocket(sock, remote)
        undo.pop_all()
    return udp


def _try_options(sock: socket.socket, level: int, attempts: Iterable[tuple[int, int]]) -> None:
    """Set the first of these options that the kernel takes. All of them only improve matters: none is needed to work."""
    for option, value in attempts:
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            continue
        return


def _kernel_drops(sock: socket.socket) -> int | None:
    """Read the kernel's count of datagrams it had no room for.

    SO_RXQ_OVFL would tell the same at the price of ``recvmsg`` and its ancillary data for every datagram.
    """
    try:
        drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
    except (OSError, struct.error):
        return None
    return drops


def _count(counters: dict[str, int], error: OSError) -> None:
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    counters[name] = counters.get(name, 0) + 1
