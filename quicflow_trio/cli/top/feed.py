"""What `quicflow top` shows, kept up to date: the server is asked once per interval, and its events are listened to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import trio

from ..client import parse_client
from ..common import CommandFailed, shown
from ..remote.connection import OpsClient, client_path
from ..remote.errors import OpsRefused, parsed
from ..remote.records import ClientFigures, ClientPage, Rates, Sample, objects, rates_between
from .view import View

__all__ = ["Feed"]

SECONDS_SHOWN = 300
"""Seconds of samples that are asked for: more than the widest chart has columns."""
SHORTEST_LOOK = 0.4
"""Seconds between two looks at a client that rates are made from: in less, a batch of messages would look like a flood."""
LOOKS_KEPT = 4096
RETRY_SECONDS = 1.0


@final
class RateBook:
    """Tells what clients do per second, from looks at them."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[float, ClientFigures, Rates | None]] = {}

    def look(self, client: ClientFigures, timestamp: float) -> Rates | None:
        """Note a look at a client and return its rates; None when it was not looked at before."""
        last = self._looks.get(client.client_id)
        if last is not None and 0 <= timestamp - last[0] < SHORTEST_LOOK:
            return last[2]
        rates = None if last is None else rates_between(last[1], client, timestamp - last[0])
        # Put in anew, so that the oldest stands first.
        self._looks.pop(client.client_id, None)
        self._looks[client.client_id] = (timestamp, client, rates)
        while len(self._looks) > LOOKS_KEPT:
            del self._looks[next(iter(self._looks))]
        return rates


@final
class Feed:
    """Fetches what a view shows.

    Args:
        ops: the server.
        view: what is shown.
        changed: called when there is something new to draw.
    """

    def __init__(self, ops: OpsClient, view: View, changed: Callable[[], None]) -> None:
        self._ops = ops
        self._view = view
        self._changed = changed
        self._rates = RateBook()
        self._detail_rates = RateBook()
        self._wanted = trio.Event()

    def want(self) -> None:
        """Ask the server now, and not only when the interval is over."""
        self._wanted.set()

    async def run(self, interval: float) -> None:
        """Ask the server once per interval, for ever; its absence is noted in the data."""
        while True:
            if self._view.paused:
                await self._wanted.wait()
            else:
                with trio.move_on_after(interval):
                    await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self.poll()
                self._view.data.problem = ""
            except CommandFailed as exc:
                # Its hint is for those who start a server; this one was there.
                self._view.data.problem = str(exc).splitlines()[0]
            self._changed()

    async def poll(self) -> dict[str, Any]:
        """Ask for everything that is on the screen, and return the answers.

        Raises:
            OpsUnreachable: the server cannot be reached, or makes no sense.
            OpsRefused: it answered with an error.
        """
        ops, view, data = self._ops, self._view, self._view.data
        if not data.version or data.problem:
            data.version = str((await ops.get("/healthz")).get("version", ""))
        ready = await ops.ready()
        metrics = await ops.get("/metrics.json")
        samples = await ops.get("/samples", seconds=SECONDS_SHOWN)
        taken = parsed(ops.url, lambda answer: [Sample.parse(sample) for sample in objects(answer, "samples")], samples)
        clients = await self._poll_clients() if view.client is None else await self._poll_detail(view.client)
        data.ready, data.metrics, data.samples = ready, metrics, taken
        return {"ready": ready, "metrics": metrics, "sample": samples["samples"][-1] if taken else None, "clients": clients}

    async def _poll_clients(self) -> dict[str, Any]:
        view, data = self._view, self._view.data
        query = view.query()
        answer = await self._ops.get("/clients", **query)
        page = parsed(self._ops.url, ClientPage.parse, answer)
        if query != view.query():
            # A key was pressed meanwhile: this is the answer to another question, and the next one is on its way.
            return answer
        data.rates = {client.client_id: self._rates.look(client, page.timestamp) for client in page.clients}
        view.take(page)
        return answer

    async def _poll_detail(self, client_id: str) -> dict[str, Any]:
        detail = self._view.data.detail
        try:
            answer = await self._ops.get(client_path(client_id))
        except OpsRefused as exc:
            if exc.status != 404:
                raise
            detail.problem = f"{shown(client_id)} is not known any more"
            return {}
        figures, history = parsed(self._ops.url, parse_client, answer)
        detail.figures, detail.history, detail.problem = figures, history, ""
        rates = self._detail_rates.look(figures, trio.current_time())
        if rates is not None:
            detail.rates.append(rates)
        if figures.state != "gone":
            detail.rtts.append(figures.rtt_ms)
        return answer

    async def watch_events(self) -> None:
        """Note the server's events, for ever; a lost connection is opened again."""
        view = self._view
        while True:
            try:
                async with self._ops.open_events() as feed:
                    async for event in feed:
                        if not view.paused:
                            view.data.events.append(event)
                            self._changed()
            except CommandFailed:
                # Who asks for the figures says what is wrong, and goes on asking.
                pass
            await trio.sleep(RETRY_SECONDS)
