"""aioquic's asyncio API on uvloop, with a clock that suits QUIC.

uvloop's `time()` is libuv's cached one, in whole milliseconds, and aioquic takes it for every packet: round trips of 0 or 1 ms make loss
detection erratic. Here `time()` is the monotonic clock in full resolution; uvloop's `call_at` reckons with it.
"""

from __future__ import annotations

import time

import uvloop

from benchmarks.peers.aioquic_asyncio import connected, serving
from benchmarks.peers.on_asyncio import main


class MonotonicLoop(uvloop.Loop):
    """uvloop with a clock finer than a millisecond."""

    def time(self) -> float:
        """Return the monotonic clock, seconds."""
        return time.monotonic()


if __name__ == "__main__":
    main(serving, connected, MonotonicLoop)
