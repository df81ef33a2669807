"""The endpoint: one socket, many peers. It reads in batches, routes by connection id, and alone waits for room to send."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from ..quic.engine import Address
from ..quic.probes import ProbeBudget
from ..quic.resets import ResetTable
from ..quic.routing import Header, RoutingTable, parse_header, version_negotiation
from .pump import Pump
from .stateless import Answer, AnswerKind, Doorkeeper
from .turnstile import Turnstile
from .udp import DatagramSocket, SocketStatistics

__all__ = ["Accept", "Endpoint", "EndpointStatistics"]

Accept = Callable[[Header, Address, float], Pump | None]
"""Makes the pump of a new connection from its first packet's header, or refuses by None."""


WAKE = 16
"""Pumps woken before the other tasks run."""

FULL = 64
"""Datagrams in a batch that show that more are waiting to be read."""
MANY_IDS = 4096
IDS_A_PORTION = 56
"""While more is waiting, one more pump is woken at a time for so many connection ids beyond the first, of which a connection has four.

Measured: with 16 at a time ten thousand clients time out during a broadcast; with hundreds at a time and a thousand clients that never
rest, whoever asks for the metrics waits for a second."""

LAST_WORDS = 4096
"""Closed connections whose close is kept for peers that have not heard it; about 600 bytes each, the oldest goes first."""


@dataclass(slots=True)
class _LastWord:
    """What a peer is told again that goes on sending to a closed connection."""

    datagrams: Sequence[tuple[bytes, Address]]
    connection_ids: frozenset[bytes]
    until: float
    heard: int = 0


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """What one endpoint has seen.

    Attributes:
        socket: the socket's own counters.
        connection_ids: ids in the routing table.
        last_words: closed connections whose close is kept, to be repeated to peers that have not heard it.
        dropped: datagrams dropped, by reason.
        negotiations: version negotiation packets sent.
        retries: Retry packets sent.
        tokens_refused: Initials whose Retry token was forged, expired or from another address.
        resets_sent: stateless resets sent.
        resets_received: stateless resets received that belong to a connection here.
    """

    socket: SocketStatistics
    connection_ids: int
    last_words: int
    dropped: dict[str, int]
    negotiations: int
    retries: int = 0
    tokens_refused: int = 0
    resets_sent: int = 0
    resets_received: int = 0


