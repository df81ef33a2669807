"""JSON out and in: answers, long lists that let other tasks run in between, and text that is taken apart carefully."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NoReturn

import trio
from starlette.responses import Response

__all__ = ["SLICE", "dump", "dump_list", "dump_object", "json_response", "parse"]

SLICE = 128
"""Rows made and encoded before the other tasks run: about two milliseconds. Under load each pause costs a whole pass over the tasks."""


def dump(value: object) -> bytes:
    """Encode a value, as ASCII and without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer of one small value."""
    return Response(dump(value), status, headers, media_type="application/json")


async def dump_list(rows: Iterable[object]) -> bytes:
    """Encode a list, yielding to other tasks every few rows. With a generator, making the rows is spread out as well."""
    return b"[" + await _join(dump(row) for row in rows) + b"]"


async def dump_object(fields: Iterable[tuple[str, object]]) -> bytes:
    """Encode an object of many fields in the same way."""
    return b"{" + await _join(dump(name) + b":" + dump(value) for name, value in fields) + b"}"


async def _join(encoded: Iterator[bytes]) -> bytes:
    pieces: list[bytes] = []
    for piece in encoded:
        pieces.append(piece)
        if len(pieces) % SLICE == 0:
            await trio.lowlevel.checkpoint()
    return b",".join(pieces)


def parse(text: bytes) -> object:
    """Decode JSON as RFC 8259 has it: without NaN and infinities, which Python would take.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
