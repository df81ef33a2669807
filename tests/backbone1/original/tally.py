"""Which numbered messages have come; a bit is kept for each."""

from __future__ import annotations

from collections import Counter

HIGHEST = 10_000_000


class Tally:
    """Counts messages by the number in the first eight bytes of their payloads.

    Attributes:
        counts: ``messages`` and ``bytes``; of numbered ones those that are ``different``, were ``repeated``, or came ``behind`` a higher
            number of the same sender.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._seen = bytearray()
        self._last: dict[str, int] = {}

    def note(self, sender: str, payload: bytes) -> None:
        """Count a message."""
        self.counts["messages"] += 1
        self.counts["bytes"] += len(payload)
        number = int.from_bytes(payload[:8], "big")
        if len(payload) < 8 or number > HIGHEST:
            return
        place, bit = number >> 3, 1 << (number & 7)
        if place >= len(self._seen):
            self._seen += bytes(place + 1 - len(self._seen))
        self.counts["repeated" if self._seen[place] & bit else "different"] += 1
        self._seen[place] |= bit
        if number < self._last.get(sender, 0):
            self.counts["behind"] += 1
        self._last[sender] = number
