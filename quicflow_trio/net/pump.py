"""The pump: the one loop that owns an engine's clock and its transmit.

Per turn it feeds at most `FEED` datagrams to the engine, fires its timer, hands the events to the driver, lets everything that they
woke write, and transmits once. So the cost of a task switch, of building packets and of a system call is paid per batch, never per
message. (Measured: one transmit per message makes a sender 13 times slower, and 64 datagrams per turn instead of 16 drive both sides
into lockstep.)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import trio

from ..quic.engine import Address, Engine, EngineEvent
from .turnstile import Turnstile

__all__ = ["Driver", "Pump", "Transmitter"]

FEED = 16
"""Datagrams fed to the engine per turn."""
INBOX = 512
"""Datagrams that may wait for the pump; more are dropped and counted, as UDP would. As many as a peer's credit allows on one lane."""
HANDSHAKE_INBOX = 64
"""The same before the peer is known: anyone can make up a connection id, and send to it."""
NUDGE = 1e-6
"""Seconds past a timer before it is fired again, so that a clock that stands still cannot make the pump spin."""

LONG_PASS = 0.002
"""Seconds from which on a turn waits for one pass of the other tasks only."""

_KICK: tuple[tuple[bytes, Address], ...] = ()


class Driver(Protocol):
    """What a pump drives: the message connection above the engine. All of it is synchronous."""

    def handle_events(self, events: Sequence[EngineEvent], now: float) -> None:
        """Act on what the engine reports."""

    def received(self) -> None:
        """Note that datagrams were fed: credit may have grown."""

    def flush(self, now: float) -> None:
        """Write into the engine what waits to be written."""

    def deadline(self) -> float:
        """Return when `handle_deadline` is due (Trio clock), infinity for never."""

    def handle_deadline(self, now: float) -> None:
        """Act on a deadline that has passed."""

    def transmitted(self) -> None:
        """Note that a turn is complete."""


