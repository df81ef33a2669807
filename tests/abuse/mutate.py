"""Bad input out of good: what the fuzzer feeds. Everything comes from one `random.Random`, so a seed gives one sequence."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.quic.harness import varint

# Where lengths, numbers and types turn into others.
EDGES = (0, 1, 2, 3, 4, 5, 8, 15, 16, 20, 21, 63, 64, 127, 128, 255, 256, 1199, 1200, 16_383, 16_384, 65_535, 65_536)
WIDE = (2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**60, 2**60 + 1, 2**62 - 1)
BYTES = (0x00, 0x01, 0x02, 0x06, 0x08, 0x0A, 0x1C, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xC3, 0xFE, 0xFF)


def number(rng: random.Random, limit: int = 2**62 - 1) -> int:
    """Return a number of any size up to the limit, those at the edges more often."""
    kind = rng.random()
    if kind < 0.5:
        return min(rng.choice(EDGES), limit)
    if kind < 0.7:
        return min(rng.choice(WIDE), limit)
    return rng.getrandbits(rng.randint(1, 62)) % (limit + 1)


def noise(rng: random.Random, most: int) -> bytes:
    """Return up to ``most`` bytes without meaning, short ones more often."""
    size = min(most, rng.choice((0, 1, 2, 4, 8, 16, 20, 40, 100, 300, 1200, most)))
    return rng.randbytes(rng.randint(0, size))


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Return the data with one to four changes: bits flipped, bytes set, cut, doubled, moved, or another's in their place."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(rng, changed, others)
    return bytes(changed)


def _change(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    # The first bytes decide most: headers, lengths, types.
    where = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 30) + 1)
    kind = rng.randrange(8)
    if kind == 0 and where < len(data):
        data[where] ^= 1 << rng.randrange(8)
    elif kind == 1 and where < len(data):
        data[where] = rng.choice(BYTES)
    elif kind == 2:
        del data[where : where + rng.choice((1, 2, 4, 16, len(data)))]
    elif kind == 3:
        data[where:where] = data[where : where + rng.choice((1, 4, 16, 64))] * rng.choice((1, 2, 50))
    elif kind == 4:
        data[where : where + rng.choice((0, 1, 2, 8))] = varint(number(rng))
    elif kind == 5:
        data[where:where] = noise(rng, 40)
    elif kind == 6 and others:
        other = rng.choice(others)
        data[where:] = other[rng.randrange(len(other) + 1) :]
    else:
        data[where : where + 8] = rng.randbytes(rng.randrange(9))


# -- datagrams -----------------------------------------------------------------------------------------------------------
def long_header(rng: random.Random) -> bytes:
    """Return a packet with a long header in which every field may be wrong."""
    version = rng.choice((1, 1, 1, 0x6B3343CF, 0, 0xFF00001D, 0x0A0A0A0A, rng.getrandbits(32)))
    ids = b""
    for _ in range(2):
        size = rng.choice((0, 1, 7, 8, 8, 8, 20, 21, 255))
        ids += bytes((size,)) + rng.randbytes(size if rng.random() < 0.9 else rng.randrange(256))
    token = varint(number(rng, 2**30)) + noise(rng, 60) if rng.random() < 0.5 else b"\0"
    rest = noise(rng, 1300)
    length = varint(len(rest) if rng.random() < 0.6 else number(rng))
    packet = bytes((0x80 | rng.randrange(128),)) + version.to_bytes(4, "big") + ids + token + length + rest
    return packet.ljust(1200, b"\0") if rng.random() < 0.6 else packet


# -- frames of QUIC ------------------------------------------------------------------------------------------------------
# How many numbers each frame type has, and whether bytes with a length follow (RFC 9000 section 19).
_SHAPES: dict[int, tuple[int, bool]] = {
    0x00: (0, False),
    0x01: (0, False),
    0x02: (4, False),
    0x03: (7, False),
    0x04: (3, False),
    0x05: (2, False),
    0x06: (1, True),
    0x07: (0, True),
    **{kind: (1 + bool(kind & 4), True) for kind in range(0x08, 0x10)},
    0x10: (1, False),
    0x11: (2, False),
    0x12: (1, False),
    0x13: (1, False),
    0x14: (1, False),
    0x15: (2, False),
    0x16: (1, False),
    0x17: (1, False),
    0x19: (1, False),
    0x1C: (2, True),
    0x1D: (1, True),
    0x1E: (0, False),
    0x30: (0, False),
    0x31: (0, True),
}


def quic_frame(rng: random.Random) -> bytes:
    """Return one frame of any type, mostly well-formed, with numbers that may be absurd."""
    kind = rng.choice((*_SHAPES, 0x18, 0x1A, 0x1B, rng.randrange(64), number(rng)))
    if kind == 0x18:
        size = rng.choice((8, 8, 8, 0, 1, 20, 21))
        return b"\x18" + varint(number(rng, 100)) + varint(number(rng, 100)) + bytes((size,)) + rng.randbytes(size + 16)
    if kind in (0x1A, 0x1B):
        return bytes((kind,)) + rng.randbytes(8)
    numbers, has_data = _SHAPES.get(kind, (rng.randrange(3), rng.random() < 0.3))
    # Small ones reach further: streams that exist, offsets within the window, packets that were sent.
    values = [rng.randrange(24) if rng.random() < 0.6 else number(rng) for _ in range(numbers)]
    frame = varint(kind) + b"".join(varint(value) for value in values)
    if has_data:
        data = noise(rng, 200)
        frame += (varint(len(data)) if rng.random() < 0.9 else varint(number(rng))) + data
    return frame


def quic_frames(rng: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Return the payload of one packet: frames, frames that were damaged, or noise."""
    if rng.random() < 0.05:
        return noise(rng, 1000)
    payload = b"".join(quic_frame(rng) for _ in range(rng.choice((1, 1, 2, 3, 8))))
    if rng.random() < 0.3:
        payload = mutate(rng, payload, corpus)
    return payload[:1000]
