"""A browser on a string: ``python drive.py`` starts a headless Chromium, which then does what the lines on stdin say.

A process of its own, because Playwright runs an asyncio loop, and the process of the tests must have none. Each line is a JSON list, the
step's name and its arguments; each gets one JSON line back: ``{"ok": result}``, or ``{"failed": why}``. Every step waits at most
``PATIENCE``. The browser ends with this process, which ends with its stdin.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Dialog, Error, Locator, Page, Request, expect, sync_playwright

PATIENCE = 15.0
"""Seconds that a step may wait for what it expects."""
FLAGS = [
    # In a container there is neither a user namespace nor a large /dev/shm.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    # Nothing of the browser's own goes over the network.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """Return the path of a Chromium, by the environment or on the PATH; None when there is none."""
    named = os.environ.get("QUICFLOW_TEST_CHROMIUM")
    return named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Driver:
    """The steps. Each public method is one; what it returns goes back to the test."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._origin = ("", "")
        self._complaints: list[str] = []
        self._foreign: list[str] = []
        page.on("console", self._note_line)
        page.on("pageerror", lambda error: self._complaints.append(f"exception: {error}"))
        page.on("dialog", self._note_dialog)
        page.on("request", self._note_request)

    def _note_line(self, line: ConsoleMessage) -> None:
        if line.type in ("error", "warning"):
            self._complaints.append(line.text)

    def _note_dialog(self, dialog: Dialog) -> None:
        self._complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note_request(self, request: Request) -> None:
        if (urlsplit(request.url).scheme, urlsplit(request.url).netloc) != self._origin and not request.url.startswith("data:"):
            self._foreign.append(request.url)

    def _until(self, what: str, look: Callable[[], object]) -> None:
        # Not page.wait_for_function: it evaluates text within the page, which the page's policy rightly forbids.
        deadline = time.monotonic() + PATIENCE
        while not look():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {PATIENCE:g} s")
            self._page.wait_for_timeout(50)

    def _one(self, selector: str, text: str | None) -> Locator:
        found = self._page.locator(selector)
        return (found if text is None else found.filter(has_text=text)).first

    def open(self, url: str) -> None:
        """Open the page."""
        self._origin = (urlsplit(url).scheme, urlsplit(url).netloc)
        self._page.goto(url)

    def see(self, selector: str, text: str | None = None) -> str:
        """Wait until the element, with that text in it, is visible; return its text."""
        found = self._one(selector, text)
        expect(found).to_be_visible()
        return found.inner_text()

    def miss(self, selector: str, text: str | None = None) -> None:
        """Wait until there is no such element, or it is hidden."""
        expect(self._one(selector, text)).to_be_hidden()

    def count(self, selector: str) -> int:
        """Return how many there are."""
        return self._page.locator(selector).count()

    def click(self, selector: str, text: str | None = None) -> None:
        """Click on it."""
        self._one(selector, text).click()

    def fill(self, selector: str, text: str) -> None:
        """Type into a field."""
        self._page.locator(selector).fill(text)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option."""
        self._page.locator(selector).select_option(value)

    def press(self, key: str) -> None:
        """Press a key."""
        self._page.keyboard.press(key)

    def focus(self, selector: str) -> None:
        """Give it the focus."""
        self._page.locator(selector).focus()

    def attribute(self, selector: str, name: str) -> str | None:
        """Return an attribute."""
        return self._page.locator(selector).get_attribute(name)

    def picture(self, selector: str) -> str:
        """Return what a canvas shows."""
        return str(self._page.locator(selector).evaluate("canvas => canvas.toDataURL()"))

    def moves(self, selector: str, before: str) -> None:
        """Wait until a canvas shows something else than before."""
        self._until(f"{selector} shows something else", lambda: self.picture(selector) != before)

    def above_zero(self, selector: str) -> None:
        """Wait until its text begins with a number above zero."""
        found = self._page.locator(selector).first
        self._until(f"{selector} is above zero", lambda: re.match(r"[\d.,]*[1-9]", found.inner_text()))

    def size(self, width: int, height: int) -> list[int]:
        """Make the window so large; return the width of the whole page and of the window."""
        self._page.set_viewport_size({"width": width, "height": height})
        return [int(each) for each in self._page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")]

    def scheme(self, name: str) -> str:
        """Prefer light or dark; return the background's colour."""
        self._page.emulate_media(color_scheme="dark" if name == "dark" else "light")
        return str(self._page.evaluate("getComputedStyle(document.body).backgroundColor"))

    def complaints(self) -> list[str]:
        """Return what the console complained about, exceptions and dialogs since the last time."""
        said, self._complaints[:] = [*self._complaints], []
        return said

    def foreign(self) -> list[str]:
        """Return the requests to anybody else than the server."""
        return self._foreign


def steps(driver: Driver) -> None:
    """Do what stdin says, until it ends."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answer: dict[str, Any]
        try:
            answer = {"ok": getattr(driver, name)(*arguments)}
        except (AssertionError, Error) as error:
            answer = {"failed": f"{name} {arguments}: {error}"}
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Start the browser and take steps."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.set_default_timeout(PATIENCE * 1000)
            driver = Driver(context.new_page())
            print(json.dumps({"ok": browser.version}), flush=True)
            steps(driver)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
