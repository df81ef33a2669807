"""`quicflow events`: what happens on a running server, as it happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, final

import trio
from cyclopts import App, Parameter, validators

from ..observe.events import EVENTS
from .common import CommandFailed, ExitCode, Flag, JsonFlag, shown, until_signalled
from .remote.connection import EventFeed, OpsClient, OpsOptions, open_ops
from .remote.errors import OpsUnreachable, with_json_errors
from .remote.event_text import event_detail, event_time
from .remote.figures import NONE
from .remote.records import ServerEvent

__all__ = ["app"]

EPILOGUE = """The server keeps no events: this prints those that happen while it runs. It
ends after --count events, or after --for seconds; with neither, after 10
seconds. --follow goes on until Ctrl-C instead, and over a restart of the
server; with it --count and --for still end it.

Kinds: connect, disconnect, reconnect, heartbeat_timeout, state_change, broadcast,
ack_timeout, error; and, only when asked for, message_sent, message_received.
A line "dropped" says that some were lost since this reader was too slow.

Exit codes: 0 ended as asked, or by Ctrl-C, 2 usage, 3 no connection or not
allowed, 4 fewer than --count events came within --for.

Examples:
  quicflow events --follow
  quicflow events --kind connect --count 1 --for 60   (wait for a client)
  quicflow events --follow --client sensor-7 --json
"""

DEFAULT_SECONDS = 10.0
RETRY_SECONDS = 1.0
KIND_WIDTH = max(len(kind.kind) for kind in EVENTS)
CLIENT_WIDTH = 20

app: App = App(name="events", help_epilogue=EPILOGUE)


def _check_kinds(_type: object, value: Sequence[str] | None) -> None:
    known = [kind.kind for kind in EVENTS]
    for kind in value or ():
        if kind not in known:
            raise ValueError(f"{kind!r} is none of {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events, and how many of them.

    Attributes:
        kinds: kinds; empty for the server's choice.
        client_id: only those about this client.
        count: end after so many.
        seconds: end after so long.
        follow: connect again when the connection is lost.
    """

    kinds: Sequence[str]
    client_id: str | None
    count: int | None
    seconds: float | None
    follow: bool


@app.default
async def events(
    *,
    follow: Flag = False,
    kind: Annotated[list[str] | None, Parameter(negative=(), validator=_check_kinds)] = None,
    client: str | None = None,
    count: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    seconds: Annotated[float | None, Parameter(name="--for", validator=validators.Number(gt=0, lte=31_536_000))] = None,
    options: OpsOptions = OpsOptions(),  # noqa: B008 - frozen
    json_output: JsonFlag = False,
) -> int:
    """Print what happens on a running server, as it happens.

    Args:
        follow: go on until Ctrl-C, and connect again when the server was restarted.
        kind: only events of this kind; can be given more than once.
        client: only events about this client id.
        count: end after so many events.
        seconds: end after so many seconds.
        options: the server.
        json_output: print each event as one JSON object in a line; a failure as one with "ok": false, "status" and "error".
    """
    if not follow and count is None and seconds is None:
        seconds = DEFAULT_SECONDS
    wanted = Wanted(kind or (), client, count, seconds, follow)
    run = partial(_events, options, Printer(wanted, json_output))
    code = await until_signalled(partial(with_json_errors, run, json_output))
    # Ctrl-C is how --follow ends: no failure.
    return ExitCode.OK if code == ExitCode.INTERRUPTED else code


async def _events(options: OpsOptions, printer: Printer) -> int:
    async with open_ops(options) as ops:
        with trio.move_on_after(float("inf") if printer.wanted.seconds is None else printer.wanted.seconds) as scope:
            await printer.run(ops)
    return ExitCode.TIMEOUT if scope.cancelled_caught and printer.wanted.count is not None else ExitCode.OK


@final
class Printer:
    """Prints events, and keeps the connection that they come from.

    Args:
        wanted: which.
        json_output: print them as JSON.
    """

    def __init__(self, wanted: Wanted, json_output: bool) -> None:
        self.wanted: Wanted = wanted
        self._json = json_output
        self._printed = 0

    async def run(self, ops: OpsClient) -> None:
        """Print events until there are enough.

        Raises:
            OpsUnreachable: the server cannot be reached; when following, only the first time.
            OpsRefused: the server answered with an error.
        """
        wanted, connected = self.wanted, False
        while True:
            try:
                async with ops.open_events(kinds=wanted.kinds, client_id=wanted.client_id) as feed:
                    if connected:
                        print(f"connected to {ops.url} again", file=sys.stderr)
                    connected = True
                    if await self._print(feed):
                        return
                raise OpsUnreachable(ExitCode.NO_CONNECTION, f"{ops.url}: the server has ended the stream")
            except OpsUnreachable as exc:
                if not (wanted.follow and connected):
                    raise
                print(f"{str(exc).splitlines()[0]}; trying again", file=sys.stderr)
            await self._wait(ops)

    async def _wait(self, ops: OpsClient) -> None:
        """Wait until the server can be reached again, in silence: its absence has been told."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            try:
                await ops.get("/healthz")
            except CommandFailed:
                continue
            return

    async def _print(self, feed: EventFeed) -> bool:
        """Print until there are enough, which returns True, or the server ends the stream."""
        async for event in feed:
            print(json.dumps({"kind": event.kind, **event.data}) if self._json else _line(event), flush=True)
            self._printed += event.kind != "dropped"
            if self._printed == self.wanted.count:
                return True
        return False


def _line(event: ServerEvent) -> str:
    client = shown(event.client_id) or NONE
    return f"{event_time(event):8}  {event.kind:{KIND_WIDTH}}  {client:{CLIENT_WIDTH}}  {event_detail(event)}"
