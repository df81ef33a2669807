"""`quicflow top`: the picture at every size, the keys, and what is asked of the server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from quicflow_trio.cli.clients import SORT_KEYS
from quicflow_trio.cli.remote.connection import OpsClient, OpsOptions, open_ops
from quicflow_trio.cli.remote.errors import OpsRefused
from quicflow_trio.cli.remote.records import Change, ClientFigures, ClientPage, Rates, Sample, ServerEvent
from quicflow_trio.cli.top.draw import ASCII, UNICODE
from quicflow_trio.cli.top.feed import Feed, RateBook
from quicflow_trio.cli.top.screen import SORT_NAMES, columns_for, screen
from quicflow_trio.cli.top.view import Data, Detail, Effect, View

from .ops_stub import OpsStub, client_json

NOW = 1_700_000_000.0
HOSTILE = "evil\x1b[2J\u202e\n"


@pytest.fixture
def ops() -> Iterator[OpsStub]:
    stub = OpsStub()
    yield stub
    stub.stop()


def figures(client_id: str, **changes: object) -> ClientFigures:
    return ClientFigures.parse(client_json(client_id) | {"connected_at": NOW - 3725, "last_heartbeat": NOW - 5} | changes)


def sample(**changes: float | None) -> Sample:
    values: dict[str, float | None] = {"at": NOW, "connected_clients": 3, "sent_per_second": 100, "received_per_second": 200}
    values |= {"bytes_per_second": 5000, "p50_ms": 0.4, "p99_ms": 2.5}
    return Sample(**values | changes)


def nothing() -> None:
    """Draw nothing."""


def full_view(clients: int = 30) -> View:
    """Return a view with something everywhere, and text that must not reach a terminal as it is."""
    listed = [figures(HOSTILE, outbox_bytes=5000), *(figures(f"client-{number:02}") for number in range(1, clients))]
    data = Data(version="0.1.0", ready=True, metrics={"connected_clients": clients, "uptime_seconds": 11_000.0, "timestamp": NOW})
    data.samples = [sample(received_per_second=number, p99_ms=None if number % 2 else number) for number in range(200)]
    data.rates = {client.client_id: Rates(1.5, 250, 1000, 2000) for client in listed}
    data.events.append(ServerEvent("disconnect", NOW, HOSTILE, {"reason": "normal", "detail": HOSTILE, "by_peer": True}))
    data.events.append(ServerEvent(HOSTILE, None, "", {HOSTILE: HOSTILE}))
    view = View(data)
    view.take(ClientPage(clients, 0, NOW, listed))
    return view


def drawn(view: View, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in screen(view, width, height, url="http://127.0.0.1:8475")]


# -- the picture -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII])
@pytest.mark.parametrize("size", [(80, 24), (140, 40), (100, 34), (60, 20), (40, 12), (20, 6), (10, 3), (1, 1)])
@pytest.mark.parametrize("looks", ["list", "detail", "gone", "help", "typing", "problem", "empty", "quiet"])
def test_every_line_has_the_width_of_the_terminal(size: tuple[int, int], looks: str, glyphs: object) -> None:
    assert glyphs in (UNICODE, ASCII)
    view = full_view()
    match looks:
        case "detail" | "gone":
            view.client = HOSTILE
            history = [Change(NOW + number, "connected", HOSTILE) for number in range(50)]
            view.data.detail = Detail(figures(HOSTILE, state="gone" if looks == "gone" else "connected"), history)
            view.data.detail.rates.extend([Rates(number, 2 * number, 0, 0) for number in range(100)])
            view.data.detail.rtts.extend([None, 1.5])
        case "help":
            view.help = True
        case "typing":
            view.typed = HOSTILE
        case "problem":
            view.data.problem = "cannot connect to http://127.0.0.1:8475: Connection refused"
        case "empty":
            view = View(Data())
        case "quiet":
            view.events, view.everyone = False, True
    width, height = size
    lines = screen(view, width, height, url="http://127.0.0.1:8475", glyphs=ASCII if glyphs is ASCII else UNICODE)
    assert len(lines) == height
    for line in lines:
        assert isinstance(line, Text)
        assert line.cell_len == width, line.plain
        assert line.plain.isprintable()
        if glyphs is ASCII:
            assert line.plain.isascii()


def test_what_is_on_a_small_terminal() -> None:
    lines = drawn(full_view())
    assert re.match(r" quicflow top +127\.0\.0\.1:8475  ● ready  30 clients  up 3h 03m  0\.1\.0 +\d\d:\d\d:\d\d $", lines[0])
    assert "messages/s" in lines[1]
    assert "in 199  out 100" in lines[2]
    # The last second that had an ack.
    assert "P50 0.40  P99 198" in lines[2]
    assert lines[6].startswith("── clients 1-10 of 30 ─ by time of connection ▲ ─")
    assert lines[7].split() == ["CLIENT", "ADDRESS", "RTT", "SENT/s", "RECV/s", "SINCE", "OUTBOX"]
    assert lines[8].split() == ["●", r"evil\x1b[2J\u202e\n", "127.0.0.1:50000", "0.42", "1.5", "250", "1h", "02m", "4.9K"]
    assert "── events" in lines[18]
    assert lines[23].endswith("? help q quit  ")


def test_a_chart_grows_from_the_bottom() -> None:
    view = View(Data(samples=[sample(bytes_per_second=value) for value in (0, 1, 50, 100)]))
    lines = drawn(view)
    assert [line[49:52] for line in lines[3:5]] == ["  █", "▁██"]


def test_the_two_parts_of_a_chart_have_their_colours() -> None:
    def styles(received: float, sent: float) -> list[str]:
        view = View(
            Data(
                samples=[
                    sample(received_per_second=received, sent_per_second=sent),
                    sample(received_per_second=80, sent_per_second=20),
                ]
            )
        )
        lines = screen(view, 80, 24, url="")[3:5]
        return [str(line.get_style_at_offset(Console(), 23).color) for line in lines]

    for received, sent, upper, lower in (
        (80, 0, "cyan", "cyan"),
        (60, 0, "cyan", "cyan"),
        (50, 50, "blue", "cyan"),
        (0, 60, "blue", "blue"),
    ):
        found = styles(received, sent)
        assert [upper in found[0], lower in found[1]] == [True, True], (received, sent, found)


@pytest.mark.parametrize("key", SORT_KEYS)
def test_the_column_that_sorts_is_on_the_screen(key: str) -> None:
    _, columns = columns_for(60, key)
    assert SORT_NAMES[key]
    if key not in ("client_id", "state"):
        assert any(key in column.keys for column in columns)


def test_a_server_that_is_gone_is_told() -> None:
    view = full_view()
    view.data.problem = "cannot connect to http://127.0.0.1:8475: Connection refused"
    lines = drawn(view)
    assert "● unreachable" in lines[0]
    assert "Connection refused; trying again" in lines[-1]


# -- keys --------------------------------------------------------------------------------------------------------------
def test_moving_through_a_list_that_is_only_partly_here() -> None:
    view = full_view(30)
    view.take(ClientPage(500, 0, NOW, view.data.page.clients))
    view.fit(10)
    assert view.press("down") is Effect.NONE
    assert (view.cursor, view.selected) == (1, "client-01")
    assert view.press("pgdn") is Effect.NONE
    assert (view.cursor, view.first) == (11, 2)
    # Past what is at hand: it must be fetched.
    assert view.press("end") is Effect.FETCH
    assert (view.cursor, view.first, view.selected) == (499, 490, None)
    assert view.query()["offset"] == 480
    assert "   …" in drawn(view)[8]
    assert view.press("enter") is Effect.NONE
    assert view.press("home") is Effect.NONE
    assert view.cursor == 0
    assert view.selected is None
    view.press("up")
    assert view.cursor == 0


def test_the_cursor_follows_its_client() -> None:
    view = full_view()
    view.press("j")
    view.press("j")
    moved = [*view.data.page.clients[3:], *view.data.page.clients[:3]]
    view.take(ClientPage(30, 0, NOW, moved))
    assert (view.cursor, view.selected) == (29, "client-02")
    # Gone: the cursor stays, with another.
    view.take(ClientPage(5, 0, NOW, moved[:5]))
    assert (view.cursor, view.selected) == (4, moved[4].client_id)
    view.take(ClientPage(0, 0, NOW, []))
    assert view.cursor == 0
    assert view.selected is None


def test_sorting_and_choosing() -> None:
    view = full_view()
    view.press("down")
    assert view.press("s") is Effect.FETCH
    assert (view.sort, view.descending, view.cursor) == ("client_id", False, 0)
    view.press("s")
    view.press("s")
    assert (view.query()["sort"], view.press("r"), view.query()["sort"]) == ("-rtt_ms", Effect.FETCH, "rtt_ms")
    assert (view.press("a"), view.query()["state"]) == (Effect.FETCH, "all")
    for _ in SORT_KEYS:
        view.press("s")
    assert view.sort == "rtt_ms"


def test_typing_a_filter() -> None:
    view = full_view()
    for key in ("/", "q", "x", "backspace", "r"):
        effect = view.press(key)
    assert (effect, view.typed, view.query()["filter"]) == (Effect.FETCH, "qr", "qr")
    view.press("up")
    assert view.press("enter") is Effect.NONE
    assert (view.filter, view.typed) == ("qr", None)
    for key in ("/", "ctrl-u", "z", "escape"):
        view.press(key)
    # Dropped: the one before holds.
    assert view.query()["filter"] == "qr"
    assert view.press("escape") is Effect.FETCH
    assert view.query()["filter"] == ""
    view.press("/")
    for _ in range(100):
        view.press("x")
    assert len(view.typed or "") == 64


def test_one_client_and_back() -> None:
    view = full_view()
    view.press("down")
    assert view.press("enter") is Effect.FETCH
    assert view.client == "client-01"
    view.data.detail.history = [Change(NOW + number, "connected", f"change {number}") for number in range(40)]
    view.data.detail.figures = figures("client-01")
    assert "change 39" in "\n".join(drawn(view))
    for key in ("up", "k", "pgup"):
        view.press(key)
    assert "change 39" not in "\n".join(drawn(view))
    view.press("home")
    assert "change 0" in "\n".join(drawn(view))
    view.press("end")
    assert view.scroll == 0
    view.data.detail.problem = "client-01 is not known any more"
    assert "not known any more" in "\n".join(drawn(view))
    assert view.press("escape") is Effect.FETCH
    assert not view.client
    assert view.cursor == 1


def test_the_other_keys() -> None:
    view = full_view()
    assert (view.press("e"), view.events) == (Effect.NONE, False)
    assert "── events" not in "\n".join(drawn(view))
    assert (view.press("p"), view.paused) == (Effect.NONE, True)
    assert "PAUSED" in drawn(view)[0]
    assert (view.press("p"), view.paused) == (Effect.FETCH, False)
    view.press("?")
    assert "one client alone, with its history" in "\n".join(drawn(view))
    assert (view.press("x"), view.help) == (Effect.NONE, False)
    assert view.press("F") is Effect.NONE
    view.press("?")
    assert view.press("q") is Effect.QUIT
    assert view.press("q") is Effect.QUIT


def test_rates_come_from_looks_that_are_far_enough_apart() -> None:
    book = RateBook()
    assert book.look(figures("a", messages_sent=0), 10.0) is None
    assert book.look(figures("a", messages_sent=10), 12.0) == Rates(5, 0, 0, 0)
    # A look because of a key changes nothing.
    assert book.look(figures("a", messages_sent=100), 12.1) == Rates(5, 0, 0, 0)
    assert book.look(figures("a", messages_sent=20), 13.0) == Rates(10, 0, 0, 0)


def test_not_everybody_ever_seen_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quicflow_trio.cli.top.feed.LOOKS_KEPT", 2)
    book = RateBook()
    for client_id in ("a", "b", "c"):
        book.look(figures(client_id), 10.0)
    assert book.look(figures("a"), 11.0) is None
    assert book.look(figures("c"), 11.0) == Rates(0, 0, 0, 0)


@pytest.mark.realtime
async def test_what_the_server_says_of_one_client(ops: OpsStub) -> None:
    ops.clients = [client_json("ada")]
    view = View(Data(), client="ada")
    async with open_ops(OpsOptions(ops=f"http://{ops.address}")) as client:
        feed = Feed(client, view, nothing)
        await feed.poll()
        assert view.data.detail.figures is not None
        assert list(view.data.detail.rtts) == [0.42]
        view.client = "zoe"
        await feed.poll()
        assert view.data.detail.problem == "zoe is not known any more"
        ops.answers["GET", "/clients/zoe"] = (500, {"error": {"type": "Internal", "message": "a defect"}})
        with pytest.raises(OpsRefused, match="a defect"):
            await feed.poll()


@pytest.mark.realtime
async def test_an_answer_to_an_older_question_is_not_shown(ops: OpsStub) -> None:
    ops.clients = [client_json("ada")]
    view = View(Data())

    class Asker:
        """Presses a key while the answer is under way."""

        def __init__(self, inner: OpsClient) -> None:
            self.url = inner.url
            self.ready = inner.ready
            self._inner = inner

        async def get(self, path: str, **params: str | int | float) -> dict[str, Any]:
            answer = await self._inner.get(path, **params)
            if path == "/clients":
                view.press("s")
            return answer

    async with open_ops(OpsOptions(ops=f"http://{ops.address}")) as client:
        await Feed(Asker(client), view, nothing).poll()  # type: ignore[arg-type]
        assert view.data.page.total == 0
        await Feed(client, view, nothing).poll()
        assert view.data.page.total == 1
