"""What an aioquic connection sends once its handshake is confirmed: credit, the order of streams, and packets at less than half the price.

Stock builds a packet to find out that there is nothing to put into it: after every packet that it sends, and after every one that it
receives. That is a third of what sending costs. Here a look comes first, and what is sent once in a connection's life (connection ids,
path challenges, resets) is left to stock's own code.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic import tls
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    Limit,
    QuicConnection,
    QuicNetworkPath,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from .limits import STANDSTILL, Windows

__all__ = ["LeanSender"]


class _StreamQueue(list[QuicStream]):
    """The order in which streams are served: by id within one packet's set, and stream 0 (control) before all others."""

    def extend(self, streams: Iterable[QuicStream]) -> None:
        """Put the streams just served at the end, the control stream back to the front."""
        for stream in sorted(streams, key=_stream_id):
            self.append(stream)

    def append(self, stream: QuicStream) -> None:
        """Add a stream at the end, the control stream at the front."""
        if stream.stream_id:
            super().append(stream)
        else:
            self.insert(0, stream)


def _has_data(stream: QuicStream) -> bool:
    sender = stream.sender
    # Stock calls a buffer empty only once it has looked for more in vain, or when the stream was reset.
    return not sender.buffer_is_empty and not stream.is_blocked and (len(sender._pending) > 0 or sender._pending_eof)


def _stream_id(stream: QuicStream) -> int:
    return stream.stream_id or 0


