"""Messages: what users build, and the ids that the whole backbone counts on."""

from __future__ import annotations

import os
import time
from typing import cast

import pytest

from quicflow_trio import Ack, AckStatus, Delivery, Message, MessageType
from quicflow_trio.message import _ids, _IdSource


def test_the_three_kinds() -> None:
    for build, kind in (
        (Message.command, MessageType.COMMAND),
        (Message.event, MessageType.EVENT),
        (Message.query, MessageType.QUERY),
    ):
        message = build(b"payload", delivery=Delivery.REDELIVER)
        assert (message.type, message.payload, message.delivery, message.sender) == (kind, b"payload", Delivery.REDELIVER, "")
        assert build().payload == b""
        assert build().delivery is Delivery.AT_MOST_ONCE


def test_ids_are_unique_and_ordered_and_name_the_process() -> None:
    ids = [Message.event().id for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert ids == sorted(ids)
    assert {len(one) for one in ids} == {16}
    assert len({one[8:] for one in ids}) == 1


def test_ids_grow_while_the_wall_clock_stands_still_or_jumps_back() -> None:
    source = _IdSource()
    ids = [source.next_id(now) for now in (1000, 1000, 500, 2000, 1)]
    assert [int.from_bytes(one[:8], "big") for one in ids] == [1000, 1001, 1002, 2000, 2001]


def test_a_forked_child_does_not_go_on_with_its_parents_ids() -> None:
    source = _IdSource()
    before = source.next_id(1)[8:]
    source.renew_node()
    assert source.next_id(1)[8:] != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.realtime
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_renews_the_node() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, _ids.next_id(1)[8:])
        os._exit(0)
    os.waitpid(child, 0)
    node = os.read(read, 8)
    os.close(read)
    os.close(write)
    assert len(node) == 8
    assert node != _ids.next_id(1)[8:]


def test_a_copy_is_a_message_of_its_own() -> None:
    message = Message(MessageType.QUERY, b"x", delivery=Delivery.REDELIVER, sender="somebody", timestamp=1)
    copy = message.copy()
    assert (copy.type, copy.payload, copy.delivery) == (message.type, message.payload, message.delivery)
    assert copy.id != message.id
    assert (copy.sender, copy.timestamp > 1) == ("", True)


def test_the_payload_is_taken_as_it_is_now() -> None:
    """The caller may reuse its buffer before the message has left."""
    buffer = bytearray(b"abc")
    messages = [Message.event(one) for one in cast("list[bytes]", [buffer, memoryview(buffer), memoryview(buffer)[::2]])]
    buffer[:] = b"xyz"
    assert [message.payload for message in messages] == [b"abc", b"abc", b"ac"]
    assert all(type(message.payload) is bytes for message in messages)
    subclass = type("Bytes", (bytes,), {})(b"sub")
    assert type(Message.event(subclass).payload) is bytes


@pytest.mark.parametrize("payload", ["text", 5, None, [1], object()])
def test_a_payload_of_another_type_is_refused_where_it_is_written(payload: object) -> None:
    with pytest.raises(TypeError, match="payload must be bytes"):
        Message.command(payload)  # type: ignore[arg-type]


@pytest.mark.parametrize("id", [b"", b"short", bytes(17)])
def test_an_id_that_the_wire_cannot_carry_is_refused_where_it_is_written(id: bytes) -> None:
    """Found out when it is encoded, it would cost the whole connection."""
    with pytest.raises(ValueError, match="16 bytes"):
        Message(MessageType.EVENT, b"", id=id)


def test_a_type_is_one_of_the_known() -> None:
    assert Message(2, b"").type is MessageType.EVENT  # type: ignore[arg-type]
    for wrong in (0, 99, "command"):
        with pytest.raises(ValueError, match="is not a valid MessageType"):
            Message(wrong, b"")  # type: ignore[arg-type]


def test_it_says_what_it_is_without_its_content() -> None:
    message = Message(MessageType.COMMAND, b"secret", id=bytes(range(16)))
    assert repr(message) == "<Message COMMAND 000102030405060708090a0b0c0d0e0f 6 bytes>"


def test_timestamps_are_unix_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= Message.event().timestamp <= time.time_ns() // 1_000_000


def test_an_ack_is_a_value() -> None:
    ack = Ack(AckStatus.SUCCESS, b"x")
    assert ack == Ack(AckStatus.SUCCESS, b"x")
    with pytest.raises(AttributeError):
        ack.result = b"y"  # type: ignore[misc]
