"""The parts of the ops commands that need no server: addresses, figures, keys, the stream of events, checked answers."""

from __future__ import annotations

import math
import os
import pty
import termios
from contextlib import aclosing
from dataclasses import replace

import pytest
import trio

from quicflow_trio.cli.common import CommandFailed, ExitCode
from quicflow_trio.cli.metrics_sum import add_metrics
from quicflow_trio.cli.remote.connection import OpsOptions, client_path, parse_ops
from quicflow_trio.cli.remote.event_text import event_detail, event_time
from quicflow_trio.cli.remote.figures import count, day_and_clock, milliseconds, rate, size, span, tower
from quicflow_trio.cli.remote.records import BadAnswer, ClientFigures, Rates, ServerEvent, number, parse_object, rates_between
from quicflow_trio.cli.remote.stream import LONGEST_RECORD, StreamParser, StreamRecord
from quicflow_trio.cli.top.keyboard import KeyDecoder, keys, single_keys
from quicflow_trio.observe.events import EVENTS
from quicflow_trio.observe.histogram import Histogram
from quicflow_trio.observe.metrics import MetricsSnapshot

from .ops_stub import client_json


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8475"),
        ("localhost:9000", "http://localhost:9000"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("[::1]", "http://[::1]:8475"),
        ("http://ops.example", "http://ops.example"),
        ("https://ops.example/backbone/", "https://ops.example/backbone"),
    ],
)
def test_ops_addresses(text: str, url: str) -> None:
    assert parse_ops(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://a",
        "http://",
        "a:b",
        "a:70000",
        "http://user@a",
        "http://a?x=1",
        "http://a#x",
        "a b",
        "a/b",
        "[::1",
        "http://a\x1b",
    ],
)
def test_malformed_ops_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|port|Port|Invalid|IPv6|idna"):
        parse_ops(text)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(OpsOptions(token="secret"))


def test_the_path_of_a_client_is_its_own() -> None:
    assert client_path("a/b?c#d e") == "/clients/a%2Fb%3Fc%23d%20e"
    # Not the parent folder.
    assert client_path("..") == "/clients/%2E%2E"
    with pytest.raises(CommandFailed) as caught:
        client_path("")
    assert caught.value.code == ExitCode.USAGE


# -- figures -----------------------------------------------------------------------------------------------------------
def test_counts_and_sizes_stay_short() -> None:
    assert [count(value) for value in (None, 0, 99_999, 100_000, 999_960, 12_345_678)] == [
        "-",
        "0",
        "99,999",
        "100.0k",
        "1.0M",
        "12.3M",
    ]
    assert [size(value) for value in (None, 0, 1023, 1024, 1_572_864)] == ["-", "0", "1023", "1.0K", "1.5M"]
    assert [rate(value) for value in (None, 0, 0.25, 9.94, 9.96, 12_345.6)] == ["-", "0", "0.2", "9.9", "10", "12,346"]
    assert [milliseconds(value) for value in (None, 0.004, 9.994, 9.996, 99.96, 1234)] == [
        "-",
        "0.00",
        "9.99",
        "10.0",
        "100",
        "1,234",
    ]
    for exponent in range(18):
        for mantissa in (1, 9.9949, 9.995, 9.9996):
            assert len(count(mantissa * 10**exponent)) <= 7
            assert len(size(mantissa * 10**exponent)) <= 7


def test_spans_and_clocks() -> None:
    seconds = (None, -5, 42.9, 185, 7_620, 273_600, 106_617_600)
    assert [span(value) for value in seconds] == ["-", "0s", "42s", "3m 05s", "2h 07m", "3d 04h", "1234d"]
    # A time that no calendar has.
    assert day_and_clock(9e17) == "-"


def test_the_columns_of_a_chart() -> None:
    assert tower(10, 10, 2) == "██"
    assert tower(7.5, 10, 2) == "█▄"
    # Little is not nothing.
    assert tower(0.001, 10, 2) == "▁ "
    assert tower(0, 10, 2) == tower(None, 10, 2) == tower(5, 0, 2) == "  "
    assert tower(20, 10, 1) == "█"


