"""The live page in a real browser, against a real server with real clients; see drive.py for the browser's side.

What it needs: the playwright package (without the browsers that it can download), and a Chromium on the PATH or named by
QUICFLOW_TEST_CHROMIUM.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from quicflow_trio import Client, Message, MessageType, OpsConfig, Request, Router, Server, Session, TLSConfig, open_client, serve
from quicflow_trio.testing import throwaway_tls

DRIVE = Path(__file__).with_name("drive.py")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(
        not (os.environ.get("QUICFLOW_TEST_CHROMIUM") or any(map(shutil.which, BROWSERS))),
        reason="needs a Chromium on the PATH, or QUICFLOW_TEST_CHROMIUM",
    ),
]

LIMIT = 120
"""Seconds for one test; the steps have shorter limits of their own and say what they waited for."""
TOKEN = "a-token-for-tests"
MARKUP = "<img src=x onerror=alert(1)>"


class Browser:
    """The page in a browser: each step is one line to the driver's process and one back."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def answer(self) -> Any:
        """Return the result of the step before."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self._process.stdout.receive_some()
            assert data, "the driver has ended; its stderr says why"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer["ok"]

    async def do(self, step: str, *arguments: object) -> Any:
        """Take one step."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps([step, *arguments]).encode() + b"\n")
        return await self.answer()


