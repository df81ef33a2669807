"""quic-backbone-v1 without IO: frames out of a stream, message ids, answers and closes in the words of both protocols."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Final

from ..wire import (
    MAX_FRAME,
    PREFIX_SIZE,
    AckFrame,
    AckStatus,
    BackboneAck,
    BackboneData,
    BackboneFrame,
    DecodeError,
    EmptyFrame,
    FrameTooLarge,
    Hollow,
    MessageType,
    decode_backbone,
    hollow,
)
from .lane_receiver import FRAME_OVERHEAD
from .outgoing import Outgoing
from .state import CloseCode

__all__ = [
    "FIRST_FRAME",
    "FOREIGN",
    "LONGEST_ID",
    "NO_CLIENT_ID",
    "NO_SESSION",
    "PAYLOAD",
    "FrameIntake",
    "Inbound",
    "Outbound",
    "Oversized",
    "ack_of",
    "answer_of",
    "close_of",
    "id_from_text",
    "id_to_text",
    "json_result",
    "meaning_of",
]

FOREIGN: Final = bytes.fromhex("51535348")
"""How streams of another application begin that servers open on the same connection; with more behind it. No frame begins so."""

PAYLOAD: Final = MAX_FRAME - FRAME_OVERHEAD
"""Longest payload that fits into a frame, bytes."""

LONGEST_ID = 256
"""Bytes of a message id: it is kept while the message is handled, and goes back with each answer."""

HEAD = 4096
"""Bytes of a frame over the limit that are kept in which its payload must begin; ids take a few hundred."""


class Oversized:
    """A DATA frame whose payload is over the limit and was thrown away as it came.

    Attributes:
        data: the rest of it.
        size: of the payload, bytes.
    """

    __slots__ = ("data", "size")

    def __init__(self, data: BackboneData, size: int) -> None:
        self.data: BackboneData = data
        self.size: int = size


class FrameIntake:
    """Reads the one frame of one direction of a stream, cut anywhere; keeps no more than ``limit`` bytes of payload.

    Attributes:
        held: bytes kept.
    """

    __slots__ = ("_arrived", "_buffer", "_hollow", "_limit", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit + FRAME_OVERHEAD
        self._buffer = bytearray()
        self._size = -1
        self._arrived = 0
        self._hollow: Hollow | None = None

    @property
    def held(self) -> int:
        """Bytes kept."""
        return len(self._buffer)

    @property
    def arrived(self) -> int:
        """Bytes of the frame that have come, its prefix included."""
        return self._arrived + (PREFIX_SIZE if self._size >= 0 else len(self._buffer))

    def feed(self, data: bytes) -> BackboneFrame | Oversized | None:
        """Take in bytes; return the frame once it is complete. What stands behind it is not looked at; do not call again then.

        Raises:
            DecodeError: it is malformed, or of a type that does not exist.
            EmptyFrame, FrameTooLarge: its length makes no sense.
        """
        buffer = self._buffer
        if self._size < 0:
            buffer += data
            if len(buffer) < PREFIX_SIZE:
                return None
            self._size = size = int.from_bytes(buffer[:PREFIX_SIZE], "big")
            if not size:
                raise EmptyFrame("frame of 0 bytes")
            if size > MAX_FRAME:
                raise FrameTooLarge(size, MAX_FRAME)
            data = bytes(buffer[PREFIX_SIZE:])
            buffer.clear()
        data = data[: self._size - self._arrived]
        if self._size > self._limit:
            return self._feed_hollow(data)
        self._arrived += len(data)
        buffer += data
        if len(buffer) < self._size:
            return None
        frame = decode_backbone(bytes(buffer))
        self._clear()
        if frame is None:
            raise DecodeError("a frame of a type that does not exist")
        return frame

    def _feed_hollow(self, data: bytes) -> Oversized | None:
        plan = self._hollow
        if plan is None:
            self._buffer += data
            self._arrived += len(data)
            if len(self._buffer) < min(HEAD, self._size):
                return None
            plan = self._hollow = hollow(bytes(self._buffer[:HEAD]))
            if plan.content_end > self._size:
                raise DecodeError("a message is cut off")
            if self._size - (plan.end - plan.start) > self._limit:
                raise FrameTooLarge(self._size, self._limit)
            # What the head holds of the payload, and of what follows it.
            del self._buffer[plan.start : plan.end]
        else:
            first, last = max(plan.start - self._arrived, 0), max(plan.end - self._arrived, 0)
            self._buffer += data[:first] + data[last:]
            self._arrived += len(data)
        if self._arrived < self._size:
            return None
        found = Oversized(plan.fill(bytes(self._buffer)), plan.end - plan.start)
        self._clear()
        return found

    def _clear(self) -> None:
        self._buffer = bytearray()


# -- streams ---------------------------------------------------------------------------------------------------------------
class Inbound:
    """A stream that the peer has opened.

    Attributes:
        stream_id: the stream.
        intake: reads its frame; None once that is complete, or given up.
        arrived: bytes that have come.
        finished: true once our half is finished, or the peer reads it no more.
        over: true once the peer's half is.
        msg_id: of the message that is to be answered.
    """

    __slots__ = ("arrived", "finished", "intake", "msg_id", "over", "stream_id")

    def __init__(self, stream_id: int, limit: int) -> None:
        self.stream_id: int = stream_id
        self.intake: FrameIntake | None = FrameIntake(limit)
        self.arrived: int = 0
        self.finished: bool = False
        self.over: bool = False
        self.msg_id: str = ""


class Outbound:
    """A stream that this side has opened.

    Attributes:
        outgoing: the message on it; None for a ping, or a late answer.
        intake: reads the answer; None once there is one, or none is wanted.
        arrived: bytes that have come.
        msg_id: of the message.
        pinged_at: when a ping went out (Trio clock); None for anything else.
        copy_size: bytes of the answer on it, if it is the copy of one.
    """

    __slots__ = ("arrived", "copy_size", "intake", "msg_id", "outgoing", "pinged_at")

    def __init__(self, outgoing: Outgoing | None, intake: FrameIntake | None, pinged_at: float | None = None) -> None:
        self.outgoing: Outgoing | None = outgoing
        self.intake: FrameIntake | None = intake
        self.arrived: int = 0
        self.msg_id: str = "" if outgoing is None else id_to_text(outgoing.message.id)
        self.pinged_at: float | None = pinged_at
        self.copy_size: int = 0


# -- ids -------------------------------------------------------------------------------------------------------------------
def id_to_text(id: bytes) -> str:
    """Return a message id as this protocol writes it."""
    text = id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def id_from_text(text: str) -> bytes:
    """Return the 16 bytes that stand for a message id here: those of the UUID, or always the same ones for a text that is none."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_OID, text).bytes


