"""The client's heartbeat: a ping on the control stream at a steady pace."""

from __future__ import annotations

import math

import trio

from .connection import Connection

__all__ = ["heartbeat"]


async def heartbeat(connection: Connection) -> None:
    """Ping at once, so that a round-trip time is known, and then at the agreed interval, until cancelled.

    Pings have a stream and credit of their own and never wait behind messages. Whether the peer still answers is not judged here:
    the connection's own deadline does that, and counts every frame.
    """
    terms = connection.terms
    assert terms is not None, "heartbeats start once the connection is open"
    start = trio.current_time()
    beats = 0
    while True:
        connection.ping()
        # Counted from the start, so that the pace does not drift; a machine that slept skips the pings it missed. The other bound is
        # for floats: (start + 15.0) - start is less than 15 for one start in fifty, and the same beat would come again, for ever.
        beats = max(beats, math.floor((trio.current_time() - start) / terms.heartbeat_interval)) + 1
        await connection.deadlines.sleep_until(start + beats * terms.heartbeat_interval)
