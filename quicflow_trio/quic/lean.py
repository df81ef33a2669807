"""What an aioquic connection can do without, so that ten thousand of them fit: 20 of the 55 KB that each takes when idle.

Tables that are the same for all connections are filled in when an entry is used first; what belongs to a handshake that is over gives way
to one object that all connections share. Nothing here costs a packet anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

__all__ = ["drop_handshake", "make_lean", "take_apart"]

_Handler = Callable[..., None]
_Entry = tuple[_Handler, frozenset[tls.Epoch]]

_HANDLERS: Final = "_QuicConnection__frame_handlers"
_functions: Final[dict[type, dict[int, _Entry]]] = {}
"""By class of connection and frame type: the handler, not bound to any connection, and the epochs that allow the frame."""


class _FrameHandlers(dict[int, _Entry]):
    """The handlers of one connection, bound when the first frame of a type comes. Stock binds 31 of them for each: 5 KB."""

    __slots__ = ("_connection",)

    def __init__(self, connection: QuicConnection) -> None:
        super().__init__()
        self._connection = connection

    def __missing__(self, frame_type: int) -> _Entry:
        connection = self._connection
        function, epochs = _functions[type(connection)][frame_type]
        entry = self[frame_type] = (function.__get__(connection), epochs)
        return entry


class _Challenges(list[bytes]):
    """Path challenges as aioquic uses them. An empty deque holds 0.7 KB, and a path that never changes has two of them."""

    __slots__ = ()

    def append(self, challenge: bytes) -> None:
        """Add a challenge; the oldest goes when there are too many, as in the deque of stock."""
        if len(self) >= _MOST_CHALLENGES:
            del self[0]
        super().append(challenge)

    def popleft(self) -> bytes:
        """Take the oldest out."""
        return self.pop(0)


_MOST_CHALLENGES: Final = 5
_NO_DATAGRAMS: Final = ()
_TLS_STATE: Final = (
    *("state", "_receive_buffer", "alpn_negotiated", "early_data_accepted", "_session_resumed"),
    *("client_random", "new_session_ticket_cb"),
)
"""What aioquic still reads of TLS once the handshake is confirmed: later messages are refused or, new tickets, ignored."""


def _discarded() -> QuicPacketSpace:
    space = QuicPacketSpace()
    space.discarded = True
    return space


# Nothing writes to these: packets of an epoch whose keys are gone are dropped before anything else is looked at.
_NO_KEYS: Final = CryptoPair()
_NO_SPACE: Final = _discarded()
_NO_STREAM: Final = QuicStream()


def make_lean(connection: QuicConnection) -> None:
    """Thin out a connection that has just been made."""
    core: Any = connection
    functions = _functions.get(type(connection))
    if functions is None:
        functions = _functions[type(connection)] = {
            frame_type: (handler.__func__, frozenset(epochs)) for frame_type, (handler, epochs) in vars(core)[_HANDLERS].items()
        }
    setattr(core, _HANDLERS, _FrameHandlers(connection))
    # Only appended to and cleared here, and no DATAGRAM frame is ever sent: that takes no deque, at 0.7 KB each.
    core._events = []
    core._datagrams_pending = _NO_DATAGRAMS


def drop_handshake(connection: QuicConnection) -> None:
    """Drop what only the handshake needed: TLS state, and the keys, streams and packet spaces of its epochs."""
    core: Any = connection
    vars(core)[_HANDLERS].clear()
    # Three buffers of 16 KiB. Nothing writes handshake messages from here on.
    core._crypto_buffers = {}
    context: Any = core.tls
    # A new dictionary, as the old one would keep its size.
    context.__dict__ = {name: getattr(context, name) for name in _TLS_STATE} | dict.fromkeys(
        ("key_schedule", "received_extensions", "_peer_certificate")
    )
    gone = [epoch for epoch, space in core._spaces.items() if space.discarded]
    for epoch in gone:
        core._cryptos[epoch] = _NO_KEYS
        core._spaces[epoch] = _NO_SPACE
        core._crypto_streams[epoch] = _NO_STREAM
    if tls.Epoch.INITIAL in gone:
        core._cryptos_initial = dict.fromkeys(core._cryptos_initial, _NO_KEYS)
    # No session is ever resumed, so there never are keys for early data.
    core._cryptos[tls.Epoch.ZERO_RTT] = _NO_KEYS
    core._loss.spaces = [space for space in core._spaces.values() if not space.discarded]
    for path in core._network_paths:
        path.local_challenges = _Challenges(path.local_challenges)
        path.remote_challenges = _Challenges(path.remote_challenges)


def take_apart(connection: QuicConnection) -> None:
    """Cut what leads from the parts of an ended connection back to it, so that it is freed at once, all of it.

    Left to the garbage collector, the remains of thousands of handshakes are collected in one go, and nobody is answered for 200 ms.
    """
    core: Any = connection
    vars(core)[_HANDLERS] = {}
    core._cryptos, core._cryptos_initial = {}, {}
    core._loss._send_probe = None
    # Packets sent know whom to tell when they arrive.
    for space in core._spaces.values():
        space.sent_packets.clear()
    core._loss.spaces, core._spaces = [], {}
    # Not by clearing: once the handshake is over, `tls` has a few attributes left, and these are not among them.
    vars(core.tls).update(alpn_cb=None, get_session_ticket_cb=None, new_session_ticket_cb=None, update_traffic_key_cb=None)