# -- answers ---------------------------------------------------------------------------------------------------------------
_STATUS: Final[Mapping[int, int]] = {
    int(status): int(status) for status in (AckStatus.SUCCESS, AckStatus.FAILURE, AckStatus.TIMEOUT)
}


def json_result(msg_id: str, status: int, result: bytes) -> bytes:
    """Return a handler's result as the original's clients and servers write it into an answer."""
    return json.dumps({"msg_id": msg_id, "status": status, "result": base64.b64encode(result).decode()}).encode()


def _from_json(msg_id: str, text: bytes) -> tuple[int, bytes] | None:
    """Read what `json_result` makes for this message; None for anything else, which is a result as it stands."""
    if not text.startswith(b"{") or msg_id.encode() not in text:
        return None
    try:
        values = json.loads(text)
        if values.get("msg_id") != msg_id or not values.keys() <= {"msg_id", "status", "result", "error"}:
            return None
        status = values.get("status", 1)
        if isinstance(status, str):
            status = AckStatus[status.upper().removeprefix("ACK_STATUS_")]
        if not isinstance(status, int):
            return None
        return int(status), base64.b64decode(values.get("result") or "", validate=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def answer_of(frame: BackboneAck | BackboneData, msg_id: str, seq: int) -> AckFrame:
    """Return what an answer to message ``seq`` says in the words of quicflow/2: an ACK, or DATA whose payload is the result."""
    if isinstance(frame, BackboneData):
        if frame.type != MessageType.RESPONSE:
            return AckFrame(1, seq, AckStatus.FAILURE, b"", f"answered by a message of type {frame.type}")
        status, result, error = int(AckStatus.SUCCESS), frame.payload, ""
    else:
        status, result, error = _STATUS.get(frame.status, AckStatus.FAILURE), frame.result, frame.error
    plain = _from_json(msg_id, result)
    if plain is not None:
        # The worse of the two.
        status, result = max(status, _STATUS.get(plain[0], AckStatus.FAILURE)), plain[1]
    return AckFrame(1, seq, int(status), result, error)


def ack_of(frame: AckFrame, msg_id: str, *, as_json: bool) -> BackboneAck:
    """Return an ack of quicflow/2 as an answer of this protocol, which has fewer words for failures and no hint to try again."""
    status = _STATUS.get(frame.status, int(AckStatus.FAILURE))
    result = frame.result if status == frame.status else b""
    if as_json and result:
        result = json_result(msg_id, status, result)
        if len(result) > PAYLOAD:
            error = f"a result of {len(frame.result):,} bytes takes {len(result):,} as JSON, the limit is {PAYLOAD:,}"
            return BackboneAck(msg_id, int(AckStatus.FAILURE), b"", error)
    return BackboneAck(msg_id, status, result, frame.error)


# -- closes ----------------------------------------------------------------------------------------------------------------
FIRST_FRAME: Final = "first frame must be PING"
NO_CLIENT_ID: Final = "client ID is required"
NO_SESSION: Final = "failed to create session"
_REPLACED: Final = "a newer connection uses this client id"

_NORMAL_CLOSES: Final = {
    CloseCode.NORMAL: "client disconnect",
    CloseCode.SHUTDOWN: "server shutdown",
    CloseCode.HEARTBEAT_TIMEOUT: "heartbeat timeout",
}
_MEANINGS: Final = {
    (0, "server shutdown"): CloseCode.SHUTDOWN,
    (0, "heartbeat timeout"): CloseCode.HEARTBEAT_TIMEOUT,
    (0, "client disconnect"): CloseCode.NORMAL,
    (1, FIRST_FRAME): CloseCode.PROTOCOL_ERROR,
    (1, NO_CLIENT_ID): CloseCode.REJECTED,
    # The session of an earlier connection is still there: later it may not be.
    (1, NO_SESSION): CloseCode.OVERLOADED,
    (1, _REPLACED): CloseCode.SESSION_REPLACED,
}


def close_of(code: CloseCode, reason: str) -> tuple[int, str]:
    """Return the code and the reason of a close as this protocol has them."""
    if code is CloseCode.NORMAL:
        return 0, reason or _NORMAL_CLOSES[code]
    if code in _NORMAL_CLOSES:
        return 0, _NORMAL_CLOSES[code]
    return 1, reason


def meaning_of(code: int, reason: str) -> CloseCode:
    """Return what a peer's close means in the words of quicflow/2."""
    return _MEANINGS.get((code, reason), CloseCode.PROTOCOL_ERROR if code else CloseCode.NORMAL)
