"""What the simulated programs do with messages: handlers that are quick, slow, stuck or fail, and note it."""

from __future__ import annotations

import struct

import trio

from ..message import MessageType
from ..router import Request, Router
from .history import Happened
from .process import Process

__all__ = ["answer_to", "make_payload", "make_router", "number_of"]

_HEAD = struct.Struct(">Q")
_EVERY_FAILING = 37
_EVERY_STUCK = 3


class _OnPurpose(Exception):
    """What a failing handler raises."""


def make_payload(number: int, size: int) -> bytes:
    """Return a payload of about ``size`` bytes that names its message."""
    return _HEAD.pack(number) + bytes(size)


def number_of(payload: bytes) -> int:
    """Return the number of the message with this payload."""
    number: int = _HEAD.unpack_from(payload)[0]
    return number


def answer_to(number: int) -> bytes:
    """Return what a handler answers, so that its sender can tell it from the answer to another."""
    return b"handled " + _HEAD.pack(number)


def make_router(process: Process) -> Router:
    """Return the handlers of one life: commands and queries overlap, events of one lane follow each other."""
    router = Router()

    async def handle(request: Request) -> bytes:
        number = number_of(request.message.payload)
        detail = "redelivered" if request.redelivered else ""
        process.note(Happened.STARTED, number, peer=request.message.sender, detail=detail)
        outcome = "cancelled"
        try:
            await _work(process, number, is_event=request.message.type is MessageType.EVENT)
            outcome = "failed"
            if number % _EVERY_FAILING == 0:
                raise _OnPurpose
            outcome = "ok"
        finally:
            process.note(Happened.ENDED, number, detail=outcome)
        return answer_to(number)

    router.add(MessageType.COMMAND, handle)
    router.add(MessageType.QUERY, handle)
    router.add(MessageType.EVENT, handle, serial=True)
    return router


async def _work(process: Process, number: int, *, is_event: bool) -> None:
    conditions = process.conditions
    if conditions.stuck and number % _EVERY_STUCK == 0:
        await trio.sleep_forever()
    if is_event and conditions.reading:
        await trio.sleep(conditions.reading)
    elif conditions.slow:
        # Spread by the number of the message, so that they overtake each other.
        await trio.sleep(conditions.slow * (number * 7 % 11) / 10)
    elif number % 5 == 0:
        await trio.sleep(0.01)
    # All others end without a checkpoint, which is a path of its own.
