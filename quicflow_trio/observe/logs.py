"""Logs: short events with fields, by structlog, out of the standard library's loggers.

Modules take a logger by `get_logger` and write ``log.info("client connected", client_id=..., remote=...)``. What a program sees of it:

- One that has configured `logging` gets readable lines, ``client connected client_id=worker-1 remote=127.0.0.1:5000``, from the logger
  of the module's name, and for handlers that want more the event and the fields in ``record.quicflow``.
- One that has not may call `configure_logging`: console or JSON lines, for the records of other libraries too.

Text of peers cannot forge anything, in either: it is escaped and cut, quoted where it holds a blank or an equals sign, and the lines of
a traceback are indented. ``structlog.configure`` is the program's and is neither called nor read.
"""

from __future__ import annotations

import enum
import json
import logging
import math
import os
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from traceback import TracebackException
from types import TracebackType
from typing import Any, Literal, TextIO, TypeAlias, final

import structlog
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter, LogLevelColumnFormatter
from structlog.processors import ExceptionRenderer, JSONRenderer
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from ..errors import ConfigurationError

__all__ = ["Limiter", "Logger", "configure_logging", "get_logger", "printable", "report_suppressed"]

LONGEST = 128
FIELD = 512
"""Characters of a text field; a client id has at most 256 bytes."""
MESSAGE = 4096
"""Characters of another library's message, and of an error's text."""
TRACEBACK_LINES = 200

PERIOD = 10.0
"""Seconds in which repeats of one event are counted."""
REPEATS = {"warning": 10, "error": 10, "critical": 10}
"""Times that one event passes within `PERIOD`. Debug and info always do: at info stands each change of state, and none may be missing;
a warning beside it that repeats a hundred times says nothing new."""
TRACKED = 1024
"""Events whose repeats are counted; past it the oldest is forgotten."""

ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType | None]"


# -- escaping ----------------------------------------------------------------------------------------------------------
def printable(text: str, longest: int = LONGEST) -> str:
    """Return text of a peer as it may stand in a log line: control and format characters escaped, at most ``longest`` characters."""
    shown = text[: longest + 1]  # before the escaping: a megabyte must not be worth a megabyte's work
    if not shown.isprintable():
        shown = shown.encode("unicode_escape", "replace").decode("ascii")
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def _plain(value: object) -> str | int | float | None:
    """Return a field's value as what JSON knows, text escaped."""
    match value:
        case enum.Enum():
            return value.value if isinstance(value.value, str) else value.name.lower()
        case None | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes():
            return printable(value[:FIELD].hex(), FIELD)
        case (str() as host, int() as port) | (str() as host, int() as port, int(), int()):
            return f"[{printable(host)}]:{port}" if ":" in host else f"{printable(host)}:{port}"
    try:
        return printable(str(value), FIELD)
    except Exception as exc:  # noqa: BLE001 - an object of the user's that cannot be shown must not end a connection
        return f"<{type(value).__name__}: {type(exc).__name__}>"


def _quoted(value: object) -> str:
    """Return a value as it stands behind ``key=``: one that could be taken for more than a value is quoted."""
    text = str(value)
    if re.fullmatch(r'[^\s"=]+', text):
        return text
    if '"' in text or text.endswith("\\"):
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _traceback_text(exc_info: ExcInfo) -> str:
    """Return a traceback, each line escaped and indented: no line of an error's text can pass for a record's."""
    lines = "".join(TracebackException(*exc_info, compact=True).format()).split("\n")[:-1]
    if len(lines) > TRACEBACK_LINES:
        half = TRACEBACK_LINES // 2
        lines[half:-half] = [f"... {len(lines) - 2 * half} lines left out"]
    return "\n".join(f"  {printable(line, MESSAGE)}" for line in lines)


# -- the loggers -------------------------------------------------------------------------------------------------------
class _Window:
    __slots__ = ("began", "passed", "suppressed")

    def __init__(self, began: float) -> None:
        self.began = began
        self.passed = 0
        self.suppressed = 0


