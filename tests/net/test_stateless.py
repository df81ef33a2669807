"""What a server answers without a connection is bounded in number: whoever floods it chooses who gets the answers."""

from __future__ import annotations

from quicflow_trio.net.stateless import RETRIES_PER_SECOND, Answer, AnswerKind, Doorkeeper
from quicflow_trio.quic.routing import Header

INITIAL = b"\xc0\0\0\0\1\x08" + bytes(8) + b"\0\0" + bytes(1200)
HEADER = Header(True, 1, bytes(8), b"", True, len(INITIAL))
ADDRESS = ("192.0.2.1", 1234)


def answered(doorkeeper: Doorkeeper, count: int, now: float) -> int:
    answers = [doorkeeper.admit(HEADER, INITIAL, ADDRESS, now) for _ in range(count)]
    assert all(isinstance(answer, Answer) and answer.kind is AnswerKind.RETRY for answer in answers)
    return sum(answer[1] is not None for answer in answers)


def test_retries_are_bounded_in_number() -> None:
    doorkeeper, cap = Doorkeeper(must_retry=lambda now: True), round(RETRIES_PER_SECOND)
    assert answered(doorkeeper, cap + 100, 1.0) == cap
    assert answered(doorkeeper, cap, 1.5) == cap // 2
    assert answered(doorkeeper, cap + 100, 9.0) == cap, "what was not used is not saved up"
