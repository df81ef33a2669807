"""`quicflow top`: a running server, live on the terminal."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Annotated

import trio
from cyclopts import App, Parameter, validators
from rich.console import Console, Group
from rich.live import Live

from ..common import ExitCode, Flag, JsonFlag, first_of, until_signalled
from ..remote.connection import OpsOptions, open_ops
from ..remote.errors import with_json_errors
from .draw import ASCII, UNICODE, Glyphs
from .feed import Feed
from .keyboard import keys, single_keys
from .screen import screen
from .view import Data, Effect, View

__all__ = ["app"]

EPILOGUE = """Keys: arrows or j and k move, Enter opens a client, Esc goes back, s sorts by
the next figure, r the other way round, / filters, a shows also clients that
are away or gone, e events on or off, p pauses, ? explains, q quits.

Where the output is no terminal it prints one frame and ends, as with --once.
A frame takes one interval: rates need two looks. With --json it prints one
object per interval: "ready", "metrics", "sample" (of the last second) and
"clients".

Exit codes: 0 ended as asked, or by Ctrl-C, 2 usage, 3 no connection or not
allowed, 4 no answer in time.

Examples:
  quicflow top
  quicflow top --ops 10.0.0.5:8475 --interval 2
  quicflow top --json --once
"""

FRAME_SECONDS = 0.05
"""A frame at most so often: a flood of events must not become one of drawing."""

app: App = App(name="top", help_epilogue=EPILOGUE)


@app.default
async def top(
    *,
    interval: Annotated[float, Parameter(validator=validators.Number(gte=0.2, lte=3600))] = 1.0,
    once: Flag = False,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Watch a running server: throughput, latency, clients, events.

    Args:
        interval: seconds between two looks at the server.
        once: print one frame and end.
        options: the server.
        json_output: print one JSON object per interval instead; of a failure one with "ok": false, "status" and "error".
    """
    if json_output:
        run = partial(with_json_errors, partial(_print_json, options, interval, once), json_output)
    elif once or not sys.stdout.isatty():
        run = partial(_print_frame, options, interval)
    else:
        run = partial(_watch, options, interval)
    code = await until_signalled(run)
    # Ctrl-C is how many leave such a program: no failure.
    return ExitCode.OK if code == ExitCode.INTERRUPTED else code


async def _print_json(options: OpsOptions, interval: float, once: bool) -> int:
    async with open_ops(options) as ops:
        feed = Feed(ops, View(Data()), _nothing)
        while True:
            print(json.dumps(await feed.poll()), flush=True)
            if once:
                return ExitCode.OK
            await trio.sleep(interval)


def _nothing() -> None:
    """Draw nothing."""


async def _print_frame(options: OpsOptions, interval: float) -> int:
    view = View(Data(), events=False)
    console = _console()
    async with open_ops(options) as ops:
        feed = Feed(ops, view, _nothing)
        for last in (False, True):
            view.fit(console.height)
            await feed.poll()
            if not last:
                await trio.sleep(interval)
    # Without the line of keys, and what is empty above it.
    lines = screen(view, console.width, console.height, url=options.ops, glyphs=_glyphs(console))[:-1]
    for line in lines:
        line.rstrip()
    while lines and not lines[-1]:
        lines.pop()
    for line in lines:
        console.print(line)
    return ExitCode.OK


def _console() -> Console:
    # No markup and no highlighting: much of what is shown comes from elsewhere.
    return Console(highlight=False, markup=False, emoji=False)


def _glyphs(console: Console) -> Glyphs:
    return UNICODE if console.encoding.startswith("utf") else ASCII


async def _watch(options: OpsOptions, interval: float) -> int:
    async with open_ops(options) as ops:
        dirty = trio.Event()

        def changed() -> None:
            dirty.set()

        view = View(Data())
        feed = Feed(ops, view, changed)
        # Before the screen is taken: that there is no server is a line and an exit code, not a picture.
        await feed.poll()
        console = _console()
        with ExitStack() as stack:
            if sys.stdin.isatty():
                stack.enter_context(single_keys(sys.stdin.fileno()))
            # Redrawn by a task and not by rich's thread.
            live = stack.enter_context(
                Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            )

            async def draw() -> None:
                nonlocal dirty
                while True:
                    lines = screen(view, console.width, console.height, url=options.ops, glyphs=_glyphs(console))
                    live.update(Group(*lines), refresh=True)
                    await trio.sleep(FRAME_SECONDS)
                    await dirty.wait()
                    dirty = trio.Event()

            await first_of(
                draw,
                partial(feed.run, interval),
                feed.watch_events,
                partial(_resizes, changed),
                *([partial(_press_keys, view, feed, changed)] if sys.stdin.isatty() else []),
            )
    return ExitCode.OK


async def _resizes(changed: Callable[[], None]) -> None:
    with trio.open_signal_receiver(signal.SIGWINCH) as signals:
        async for _ in signals:
            changed()


async def _press_keys(view: View, feed: Feed, changed: Callable[[], None]) -> None:
    """Do what the keys say until one of them quits, or the terminal is gone."""
    async with aclosing(keys(sys.stdin.fileno())) as pressed:
        async for key in pressed:
            effect = view.press(key)
            if effect is Effect.QUIT:
                return
            if effect is Effect.FETCH:
                feed.want()
            changed()
