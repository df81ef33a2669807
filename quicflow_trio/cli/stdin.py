"""Standard input for a Trio program: whole, or line by line, without blocking the other tasks and without a fight at exit."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator

import trio

__all__ = ["LONGEST_LINE", "read_all", "read_lines"]

CHUNK = 65_536
LONGEST_LINE = 4 * 1024 * 1024


async def _read() -> bytes:
    """Wait for some bytes; none mean the end. Cancelled, the thread is left behind and loses what it reads next.

    It reads the descriptor and not ``sys.stdin``: a thread that waits inside the latter holds its lock, and the interpreter aborts
    at exit when it cannot take that. Non-blocking reads are no alternative: the flag would be set for the whole terminal, for the
    shell too, and a regular file cannot be polled.
    """
    return await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), CHUNK, abandon_on_cancel=True)


async def read_all() -> bytes:
    """Read standard input to its end."""
    chunks = []
    while chunk := await _read():
        chunks.append(chunk)
    return b"".join(chunks)


async def read_lines() -> AsyncGenerator[str, None]:
    """Iterate over the lines of standard input, without their ends. Bytes that are no UTF-8 become replacement characters.

    A line over 4 MiB is handed out in pieces: input is not buffered without bound. Leave it early only inside ``aclosing``.
    """
    rest = b""
    while chunk := await _read():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace").rstrip("\r")