# -- keys --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([b"jq/"], ["j", "q", "/"]),
        ([b"\x1b[A\x1b[B\x1bOA"], ["up", "down", "up"]),
        ([b"\x1b", b"[", b"5", b"~"], ["pgup"]),
        ([b"\r\x7f\x15\t"], ["enter", "backspace", "ctrl-u", "tab"]),
        ([b"\xc3", b"\xa4"], ["\u00e4"]),
        ([b"\x00\x01"], []),
        ([b"\x1b[99;5~x"], ["x"]),
        ([b"\x1bq"], ["escape", "q"]),
        ([b"\x1b[" + b"1;" * 20 + b"~"], ["1", ";", "1", ";", "1", ";"]),
    ],
)
def test_keys(chunks: list[bytes], expected: list[str]) -> None:
    decoder = KeyDecoder()
    found = [key for chunk in chunks for key in decoder.feed(chunk)]
    assert found[: len(expected)] == expected
    assert not decoder.pending


def test_an_escape_alone_is_a_key_when_nothing_follows() -> None:
    decoder = KeyDecoder()
    assert decoder.feed(b"\x1b") == []
    assert decoder.pending
    assert decoder.flush() == ["escape"]
    assert decoder.flush() == []


@pytest.mark.realtime
async def test_keys_come_from_a_terminal_which_is_left_as_it_was() -> None:
    main, terminal = pty.openpty()
    try:
        before = termios.tcgetattr(terminal)
        with single_keys(terminal):
            assert not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO)
            os.write(main, b"a\x1b[B\x1b")
            found = []
            with trio.fail_after(10):
                async with aclosing(keys(terminal)) as pressed:
                    async for key in pressed:
                        found.append(key)
                        if key == "escape":
                            break
        assert found == ["a", "down", "escape"]
        assert termios.tcgetattr(terminal) == before
    finally:
        os.close(main)
        os.close(terminal)


@pytest.mark.realtime
async def test_keys_end_when_the_terminal_is_gone() -> None:
    main, terminal = pty.openpty()
    with single_keys(terminal):
        os.close(main)
        with trio.fail_after(10):
            assert [key async for key in keys(terminal)] == []
    os.close(terminal)


# -- what the server says ----------------------------------------------------------------------------------------------
def test_a_stream_is_read_in_whatever_pieces_it_comes() -> None:
    stream = b': hello\n\nid: 1\nevent: connect\ndata: {"a":\ndata: 1}\n\nretry: 5\n\r\nevent:x\ndata:\xc3\xa4\r\n\r\ndata\n\n'
    expected = [StreamRecord("connect", '{"a":\n1}'), StreamRecord("x", "ä"), StreamRecord("message", "")]
    for step in (1, 2, 7, len(stream)):
        parser = StreamParser()
        found = [record for start in range(0, len(stream), step) for record in parser.feed(stream[start : start + step])]
        assert found == expected