class Transmitter(Protocol):
    """What a pump sends through: the endpoint."""

    turnstile: Turnstile

    async def transmit(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Send, waiting while the socket is full."""


class Timed(Protocol):
    """What stands among the timers."""

    @property
    def live(self) -> bool:
        """False once it no longer matters."""

    def expire(self, now: float) -> None:
        """Act on the deadline; called once, if still live."""


class Timers(Protocol):
    """Where all pumps of a server or client have their deadlines: `deadlines.Deadlines`."""

    def add(self, deadline: float, entry: Timed) -> None:
        """Have ``entry.expire`` called at ``deadline`` (Trio clock)."""

    def ended_early(self) -> None:
        """Say that an entry no longer matters."""


class Pump:
    """Drives one engine from `run`; see the module's docstring.

    Attributes:
        capacity: datagrams that may wait for a turn.
        dropped: datagrams dropped because the inbox was full.
        turns: turns so far; packets and system calls grow with turns, not with messages.
    """

    __slots__ = (
        *("_alarm", "_alarm_at", "_backlog", "_driver", "_engine", "_kicked", "_receive", "_send", "_timers", "_transmitter"),
        *("_kick_waits", "_waiting", "capacity", "dropped", "turns"),
    )

    def __init__(self, engine: Engine, transmitter: Transmitter, driver: Driver, timers: Timers) -> None:
        self._engine = engine
        self._transmitter = transmitter
        self._driver = driver
        self._timers = timers
        # Set for the earliest deadline that there was; a scope around each wait would cost more than the wait.
        self._alarm: _Alarm | None = None
        self._alarm_at = math.inf
        # As many batches as there may be datagrams, and a kick.
        self._send, self._receive = trio.open_memory_channel[Sequence[tuple[bytes, Address]]](INBOX + 1)
        self._backlog: deque[tuple[bytes, Address]] = deque()
        self._waiting = 0
        # True when a kick would be one too many: one waits in the inbox, or a turn has not flushed yet.
        self._kicked = False
        self._kick_waits = False
        self.capacity: int = HANDSHAKE_INBOX
        self.dropped: int = 0
        self.turns: int = 0

    def deliver(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Take datagrams from the endpoint; never waits."""
        room = self.capacity - self._waiting
        if len(datagrams) > room:
            self.dropped += len(datagrams) - room
            if not room:
                return
            datagrams = datagrams[:room]
        self._waiting += len(datagrams)
        self._send.send_nowait(datagrams)

    def handshake_completed(self) -> None:
        """Let a peer that is known have more room."""
        self.capacity = INBOX

    def kick(self) -> None:
        """Have a turn soon: something was written or wants to be. Any number of kicks make one turn."""
        if not self._kicked:
            self._kicked = self._kick_waits = True
            self._send.send_nowait(_KICK)

    async def run(self) -> None:
        """Drive the engine until it closes, by either side; the last packets have been sent then.

        Cancellation ends it at once: the engine stays as it is and nothing more is sent.
        """
        try:
            await self._turns()
        finally:
            self._stop_alarm()
            # It holds this pump: what refers to itself in a circle would wait for the garbage collector.
            del self._driver

    async def _turns(self) -> None:
        engine, driver = self._engine, self._driver
        while not engine.terminated:
            waited = await self._wait()
            # Whatever is written until the flush below takes part in this turn: no kick for it, or each turn would cause an idle one.
            self._kicked = True
            if self._backlog and self.capacity == HANDSHAKE_INBOX:
                async with self._transmitter.turnstile.step():
                    now = trio.current_time()
                    self._feed(now)
            else:
                now = trio.current_time()
                self._feed(now)
            timer = engine.get_timer()
            if timer is not None and timer <= now:
                engine.handle_timer(now)
            if driver.deadline() <= now:
                driver.handle_deadline(now)
            events = engine.next_events()
            if events:
                driver.handle_events(events, now)
                # Let the tasks that those events woke write their next messages, and handlers their acks, into this very transmit.
                # Two passes of the scheduler: within the first one this task may come before them. One when thousands of tasks make it
                # long: the peer waits for its ACK.
                await trio.lowlevel.checkpoint()
                if trio.current_time() - now < LONG_PASS:
                    await trio.lowlevel.checkpoint()
            elif not waited:
                await trio.lowlevel.checkpoint()
            self._kicked = self._kick_waits
            now = trio.current_time()
            driver.flush(now)
            datagrams = engine.datagrams_to_send(now)
            if datagrams:
                await self._transmitter.transmit(datagrams)
            self.turns += 1
            driver.transmitted()
            if engine.closing:
                # The close was sent, or the peer's was received: there is nothing more to say (RFC 9000 section 10.2).
                return

    def _feed(self, now: float) -> None:
        backlog = self._backlog
        if backlog:
            receive = self._engine.receive_datagram
            number = min(FEED, len(backlog))
            self._waiting -= number
            for _ in range(number):
                data, address = backlog.popleft()
                receive(data, address, now)
            self._driver.received()

    async def _wait(self) -> bool:
        """Return when there is something to do: datagrams, a kick, or a deadline, which kicks. True if that was a checkpoint."""
        backlog = self._backlog
        if backlog:
            return False
        try:
            self._take(self._receive.receive_nowait())
            return False
        except trio.WouldBlock:
            pass
        now = trio.current_time()
        due = self._due()
        if due < self._alarm_at:
            self._set_alarm(max(due, now + NUDGE))
        self._take(await self._receive.receive())
        return True

    def _take(self, batch: Sequence[tuple[bytes, Address]]) -> None:
        if batch:
            self._backlog.extend(batch)
        else:
            self._kick_waits = False

    # -- the alarm -------------------------------------------------------------------------------------------------
    def _due(self) -> float:
        """Return when there is something to do at the latest."""
        timer = self._engine.get_timer()
        due = self._driver.deadline()
        return due if timer is None or timer > due else timer

    def _set_alarm(self, at: float) -> None:
        earlier, self._alarm = self._alarm, _Alarm(self)
        self._alarm_at = at
        if earlier is not None:
            earlier.pump = None
            self._timers.ended_early()
        self._timers.add(at, self._alarm)

    def _stop_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.pump = None
            self._alarm = None
            self._timers.ended_early()

    def _ring(self, now: float) -> None:
        """Have a turn if something is due; mostly the deadline has moved on since the alarm was set, which costs less than moving it."""
        self._alarm = None
        self._alarm_at = math.inf
        try:
            due = self._due()
        except Exception:  # noqa: BLE001  it would end the timers of everybody; the pump's own turn meets it again, and ends the connection
            due = now
        if due > now:
            self._set_alarm(due)
        else:
            self.kick()


class _Alarm:
    """A pump's entry among the timers, where it stays for a while when it no longer matters: without its pump."""

    __slots__ = ("pump",)

    def __init__(self, pump: Pump) -> None:
        self.pump: Pump | None = pump

    @property
    def live(self) -> bool:
        """True while the pump has no other alarm."""
        return self.pump is not None

    def expire(self, now: float) -> None:
        """Ring."""
        if self.pump is not None:
            self.pump._ring(now)
