"""Single keys from a terminal, read under Trio: no thread, and the terminal is always given back as it was."""

from __future__ import annotations

import codecs
import os
import select
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from typing import final

import trio

__all__ = ["KeyDecoder", "keys", "single_keys"]

ESCAPE_SECONDS = 0.05
"""How long an escape may stand alone before it is the key and not the beginning of another's sequence."""
CHUNK = 1024
LONGEST_SEQUENCE = 16

ESCAPE = "\x1b"
CONTROLS = {"\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace", "\x15": "ctrl-u"}
# What follows ESC [ or ESC O: the cursor keys of xterm, vt100, rxvt and the Linux console.
LETTERS = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end", "M": "enter"}
NUMBERS = {"1~": "home", "4~": "end", "7~": "home", "8~": "end", "5~": "pgup", "6~": "pgdn", "3~": "delete"}
SEQUENCES = LETTERS | NUMBERS


@final
class KeyDecoder:
    """Makes keys of what a terminal sends: printable characters as they are, the others by name (``up``, ``enter``, ``escape``).

    Feed it bytes; what may be the beginning of a sequence is kept. When nothing follows, `flush` says what it was.
    """

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""

    @property
    def pending(self) -> bool:
        """True while the last escape may be the beginning of something."""
        return bool(self._rest)

    def feed(self, chunk: bytes) -> list[str]:
        """Return the keys that are complete."""
        text = self._rest + self._decode(chunk)
        self._rest = ""
        found: list[str] = []
        while text:
            if text[0] != ESCAPE:
                if key := CONTROLS.get(text[0], text[0] if text[0].isprintable() else ""):
                    found.append(key)
                text = text[1:]
                continue
            length = _sequence_length(text)
            if length is None:
                self._rest = text
                break
            found.append(SEQUENCES.get(text[2:length], "") if length > 1 else "escape")
            text = text[length:]
        # A sequence of a key that nobody uses here is no key.
        return [key for key in found if key]

    def flush(self) -> list[str]:
        """Return what is left when nothing follows: an escape key, and what was typed behind it."""
        rest, self._rest = self._rest, ""
        return ["escape"] if rest else []


def _sequence_length(text: str) -> int | None:
    """Return how long the sequence at the beginning is; 1 when the escape stands alone, None when more may follow (ECMA-48, 5.4)."""
    if len(text) == 1:
        return None
    if text[1] not in "[O":
        return 1
    for index, char in enumerate(text[2:LONGEST_SEQUENCE], 2):
        if "@" <= char <= "~":
            return index + 1
    return None if len(text) < LONGEST_SEQUENCE else LONGEST_SEQUENCE


@contextmanager
def single_keys(descriptor: int) -> Iterator[None]:
    """Let a terminal hand out each key at once and show none of them, for the length of the ``with``. Ctrl-C stays a signal."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        settings = termios.tcgetattr(descriptor)
        # Ctrl-Z would leave the shell with the other screen and a terminal that echoes nothing.
        settings[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, settings)
        yield
    finally:
        # A terminal that was closed meanwhile has no settings to restore.
        with suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def keys(descriptor: int) -> AsyncGenerator[str, None]:
    """Iterate over the keys that are pressed; it ends when the terminal is gone. Leave it early only by cancelling, or in `aclosing`."""
    decoder = KeyDecoder()
    while True:
        patience = ESCAPE_SECONDS if decoder.pending else float("inf")
        with trio.move_on_after(patience):
            await trio.lowlevel.wait_readable(descriptor)
        if not select.select([descriptor], [], [], 0)[0]:
            found = decoder.flush()
        else:
            try:
                chunk = os.read(descriptor, CHUNK)
            except OSError:
                # The terminal was closed: a pseudo-terminal says so with EIO.
                return
            if not chunk:
                return
            found = decoder.feed(chunk)
        for key in found:
            yield key
