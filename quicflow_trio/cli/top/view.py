"""What the person at `quicflow top` looks at, and how keys change it. Nothing in here draws or asks the server."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from ..clients import SORT_KEYS, SortKey
from ..remote.records import Change, ClientFigures, ClientPage, Rates, Sample, ServerEvent

__all__ = ["Data", "Detail", "Effect", "View"]

EVENTS_KEPT = 200
LONGEST_FILTER = 64
SMALLEST_WINDOW, LARGEST_WINDOW = 50, 1000
"""Clients that are asked for at a time."""


class Effect(enum.Enum):
    """What a key asks of the program, beside drawing anew."""

    NONE = enum.auto()
    FETCH = enum.auto()
    QUIT = enum.auto()


@dataclass(slots=True)
class Detail:
    """What the server says of the client that is looked at; empty until it has answered.

    Attributes:
        figures: the client.
        history: its changes, oldest first.
        rates: what it did per second, while it was looked at, oldest first.
        rtts: its round-trip times meanwhile, milliseconds.
        problem: why nothing is known of it.
    """

    figures: ClientFigures | None = None
    history: Sequence[Change] = ()
    rates: deque[Rates] = field(default_factory=lambda: deque(maxlen=512))
    rtts: deque[float | None] = field(default_factory=lambda: deque(maxlen=512))
    problem: str = ""


@dataclass(slots=True)
class Data:
    """What the server has said last.

    Attributes:
        version: the server's version.
        ready: whether it takes new clients.
        metrics: its figures by name.
        samples: its last seconds, oldest first.
        page: the part of the list of clients that is at hand.
        rates: what these do per second, by id.
        events: the last events, oldest first.
        detail: the client that is looked at.
        problem: why the server cannot be reached; empty while it can.
    """

    version: str = ""
    ready: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)
    samples: Sequence[Sample] = ()
    page: ClientPage = field(default_factory=lambda: ClientPage(0, 0, 0.0, ()))
    rates: dict[str, Rates | None] = field(default_factory=dict)
    events: deque[ServerEvent] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    detail: Detail = field(default_factory=Detail)
    problem: str = ""


@final
@dataclass(slots=True)
class View:
    """What is looked at.

    Attributes:
        data: what there is to see.
        sort: what the list is sorted by.
        descending: the largest first.
        everyone: list also clients that are away or gone.
        filter: only clients whose id or address contains this.
        typed: a filter that is being typed, else None.
        cursor: the line of the list that is selected, from 0.
        first: the line at the top of the screen.
        rows: lines of the list on the screen.
        selected: the client that the cursor follows; None while it keeps its place.
        events: whether events are shown.
        paused: whether the picture stands still.
        help: whether the keys are explained.
        client: the client that is looked at alone.
        scroll: changes of its history that are scrolled past, from the latest back.
    """

    data: Data
    sort: SortKey = "connected_at"
    descending: bool = False
    everyone: bool = False
    filter: str = ""
    typed: str | None = None
    cursor: int = 0
    first: int = 0
    rows: int = 10
    selected: str | None = None
    events: bool = True
    paused: bool = False
    help: bool = False
    client: str | None = None
    scroll: int = 0

    # -- what the server is asked for ----------------------------------------------------------------------------------
    def query(self) -> dict[str, str | int]:
        """Return what to ask for: a page before and a page behind what is on the screen, too."""
        return {
            "filter": self.filter if self.typed is None else self.typed,
            "state": "all" if self.everyone else "connected",
            "sort": f"-{self.sort}" if self.descending else self.sort,
            "offset": max(self.first - self.rows, 0),
            "limit": min(max(3 * self.rows, SMALLEST_WINDOW), LARGEST_WINDOW),
        }

    def take(self, page: ClientPage) -> None:
        """Show a new part of the list; the cursor follows its client when that has moved."""
        self.data.page = page
        if self.selected is not None:
            for index, client in enumerate(page.clients):
                if client.client_id == self.selected:
                    self.cursor = page.offset + index
                    break
        self._settle()

    def fit(self, rows: int) -> None:
        """Show so many lines of the list."""
        self.rows = max(rows, 1)
        self._settle()

    def at(self, line: int) -> ClientFigures | None:
        """Return the client in a line of the list; None when it is not at hand."""
        index = line - self.data.page.offset
        return self.data.page.clients[index] if 0 <= index < len(self.data.page.clients) else None

    @property
    def complete(self) -> bool:
        """True when everything on the screen is at hand."""
        last = min(self.first + self.rows, self.data.page.total)
        return all(self.at(line) is not None for line in (self.first, last - 1)) if last > self.first else True

    def _settle(self) -> None:
        """Keep the cursor in the list and on the screen."""
        total = self.data.page.total
        self.cursor = min(max(self.cursor, 0), max(total - 1, 0))
        self.first = min(max(self.first, self.cursor - self.rows + 1), self.cursor)
        self.first = max(min(self.first, total - self.rows), 0)
        if self.selected is not None:
            client = self.at(self.cursor)
            self.selected = None if client is None else client.client_id

    # -- keys ----------------------------------------------------------------------------------------------------------
    def press(self, key: str) -> Effect:
        """Do what a key says."""
        if self.typed is not None:
            return self._type(key)
        if self.help:
            self.help = False
            return Effect.QUIT if key == "q" else Effect.NONE
        match key:
            case "q":
                return Effect.QUIT
            case "?" | "h":
                self.help = True
            case "e":
                self.events = not self.events
            case "p":
                self.paused = not self.paused
                return Effect.NONE if self.paused else Effect.FETCH
            case _:
                return self._press_in_list(key) if self.client is None else self._press_in_detail(key)
        return Effect.NONE

    def _press_in_list(self, key: str) -> Effect:
        match key:
            case "s":
                self.sort = SORT_KEYS[(SORT_KEYS.index(self.sort) + 1) % len(SORT_KEYS)]
                # Who sorts by a figure looks for the largest; who sorts by a name, for the first.
                return self._restart(descending=self.sort not in ("connected_at", "client_id", "state"))
            case "r":
                return self._restart(descending=not self.descending)
            case "a":
                self.everyone = not self.everyone
                return self._restart(descending=self.descending)
            case "/":
                self.typed = self.filter
            case "escape" if self.filter:
                self.filter = ""
                return self._restart(descending=self.descending)
            case "enter":
                client = self.at(self.cursor)
                if client is not None:
                    self.client, self.scroll, self.selected = client.client_id, 0, client.client_id
                    self.data.detail = Detail()
                    return Effect.FETCH
            case _:
                return self._move(key)
        return Effect.NONE

    def _move(self, key: str) -> Effect:
        total = self.data.page.total
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pgup": -self.rows, "pgdn": self.rows, "home": -total, "end": total}
        steps |= {"g": -total, "G": total, " ": self.rows}
        if key not in steps:
            return Effect.NONE
        self.selected = None
        self.cursor += steps[key]
        self._settle()
        # At the top it stays there, whoever comes to stand in the first line; elsewhere it follows its client.
        client = self.at(self.cursor) if self.cursor else None
        self.selected = None if client is None else client.client_id
        return Effect.NONE if self.complete else Effect.FETCH

    def _press_in_detail(self, key: str) -> Effect:
        most = max(len(self.data.detail.history) - 1, 0)
        match key:
            case "escape" | "backspace" | "left" | "enter":
                self.client = None
                return Effect.FETCH
            case "up" | "k":
                self.scroll = min(self.scroll + 1, most)
            case "down" | "j":
                self.scroll = max(self.scroll - 1, 0)
            case "pgup":
                self.scroll = min(self.scroll + self.rows, most)
            case "pgdn" | " ":
                self.scroll = max(self.scroll - self.rows, 0)
            case "home" | "g":
                self.scroll = most
            case "end" | "G":
                self.scroll = 0
        return Effect.NONE

    def _type(self, key: str) -> Effect:
        typed = self.typed or ""
        if key == "enter":
            self.filter, self.typed = typed, None
            return Effect.NONE
        if key == "escape":
            self.typed = None
        elif key == "backspace":
            self.typed = typed[:-1]
        elif key == "ctrl-u":
            self.typed = ""
        elif len(key) == 1 and len(typed) < LONGEST_FILTER:
            self.typed = typed + key
        else:
            return Effect.NONE
        return self._restart(descending=self.descending)

    def _restart(self, *, descending: bool) -> Effect:
        """Begin at the top of a list that is another one now."""
        self.descending = descending
        self.cursor = self.first = 0
        self.selected = None
        return Effect.FETCH
