"""The generated classes: the original's vectors, and what importing them brings along."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quicflow_trio.wire.proto.quic.backbone import v1
from quicflow_trio.wire.proto.quicflow import v2
from tests.wire.reference import SCHEMA

NOW = 1_700_000_000_000

VECTORS = {
    "0000000f080112040a0263311880d095ffbc31": (v1.FrameType.PING, v1.PingFrame(client_id="c1")),
    "00000012080212070880d095ffbc311880d095ffbc31": (v1.FrameType.PONG, v1.PongFrame(server_time=NOW)),
    "0000002a0803121f0a026d3112067365727665721a02633120012a02686930013880d095ffbc311880d095ffbc31": (
        v1.FrameType.DATA,
        v1.DataMessage(
            msg_id="m1",
            sender_id="server",
            receiver_id="c1",
            type=v1.MessageType.COMMAND,
            payload=b"hi",
            wait_ack=True,
            timestamp=NOW,
        ),
    ),
    "000000150804120a0a026d3110011a026f6b1880d095ffbc31": (
        v1.FrameType.ACK,
        v1.AckMessage(msg_id="m1", status=v1.AckStatus.SUCCESS, result=b"ok"),
    ),
}


@pytest.mark.parametrize("vector", VECTORS)
def test_the_originals_bytes(vector: str) -> None:
    data = bytes.fromhex(vector)
    kind, inner = VECTORS[vector]
    body = bytes(v1.Frame(type=kind, payload=bytes(inner), timestamp=NOW))
    assert len(body).to_bytes(4, "big") + body == data
    frame = v1.Frame.parse(data[4:])
    assert (frame.type, frame.timestamp) == (kind, NOW)
    assert type(inner).parse(frame.payload) == inner


def test_the_originals_enums() -> None:
    expected = {
        v1.FrameType: ["UNSPECIFIED", "PING", "PONG", "DATA", "ACK"],
        v1.MessageType: ["UNSPECIFIED", "COMMAND", "EVENT", "QUERY", "RESPONSE"],
        v1.AckStatus: ["UNSPECIFIED", "SUCCESS", "FAILURE", "TIMEOUT"],
    }
    for kind, names in expected.items():
        assert [(item.name, item.value) for item in kind] == [(name, number) for number, name in enumerate(names)]


def test_the_schema_of_the_tests_has_every_message() -> None:
    assert sorted({*SCHEMA, "MessageType", "AckStatus"}) == sorted(v2.__all__)


def test_the_package_brings_no_grpc_and_no_compiler_along() -> None:
    program = (
        "import sys, quicflow_trio.wire\n"
        "from quicflow_trio.wire.proto.quic.backbone import v1\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'grpclib', 'grpc_tools', 'google')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
