"""What the ops side says, checked: each record reads the fields it needs out of JSON, and refuses what makes no sense."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, Self

__all__ = [
    "BadAnswer",
    "Change",
    "ClientFigures",
    "ClientPage",
    "Rates",
    "Sample",
    "ServerEvent",
    "number",
    "parse_object",
    "rates_between",
]

LARGEST = 1e18
"""No figure is larger; an integer of a thousand digits would only stop the reader."""


class BadAnswer(Exception):
    """The other side answered with something else than agreed; the message says what is wrong with it."""


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        BadAnswer: it is none.
    """
    try:
        answer = json.loads(content, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise BadAnswer("not JSON") from exc
    if not isinstance(answer, dict):
        raise BadAnswer("no JSON object")
    return answer


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def number(source: Mapping[str, Any], name: str) -> float | None:
    """Return a figure; None when there is none.

    Raises:
        BadAnswer: it is something else than a number.
    """
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:
        raise BadAnswer(f"{name} is no number")
    return value


def text(source: Mapping[str, Any], name: str) -> str:
    """Return a text; an empty one when there is none.

    Raises:
        BadAnswer: it is something else than text.
    """
    value = source.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadAnswer(f"{name} is no text")
    return value


def objects(source: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a list of objects.

    Raises:
        BadAnswer: it is something else.
    """
    value = source.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadAnswer(f"{name} is no list of objects")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFigures:
    """One client as the server sees it. Of one that has left only the first two are known.

    Attributes:
        client_id: its id.
        state: ``connected``, ``away`` or ``gone``.
        identity: who it has shown to be; empty where the server asks nobody.
        protocol: the message protocol of its connection.
        remote_address: host and port that it sends from; empty when it has none.
        connected_at: since when, Unix seconds.
        last_heartbeat: when its last ping came, Unix seconds.
        rtt_ms: round-trip time, milliseconds.
        messages_sent: messages to it since its session began.
        messages_received: messages from it.
        messages_failed: messages from it whose handler failed.
        bytes_sent: bytes to it.
        bytes_received: bytes from it.
        requests_waiting: requests to it that wait for their ack.
        handlers_running: handlers of its messages that run.
        outbox_messages: messages that wait to be sent to it.
        outbox_bytes: bytes of these.
        held_bytes: bytes received that wait for handlers to end.
        lanes: lanes open for sending to it.
    """

    client_id: str
    state: str
    identity: str
    protocol: str
    remote_address: str
    connected_at: float | None
    last_heartbeat: float | None
    rtt_ms: float | None
    messages_sent: float | None
    messages_received: float | None
    messages_failed: float | None
    bytes_sent: float | None
    bytes_received: float | None
    requests_waiting: float | None
    handlers_running: float | None
    outbox_messages: float | None
    outbox_bytes: float | None
    held_bytes: float | None
    lanes: float | None

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Self:
        """Return the client in a JSON object.

        Raises:
            BadAnswer: it holds none.
        """
        texts = {"client_id", "state", "identity", "protocol", "remote_address"}
        values: dict[str, Any] = {
            declared.name: (text if declared.name in texts else number)(source, declared.name) for declared in fields(cls)
        }
        if not (values["client_id"] and values["state"]):
            raise BadAnswer("a client without id or state")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ClientPage:
    """A part of the list of clients.

    Attributes:
        total: how many match, all in all.
        offset: how many of them stand before this part.
        timestamp: when the server took it, Unix seconds.
        clients: the part.
    """

    total: int
    offset: int
    timestamp: float
    clients: Sequence[ClientFigures]

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Self:
        """Return the page in a JSON object.

        Raises:
            BadAnswer: it holds none.
        """
        total, offset, timestamp = (number(source, name) for name in ("total", "offset", "timestamp"))
        if total is None or timestamp is None:
            raise BadAnswer("a list of clients without total or timestamp")
        clients = [ClientFigures.parse(client) for client in objects(source, "clients")]
        return cls(int(total), int(offset or 0), timestamp, clients)


@dataclass(frozen=True, slots=True)
class Change:
    """One change in a client's life: when (Unix seconds), what, and its detail as text."""

    at: float
    change: str
    detail: str

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Self:
        """Return the change in a JSON object.

        Raises:
            BadAnswer: it holds none.
        """
        return cls(number(source, "at") or 0.0, text(source, "change"), text(source, "detail"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the server measured in one second. The latencies are None in a second without an ack."""

    at: float | None
    connected_clients: float | None
    sent_per_second: float | None
    received_per_second: float | None
    bytes_per_second: float | None
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def parse(cls, source: Mapping[str, Any]) -> Self:
        """Return the sample in a JSON object.

        Raises:
            BadAnswer: it holds none.
        """
        return cls(**{declared.name: number(source, declared.name) for declared in fields(cls)})


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event.

    Attributes:
        kind: what happened; ``dropped`` when this reader was too slow for some.
        at: when, Unix seconds; None for ``dropped``.
        client_id: whom it is about; empty when it is nobody.
        data: all of it, as the server put it.
    """

    kind: str
    at: float | None
    client_id: str
    data: Mapping[str, Any]

    @classmethod
    def parse(cls, kind: str, source: Mapping[str, Any]) -> Self:
        """Return the event of this kind in a JSON object.

        Raises:
            BadAnswer: it holds none.
        """
        return cls(kind, number(source, "at"), text(source, "client_id"), source)


# -- rates -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Rates:
    """What a client does per second: messages to it, messages from it, bytes to it, bytes from it."""

    sent: float
    received: float
    bytes_sent: float
    bytes_received: float


def rates_between(before: ClientFigures, after: ClientFigures, seconds: float) -> Rates | None:
    """Return a client's rates between two looks at it; None when they cannot be told.

    Counters begin again with each session: when one has gone back, the two looks saw different ones.
    """
    if seconds <= 0 or before.connected_at is None or after.connected_at is None:
        return None
    steps = []
    for name in ("messages_sent", "messages_received", "bytes_sent", "bytes_received"):
        old, new = getattr(before, name), getattr(after, name)
        if old is None or new is None or new < old:
            return None
        steps.append((new - old) / seconds)
    return Rates(*steps)
