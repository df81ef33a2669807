"""A client's socket that can be exchanged for another one under its endpoint, when the client moves to another local address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import trio

from ..quic.engine import Address
from .udp import DatagramSocket, SocketStatistics

__all__ = ["MovableSocket", "add_up", "joined"]


class MovableSocket:
    """A `DatagramSocket` that stands for one after the other. Its statistics are those of all of them.

    Args:
        socket: the first; it and its successors are closed with this one.
    """

    def __init__(self, socket: DatagramSocket) -> None:
        self._socket = socket
        self._past: list[SocketStatistics] = []
        # Set once something has come in after a move.
        self._heard: trio.Event | None = None

    @property
    def address(self) -> Address:
        """The local address at the moment."""
        return self._socket.address

    def move_to(self, socket: DatagramSocket) -> trio.Event:
        """Use another socket from now on; return an event that is set when something comes in there.

        The one before is closed: what is on its way there is lost, and comes again at the new address.
        """
        before, self._socket = self._socket, socket
        self._heard = heard = trio.Event()
        before.close()
        # The past is one sum, or a client that moves every day would remember each.
        self._past = [add_up([*self._past, before.statistics()])]
        return heard

    async def receive(self) -> list[tuple[bytes, Address]]:
        """See `net.udp.DatagramSocket.receive`."""
        while True:
            socket = self._socket
            try:
                batch = await socket.receive()
            except trio.ClosedResourceError:
                if socket is self._socket:
                    raise
            else:
                if self._heard is not None and batch and socket is self._socket:
                    self._heard.set()
                    self._heard = None
                return batch

    def send_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> int:
        """See `net.udp.DatagramSocket.send_nowait`."""
        return self._socket.send_nowait(datagrams)

    async def wait_writable(self) -> None:
        """See `net.udp.DatagramSocket.wait_writable`; also returns when there is another socket."""
        socket = self._socket
        try:
            await socket.wait_writable()
        except trio.ClosedResourceError:
            if socket is self._socket:
                raise

    def statistics(self) -> SocketStatistics:
        """See `net.udp.DatagramSocket.statistics`."""
        return add_up([*self._past, self._socket.statistics()])

    def close(self) -> None:
        """See `net.udp.DatagramSocket.close`."""
        self._socket.close()


def add_up(sockets: Sequence[SocketStatistics]) -> SocketStatistics:
    """Return the figures of several sockets as those of one."""
    drops = [socket.receive_drops for socket in sockets if socket.receive_drops is not None]
    return SocketStatistics(
        datagrams_in=sum(socket.datagrams_in for socket in sockets),
        datagrams_out=sum(socket.datagrams_out for socket in sockets),
        bytes_in=sum(socket.bytes_in for socket in sockets),
        bytes_out=sum(socket.bytes_out for socket in sockets),
        send_errors=joined([socket.send_errors for socket in sockets]),
        receive_errors=joined([socket.receive_errors for socket in sockets]),
        receive_drops=sum(drops) if drops else None,
    )


def joined(counters: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counters by name."""
    total: Counter[str] = Counter()
    for one in counters:
        total.update(one)
    return dict(total)
