"""What goes into logs: text of peers is escaped, so that a client id cannot forge a line."""

from __future__ import annotations

__all__ = ["printable"]

LONGEST = 128


def printable(text: str) -> str:
    """Return text of a peer as it may stand in a log line: control characters escaped, at most 128 characters."""
    shown = text if text.isprintable() else text.encode("unicode_escape", "replace").decode("ascii")
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 3] + "..."
