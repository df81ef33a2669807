"""One socket for many clients of a program: `open_endpoint` makes what `open_client` takes as its ``network``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import final

import trio

from .background import open_background
from .deadlines import Deadlines
from .net.endpoint import Endpoint, EndpointStatistics
from .net.movable import add_up, joined
from .net.udp import Network, UdpNetwork
from .observe.logs import Logger, get_logger
from .quic.engine import Address

__all__ = ["ClientEndpoint", "open_endpoint"]

log: Logger = get_logger(__name__)


class _Line:
    """One socket to one server address, the task that reads it, and the connections on it.

    Attributes:
        endpoint: the socket and its routing table.
        users: what ends each connection's stay here.
        connecting: whom to tell when the network says that nobody listens over there; each is told once, for a connection that
            stands does not believe it and one that does not gives up.
        words: how often the network has said so.
        failure: why the line was taken away under its users, empty while it was not.
    """

    def __init__(self) -> None:
        self.endpoint: Endpoint
        self.users: set[trio.CancelScope] = set()
        self.connecting: dict[trio.CancelScope, Callable[[], None]] = {}
        self.words: int = 0
        self.failure: str = ""

    def refused(self) -> None:
        """Pass on that nobody listens over there."""
        self.words += 1
        connecting, self.connecting = self.connecting, {}
        for tell in connecting.values():
            tell()

    def end(self, failure: str) -> None:
        """End the stay of every connection. Their last words still leave; the last of them closes the socket."""
        self.failure = failure
        for scope in self.users:
            scope.cancel()
        if not self.users:
            self.endpoint.close()

    def signs(self) -> int:
        """Return a number that grows with every sign of life from the network."""
        return self.endpoint.statistics().socket.datagrams_in + self.words


@final
class ClientEndpoint:
    """What many clients of one program share: one UDP socket, read by one task, for each server address. `open_endpoint` makes it.

    A socket is opened for the first connection to an address and closed after the last one. When a whole attempt ends without a single
    datagram from anybody, the next attempt gets a new socket, as this machine may have another address by now.

    Attributes:
        deadlines: the timers and heartbeats of all connections on it; they end before it does.
    """

    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self._network = network
        self._nursery = nursery
        self.deadlines: Deadlines = Deadlines()
        self._opening = trio.Lock()
        # The lines that new connections join, by the server's address, and all lines whose socket is open.
        self._lines: dict[Address, _Line] = {}
        self._open: set[_Line] = set()
        self._closed = False
        self._past = _sum([])

    @property
    def connections(self) -> int:
        """Connections and connection attempts on it now."""
        return sum(len(line.users) for line in self._open)

    def statistics(self) -> EndpointStatistics:
        """Return the figures of all its sockets together, also of those that are closed.

        The clients' own metrics leave these out: what many share would else be counted once for each.
        """
        return _sum([self._past, *(line.endpoint.statistics() for line in self._open)])

    # -- for the client ----------------------------------------------------------------------------------------------
    def for_client(self, client_id: str) -> ClientEndpoint:
        """Return itself: it is the same for every client."""
        return self

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a name or literal; see `net.udp.Network.resolve`."""
        return await self._network.resolve(host, port)

    @asynccontextmanager
    async def use(self, remote: Address, refused: Callable[[], None]) -> AsyncIterator[Endpoint]:
        """Have the shared socket to an address for the length of one connection.

        Args:
            remote: the server's address.
            refused: called, at most once, when the network says that nobody listens there.

        Raises:
            OSError: the socket cannot be opened, or it was taken away, in which case the block was cancelled.
        """
        line = self._lines.get(remote) or await self._open_line(remote)
        scope = trio.CancelScope()
        line.users.add(scope)
        line.connecting[scope] = refused
        signs = line.signs()
        try:
            with scope:
                yield line.endpoint
                if line.signs() == signs and self._lines.get(remote) is line:
                    del self._lines[remote]
        finally:
            self._leave(remote, line, scope)
        if scope.cancelled_caught:
            raise OSError(line.failure)

    async def _open_line(self, remote: Address) -> _Line:
        async with self._opening:
            line = self._lines.get(remote)
            if line is None:
                self._check_open()
                line = _Line()
                line.endpoint = Endpoint(await self._network.bind_for(remote), refused=line.refused)
                try:
                    self._check_open()
                except OSError:
                    line.endpoint.close()
                    raise
                self._lines[remote] = line
                self._open.add(line)
                self._nursery.start_soon(self._read, remote, line)
            return line

    def _check_open(self) -> None:
        if self._closed:
            raise OSError("the clients' shared endpoint was closed")

    def _leave(self, remote: Address, line: _Line, scope: trio.CancelScope) -> None:
        line.users.discard(scope)
        line.connecting.pop(scope, None)
        if not line.users:
            line.endpoint.close()
            if self._lines.get(remote) is line:
                del self._lines[remote]
            self._open.discard(line)
            self._past = _sum([self._past, line.endpoint.statistics()])

    async def _read(self, remote: Address, line: _Line) -> None:
        try:
            await line.endpoint.run()
        except Exception:
            # A defect in one line must not end the caller's block; its clients connect again, over another socket.
            log.exception("the socket that clients share is read no more", remote=remote)
            if self._lines.get(remote) is line:
                del self._lines[remote]
            line.end("the shared socket is read no more")

    def close(self) -> None:
        """End every connection on it, with a last word to the server; no new one may begin."""
        self._closed = True
        self._lines.clear()
        for line in self._open:
            line.end("the clients' shared endpoint was closed")


def _sum(parts: Sequence[EndpointStatistics]) -> EndpointStatistics:
    """Return the figures of several endpoints as those of one."""
    return EndpointStatistics(
        socket=add_up([part.socket for part in parts]),
        connection_ids=sum(part.connection_ids for part in parts),
        last_words=sum(part.last_words for part in parts),
        dropped=joined([part.dropped for part in parts]),
        negotiations=sum(part.negotiations for part in parts),
        retries=sum(part.retries for part in parts),
        tokens_refused=sum(part.tokens_refused for part in parts),
        resets_sent=sum(part.resets_sent for part in parts),
        resets_received=sum(part.resets_received for part in parts),
    )


@asynccontextmanager
async def open_endpoint(*, network: Network | None = None) -> AsyncIterator[ClientEndpoint]:
    """Let all clients opened in the block share one socket, and one task that reads it, for each server address::

        async with open_endpoint() as endpoint, trio.open_nursery() as nursery:
            for number in range(10_000):
                nursery.start_soon(work, open_client(host, client_id=f"sensor-{number}", tls=tls, network=endpoint))

    A client alone has a socket of its own, with an 8 MB receive buffer and a task that reads it; ten thousand of them are beyond the
    usual limit of open files. Clients that share one lose nothing but the separate figures: see `ClientEndpoint.statistics`.

    Args:
        network: where the sockets come from; None is UDP. A host of a `quicflow_trio.testing.MemoryNetwork` in tests.

    Open it around its clients. Leaving the block ends the connections of any that are still open: each says goodbye to its server, and
    its further attempts fail until it is closed. Cancelled, it does the same; nothing here waits. An exception of the block leaves as
    itself.
    """
    async with open_background() as background:
        endpoint = ClientEndpoint(UdpNetwork() if network is None else network, background)
        background.start_soon(endpoint.deadlines.run)
        try:
            yield endpoint
        finally:
            endpoint.close()
