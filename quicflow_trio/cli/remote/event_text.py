"""An event in words, for people; text that came from a client is escaped."""

from __future__ import annotations

from ..common import shown
from .figures import NONE, clock, size
from .records import ServerEvent

__all__ = ["event_detail", "event_time"]

# Said by the line already.
KNOWN = {"kind", "at", "client_id"}


def event_time(event: ServerEvent) -> str:
    """Return when it was, local time; a dash when that is unknown."""
    return clock(event.at)


def event_detail(event: ServerEvent) -> str:
    """Return what an event says beside its kind, time and client."""
    data = event.data
    match event.kind:
        case "connect":
            protocol = data.get("protocol")
            # An older server does not name it.
            spoken = "" if protocol is None else f", {_text(protocol)}"
            return f"from {_address(data.get('remote_address'))}{spoken}"
        case "disconnect":
            side = "by the client" if data.get("by_peer") else "by the server"
            return _phrase(f"{_text(data.get('reason'))}, {side}", data.get("detail"))
        case "reconnect":
            resumed = data.get("resumed")
            # An older server does not say.
            session = "" if not isinstance(resumed, bool) else ", the session goes on" if resumed else ", a new session"
            return f"after {_figure(data.get('away'))} s{session}"
        case "heartbeat_timeout":
            return f"nothing heard for {_figure(data.get('silence'))} s"
        case "state_change":
            return _phrase(f"{_text(data.get('old'))} -> {_text(data.get('new'))}", data.get("reason"))
        case "broadcast":
            return f"{_text(data.get('type'))}, {_bytes(data.get('size'))}, {_text(data.get('sent'))} of {_text(data.get('targets'))} clients"
        case "message_sent" | "message_received":
            lane = f", lane {_text(data.get('lane'))}" if data.get("lane") else ""
            return f"{_text(data.get('type'))}, {_bytes(data.get('size'))}{lane}"
        case "ack_timeout":
            return f"no ack within {_figure(data.get('ack_timeout'))} s"
        case "error":
            return _phrase(_text(data.get("error")), data.get("detail"))
        case "dropped":
            return f"{_text(data.get('dropped'))} events were dropped: this reader is too slow"
        case _:
            # Of a newer server, maybe.
            return ", ".join(f"{_text(name)} {_text(value)}" for name, value in data.items() if name not in KNOWN)


def _text(value: object) -> str:
    return NONE if value is None else shown(str(value))


def _address(value: object) -> str:
    if isinstance(value, list) and len(value) == 2:
        host, port = (_text(part) for part in value)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return NONE


def _phrase(text: str, detail: object) -> str:
    return f"{text}: {shown(str(detail))}" if detail else text


def _figure(value: object) -> str:
    return f"{value:,.3g}" if isinstance(value, (int, float)) else NONE


def _bytes(value: object) -> str:
    return f"{size(value)} bytes" if isinstance(value, (int, float)) else NONE
