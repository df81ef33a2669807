"""What encoding and decoding cost, without a connection: `python -m benchmarks.codec --help`."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.harness.hiccups import watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.results import Report, Row
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import Common, Count, finish, make_app, rounds_text, run_app
from quicflow_trio import Message
from quicflow_trio.wire import AckFrame, AckStatus, FrameReader, MessageFrame, decode, encode

app = make_app("codec")

BATCH = 16
"""Frames that stand in what one read of a busy connection brings."""


def message_frame(size: int) -> MessageFrame:
    """Return a message as a client sends it after some thousands."""
    message = Message.command(bytes(size))
    return MessageFrame(
        seq=70_000, id=message.id, type=message.type, payload=message.payload, wants_ack=True, timestamp=message.timestamp
    )


def ack_frame(size: int) -> AckFrame:
    """Return an ack whose result has this size."""
    return AckFrame(ack_seq=70_000, seq=69_990, status=AckStatus.SUCCESS, result=bytes(size))


def nanoseconds(call: Callable[[], Any], loops: int) -> float:
    """Return what one call costs: the best of five, since whatever disturbs makes it longer, and never shorter."""
    timer = timeit.Timer("call()", globals={"call": call})
    empty = timeit.Timer("call()", globals={"call": lambda: None})
    return max(0.0, min(timer.repeat(5, loops)) - min(empty.repeat(5, loops))) / loops * 1e9


def deframe(data: bytes) -> list[bytes]:
    """Cut what a connection brought into frames, as each lane does."""
    reader = FrameReader(1024 * 1024)
    reader.feed(data)
    return reader.frames()


def operations(sizes: tuple[int, ...]) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name."""
    calls: dict[str, Callable[[], Any]] = {}
    for kind, build in (("message", message_frame), ("ack", ack_frame)):
        for size in sizes:
            frame = build(size)
            (body,) = deframe(encode(frame))
            calls[f"encode {kind}, {size:,} bytes"] = partial(encode, frame)
            calls[f"decode {kind}, {size:,} bytes"] = partial(decode, body)
    framed = encode(message_frame(200))
    calls[f"cut {BATCH} frames of {len(framed)} bytes"] = partial(deframe, framed * BATCH)
    calls["build a Message"] = partial(Message.command, bytes(200))
    return calls


@app.default
def codec(
    *,
    size: Annotated[tuple[int, ...], Parameter(negative=())] = (0, 200, 1_000, 16_000),
    loops: Count = 20_000,
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Measure what encoding and decoding one frame costs, in nanoseconds, in one process.

    Args:
        size: payload, bytes; may be given several times.
        loops: calls of each measurement.
        common: of all sessions.
    """
    rounds = common.rounds_or(5)
    sides = {name: partial(nanoseconds, call, common.scaled(loops)) for name, call in operations(size).items()}
    with watch_hiccups() as log:
        found = run_rounds(sides, rounds, log=log, warm_up=False)
    report = Report(
        session="codec",
        title=f"encode and decode, {rounds_text(rounds)}",
        rows=tuple(Row(name, "ns", tuple(samples), better="lower") for name, samples in found.items()),
        settings={"sizes": list(size), "loops": common.scaled(loops), "rounds": rounds},
        machine=machine(),
        notes=("Each value is the best of five loops: whatever disturbs makes them longer. The call itself is subtracted.",),
        compared=False,
    )
    finish(report, common)


if __name__ == "__main__":
    run_app(app)