@final
class Limiter:
    """A processor that drops an event which repeats too often; the next one to pass says how many were: ``suppressed=K``.

    Events are the same when logger, level, text and hook are: whom one is about does not count, or each forged client id would have
    its own.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # In the order of their beginning.
        self._windows: OrderedDict[tuple[str, str, str, str], _Window] = OrderedDict()

    def __call__(self, logger: WrappedLogger, level: str, fields: EventDict) -> EventDict:
        """Let the event pass, or raise `structlog.DropEvent`."""
        limit = REPEATS.get(level)
        if limit is None:
            return fields
        key = (logger.name, level, fields["event"], str(fields.get("hook", "")))
        now = self._clock()
        window = self._windows.get(key)
        if window is None or now - window.began >= PERIOD:
            window = self._renew(key, now, fields)
        if window.passed >= limit:
            window.suppressed += 1
            raise structlog.DropEvent
        window.passed += 1
        return fields

    def _renew(self, key: tuple[str, str, str, str], now: float, fields: EventDict) -> _Window:
        ended = self._windows.pop(key, None)
        if ended is not None and ended.suppressed:
            fields["suppressed"] = ended.suppressed
        if len(self._windows) >= TRACKED:
            self._windows.popitem(last=False)
        window = self._windows[key] = _Window(now)
        return window

    def take_suppressed(self) -> dict[str, int]:
        """Return how often each event was suppressed since it was last said, and forget it."""
        taken: dict[str, int] = {}
        for (_, _, event, _), window in self._windows.items():
            if window.suppressed:
                taken[event] = taken.get(event, 0) + window.suppressed
                window.suppressed = 0
        return taken

    def clear(self) -> None:
        """Forget all repeats: for tests, which are not to see each other's."""
        self._windows.clear()

    def __len__(self) -> int:
        """Return how many events are tracked."""
        return len(self._windows)


def _merge(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Add what the program has bound by `structlog.contextvars`. Sorted: the context knows no order that two runs share."""
    bound = structlog.contextvars.get_contextvars()
    for key in sorted(bound):
        fields.setdefault(key, bound[key])
    return fields


def _escape(_: WrappedLogger, __: str, fields: EventDict) -> EventDict:
    """Make every value plain; the event comes first."""
    event = printable(str(fields.pop("event")), MESSAGE)
    return {"event": event, **{key: _plain(value) for key, value in fields.items()}}


limiter: Limiter = Limiter()
"""One for all loggers: the bound on work is the process's."""


@final
class Logger(structlog.BoundLoggerBase):
    """A logger of the library; `get_logger` makes it, `bind` one with more fields.

    An event that its level keeps out costs one look into the level cache of `logging`.
    """

    _logger: logging.Logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what only a developer wants, single messages included."""
        if self._logger.isEnabledFor(logging.DEBUG):
            self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log a change that an operator may want to follow."""
        if self._logger.isEnabledFor(logging.INFO):
            self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what may need a look."""
        if self._logger.isEnabledFor(logging.WARNING):
            self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log what failed; ``exc_info`` (an exception, or True for the one that is handled) adds the traceback."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log what failed, with the traceback of the exception that is handled."""
        if self._logger.isEnabledFor(logging.ERROR):
            self._emit(logging.ERROR, event, {"exc_info": True, **fields})

    def is_enabled_for(self, level: int) -> bool:
        """True when an event of this level would be seen; for who must compute the fields first."""
        return self._logger.isEnabledFor(level)

    def _emit(self, level: int, event: str, fields: dict[str, Any]) -> None:
        exc_info = _exc_info(fields.pop("exc_info", None))
        try:
            _, shown = self._process_event(logging.getLevelName(level).lower(), event, fields)
        except structlog.DropEvent:
            return
        message = " ".join([shown["event"], *(f"{key}={_quoted(value)}" for key, value in shown.items() if key != "event")])
        # Two frames up, this one and the method of the level's name: a record says where it comes from.
        path, line, function, _ = self._logger.findCaller(stacklevel=3)
        extra = {"quicflow": dict(shown)}
        record = self._logger.makeRecord(self._logger.name, level, path, line, message, (), exc_info, function, extra)
        if exc_info is not None:
            # What `logging.Formatter` would fill in itself, unescaped: an error's text often quotes its input.
            record.exc_text = _traceback_text(exc_info)
        self._logger.handle(record)


def _exc_info(given: object) -> ExcInfo | None:
    error = given if isinstance(given, BaseException) else sys.exception() if given else None
    return None if error is None else (type(error), error, error.__traceback__)


def get_logger(name: str) -> Logger:
    """Return the logger of a module: that of the standard library by this name, with events and fields."""
    processors: list[Processor] = [limiter, _merge, _escape]
    return Logger(logging.getLogger(name), processors, {})


def report_suppressed() -> None:
    """Say what was suppressed and not said since, at an end after which nothing may say it."""
    for event, number in limiter.take_suppressed().items():
        get_logger(__name__).warning("repeats were held back", what=event, suppressed=number)


# -- for programs ------------------------------------------------------------------------------------------------------
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": logging.CRITICAL + 10,
}
FORMATS = ("console", "json")

# They tell of each packet or frame at debug level: with them nobody finds what the program says.
CHATTY = ("h2", "hpack", "httpcore2", "httpx2", "quic", "wsproto")

