"""What tells the protocols apart that a connection can speak: a `Dialect` is made once TLS has chosen one.

All dialects look alike from above: a hello and a welcome open the session, messages are on lanes. One that has nothing of the kind on the
wire translates: see `backbone1`.
"""

from __future__ import annotations

from typing import Protocol

from .config import Limits
from .link import Link
from .observe.instruments import Instruments
from .protocol.handshake import Terms
from .protocol.lane_receiver import LaneReceiver
from .protocol.lane_sender import LaneSender
from .protocol.state import CloseCode, ConnectionState
from .quic.engine import ConnectionEnded, Engine, StreamData, StreamReset, StreamStopped
from .wire import Authentication, Goodbye, Hello, Welcome

__all__ = ["Dialect", "Host"]


class Host(Protocol):
    """What a dialect needs of its connection: `connection.Connection`."""

    engine: Engine
    is_client: bool
    limits: Limits
    instruments: Instruments
    state: ConnectionState
    last_heard: float
    last_ping: float | None
    rtt_sample: float | None
    goodbye: Goodbye | None

    @property
    def waited_for(self) -> bool:
        """True while somebody waits for silence: then even what is not worth a packet of its own is written."""

    def kick(self) -> None:
        """Have the connection's pump take a turn."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close now."""

    def control_frame(self, frame: Hello | Welcome | Goodbye | Authentication) -> None:
        """Tell the owner."""

    def note_error(self, error: Exception) -> None:
        """Count and report what a peer got wrong, where that does not end the connection."""


class Dialect(Protocol):
    """One connection's side of one message protocol, without IO.

    Attributes:
        alpn: the protocol's name in TLS.
    """

    alpn: str

    # -- in ----------------------------------------------------------------------------------------------------------
    def handle_data(self, event: StreamData) -> None:
        """Take in bytes of any stream.

        Raises:
            ProtocolError: the peer may not do that.
        """

    def handle_end(self, event: StreamReset | StreamStopped) -> None:
        """Note that the peer has abandoned one half of a stream.

        Raises:
            ProtocolError: the peer may not do that.
        """

    @property
    def begun(self) -> bool:
        """True while a part of a frame has come that this side does not hold back itself."""

    @property
    def holds_back(self) -> bool:
        """True while this side keeps the peer from sending anything, heartbeats included."""

    def recheck_credit(self) -> None:
        """Look again at what had run out of credit."""

    # -- life --------------------------------------------------------------------------------------------------------
    def send(self, frame: Hello | Welcome | Authentication) -> None:
        """Tell the peer, as far as the protocol has a word for it."""

    def open(self, link: Link, terms: Terms) -> None:
        """Carry a session from now on."""

    def begin(self) -> None:
        """Take in what came before the session was open; it is attached now."""

    def flush(self) -> None:
        """Write into the engine what waits to be written."""

    def ping(self) -> None:
        """Send a heartbeat."""

    def say_goodbye(self, code: CloseCode, reason: str, retry_after: float) -> None:
        """Tell the peer to start nothing new, as far as the protocol has a word for it."""

    def end(self) -> None:
        """Let go of the streams. No effect the second time."""

    # -- messages ----------------------------------------------------------------------------------------------------
    def lane_pending(self, lane: LaneSender) -> None:
        """Note that a lane has something to write, and have it written soon."""

    def lane_progress(self, lane: LaneReceiver) -> None:
        """Note that a handler has ended."""

    @property
    def quiet(self) -> bool:
        """True when nothing is under way, of what this side can know."""

    # -- closes and figures --------------------------------------------------------------------------------------------
    def close_of(self, code: CloseCode, reason: str) -> tuple[int, str]:
        """Return a close as the protocol has it."""

    def meaning_of(self, ended: ConnectionEnded) -> ConnectionEnded:
        """Return an end with the code that it has in quicflow/2."""

    @property
    def bytes_sent(self) -> int:
        """Stream bytes written."""

    @property
    def bytes_received(self) -> int:
        """Stream bytes received."""