class Endpoint:
    """One socket and the connections that share it.

    Args:
        socket: what it reads and sends, closed by `close`.
        accept: called for the first packet of an unknown connection; None on a client.
        refused: called when the network says that nobody listens at the other end; None on a server.
        doorkeeper: answers what belongs to no connection; None makes one that never asks for a Retry. A client answers nothing.

    Attributes:
        probes: what its connections take their probes from.
        turnstile: where its connections wait to go on with their handshakes.
    """

    def __init__(
        self,
        socket: DatagramSocket,
        accept: Accept | None = None,
        refused: Callable[[], None] | None = None,
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self._socket = socket
        self._accept = accept
        self._refused = refused
        self._table: RoutingTable[Pump] = RoutingTable()
        self._last_words: deque[_LastWord] = deque()
        self._closed: dict[bytes, _LastWord] = {}
        self._send_lock = trio.Lock()
        self._dropped: dict[str, int] = {}
        self._doorkeeper = doorkeeper or Doorkeeper()
        self._answers = dict.fromkeys(AnswerKind, 0)
        # What the servers of these connections say when they have lost them.
        self._reset_tokens: ResetTable[Pump] = ResetTable(os.urandom(32))
        self._resets_received = 0
        self.probes: ProbeBudget = ProbeBudget()
        self.turnstile: Turnstile = Turnstile()

    @property
    def address(self) -> Address:
        """The socket's local address."""
        return self._socket.address

    def statistics(self) -> EndpointStatistics:
        """Return the counters so far."""
        answers = self._answers
        return EndpointStatistics(
            socket=self._socket.statistics(),
            connection_ids=len(self._table),
            last_words=len(self._last_words),
            dropped=dict(self._dropped),
            negotiations=answers[AnswerKind.NEGOTIATION],
            retries=answers[AnswerKind.RETRY],
            tokens_refused=self._doorkeeper.tokens_refused,
            resets_sent=answers[AnswerKind.RESET],
            resets_received=self._resets_received,
        )

    # -- routes ----------------------------------------------------------------------------------------------------
    def add_route(self, connection_id: bytes, pump: Pump) -> None:
        """Let datagrams for this id go to that pump."""
        self._table.add(connection_id, pump)

    def remove_route(self, connection_id: bytes) -> None:
        """Forget one id."""
        self._table.remove(connection_id)

    def add_reset_token(self, token: bytes, pump: Pump) -> None:
        """Let a datagram that ends in this token go to that pump, if no route says better."""
        self._reset_tokens.add(token, pump)

    def remove_pump(self, pump: Pump, last_word: Sequence[tuple[bytes, Address]] = (), keep: float = 0.0) -> None:
        """Forget every id of a pump.

        Its close can get lost, and a peer that has not heard it waits for its heartbeat time-out; one that was replaced would even
        come back and take the session over again. So ``last_word`` is repeated for ``keep`` seconds to whoever goes on sending.
        """
        if last_word and self._accept is not None:
            now = trio.current_time()
            kept = self._last_words
            while kept and (kept[0].until <= now or len(kept) >= LAST_WORDS):
                for connection_id in kept.popleft().connection_ids:
                    self._closed.pop(connection_id, None)
            word = _LastWord(last_word, self._table.ids_of(pump), now + keep)
            kept.append(word)
            self._closed.update(dict.fromkeys(word.connection_ids, word))
        self._table.remove_owner(pump)
        self._reset_tokens.remove_owner(pump)

    # -- in --------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Read until the socket is closed or this is cancelled."""
        full = False
        try:
            while True:
                batch = await self._socket.receive()
                before, full = full, len(batch) >= FULL
                if batch:
                    # One full batch may be all there was.
                    await self._deliver(self._route(batch), behind=before and full)
                elif self._refused is not None:
                    self._refused()
        except trio.ClosedResourceError:
            return

    def close(self) -> None:
        """Close the socket; no effect the second time."""
        self._socket.close()

    async def _deliver(self, groups: dict[Pump, list[tuple[bytes, Address]]], *, behind: bool) -> None:
        """Wake the pumps, a few at a time: with a thousand busy clients every task would wait for all of them to have their turn.

        More of them when more waits in the socket (``behind``) and there are thousands: what timers and senders do in between grows with
        the number of connections, and what is read must keep up with it, or acks come too late for everybody.
        """
        portion = max(WAKE, (len(self._table) - MANY_IDS) // IDS_A_PORTION) if behind else WAKE
        for number, (pump, datagrams) in enumerate(groups.items(), 1):
            pump.deliver(datagrams)
            if number % portion == 0:
                await trio.lowlevel.checkpoint()

    def _route(self, batch: list[tuple[bytes, Address]]) -> dict[Pump, list[tuple[bytes, Address]]]:
        """Sort a batch by the pumps that it is for."""
        groups: dict[Pump, list[tuple[bytes, Address]]] = {}
        lookup = self._table.lookup
        for datagram in batch:
            data, address = datagram
            if not data:
                self._drop("empty")
                continue
            # Nearly every datagram has a short header; its destination id stands at a fixed place (RFC 9000 section 17.3).
            pump = None if data[0] & 0x80 else lookup(data[1:9])
            if pump is None:
                pump = self._route_rare(data, address)
                if pump is None:
                    continue
            group = groups.get(pump)
            if group is None:
                groups[pump] = [datagram]
            else:
                group.append(datagram)
        return groups

    def _route_rare(self, data: bytes, address: Address) -> Pump | None:
        """Route a long header, or whatever is left: handshakes, strays and noise."""
        header = parse_header(data)
        if header is None:
            self._drop("malformed")
            return None
        pump = self._table.lookup(header.destination)
        if pump is not None:
            return pump
        if not header.is_long:
            # Its id is noise when it is a stateless reset (RFC 9000 section 10.3).
            pump = self._reset_tokens.lookup(data)
            if pump is not None:
                self._resets_received += 1
                return pump
        if self._accept is None:
            self._drop("unknown connection")
            return None
        now = trio.current_time()
        word = self._closed.get(header.destination)
        if word is not None and now < word.until:
            self._repeat(word, len(data), address)
            return None
        if header.is_initial:
            return self._admit(self._accept, header, data, address, now)
        reply = version_negotiation(header) if header.is_long else self._doorkeeper.reset(header, now)
        if reply is None or not header.is_long:
            self._drop("unknown connection")
        self._answer(AnswerKind.NEGOTIATION if header.is_long else AnswerKind.RESET, reply, address)
        return None

    def _admit(self, accept: Accept, header: Header, data: bytes, address: Address, now: float) -> Pump | None:
        admitted = self._doorkeeper.admit(header, data, address, now)
        if isinstance(admitted, Answer):
            if admitted.data is None:
                self._drop("refused")
            self._answer(admitted.kind, admitted.data, address)
            return None
        pump = accept(admitted, address, now)
        if pump is None:
            self._drop("refused")
            return None
        self._table.add(header.destination, pump)
        return pump

    def _repeat(self, word: _LastWord, size: int, address: Address) -> None:
        """Answer the 1st, 2nd, 4th, 8th ... packet, which bounds what a peer can make us send (RFC 9000 section 10.2.1).

        The answer goes where the packet came from: the peer may have moved without a word. Unless it is more than three times as long
        as the packet, whose address nobody has validated (section 8.1): then it goes to the peer's last one.
        """
        word.heard += 1
        self._drop("closed connection")
        if word.heard & (word.heard - 1):
            return
        answer = word.datagrams
        if sum(len(data) for data, _ in answer) <= 3 * size:
            answer = [(data, address) for data, _ in answer]
        self.transmit_nowait(answer)

    def _answer(self, kind: AnswerKind, data: bytes | None, address: Address) -> None:
        """Send what a packet of a connection that is not there is answered with, if anything."""
        if data is None:
            return
        if self._socket.send_nowait([(data, address)]):
            self._answers[kind] += 1
        else:
            # The sender repeats its packet; waiting here would stop the reading for everyone.
            self._drop("send buffer full")

    def _drop(self, reason: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1

    # -- out -------------------------------------------------------------------------------------------------------
    def transmit_nowait(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Send what the socket takes at once and drop the rest: for a last word that nobody can wait for."""
        taken = self._socket.send_nowait(datagrams)
        for _ in datagrams[taken:]:
            self._drop("send buffer full")

    async def transmit(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Send datagrams in order. Not a checkpoint while the socket has room.

        Cancelled while it waits for room, the rest is not sent: to QUIC they are lost packets.

        Raises:
            trio.ClosedResourceError: the socket is closed.
        """
        sent = self._socket.send_nowait(datagrams)
        if sent == len(datagrams):
            return
        # Trio lets one task wait per descriptor; the other pumps queue up behind it, first come, first served.
        async with self._send_lock:
            rest = datagrams[sent:]
            while True:
                rest = rest[self._socket.send_nowait(rest) :]
                if not rest:
                    return
                await self._socket.wait_writable()
