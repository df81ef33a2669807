"""Logs: readable and structured, never forged by a peer's text, never more than their share."""

from __future__ import annotations

import io
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from trio.testing import MockClock

from quicflow_trio import ConfigurationError, Message, MessageType, Request, Router
from quicflow_trio.observe import logs
from quicflow_trio.observe.logs import (
    FIELD,
    LONGEST,
    MESSAGE,
    PERIOD,
    REPEATS,
    TRACKED,
    Limiter,
    configure_logging,
    get_logger,
    printable,
    report_suppressed,
)
from quicflow_trio.testing import open_world

NAME = "quicflow_trio.made_up"
FORGED = "worker-1\n2026-01-01T00:00:00.000Z [info] quicflow_trio.server: client connected client_id=admin"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget repeats, and put back what `configure_logging` sets."""
    for variable in ("LOG_LEVEL", "LOG_FORMAT", "NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    root = logging.getLogger()
    handlers, levels = [*root.handlers], {name: logging.getLogger(name).level for name in ("", *logs.CHATTY)}
    logs.limiter.clear()
    yield
    logs.limiter.clear()
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(format: str, level: str = "info", stream: io.StringIO | None = None) -> io.StringIO:
    stream = io.StringIO() if stream is None else stream
    configure_logging(level, "json" if format == "json" else "console", stream)
    return stream


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")


# -- text of peers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", "worker-1", "Zoë 工場", "x" * LONGEST])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


# The last two turn the direction of what follows, and hide in it.
@pytest.mark.parametrize(
    "text", ["a\nb", "a\x00", "\x1b[31m", "a\u2028b", "\ud800", "a\r\nERROR forged", "\u202eadmin", "\u200b"]
)
def test_control_and_format_characters_are_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.isascii()
    assert printable(shown) == shown


def test_long_text_is_cut() -> None:
    assert len(printable("x" * 1_000_000)) == LONGEST
    assert printable("x" * 1_000_000).endswith("...")
    assert len(printable("\x00" * 1_000)) == LONGEST
    assert len(printable("x" * 1_000, 999)) == 999


# -- what a program with logging of its own sees ----------------------------------------------------------------------
def test_a_record_is_readable_and_structured(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    get_logger(NAME).bind(client_id="worker-1").info("client connected", remote=("127.0.0.1", 5000))
    (record,) = caplog.records
    assert record.getMessage() == "client connected client_id=worker-1 remote=127.0.0.1:5000"
    assert record.__dict__["quicflow"] == {"event": "client connected", "client_id": "worker-1", "remote": "127.0.0.1:5000"}
    assert (record.name, record.levelno, record.funcName) == (NAME, logging.INFO, "test_a_record_is_readable_and_structured")
    assert record.pathname == __file__


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_each_level_comes_by_its_name_and_only_when_it_is_on(caplog: pytest.LogCaptureFixture, level: str) -> None:
    number = logs.LEVELS[level]
    log = get_logger(NAME)
    caplog.set_level(number + 1, NAME)
    getattr(log, level)("below")
    assert not log.is_enabled_for(number)
    caplog.set_level(number, NAME)
    getattr(log, level)("seen")
    assert log.is_enabled_for(number)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(number, "seen")]


def test_what_is_off_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    class Watched:
        def __str__(self) -> str:
            raise AssertionError("a field was rendered for a line that nobody sees")

    caplog.set_level(logging.CRITICAL, NAME)
    log = get_logger(NAME)
    for method in (log.debug, log.info, log.warning, log.error, log.exception):
        method("event", value=Watched())
    assert len(logs.limiter) == 0


def test_binding_leaves_the_first_logger_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    log = get_logger(NAME)
    bound = log.bind(client_id="a").bind(connection=7)
    bound.info("one", client_id="b")
    log.info("two")
    assert caplog.messages == ["one client_id=b connection=7", "two"]


def test_what_the_program_bound_by_contextvars_comes_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    with structlog.contextvars.bound_contextvars(request_id="r-1", client_id="outer", event="never"):
        get_logger(NAME).info("client connected", client_id="inner")
    assert caplog.messages == ["client connected client_id=inner request_id=r-1"]


def test_structlog_s_configuration_is_the_program_s(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*args: object) -> structlog.typing.EventDict:
        raise AssertionError("the program's chain was used")

    caplog.set_level(logging.INFO, NAME)
    assert not structlog.is_configured()
    structlog.configure(processors=[refuse])
    try:
        configure_logging("info", "console", io.StringIO())
        get_logger(NAME).info("client connected")
        assert structlog.get_config()["processors"] == [refuse]
    finally:
        structlog.reset_defaults()
    assert caplog.messages == ["client connected"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("Zoë", "Zoë"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ('x\\" remote=1', r'"x\\\" remote=1"'),
        ("ends in \\", r'"ends in \\"'),
        ("a\nb", r"a\nb"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (0.25, "0.25"),
        (math.nan, "nan"),
        (b"\x00\xff", "00ff"),
        (("::1", 5000), "[::1]:5000"),
        (("127.0.0.1", 5000), "127.0.0.1:5000"),
        (("fe80::1", 5000, 0, 2), "[fe80::1]:5000"),
        (MessageType.QUERY, "query"),
        (ValueError("bad\x1b[2J"), r"bad\x1b[2J"),
        ([1, "a\nb"], "\"[1, 'a\\nb']\""),
        (Unshowable(), '"<Unshowable: RuntimeError>"'),
    ],
)
def test_a_value_cannot_be_taken_for_more_than_one(caplog: pytest.LogCaptureFixture, value: object, shown: str) -> None:
    caplog.set_level(logging.INFO, NAME)
    get_logger(NAME).info("event", value=value)
    assert caplog.messages == [f"event value={shown}"]
    json.dumps(caplog.records[0].__dict__["quicflow"], allow_nan=False)


def test_a_long_value_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    get_logger(NAME).info("x" * 1_000_000, text="y" * 1_000_000, payload=b"z" * 1_000_000)
    fields = caplog.records[0].__dict__["quicflow"]
    assert {key: len(value) for key, value in fields.items()} == {"event": MESSAGE, "text": FIELD, "payload": FIELD}


def test_a_percent_sign_is_no_format(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    get_logger(NAME).info("100 %s", rate="%d")
    assert caplog.messages == ["100 %s rate=%d"]


# -- errors -----------------------------------------------------------------------------------------------------------
def fail(text: str) -> ValueError:
    try:
        raise ValueError(text)
    except ValueError as exc:
        return exc


def test_a_traceback_s_lines_are_escaped_and_indented_in_any_format() -> None:
    # The program's own handler and format: the error quotes what the peer sent.
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger(NAME)
    logger.addHandler(handler)
    try:
        get_logger(NAME).error("handler failed", exc_info=fail(FORGED + "\x1b[2J"))
    finally:
        logger.removeHandler(handler)
    first, *others = stream.getvalue().splitlines()
    assert first == "handler failed"
    assert others[0] == "  Traceback (most recent call last):"
    assert others[-2:] == ["  ValueError: worker-1", "  2026" + FORGED.partition("2026")[2] + r"\x1b[2J"]
    assert all(line.startswith("  ") for line in others)


def test_exception_takes_the_one_that_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("k")
    except KeyError:
        get_logger(NAME).exception("lookup failed", table="t")
    exc_info = caplog.records[0].exc_info
    assert exc_info is not None
    assert exc_info[0] is KeyError
    assert caplog.messages == ["lookup failed table=t"]
    assert "KeyError: 'k'" in caplog.text


@pytest.mark.parametrize("nothing", [None, False, True])
def test_without_an_exception_there_is_no_traceback(caplog: pytest.LogCaptureFixture, nothing: object) -> None:
    get_logger(NAME).error("failed", exc_info=nothing)
    assert (caplog.records[0].exc_info, caplog.records[0].exc_text) == (None, None)


def test_an_endless_traceback_is_cut_in_the_middle(caplog: pytest.LogCaptureFixture) -> None:
    get_logger(NAME).error("failed", exc_info=fail("first\n" + "x\n" * 10_000 + "last"))
    lines = (caplog.records[0].exc_text or "").splitlines()
    assert len(lines) == logs.TRACEBACK_LINES + 1
    assert (lines[0], lines[-1]) == ("  Traceback (most recent call last):", "  last")
    assert sum("lines left out" in line for line in lines) == 1


# -- repeats ----------------------------------------------------------------------------------------------------------
class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def passes(
    limiter: Limiter, event: str = "e", level: str = "warning", name: str = NAME, **more: str
) -> structlog.typing.EventDict | None:
    try:
        return dict(limiter(logging.getLogger(name), level, {"event": event, **more}))
    except structlog.DropEvent:
        return None


@pytest.mark.parametrize("level", ["warning", "error", "critical"])
def test_repeats_stop_and_the_next_one_says_how_many(level: str) -> None:
    clock = Clock()
    limiter = Limiter(clock)
    outcomes = [passes(limiter, level=level) for _ in range(REPEATS[level] + 7)]
    assert outcomes == [{"event": "e"}] * REPEATS[level] + [None] * 7
    clock.now += PERIOD - 0.001
    assert passes(limiter, level=level) is None
    clock.now += 0.001
    assert passes(limiter, level=level) == {"event": "e", "suppressed": 8}
    assert passes(limiter, level=level) == {"event": "e"}, "it is said once"


@pytest.mark.parametrize("level", ["debug", "info"])
def test_states_and_messages_are_not_limited(level: str) -> None:
    limiter = Limiter(Clock())
    assert all(passes(limiter, level=level) for _ in range(5000))
    assert len(limiter) == 0


def test_others_are_not_suppressed_with_it() -> None:
    limiter = Limiter(Clock())
    for _ in range(100):
        passes(limiter)
    assert passes(limiter) is None
    assert passes(limiter, event="another")
    assert passes(limiter, level="error")
    assert passes(limiter, name="another.module")
    assert passes(limiter, hook="another hook"), "or a hook that always fails would hide one that fails now and then"


def test_what_was_held_back_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(REPEATS["warning"] + 7):
        get_logger(NAME).warning("refused")
    caplog.clear()
    report_suppressed()
    report_suppressed()
    (record,) = caplog.records
    assert "what=refused" in record.getMessage()
    assert "suppressed=7" in record.getMessage()


def test_the_table_is_bounded() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    for number in range(3 * TRACKED):
        clock.now += 0.001
        assert passes(limiter, event=str(number))
    assert len(limiter) == TRACKED


def test_a_steady_repeat_outlives_newer_events() -> None:
    # It is forgotten by the age of its window, not of its first time.
    clock = Clock()
    limiter = Limiter(clock)
    passes(limiter)
    clock.now += PERIOD
    for number in range(TRACKED - 2):
        passes(limiter, event=str(number))
    for _ in range(10):
        passes(limiter)
    passes(limiter, event="one more")
    passes(limiter, event="and another")
    assert passes(limiter) is None


def test_the_loggers_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(50):
        get_logger(NAME).warning("refused", client_id=f"forged-{number}")
    assert len(caplog.records) == REPEATS["warning"]


# -- for programs -----------------------------------------------------------------------------------------------------
def test_json_lines() -> None:
    stream = written("json")
    get_logger(NAME).bind(client_id="Zoë").info("client connected", remote=("::1", 5000), rtt=0.5, forged=FORGED)
    logging.getLogger("somebody.else").warning("foreign %s", "text")
    ours, foreign = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [*ours] == ["timestamp", "level", "logger", "event", "client_id", "remote", "rtt", "forged"]
    assert ours["timestamp"].endswith("Z")
    assert len(ours["timestamp"]) == len("2026-01-01T00:00:00.000Z")
    assert (ours["level"], ours["logger"], ours["event"]) == ("info", NAME, "client connected")
    assert (ours["client_id"], ours["remote"], ours["rtt"]) == ("Zoë", "[::1]:5000", 0.5)
    assert ours["forged"] == printable(FORGED, FIELD)
    assert {key: foreign[key] for key in ("level", "logger", "event")} == {
        "level": "warning",
        "logger": "somebody.else",
        "event": "foreign text",
    }


def test_json_keeps_the_traceback_as_structure() -> None:
    stream = written("json")
    secret = "in a local variable"
    error = fail("x" * 100_000)
    error.add_note("a note")
    get_logger(NAME).error("handler failed", exc_info=error)
    get_logger(NAME).error("all failed", exc_info=ExceptionGroup("both", [fail("one\n"), fail("two")]))
    single, group = [json.loads(line) for line in stream.getvalue().splitlines()]
    (stack,) = single["exception"]
    assert (stack["exc_type"], len(stack["exc_value"]), stack["exc_notes"]) == ("ValueError", MESSAGE, ["a note"])
    assert stack["frames"][-1]["name"] == "fail"
    assert [inner[0]["exc_value"] for inner in group["exception"][0]["exceptions"]] == ["one\n", "two"]
    assert secret not in stream.getvalue()


def test_a_field_cannot_take_the_place_of_the_line_s_own() -> None:
    stream = written("json")
    get_logger(NAME).info("event", level="critical", logger="x", timestamp="never", exception="none")
    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"], "exception" in line) == ("info", NAME, False)


def test_console_lines() -> None:
    stream = written("console")
    get_logger(NAME).info("client connected", client_id=FORGED, remote=("127.0.0.1", 5000))
    get_logger(NAME).error("handler failed", exc_info=fail(FORGED))
    logging.getLogger("somebody.else").warning("foreign\n%s", FORGED)
    lines = stream.getvalue().splitlines()
    assert f"[info     ] {NAME}: client connected client_id=" in lines[0]
    assert lines[0].endswith(" remote=127.0.0.1:5000")
    assert lines[-1].endswith(r": foreign\nworker-1\n" + FORGED.partition("\n")[2])
    starts = [line for line in lines if not line.startswith("  ")]
    assert len(starts) == 3
    assert "\x1b" not in stream.getvalue()


def test_an_error_of_another_library_keeps_its_traceback() -> None:
    stream = written("console")
    logging.getLogger("somebody.else").error("broken", exc_info=fail("why"))
    assert stream.getvalue().endswith("\n  ValueError: why\n")


@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)]
)
def test_colors_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], colored: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = written("console", stream=Terminal())
    get_logger(NAME).info("client connected", client_id="a")
    assert ("\x1b[" in stream.getvalue()) == colored


def test_json_has_no_colors_on_a_terminal() -> None:
    stream = written("json", stream=Terminal())
    get_logger(NAME).info("client connected")
    json.loads(stream.getvalue())


def test_the_environment_chooses_where_the_program_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    monkeypatch.setenv("LOG_FORMAT", "Json")
    stream = io.StringIO()
    configure_logging(stream=stream)
    get_logger(NAME).info("below")
    get_logger(NAME).warning("seen")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["seen"]
    configure_logging("info", "console", stream)
    get_logger(NAME).info("now seen")
    assert stream.getvalue().endswith("now seen\n")


def test_without_either_it_is_info_on_standard_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOG_LEVEL", "")
    configure_logging()
    get_logger(NAME).debug("below")
    get_logger(NAME).info("seen")
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), err.endswith(f"{NAME}: seen\n")) == ("", 1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "loud"}, "level = 'loud': expected one of debug, info, warning, error, critical, off"),
        ({"format": "xml"}, "format = 'xml': expected one of console, json"),
        ({"level": 10}, "level = '10': expected one of debug"),
    ],
)
def test_a_bad_value_names_the_allowed_ones(arguments: dict[str, str], message: str) -> None:
    before = [*logging.getLogger().handlers]
    with pytest.raises(ConfigurationError, match=f"^{message}"):
        configure_logging(**arguments)  # type: ignore[arg-type]
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize(("name", "value"), [("LOG_LEVEL", "loud"), ("LOG_FORMAT", "xml")])
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"^{name} = '{value}': expected one of "):
        configure_logging()


def test_again_it_replaces_its_own_handler_only() -> None:
    before = [*logging.getLogger().handlers]
    first, second = written("console"), written("console")
    get_logger(NAME).info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)
    assert logging.getLogger().handlers[:-1] == before


def test_off_is_off() -> None:
    stream = written("console", "off")
    logging.getLogger("somebody.else").critical("nobody hears")
    get_logger(NAME).error("this")
    assert stream.getvalue() == ""


def test_at_debug_level_the_chatty_ones_stay_out() -> None:
    stream = written("console", "debug")
    logging.getLogger("hpack.table").debug("each header")
    logging.getLogger("the.program").debug("its own")
    get_logger(NAME).debug("ours")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["its own", "ours"]


@pytest.mark.realtime
def test_a_program_without_logging_gets_warnings_as_lines() -> None:
    program = f"from quicflow_trio.observe.logs import get_logger; get_logger('x').warning('look here', client_id={FORGED!r})"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", f'look here client_id="{printable(FORGED, FIELD)}"\n')


# -- what the library says --------------------------------------------------------------------------------------------
def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, object]]:
    return [fields for record in caplog.records if (fields := record.__dict__.get("quicflow", {})).get("event") == event]


async def test_the_lines_of_a_connection_are_told_apart(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quicflow_trio.admission")
    async with open_world(clients=2):
        pass
    connected, disconnected = lines(caplog, "client connected"), lines(caplog, "client disconnected")
    assert sorted(str(line["client_id"]) for line in connected) == ["client-0", "client-1"]
    assert all(line["remote"] == f"{line['client_id']}:49152" for line in connected)
    whose = {line["connection"]: line["client_id"] for line in connected}
    assert len(whose) == 2
    assert {line["connection"]: line["client_id"] for line in disconnected} == whose
    assert {(line["by"], line["reason"]) for line in disconnected} == {("client", "client disconnect")}


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_single_messages_are_logged_at_debug_only(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(level, "quicflow_trio")
    router = Router()

    @router.on(MessageType.QUERY)
    async def answer(request: Request) -> bytes:
        return b"yes"

    async with open_world(clients=1, router=router) as world:
        await world.clients["client-0"].lane("one").request(Message.query(b"1234567"))
    # Once each: what is sent by the client is received by the server.
    for event in ("message sent", "message received"):
        found = lines(caplog, event)
        assert len(found) == (level == logging.DEBUG)
        for line in found:
            del line["message_id"]
            assert line == {
                "event": event,
                "client_id": "client-0",
                "type": "query",
                "size": 7,
                "lane": "one",
                "wants_ack": True,
            }
