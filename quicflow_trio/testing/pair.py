"""Two engines and a wire between them, without Trio: `EnginePair`, for tests of what a QUIC engine does."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from ..config import Limits
from ..protocol.credit import RETURN_WINDOW, connection_window
from ..protocol.handshake import ALPN
from ..quic.aioquic_engine import Windows, client_engine, server_engine
from ..quic.engine import Address, Engine, EngineEvent
from ..quic.tls import TLSContext
from .tls import throwaway_tls

__all__ = ["EnginePair"]

CLIENT: Address = ("client", 1)
SERVER: Address = ("server", 1)


@dataclass
class EnginePair:
    """A client engine, a server engine and the datagrams between them, in virtual time and bounded.

    ::

        pair = EnginePair.connected(loss=0.2, seed=7)
        stream = pair.client.open_stream()
        pair.client.write(stream, b"hello")
        pair.run(until=lambda: any(isinstance(event, StreamData) for event in pair.server_events))

    Attributes:
        client: the side that connects.
        server: the other side.
        delay: seconds that a datagram is on its way.
        loss: share of the datagrams that are lost, 0 to 1.
        seed: seed of the losses.
        now: the time, seconds.
        drop: decides about each datagram, (to the server, bytes) -> True to lose it; None leaves it to ``loss``.
        client_events: what the client has reported so far.
        server_events: what the server has reported so far.
        trace: (time, to the server, length) of each datagram sent.
        on_round: called once per round; None for nothing.
    """

    client: Engine
    server: Engine
    delay: float = 0.01
    loss: float = 0.0
    seed: int = 0
    now: float = 1.0
    drop: Callable[[bool, bytes], bool] | None = None
    client_events: list[EngineEvent] = field(default_factory=list)
    server_events: list[EngineEvent] = field(default_factory=list)
    trace: list[tuple[float, bool, int]] = field(default_factory=list)
    on_round: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._air: list[tuple[float, int, bool, bytes]] = []
        self._sent = 0

    @classmethod
    def connected(cls, *, delay: float = 0.01, loss: float = 0.0, seed: int = 0) -> Self:
        """Return a pair as a backbone client and server would have it, after the handshake, with throw-away certificates."""
        server_tls, client_tls = throwaway_tls()
        limits = Limits()
        windows = Windows(
            stream_in=limits.lane_window,
            stream_out=RETURN_WINDOW,
            connection=connection_window(limits),
            streams=limits.lanes + 1,
        )
        client = client_engine(TLSContext(client_tls), server_name="server", alpn=[ALPN], idle_timeout=90.0, windows=windows)
        server = server_engine(
            TLSContext(server_tls),
            original_destination_id=client.original_destination_id,
            alpn=[ALPN],
            idle_timeout=90.0,
            windows=windows,
        )
        pair = cls(client, server, delay=delay, loss=loss, seed=seed)
        pair.handshake()
        return pair

    def handshake(self, seconds: float = 1.0) -> Self:
        """Let the client connect and run for a while."""
        self.client.connect(SERVER, self.now)
        self.run(seconds)
        return self

    def run(self, seconds: float = 5.0, until: Callable[[], bool] | None = None, *, rounds: int = 50_000) -> None:
        """Let time pass: until ``until`` is true, or ``seconds`` have passed.

        Raises:
            AssertionError: it took more than ``rounds`` steps. A livelock fails instead of hanging.
        """
        end = self.now + seconds
        for _ in range(rounds):
            self.transmit()
            self.collect()
            if self.on_round is not None:
                self.on_round()
            if until is not None and until():
                return
            times = [t for t in (self.client.get_timer(), self.server.get_timer()) if t is not None]
            times += [self._air[0][0]] if self._air else []
            if not times or min(times) > end:
                self.now = end
                return
            self.now = max(self.now, min(times))
            self._deliver()
        raise AssertionError(f"no end after {rounds} rounds, at {self.now}")

    def transmit(self) -> None:
        """Put what both engines want to send on the wire."""
        for to_server, engine in ((True, self.client), (False, self.server)):
            for data, _address in engine.datagrams_to_send(self.now):
                self.trace.append((self.now, to_server, len(data)))
                lost = self._random.random() < self.loss or (self.drop is not None and self.drop(to_server, data))
                if not lost:
                    self._sent += 1
                    heapq.heappush(self._air, (self.now + self.delay, self._sent, to_server, data))

    def collect(self) -> None:
        """Move what both engines report into the lists."""
        self.client_events += self.client.next_events()
        self.server_events += self.server.next_events()

    def _deliver(self) -> None:
        while self._air and self._air[0][0] <= self.now:
            _, _, to_server, data = heapq.heappop(self._air)
            if to_server:
                self.server.receive_datagram(data, CLIENT, self.now)
            else:
                self.client.receive_datagram(data, SERVER, self.now)
        for engine in (self.client, self.server):
            timer = engine.get_timer()
            if timer is not None and timer <= self.now:
                engine.handle_timer(self.now)
