"""Acks that were written and that the peer has not confirmed to have taken: kept for the session's next connection."""

from __future__ import annotations

import bisect
from collections import deque

from ..errors import RemoteProtocolError
from ..wire import PREFIX_SIZE, AckFrame, decode

__all__ = ["KeptAcks"]


class KeptAcks:
    """The acks of one lane, encoded, in the order of their numbers and by the pieces in which they were written.

    Attributes:
        size: what they take, bytes.
    """

    __slots__ = ("_let_go", "_pieces", "size")

    def __init__(self) -> None:
        self.size: int = 0
        # Number of the last ack, acks, bytes.
        self._pieces: deque[tuple[int, list[bytes], int]] = deque()
        # The last ack that was given up unconfirmed.
        self._let_go = 0

    def keep(self, last: int, acks: list[bytes], size: int) -> None:
        """Keep what was written as one piece; ``last`` is the number of the last ack in it."""
        self._pieces.append((last, acks, size))
        self.size += size

    def confirm(self, taken: int) -> None:
        """Forget the acks up to this number: the peer has taken them."""
        pieces = self._pieces
        while pieces and pieces[0][0] <= taken:
            self.size -= pieces.popleft()[2]
        if pieces:
            # What was written as one piece may be taken in several.
            last, acks, size = pieces[0]
            count = bisect.bisect_right(acks, taken, key=_last_of)
            if count:
                freed = sum(map(len, acks[:count]))
                del acks[:count]
                pieces[0] = (last, acks, size - freed)
                self.size -= freed

    def trim(self, limit: int) -> None:
        """Let go of the oldest, but for ``limit`` bytes and the last piece.

        A peer that reads its acks confirms them long before. They hold no handler back: the confirmation may stand behind a message
        that waits for one. A peer that comes back and has not taken them is told so by `replay`: an error, never a wrong result.
        """
        pieces = self._pieces
        while self.size > limit and len(pieces) > 1:
            self._let_go, _, size = pieces.popleft()
            self.size -= size

    def replay(self, taken: int) -> list[bytes]:
        """Return, and no longer keep, what a peer that has taken the acks up to this number has not got.

        Raises:
            RemoteProtocolError: some of it was let go.
        """
        self.confirm(taken)
        if taken < self._let_go:
            raise RemoteProtocolError(f"acks up to {self._let_go} went unconfirmed for too long, and only {taken} were taken")
        again = [ack for _, acks, _ in self._pieces for ack in acks]
        self.clear()
        return again

    def clear(self) -> None:
        """Forget them all."""
        self._pieces.clear()
        self.size = 0


def _last_of(ack: bytes) -> int:
    """Return the number of the last ack in an encoded frame."""
    frame = decode(ack[PREFIX_SIZE:])
    assert isinstance(frame, AckFrame)
    return frame.ack_seq + frame.more
