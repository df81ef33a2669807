"""The engine contract on qh3: `client_engine` and `server_engine` make one connection each. Imported only when it is asked for.

qh3 has no call that gives the peer credit: it gives by itself when an event is taken out, and events come out in one queue for the
whole connection. So what a stream brings beyond its grant is kept here, and beyond one more window the events stay where they are,
all of them, until the grant has caught up. A peer can hold three windows a stream here instead of one, and a stream whose reader has
stopped for that long stops the connection's other streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..errors import LocalProtocolError
from .engine import (
    Address,
    ConnectionEnded,
)
from .limits import (
    Windows,
)
from .probes import ProbeBudget
from .qh3_core import Qh3Core, make_configuration
from .qh3_driver import PADDING_FRAME, Qh3Driver
from .resets import ResetKey
from .tls import TLSContext

__all__ = ["Qh3Engine", "client_engine", "server_engine"]


def client_engine(
    tls: TLSContext,
    *,
    server_name: str,
    alpn: Sequence[str],
    idle_timeout: float,
    windows: Windows,
    datagram_size: int = 1200,
    congestion: str = "reno",  # noqa: ARG001  the configuration allows no other
    probes: ProbeBudget | None = None,  # noqa: ARG001  its core sends them by itself
) -> Qh3Engine:
    """Make the client side of a connection; arguments as for `aioquic_engine.client_engine`.

    Raises:
        ConfigurationError: qh3 cannot use the private key.
    """
    configuration = make_configuration(
        tls, server_name=server_name, alpn=tuple(alpn), idle_timeout=idle_timeout, datagram_size=datagram_size
    )
    return Qh3Engine(Qh3Core(configuration, windows), is_client=True)


def server_engine(
    tls: TLSContext,
    *,
    original_destination_id: bytes,
    alpn: Sequence[str],
    idle_timeout: float,
    windows: Windows,
    datagram_size: int = 1200,
    congestion: str = "reno",  # noqa: ARG001  the configuration allows no other
    probes: ProbeBudget | None = None,  # noqa: ARG001  its core sends them by itself
    retry_source_id: bytes | None = None,
    reset_key: ResetKey | None = None,
) -> Qh3Engine:
    """Make the server side of a connection; arguments as for `aioquic_engine.server_engine`.

    Raises:
        ConfigurationError: qh3 cannot use the private key, or client certificates are asked for, which its server cannot do.
    """
    configuration = make_configuration(
        tls, server_name=None, alpn=tuple(alpn), idle_timeout=idle_timeout, datagram_size=datagram_size
    )
    return Qh3Engine(
        Qh3Core(configuration, windows, original_destination_id, retry_source_id=retry_source_id, reset_key=reset_key),
        is_client=False,
    )


class Qh3Engine(Qh3Driver):
    """`Engine` on a `Qh3Core`; see there for the contract. Made by `client_engine` and `server_engine`.

    Beyond the contract: `peer_certificate`.
    """

    # -- streams -----------------------------------------------------------------------------------------------------
    def open_stream(self) -> int:
        """Take the next stream id of this side.

        Raises:
            LocalProtocolError: the peer's stream limit is reached (before the handshake it is 0), or the connection is closing.
        """
        core = self._core
        limit = 0 if core is None or not self._handshake_done else core.stream_limits[0]
        if core is None or core.stream_limits[2] >= limit:
            raise LocalProtocolError(f"the peer allows {limit} streams, all of them were opened")
        try:
            stream_id: int = core.open_stream(False)
        except RuntimeError as error:
            raise LocalProtocolError(f"no stream can be opened: {error}") from error
        self._streams.enter(stream_id)
        return stream_id

    def write(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Append to a stream's send buffer; without effect once the connection is closing.

        Raises:
            LocalProtocolError: the stream is finished, was reset, or was never opened.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            raise LocalProtocolError(f"stream {stream_id} is finished or was never opened")
        if self._ended is not None or self._core is None:
            return
        if stream.closed:
            raise LocalProtocolError(f"stream {stream_id} was reset")
        try:
            self._core.send_stream(stream_id, data, fin)
        except RuntimeError as error:
            if self._core.state != "connected":
                return  # The peer has closed; its word stands among the events.
            raise LocalProtocolError(f"stream {stream_id}: {error}") from error
        stream.written += len(data)
        self._unsettled |= fin  # The core counts bytes only.
        self._touch()

    def credit(self, stream_id: int) -> int:
        """Return how many further bytes the peer would accept on this stream; 0 when the stream is over."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None or stream.closed else stream.limit - stream.written

    def unsent(self, stream_id: int) -> int:
        """Return how many bytes written to this stream have not left in a first packet yet."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.closed or self._core is None or self._ended is not None:
            return 0
        return self._core.get_send_buffer_size(stream_id)

    def unacked(self) -> int:
        """Return how many bytes the peer has not acknowledged: the core tells those of packets, with all that is in them."""
        core = self._core
        if core is None or self._ended is not None:
            return 0
        return core.get_send_buffer_size(None) + core.bytes_in_flight or int(self._unsettled)

    def grant(self, stream_id: int, limit: int, window: int = 0) -> bool:
        """Let what the peer sent up to offset ``limit`` be reported. The peer's credit follows by itself, about a window ahead.

        Returns:
            True when something had waited for it.
        """
        stalled = self._streams.stalled is not None
        released = self._streams.grant(stream_id, limit)
        self._found += released
        return bool(released) or (stalled and self._streams.stalled is None)

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon the sending half; no effect on a finished stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.closed:
            stream.closed = True
            self._command("reset_stream", stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to abandon its sending half; no effect on a finished stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.over:
            self._command("stop_sending", stream_id, code)

    def hold(self, size: int) -> None:
        """Change nothing: the core gives credit by itself."""

    def raise_stream_limit(self, streams: int) -> None:
        """Change nothing: the core keeps to what the handshake said."""

    def _command(self, name: str, stream_id: int, code: int) -> None:
        if self._ended is None:
            # The core refuses when the half is over, of which the events may not have told yet.
            with contextlib.suppress(RuntimeError):
                getattr(self._core, name)(stream_id, code)
            self._touch()

    # -- the connection ----------------------------------------------------------------------------------------------
    def close(self, code: int, reason: str = "", *, application: bool = True) -> None:
        """Close now; a connection that has heard nobody and told nobody ends at once."""
        if self._ended is None:
            self._begin_close(code, reason, application, PADDING_FRAME)

    def migrate(self) -> bool:
        """See `Engine.migrate`."""
        core = self._core
        if core is None or not self._handshake_done or self._ended is not None:
            return False
        try:
            core.change_connection_id()
        except ValueError:
            # It has no other, and no way to ask.
            return False
        return True

    def release(self) -> None:
        """See `Engine.release`."""
        self._connection.release()

    @property
    def closing(self) -> bool:
        """True from `close`, or from the peer's close, on."""
        return self._ended is not None

    @property
    def terminated(self) -> bool:
        """True once `ConnectionEnded` is due or drained."""
        return self._terminated

    @property
    def ended(self) -> ConnectionEnded | None:
        """Why the connection ends, known as soon as `closing` is true."""
        return self._ended

    @property
    def last_word(self) -> list[tuple[bytes, Address]]:
        """The packets that told the peer of `close`; empty when they have not left."""
        return self._close_datagrams

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds; None before the first sample."""
        return None if self._core is None else self._core.smoothed_rtt

    @property
    def packets_lost(self) -> int:
        """Packets declared lost, whose content was sent again."""
        return 0 if self._core is None else self._core.loss_total

    @property
    def peer_address(self) -> Address | None:
        """Where datagrams go now; follows a peer that has moved once its new address is validated."""
        return self._peer_address

    @property
    def connection_ids(self) -> list[bytes]:
        """Ids by which the peer may address this connection at this moment."""
        return list(self._connection_ids)

    @property
    def original_destination_id(self) -> bytes:
        """The id that the client's first packets carry."""
        return self._connection.original_destination_connection_id

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's certificate as DER once it is verified; None before, and when it was not asked for."""
        return self._peer_certificate