class LeanSender(QuicConnection):
    """The sending half of `hardened.HardenedConnection`.

    Attributes:
        wrote: true when stream data was written since the last transmit.
        plain: true in a transmit that has nothing but ACKs, credit, probes and stream data to send.
        held: bytes that have come and are not given back as credit of the connection yet.
    """

    held: int = 0
    plain: bool = False
    _windows: Windows
    _shrunk: dict[int, int]

    # -- receive credit ----------------------------------------------------------------------------------------------
    def grant(self, stream: QuicStream, limit: int, window: int = 0) -> bool:
        """Raise what the peer may send on a stream to offset ``limit``; return whether a packet for that alone is worth while.

        ``window`` is how far ahead that is meant to be; 0 is the initial window.
        """
        if window:
            self._shrunk[stream.stream_id or 0] = window
        elif self._shrunk:
            self._shrunk.pop(stream.stream_id or 0, None)
        if limit > stream.max_stream_data_local:
            stream.max_stream_data_local = limit
        return self._grant_due(stream, alone=True)

    def _grant_due(self, stream: QuicStream, *, alone: bool) -> bool:
        announced = stream.max_stream_data_local_sent
        fresh = stream.max_stream_data_local - announced
        receiver = stream.receiver
        if fresh <= 0 or receiver._final_size is not None or receiver.is_finished:
            return False
        window = self._windows.stream_out if (stream.stream_id or 0) & 1 != self._is_client else self._windows.stream_in
        if self._shrunk:
            window = min(window, self._shrunk.get(stream.stream_id or 0, window))
        # The middle condition: a peer that has used up all it was told of, or nearly, waits for whatever there is, however little.
        return fresh * 4 >= window or announced - receiver.highest_offset <= STANDSTILL or (not alone and fresh * 8 >= window)

    def _write_stream_limits(
        self,
        builder: QuicPacketBuilder,
        space: QuicPacketSpace,
        stream: QuicStream,
    ) -> None:
        # Stock doubles the window on arrival, read or not, and its buffer is dense: eleven frames of one byte took 537 MB.
        if self._grant_due(stream, alone=builder.packet_is_empty):
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            buf.push_uint_var(stream.stream_id or 0)
            buf.push_uint_var(stream.max_stream_data_local)
            stream.max_stream_data_local_sent = stream.max_stream_data_local

    def _data_limit_due(self, *, alone: bool) -> bool:
        # Stock doubles this one too. Received + a constant holds the peer to the sum of its streams, which the constant exceeds.
        data, window = self._local_max_data, self._windows.connection
        data.value = max(data.value, data.used + window - self.held)
        fresh = data.value - data.sent
        return fresh * 4 >= window or (not alone and fresh * 8 >= window)

    def _stream_limit_due(self) -> bool:
        # As stock: wait until the peer has fewer streams left to open than the update would grant.
        streams = self._local_max_streams_bidi
        return streams.sent - streams.used < streams.value - streams.sent

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        if self._data_limit_due(alone=builder.packet_is_empty):
            self._write_limit(builder, self._local_max_data)
        if self._stream_limit_due():
            self._write_limit(builder, self._local_max_streams_bidi)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buf = builder.start_frame(
            limit.frame_type,
            capacity=CONNECTION_LIMIT_FRAME_CAPACITY,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buf.push_uint_var(limit.value)
        limit.sent = limit.value

    # -- order -------------------------------------------------------------------------------------------------------
    @property
    def _streams_queue(self) -> _StreamQueue:
        # Stock refills the queue from a set of objects: its order, and so the trace of a simulation, depends on their addresses.
        return self._queue

    @_streams_queue.setter
    def _streams_queue(self, streams: list[QuicStream]) -> None:
        self._queue = _StreamQueue(streams)

    # -- packets -----------------------------------------------------------------------------------------------------
    def nothing_to_send(self, now: float) -> bool:
        """Return True when a packet would stay empty; False when it might not."""
        self.plain = self._handshake_confirmed and not self._has_rarities()
        if not self.plain or self._close_pending or len(self._network_paths) != 1:
            return False
        return not self._has_news(self._spaces[tls.Epoch.ONE_RTT], now)

    def _has_rarities(self) -> bool:
        """Return True for everything but ACKs, credit, probes and stream data."""
        path = self._network_paths[0]
        if (
            not path.is_validated
            or path.remote_challenges
            or self._handshake_done_pending
            or self._retire_connection_ids
            or self._streams_blocked_pending
            or self._ping_pending
            or self._remote_preferred_address is not None
            or not self._crypto_streams[tls.Epoch.ONE_RTT].sender.buffer_is_empty
        ):
            return True
        # No generators: this runs for every turn.
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                return True
        for stream in self._queue:
            if stream.receiver.stop_pending or stream.sender.reset_pending:
                return True
            if stream.is_finished:
                self._discard_finished()
                return self._has_rarities()
        return False

    def _discard_finished(self) -> None:
        """Forget the streams that are finished both ways, and let the peer open as many new ones."""
        # Stock does it while it writes a packet, in a pass over all streams that writes what is of no use.
        rest = _StreamQueue()
        for stream in self._queue:
            if stream.is_finished:
                stream_id = stream.stream_id or 0
                del self._streams[stream_id]
                if stream_id & 1 == self._is_client:
                    self._local_max_streams_bidi.value += 1
            else:
                list.append(rest, stream)
        self._queue = rest

    def _has_news(self, space: QuicPacketSpace, now: float) -> bool:
        """Return True for an ACK that is due, a probe, credit worth a packet, or stream data."""
        if (space.ack_at is not None and space.ack_at <= now) or self._probe_pending:
            return True
        if self._data_limit_due(alone=True) or self._stream_limit_due():
            return True
        for stream in self._queue:  # noqa: SIM110
            if _has_data(stream) or self._grant_due(stream, alone=True):
                return True
        return False

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        if not self.plain:
            super()._write_application(builder, network_path, now)
            return
        space = self._spaces[tls.Epoch.ONE_RTT]
        crypto = self._cryptos[tls.Epoch.ONE_RTT]
        pacer = self._loss._pacer
        while self._has_news(space, now):
            # An ACK does not wait for the pacer.
            if space.ack_at is None or space.ack_at >= now:
                self._pacing_at = pacer.next_send_time(now=now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            if space.ack_at is not None and space.ack_at <= now:
                self._write_ack_frame(builder=builder, space=space, now=now)
            self._write_connection_limits(builder, space)
            for stream in self._queue:
                self._write_stream_limits(builder, space, stream)
            if self._probe_pending:
                self._write_ping_frame(builder, comment="probe")
                self._probe_pending = False
            self._write_streams(builder, space)
            if builder.packet_is_empty:
                # There is no room for what there is: the congestion window or the peer's credit is used up.
                return
            pacer.update_after_send(now=now)

    def _write_streams(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        served: list[QuicStream] = []
        try:
            for stream in self._queue:
                if not _has_data(stream):
                    continue
                room = self._remote_max_data - self._remote_max_data_used
                limit = min(stream.sender.highest_offset + room, stream.max_stream_data_remote)
                used = self._write_stream_frame(builder, space, stream, limit)
                if used > 0:
                    self._remote_max_data_used += used
                    served.append(stream)
        finally:
            if served and len(self._queue) > 1:
                rest = _StreamQueue(stream for stream in self._queue if stream not in served)
                rest.extend(served)
                self._queue = rest