@asynccontextmanager
async def open_browser(url: str | None = None) -> AsyncIterator[Browser]:
    """Open a browser, and the page; its process ends with the block, whatever happens in it."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, [sys.executable, str(DRIVE)], stdin=PIPE, stdout=PIPE)
        process: trio.Process = await nursery.start(start)
        browser = Browser(process)
        await browser.answer()
        if url is not None:
            await browser.do("open", url)
        yield browser
        # The driver closes the browser itself when its stdin ends; the nursery waits for that, and checks its exit status.
        assert process.stdin is not None
        await process.stdin.aclose()


@dataclass(frozen=True)
class World:
    """A server with its ops side, and what its clients need."""

    server: Server
    url: str
    tls: TLSConfig

    @asynccontextmanager
    async def client(self, client_id: str) -> AsyncIterator[Client]:
        """Open a client of it, and wait until it is connected."""
        async with open_client(*self.server.address, client_id=client_id, tls=self.tls, router=echoing()) as client:
            await client.wait_connected()
            yield client


def echoing() -> Router:
    router = Router()

    async def echo(request: Request) -> bytes:
        return request.message.payload

    for kind in (MessageType.EVENT, MessageType.COMMAND, MessageType.QUERY):
        router.on(kind)(echo)
    return router


@asynccontextmanager
async def open_world(ops: str = "127.0.0.1:0") -> AsyncIterator[World]:
    server_tls, client_tls = throwaway_tls()
    async with trio.open_nursery() as nursery:
        start = partial(serve, echoing(), host="127.0.0.1", port=0, tls=server_tls, ops=OpsConfig(ops, token=TOKEN))
        server: Server = await nursery.start(start)
        assert server.ops_url is not None
        yield World(server, server.ops_url, client_tls)
        await server.aclose()


async def talk(peer: Client | Session) -> None:
    """Make traffic until cancelled: about a hundred requests a second."""
    while True:
        await peer.request(Message.query(b"how late is it?"))
        await trio.sleep(0.01)


async def test_a_client_comes_works_and_goes() -> None:
    with trio.fail_after(LIMIT):
        async with open_world() as world, open_browser(world.url) as page:
            await page.do("see", "#state", "Ready")
            await page.do("see", "#stream", "live")
            await page.do("see", "#nobody", "No client is connected.")

            async with world.client("worker/1") as client, trio.open_nursery() as traffic:
                await page.do("see", "#rows tr", "worker/1")
                await page.do("see", "#events li[data-kind=connect]", "worker/1")
                await page.do("see", "#tile-connected", "1")

                traffic.start_soon(talk, client)
                traffic.start_soon(talk, world.server.session("worker/1"))
                for chart in ("#throughput canvas", "#latency canvas"):
                    await page.do("moves", chart, await page.do("picture", chart))
                for tile in ("received", "sent", "p50", "p99"):
                    await page.do("above_zero", f"#tile-{tile} dd")
                for figure in (
                    "#throughput .readout dd",
                    "#latency .readout dd",
                    "#rows td:nth-child(5)",
                    "#rows td:nth-child(6)",
                ):
                    await page.do("above_zero", figure)
                await page.do("focus", "#latency canvas")
                await page.do("press", "ArrowLeft")
                assert " P50 " in await page.do("attribute", "#latency canvas", "aria-valuetext"), (
                    "the keyboard reads the chart, too"
                )

                await page.do("click", "#rows tr td:nth-child(3)")
                await page.do("see", "#detail-id", "worker/1")
                await page.do("see", "#past li", "connected")
                await page.do("above_zero", "#figures div:nth-child(2) dd")
                traffic.cancel_scope.cancel()

            # It has left: its reason shows, and its figures and its history stay.
            await page.do("see", "#detail-state", "gone")
            await page.do("see", "#past li", "disconnected")
            await page.do("see", "#figures-note", "last figures seen")
            await page.do("see", "#events li[data-kind=disconnect]", "normal")
            await page.do("see", "#events li[data-kind=disconnect]", "by the client")
            await page.do("see", "#nobody", "No client is connected.")
            await page.do("press", "Escape")
            await page.do("miss", "#detail.open")
            await page.do("choose", "#which", "gone")
            await page.do("see", "#rows tr", "worker/1")
            assert await page.do("complaints") == []
            assert await page.do("foreign") == []


async def test_what_a_client_chose_is_text_and_nothing_hangs_out_of_the_window() -> None:
    with trio.fail_after(LIMIT):
        async with open_world() as world, open_browser(world.url) as page:
            await page.do("see", "#stream", "live")
            async with world.client(MARKUP), world.client("a-client-id-" + "x" * 100):
                await page.do("see", "#rows tr", MARKUP)
                await page.do("see", "#events li", MARKUP)
                await page.do("click", "#rows tr button", MARKUP)
                await page.do("see", "#detail-id", MARKUP)
                await world.server.session(MARKUP).close(MARKUP + "<script>alert(2)</script>")
                await page.do("see", "#past li", "<script>alert(2)")
                await page.do("see", "#events li[data-kind=disconnect]", "<script>alert(2)")
                assert await page.do("count", "img") == 0
                assert await page.do("count", "script") == 1, "the page's own"

                backgrounds = set()
                for scheme in ("light", "dark"):
                    backgrounds.add(await page.do("scheme", scheme))
                    for width, height in ((1280, 800), (900, 900), (390, 844), (320, 568)):
                        whole, window = await page.do("size", width, height)
                        assert whole == window == width, f"{scheme}, {width} pixels wide: a scroll bar to the side"
                assert len(backgrounds) == 2
            assert await page.do("complaints") == []
            assert await page.do("foreign") == []


async def test_commands_want_a_token() -> None:
    with trio.fail_after(LIMIT):
        async with open_world() as world, open_browser(world.url) as page, world.client("victim"):
            await page.do("click", "#rows tr button", "victim")
            await page.do("see", "#detail-state", "connected")
            await page.do("miss", "#send")
            await page.do("click", "#give-token")
            await page.do("fill", "#token-text", "not-the-token")
            await page.do("press", "Enter")
            await page.do("fill", "#send-text", "hello")
            await page.do("press", "Enter")
            await page.do("see", "#token-why", "did not accept")
            [complaint] = await page.do("complaints")
            assert "401" in complaint, "that one is the browser's own"

            await page.do("fill", "#token-text", TOKEN)
            await page.do("press", "Enter")
            await page.do("fill", "#send-text", "hello")
            await page.do("click", "#send button")
            await page.do("see", "#command-result", "Queued as")
            assert world.server.session("victim").statistics().messages_sent == 1

            # A disconnect is asked for twice: what is not confirmed does not happen.
            await page.do("fill", "#kick-reason", "too loud")
            await page.do("click", "#kick button")
            await page.do("see", "#kick-id", "victim")
            await page.do("press", "Escape")
            await page.do("miss", "#kick-dialog")
            assert "victim" in world.server.sessions
            await page.do("click", "#kick button")
            await page.do("click", "#kick-dialog button", "Disconnect")
            await page.do("see", "#detail-state", "gone")
            await page.do("see", "#past li", "too loud")
            await page.do("see", "#events li[data-kind=disconnect]", "too loud")
            assert await page.do("complaints") == []


async def test_it_says_when_the_server_is_gone_and_recovers() -> None:
    with trio.fail_after(LIMIT):
        async with open_browser() as page:
            async with open_world() as world, world.client("before"):
                await page.do("open", world.url)
                await page.do("see", "#rows tr", "before")
                await page.do("see", "#stream", "live")
            await page.do("see", "#banner", "The server does not answer.")
            await page.do("see", "#state", "No answer")
            await page.do("see", "#stream", "interrupted")
            async with open_world(urlsplit(world.url).netloc) as world, world.client("after"):
                await page.do("miss", "#banner")
                await page.do("see", "#rows tr", "after")
                await page.do("miss", "#rows tr", "before")
                await page.do("see", "#stream", "live")
                await page.do("see", "#events li", "the stream was interrupted")
