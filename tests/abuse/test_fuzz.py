"""A short fuzz of each target, the inputs of the corpus, and the proof that the fuzzer sees what it is there to see.

`nox -s fuzz` is the long one. Random, truncated and mutated datagrams, encrypted packets and application frames all come from fixed seeds
here; hypothesis shrinks what it finds, the seeded runs reach states that take many inputs.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from quicflow_trio.quic.hardened import HardenedConnection
from quicflow_trio.testing import seeded
from quicflow_trio.wire import encode
from tests.abuse.fuzz import CORPUS, COUNTS, fuzz, read_corpus, write_finding
from tests.abuse.mutate import quic_frame
from tests.abuse.targets import Finding, Meter, open_target, prefixed
from tests.quic.harness import varint
from tests.wire.reference import FRAMES

SHORT = {"datagrams": 4000, "packets": 800, "frames": 2000}


def run(function: Callable[..., object], *args: object, **options: object) -> None:
    trio.run(partial(function, **options), *args, clock=MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def report(meter: Meter) -> str:
    return "\n".join(f"{one.where}: {one.what}\n{one.data.hex()}" for one in meter.findings[:3])


@pytest.mark.parametrize("target", COUNTS)
@seeded(7)
def test_nothing_escapes_and_nothing_takes_long(target: str) -> None:
    """Bound: no exception, and 50 ms of CPU for each input."""
    meter = Meter()
    corpus = [data for _, _, data in read_corpus(CORPUS, target)]
    run(fuzz, target, meter, random.Random(7), corpus, inputs=SHORT[target], until=time.monotonic() + 60)
    assert not meter.findings, report(meter)
    assert meter.inputs >= SHORT[target]
    if target != "datagrams":
        assert len(meter.outcomes) >= 2, "it gets behind the first check"


async def feed(target: str, inputs: list[tuple[str, bytes]], meter: Meter) -> None:
    async with open_target(target, meter, []) as opened:
        for where, data in inputs:
            await opened.feed(where, data)


@pytest.mark.parametrize("target", COUNTS)
def test_the_corpus(target: str) -> None:
    """What once broke something stays mended."""
    inputs = [(where, data) for _, where, data in read_corpus(CORPUS, target)]
    assert inputs
    meter = Meter()
    run(feed, target, inputs, meter)
    assert not meter.findings, report(meter)


# -- the same with hypothesis, which shrinks ------------------------------------------------------------------------------
LENGTHS = st.sampled_from([0, 1, 7, 8, 20, 21, 255])
LONG_HEADER = st.builds(
    lambda first, version, one, other, rest: bytes((0x80 | first,)) + version + one + other + rest,
    st.integers(0, 127),
    st.sampled_from([(1).to_bytes(4, "big"), bytes(4), b"\x6b\x33\x43\xcf", b"\x0a\x0a\x0a\x0a"]),
    st.builds(lambda size, data: bytes((size,)) + data, LENGTHS, st.binary(max_size=30)),
    st.builds(lambda size, data: bytes((size,)) + data, LENGTHS, st.binary(max_size=30)),
    st.binary(max_size=1200),
)
NUMBER = st.one_of(st.integers(0, 24), st.sampled_from([63, 64, 16_383, 2**30, 2**60, 2**60 + 1, 2**62 - 1])).map(varint)
FRAME = st.one_of(
    st.randoms(use_true_random=False).map(quic_frame),
    st.builds(
        lambda kind, numbers, data: varint(kind) + b"".join(numbers) + data,
        st.integers(0, 70),
        st.lists(NUMBER, max_size=7),
        st.binary(max_size=60),
    ),
)


@given(datagrams=st.lists(st.one_of(st.binary(max_size=1500), LONG_HEADER), min_size=1, max_size=20))
@settings(max_examples=40)
def test_any_datagrams(datagrams: list[bytes]) -> None:
    meter = Meter()
    run(feed, "datagrams", [("server", one) for one in datagrams] + [("client", one) for one in datagrams], meter)
    assert not meter.findings, report(meter)


@given(
    packets=st.lists(st.lists(FRAME, min_size=1, max_size=4).map(b"".join), min_size=1, max_size=20),
    where=st.sampled_from(["server", "client"]),
)
@settings(max_examples=40)
def test_any_packets(packets: list[bytes], where: str) -> None:
    meter = Meter()
    run(feed, "packets", [(where, one[:1000]) for one in packets], meter)
    assert not meter.findings, report(meter)


BODY = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda frame: encode(frame)[4:], FRAMES),
    st.builds(
        lambda frame, where, byte: _with_byte(encode(frame)[4:], where, byte), FRAMES, st.integers(0, 400), st.integers(0, 255)
    ),
)


def _with_byte(body: bytes, where: int, byte: int) -> bytes:
    where %= len(body)
    return body[:where] + bytes((byte,)) + body[where + 1 :]


@given(inputs=st.lists(st.tuples(st.sampled_from(["hello", "client", "0", "1", "4", "8", "56"]), BODY), min_size=1, max_size=30))
@settings(max_examples=12)
def test_any_frames_and_hellos(inputs: list[tuple[str, bytes]]) -> None:
    meter = Meter()
    run(feed, "frames", [(where, prefixed(body)) for where, body in inputs], meter)
    assert not meter.findings, report(meter)


# -- the fuzzer itself --------------------------------------------------------------------------------------------------
def test_what_escapes_and_what_takes_long_is_found() -> None:
    meter = Meter()

    def broken() -> None:
        raise IndexError("escaped")

    def slow() -> None:
        started = time.thread_time()
        while time.thread_time() - started < 0.06:
            pass

    assert not meter.call("server", b"one", broken)
    assert meter.call("server", b"two", slow)
    assert meter.call("server", b"three", lambda: None)
    assert [(one.data, one.what.splitlines()[-1].split(" ")[0]) for one in meter.findings] == [
        (b"one", "IndexError:"),
        (b"two", "took"),
    ]
    assert meter.inputs == 3


def test_what_the_last_net_catches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    payload_received = HardenedConnection._payload_received

    def stumble(core: HardenedConnection, context: Any, plain: bytes, **options: Any) -> Any:
        if plain.startswith(b"\x01stumble"):
            raise KeyError("no such thing")
        return payload_received(core, context, plain, **options)

    monkeypatch.setattr(HardenedConnection, "_payload_received", stumble)
    meter = Meter()
    run(feed, "packets", [("server", b"\x01stumble"), ("initial", b"\x01stumble"), ("server", b"\x01")], meter)
    assert [one.what for one in meter.findings] == ["caught by the last net: KeyError on a packet"] * 2


def test_a_finding_joins_the_corpus(tmp_path: Path) -> None:
    path = write_finding(tmp_path, "frames", Finding("4", b"\x01\x02", "Traceback ...\nKeyError: 'x'"))
    assert json.loads(path.read_text()) == {"where": "4", "note": "KeyError: 'x'", "data": "0102"}
    assert list(read_corpus(tmp_path, "frames")) == [(path, "4", b"\x01\x02")]
    assert list(read_corpus(tmp_path, "packets")) == []
