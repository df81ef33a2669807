"""Length-delimited frames out of a byte stream: incremental, bounded, without IO.

On the wire every frame is a ``uint32`` in network byte order, the length of the body in bytes, and then the body. Both
protocols of this package use it.
"""

from __future__ import annotations

import struct
from typing import final

from ..errors import RemoteProtocolError

__all__ = ["PREFIX_SIZE", "EmptyFrame", "FrameReader", "FrameTooLarge", "prefix"]

#: Length of the prefix, bytes.
PREFIX_SIZE = 4

_length_at = struct.Struct(">I").unpack_from


class EmptyFrame(RemoteProtocolError):
    """The peer announced a frame of no bytes, which the protocol does not have."""


class FrameTooLarge(RemoteProtocolError):
    """The peer announced a frame over the limit.

    Attributes:
        size: the announced length of the body, bytes.
        limit: the longest body allowed, bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"frame of {size:,} bytes is over the limit of {limit:,} bytes")
        self.size: int = size
        self.limit: int = limit


def prefix(body: bytes) -> bytes:
    """Return the frame of ``body``: its length prefix, then itself."""
    return len(body).to_bytes(PREFIX_SIZE, "big") + body


@final
class FrameReader:
    """Cut one direction of one stream into frame bodies.

    Contract: call `feed` with what the stream delivers, in order and split anywhere, and `frames` to take complete bodies
    off. The sizes say how much is held in between; nothing but the caller's reading and flow control bounds the complete
    frames, while an incomplete one never holds more than the limit and its prefix.

    Every prefix is checked by the `feed` that completes it, also one that stands behind frames which were not taken yet.
    After such a refusal the frames before the bad prefix can still be taken; the reader keeps the bad prefix, so each later
    `feed` is refused again.

    The bytes stay in one buffer until they are taken: a 5-byte frame that became a `bytes` object of its own at once would
    cost its receiver ten times what the sender's credit was charged for it.

    Attributes:
        max_frame: longest body accepted, bytes. It may be raised at any time, never lowered.
        pending: complete frames held.
    """

    __slots__ = ("_buffer", "_complete", "_wanted", "max_frame", "pending")

    def __init__(self, max_frame: int) -> None:
        self.max_frame: int = max_frame
        self.pending: int = 0
        # A bytearray appends at its end and drops from its front without moving the rest (amortised), which keeps any split
        # of the stream linear.
        self._buffer = bytearray()
        # The first `_complete` bytes are whole frames; nothing can happen before the buffer is `_wanted` bytes long.
        self._complete = 0
        self._wanted = PREFIX_SIZE

    @property
    def buffered(self) -> int:
        """All bytes held, prefixes included."""
        return len(self._buffer)

    @property
    def partial(self) -> int:
        """Bytes held of a frame that has begun and is not complete, its prefix included."""
        return len(self._buffer) - self._complete

    @property
    def missing(self) -> int:
        """Bytes that are still to come of a frame that has begun, as far as its prefix is here; 0 between two frames."""
        return self._wanted - len(self._buffer) if self.partial else 0

    def feed(self, data: bytes) -> None:
        """Take in what the stream delivered.

        Raises:
            EmptyFrame: a prefix says 0.
            FrameTooLarge: a prefix says more than ``max_frame``. None of the body is kept.
        """
        buffer = self._buffer
        buffer += data
        held = len(buffer)
        if held < self._wanted:
            return
        position = self._complete
        limit = self.max_frame
        count = 0
        while True:
            body = position + PREFIX_SIZE
            if held < body:
                wanted = body
                break
            (size,) = _length_at(buffer, position)
            if not 0 < size <= limit:
                self._refuse(position, count, size)
            wanted = body + size
            if held < wanted:
                break
            position = wanted
            count += 1
        self.pending += count
        self._complete = position
        self._wanted = wanted

    def _refuse(self, position: int, count: int, size: int) -> None:
        """Keep the frames before the bad prefix and that prefix, drop what follows it, and raise."""
        del self._buffer[position + PREFIX_SIZE :]
        self.pending += count
        self._complete = position
        self._wanted = position + PREFIX_SIZE
        raise FrameTooLarge(size, self.max_frame) if size else EmptyFrame("frame of 0 bytes")

    def frames(self, limit: int | None = None) -> list[bytes]:
        """Take complete frame bodies off, in order: all of them, or at most ``limit``. The rest stays as it came."""
        count = self.pending
        end = self._complete
        buffer = self._buffer
        if limit is not None and limit < count:
            # Find the end first: copying all that is held, call after call, would be quadratic.
            count = max(limit, 0)
            end = 0
            for _ in range(count):
                end += PREFIX_SIZE + _length_at(buffer, end)[0]
        if not count:
            return []
        if count == 1:
            # The way a large frame comes: one copy instead of three.
            with memoryview(buffer) as view:
                taken = [bytes(view[PREFIX_SIZE:end])]
        else:
            # Slices of bytes are what is cheap here, so copy once more: still less than a view costs to set up.
            raw = bytes(buffer[:end])
            taken = []
            position = 0
            for _ in range(count):
                body = position + PREFIX_SIZE
                position = body + _length_at(raw, position)[0]
                taken.append(raw[body:position])
        self._drop(end, count)
        return taken

    def _drop(self, size: int, count: int) -> None:
        del self._buffer[:size]
        self._complete -= size
        self._wanted -= size
        self.pending -= count
