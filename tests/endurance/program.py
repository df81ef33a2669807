"""What the two child processes share: one JSON object a line in, one out; work that goes on until it is hushed; what memory holds."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from quicflow_trio import tune_garbage_collector
from tests.malloc import malloc_info

__all__ = ["Work", "held", "obey", "prepare", "say"]

Command = Callable[..., Awaitable[Mapping[str, Any]]]


def prepare() -> None:
    """Set the process up as one with many connections, of which many are lost on purpose: that is not worth a line each."""
    tune_garbage_collector()
    logging.getLogger("quicflow_trio").setLevel(logging.ERROR)


def say(**words: Any) -> None:
    """Print one JSON object: an event for the conductor, or a reply."""
    print(json.dumps(words), flush=True)


async def obey(commands: Mapping[str, Command]) -> None:
    """Run the commands that come on standard input, ``{"do": name, ...}`` each, in order, until it ends; reply to each."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                command = json.loads(line)
                say(reply=dict(await commands[command.pop("do")](**command)))


class Work:
    """Tasks that make calls until they are hushed.

    Attributes:
        goes_on: false from the moment on when it is hushed.
    """

    def __init__(self) -> None:
        self.goes_on = True
        self._ended = trio.Event()

    async def run(self, tasks: Iterable[Callable[[], Awaitable[None]]], done: Callable[[], None] = lambda: None) -> None:
        """Run the tasks to their end, then call ``done``."""
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(task)
        self._ended.set()
        done()

    async def hush(self) -> None:
        """Let no task begin another call, and wait until all have ended. Cancelled, they end by themselves."""
        self.goes_on = False
        await self._ended.wait()


def held() -> dict[str, int]:
    """Return what the process holds, what waits for the garbage collector not counted.

    ``blocks`` are Python's small objects, ``malloced`` the bytes that the C library's malloc has given out: larger objects, and those of
    libraries; 0 where it cannot be asked. What is in neither and still resident are holes, which malloc keeps for later.
    """
    gc.collect()
    figures = malloc_info()
    malloced = 0 if figures is None else figures.uordblks + figures.hblkhd
    return {"blocks": sys.getallocatedblocks(), "malloced": malloced}