def test_a_record_without_end_is_refused() -> None:
    parser = StreamParser()
    with pytest.raises(BadAnswer, match="without end"):
        parser.feed(b"data: " + b"x" * LONGEST_RECORD)
    parser = StreamParser()
    with pytest.raises(BadAnswer, match="without end"):
        parser.feed(b"data: x\n" * (LONGEST_RECORD // 7 + 1))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_object(content)


@pytest.mark.parametrize("value", [True, "1", [], 1e300, 10**30])
def test_what_is_no_figure_is_refused(value: object) -> None:
    with pytest.raises(BadAnswer, match="rtt_ms is no number"):
        number({"rtt_ms": value}, "rtt_ms")


def test_rates_need_two_looks_at_one_session() -> None:
    before = ClientFigures.parse(client_json("a", messages_sent=10, messages_received=20, bytes_sent=100, bytes_received=200))
    after = replace(before, messages_sent=30, messages_received=20, bytes_sent=300, bytes_received=200)
    assert rates_between(before, after, 2.0) == Rates(10, 0, 100, 0)
    assert rates_between(before, after, 0.0) is None
    # A new session counts from nothing.
    assert rates_between(after, before, 1.0) is None
    assert rates_between(ClientFigures.parse(client_json("a", state="gone")), after, 1.0) is None


@pytest.mark.parametrize(
    ("kind", "data", "detail"),
    [
        ("connect", {"remote_address": ["::1", 5]}, "from [::1]:5"),
        ("connect", {"remote_address": "x"}, "from -"),
        ("connect", {"remote_address": ["a", 5], "protocol": "quic-backbone-v1"}, "from a:5, quic-backbone-v1"),
        ("disconnect", {"reason": "normal", "detail": "bye\x1b[2J", "by_peer": True}, r"normal, by the client: bye\x1b[2J"),
        ("disconnect", {"reason": "idle_timeout"}, "idle_timeout, by the server"),
        ("reconnect", {"away": 1.2345, "attempts": 0}, "after 1.23 s"),
        ("reconnect", {"away": 1.2345, "attempts": 0, "resumed": True}, "after 1.23 s, the session goes on"),
        ("reconnect", {"away": 1.2345, "attempts": 0, "resumed": False}, "after 1.23 s, a new session"),
        ("heartbeat_timeout", {"silence": 45.0}, "nothing heard for 45 s"),
        ("state_change", {"old": "listening", "new": "draining", "reason": "asked"}, "listening -> draining: asked"),
        ("broadcast", {"type": "event", "size": 2048, "targets": 3, "sent": 2}, "event, 2.0K bytes, 2 of 3 clients"),
        ("message_sent", {"type": "command", "size": 5, "lane": "bulk"}, "command, 5 bytes, lane bulk"),
        ("message_received", {"type": "command", "size": None, "lane": ""}, "command, -"),
        ("ack_timeout", {"ack_timeout": 0.5}, "no ack within 0.5 s"),
        ("error", {"error": "handler_failed", "detail": "no"}, "handler_failed: no"),
        ("dropped", {"dropped": 7}, "7 events were dropped: this reader is too slow"),
        ("newer", {"kind": "newer", "at": 1, "client_id": "a", "what": "x\n", "n": 2}, r"what x\n, n 2"),
    ],
)
def test_events_in_words(kind: str, data: dict[str, object], detail: str) -> None:
    assert event_detail(ServerEvent.parse(kind, data)) == detail


def test_every_kind_of_event_has_words_of_its_own() -> None:
    for kind in EVENTS:
        assert "kind" not in event_detail(ServerEvent(kind.kind, None, "", {"kind": kind.kind}))
    assert event_time(ServerEvent("dropped", None, "", {})) == "-"


# -- metrics -----------------------------------------------------------------------------------------------------------
def test_metrics_of_many_clients_are_added_up() -> None:
    fast, slow = Histogram(), Histogram()
    for _ in range(99):
        fast.observe(0.001)
    slow.observe(0.5)
    one = MetricsSnapshot(messages_sent=3, timestamp=5.0, disconnects={"normal": 1}, latency=fast.snapshot(), p99_latency=1.0)
    other = MetricsSnapshot(
        messages_sent=4, timestamp=4.0, disconnects={"normal": 2, "tls": 1}, latency=slow.snapshot(), p99_latency=500.0
    )
    both = add_metrics(one, other)
    assert (both.messages_sent, both.timestamp, both.disconnects) == (7, 5.0, {"normal": 3, "tls": 1})
    assert both.latency.count == 100
    # Of all requests together, and not a mean of quantiles.
    assert math.isclose(both.p50_latency, 1.0, rel_tol=0.05)
    assert math.isclose(both.average_latency, (99 * 1 + 500) / 100, rel_tol=0.01)