# Keys of every line; a field of that name would hide them.
RESERVED = frozenset({"timestamp", "level", "logger", "logger_name", "event", "exception", "exc_info", "stack", "stack_info"})


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that a second `configure_logging` replaces it and no other."""


def configure_logging(
    level: str | None = None, format: Literal["console", "json"] | None = None, stream: TextIO | None = None
) -> None:
    """Log to a stream, for a program that has no logging of its own: its own records and those of every library.

    It gives the root logger a level and one handler; called again it replaces that handler, and leaves others alone.

    Args:
        level: debug, info, warning, error, critical or off; the default is the environment's LOG_LEVEL, else info.
        format: ``console``, coloured on a terminal unless NO_COLOR is set, or ``json``, one object a line; the default is the
            environment's LOG_FORMAT, else ``console``.
        stream: where to; the default is standard error.

    Raises:
        ConfigurationError: the level or format is none of these.
    """
    chosen = LEVELS[_choice("level", level, "LOG_LEVEL", "info", LEVELS)]
    look = _choice("format", format, "LOG_FORMAT", "console", FORMATS)
    handler = _Handler(sys.stderr if stream is None else stream)
    handler.setFormatter(_json_formatter() if look == "json" else _console_formatter(colors=_wants_colors(handler.stream)))
    root = logging.getLogger()
    for former in [former for former in root.handlers if isinstance(former, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(chosen)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(chosen, logging.INFO))


def _choice(name: str, given: str | None, variable: str, default: str, allowed: dict[str, int] | tuple[str, ...]) -> str:
    # An empty variable is one that a compose file or unit left open.
    source, value = (variable, os.environ.get(variable) or default) if given is None else (name, given)
    chosen = str(value).lower()
    if chosen not in allowed:
        raise ConfigurationError(f"{source} = {printable(str(value))!r}: expected one of {', '.join(allowed)}")
    return chosen


def _wants_colors(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _unpack(_: WrappedLogger, __: str, entry: EventDict) -> EventDict:
    """Make one flat line of a record, ours or another library's."""
    record: logging.LogRecord = entry["_record"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    fields: dict[str, object] = dict(getattr(record, "quicflow", {}))
    line: EventDict = {
        "timestamp": moment.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": fields.pop("event", None) or printable(entry["event"], MESSAGE),
    }
    line.update((key, value) for key, value in fields.items() if key not in RESERVED)
    # Not the record's own: it is a copy, already without.
    exc_info = entry.get("exc_info")
    if exc_info and exc_info[1] is not None:
        line["exc_info"] = exc_info
    return line


def _json_formatter() -> ProcessorFormatter:
    # Without local variables, the default: they hold keys, credentials and payloads.
    errors = ExceptionDictTransformer(show_locals=False, use_rich=False)

    def exceptions(exc_info: ExcInfo) -> list[dict[str, Any]]:
        return _bounded(errors(exc_info))

    # ASCII: an escape is what text in another direction does no harm in.
    renderer = JSONRenderer(json.dumps, ensure_ascii=True)
    return ProcessorFormatter(processors=[_unpack, ExceptionRenderer(exceptions), renderer])


def _bounded(stacks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cut the texts of errors, which may quote a whole payload, and groups, at 15 as `traceback` does."""
    for stack in stacks:
        stack["exc_value"] = stack["exc_value"][:MESSAGE]
        stack["exc_notes"] = [note[:MESSAGE] for note in stack["exc_notes"]]
        stack["exceptions"] = [_bounded(inner) for inner in stack["exceptions"][:15]]
    return stacks


def _console_formatter(*, colors: bool) -> ProcessorFormatter:
    style = ConsoleRenderer.get_default_column_styles(colors)

    def column(value_style: str, key_style: str | None = None, **layout: Any) -> KeyValueColumnFormatter:
        return KeyValueColumnFormatter(key_style, value_style, style.reset, **layout)

    columns = [
        Column("timestamp", column(style.timestamp, value_repr=str)),
        Column("level", LogLevelColumnFormatter(ConsoleRenderer.get_default_level_styles(colors), style.reset)),
        Column("logger", column(style.logger_name, value_repr=str, postfix=":")),
        Column("event", column(style.bright, value_repr=str)),
        Column("", column(style.kv_value, style.kv_key, value_repr=_quoted)),
    ]

    def write_traceback(out: TextIO, exc_info: ExcInfo) -> None:
        out.write("\n" + _traceback_text(exc_info))

    renderer = ConsoleRenderer(columns=columns, sort_keys=False, exception_formatter=write_traceback)
    return ProcessorFormatter(processors=[_unpack, renderer])
