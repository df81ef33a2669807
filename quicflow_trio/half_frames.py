"""Frames of quic-backbone-v1 that have begun and are not complete: how much of them is kept."""

from __future__ import annotations

from typing import Final

from .config import Limits
from .dialect import Host
from .link import Link
from .protocol.backbone1 import FrameIntake, Inbound, Oversized
from .protocol.lane_receiver import FRAME_OVERHEAD
from .quic.engine import Engine
from .wire import BackboneFrame, DecodeError, EmptyFrame, FrameTooLarge

__all__ = ["BAD_FRAMES", "THROWN_AWAY", "HalfFrames"]

THROWN_AWAY: Final = 1
"""Application code of streams that are given up unread."""

BAD_FRAMES = (DecodeError, EmptyFrame, FrameTooLarge)


class HalfFrames:
    """A part of `exchanges.Exchanges`, which sets the attributes: takes frames together."""

    _engine: Engine
    _gather_limit: int
    _gathered: int
    _host: Host
    _limits: Limits
    _link: Link
    _receive_due: bool

    def _take(self, stream: Inbound, frame: BackboneFrame | Oversized) -> None:
        raise NotImplementedError

    def _finish(self, stream: Inbound, frame: BackboneFrame | None = None) -> None:
        raise NotImplementedError

    def _read(self, stream: Inbound, intake: FrameIntake, data: bytes) -> None:
        before = intake.held
        self._gathered -= before
        try:
            frame = intake.feed(data)
            if frame is None:
                if stream.over:
                    raise DecodeError("a frame is cut off")
                if self._gathered + intake.held > (limit := self._most_gathered()):
                    self._throw_away(stream)
                    raise FrameTooLarge(self._gathered + intake.held, limit)
                self._gathered += intake.held
                self._link.note_held(intake.held - before)
                self._receive_due = True
                return
        except BAD_FRAMES as error:
            stream.intake = None
            self._link.note_held(-before)
            self._host.note_error(error)
            self._finish(stream)
            return
        stream.intake = None
        self._link.note_held(-before)
        self._take(stream, frame)

    def _most_gathered(self) -> int:
        """Return how much of what is incomplete may be kept: less when the whole process holds much, but one message always."""
        most = self._gather_limit * self._link.window() // self._limits.lane_window
        return max(most, self._limits.payload + FRAME_OVERHEAD)

    def _throw_away(self, stream: Inbound) -> None:
        """Give a stream up unread. Not finished, which would say that its message was read."""
        self._engine.reset(stream.stream_id, THROWN_AWAY)
        self._engine.stop(stream.stream_id, THROWN_AWAY)
        stream.finished = True
