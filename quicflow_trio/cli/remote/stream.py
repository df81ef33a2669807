"""Server-sent events, read: bytes in, records out (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import codecs
from typing import NamedTuple, final

from .records import BadAnswer

__all__ = ["StreamParser", "StreamRecord"]

LONGEST_RECORD = 1024 * 1024
"""Characters of one record; the server's have some hundreds."""


class StreamRecord(NamedTuple):
    """One record of the stream: the event's name and its data."""

    kind: str
    data: str


@final
class StreamParser:
    """Cuts a stream of bytes into records. Feed it what comes; it keeps what is not whole yet."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        self._kind = ""
        self._data: list[str] = []
        self._length = 0

    def feed(self, chunk: bytes) -> list[StreamRecord]:
        """Return the records that this completes.

        Raises:
            BadAnswer: a record is longer than 1,048,576 characters.
        """
        *lines, self._rest = (self._rest + self._decode(chunk)).split("\n")
        records = []
        for line in lines:
            record = self._take(line.removesuffix("\r"))
            if record is not None:
                records.append(record)
        if self._length + len(self._rest) > LONGEST_RECORD:
            raise BadAnswer("an event without end")
        return records

    def _take(self, line: str) -> StreamRecord | None:
        self._length += len(line)
        if not line:
            record = StreamRecord(self._kind or "message", "\n".join(self._data)) if self._data else None
            self._kind, self._data, self._length = "", [], 0
            return record
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        # An empty name is a comment; `id` and `retry` are for readers that resume, which this stream does not offer.
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        return None
