"""Streams of one qh3 connection: what may be written, and what has come beyond the grant and waits here."""

from __future__ import annotations

from typing import Final

from .engine import StreamData
from .limits import Windows

__all__ = ["Stream", "Streams"]


class Stream:
    """Both halves of one stream.

    Attributes:
        written: bytes given to the core to send.
        limit: offset up to which the peer takes them.
        granted: offset up to which the peer's bytes may be reported.
        delivered: offset up to which they were.
        over: true when the receiving half has ended.
        closed: true when nothing may be written any more: the sending half was abandoned, or both halves are finished.
    """

    __slots__ = ("closed", "delivered", "granted", "held", "held_bytes", "limit", "over", "window", "written")

    def __init__(self, limit: int, window: int) -> None:
        self.written: int = 0
        self.limit: int = limit
        self.window: Final = window
        self.granted: int = window
        self.delivered: int = 0
        self.held: list[tuple[bytes, bool]] = []
        self.held_bytes: int = 0
        self.over: bool = False
        self.closed: bool = False


class Streams:
    """The streams that are not finished in both directions.

    Args:
        windows: credit that the peer starts with.
        is_client: which side this is.

    Attributes:
        peer_stream_in: bytes that the peer takes on a stream of ours at first.
        peer_stream_out: bytes that the peer takes on the return half of a stream of its own at first.
    """

    def __init__(self, windows: Windows, *, is_client: bool) -> None:
        self.peer_stream_in: int = 0
        self.peer_stream_out: int = 0
        self._stalled: dict[int, None] = {}
        self._held = 0
        self._finished: dict[int, None] = {}
        self._windows = windows
        self._own_bit = 0 if is_client else 1
        self._streams: dict[int, Stream] = {}

    @property
    def stalled(self) -> int | None:
        """A stream that holds a window beyond its grant, or any when all together hold the connection's; None when all is well.

        While there is one, no events may be taken out of the core: they are what gives the peer credit.
        """
        if self._held == 0:
            return None
        if self._stalled:
            return next(iter(self._stalled))
        if self._held > self._windows.connection:
            return next(number for number, stream in self._streams.items() if stream.held)
        return None

    def get(self, stream_id: int) -> Stream | None:
        """Return a stream; None when it was never opened or is finished."""
        return self._streams.get(stream_id)

    def enter(self, stream_id: int) -> Stream:
        """Return a stream, made anew when it is not known."""
        stream = self._streams.get(stream_id)
        if stream is None:
            own = stream_id & 1 == self._own_bit
            limit = self.peer_stream_in if own else self.peer_stream_out
            stream = Stream(limit, self._windows.stream_out if own else self._windows.stream_in)
            self._streams[stream_id] = stream
        return stream

    def credit(self, stream_id: int, maximum: int) -> None:
        """Note that the peer takes more."""
        stream = self.enter(stream_id)
        stream.limit = max(stream.limit, maximum)

    def receive(self, stream_id: int, data: bytes, fin: bool) -> StreamData | None:
        """Take in what the core brings, return what the grant covers of it."""
        stream = self.enter(stream_id)
        if not stream.held and stream.delivered + len(data) <= stream.granted:
            stream.delivered += len(data)
            stream.over |= fin
            return StreamData(stream_id, data, fin)
        stream.held.append((data, fin))
        stream.held_bytes += len(data)
        self._held += len(data)
        found = self._release(stream_id, stream)
        return found[0] if found else None

    def grant(self, stream_id: int, limit: int) -> list[StreamData]:
        """Let more be reported; return what was held for want of it."""
        stream = self._streams.get(stream_id)
        if stream is None or limit <= stream.granted:
            return []
        stream.granted = limit
        return self._release(stream_id, stream) if stream.held else []

    def _release(self, stream_id: int, stream: Stream) -> list[StreamData]:
        found = []
        before = stream.held_bytes
        while stream.held:
            data, fin = stream.held[0]
            room = stream.granted - stream.delivered
            if len(data) <= room:
                stream.held.pop(0)
                stream.over |= fin
            elif room:
                stream.held[0] = (data[room:], fin)
                data, fin = data[:room], False
            else:
                break
            found.append(StreamData(stream_id, data, fin))
            stream.delivered += len(data)
            stream.held_bytes -= len(data)
        self._held -= before - stream.held_bytes
        if stream.held_bytes > stream.window:
            self._stalled[stream_id] = None
        else:
            self._stalled.pop(stream_id, None)
        if stream_id in self._finished and not stream.held:
            self.finish(stream_id)
        return found

    def drop(self, stream_id: int) -> None:
        """Drop what is held of a stream whose sender has abandoned it."""
        stream = self.enter(stream_id)
        stream.over = True
        self._held -= stream.held_bytes
        stream.held.clear()
        stream.held_bytes = 0
        self._stalled.pop(stream_id, None)

    def finish(self, stream_id: int) -> None:
        """Forget a stream that is finished both ways, once nothing of it waits for a grant."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.held:
            stream.closed = True
            self._finished[stream_id] = None
        else:
            self._finished.pop(stream_id, None)
            del self._streams[stream_id]

    def abandon(self) -> None:
        """Drop all that is held: the connection is closing."""
        for stream_id in list(self._streams):
            self.drop(stream_id)
