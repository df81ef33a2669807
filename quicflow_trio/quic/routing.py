"""Which connection a datagram belongs to: header parsing, version negotiation and the table of connection ids. No IO.

An endpoint asks `parse_header` once for each datagram, looks the destination id up, and gives what it does not find either to a new
connection (`Header.is_initial`) or to `version_negotiation`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

from .tls import CONNECTION_ID_LENGTH, SUPPORTED_VERSIONS

__all__ = ["CONNECTION_ID_LENGTH", "MIN_INITIAL_SIZE", "Header", "RoutingTable", "parse_header", "version_negotiation"]

Owner = TypeVar("Owner", bound=Hashable)

MIN_INITIAL_SIZE: Final = 1200
"""Bytes of the smallest datagram that may carry a client's Initial (RFC 9000 section 14.1)."""

_LONG: Final = 0x80
_FIXED_BIT: Final = 0x40
_MAX_ID: Final = 20
_LONG_FIXED_PART: Final = 7
_INITIAL_TYPE: Final = {1: 0, SUPPORTED_VERSIONS[1]: 1}
"""The two type bits of an Initial, by version: QUIC v2 numbers the types differently (RFC 9369 section 3.2)."""


class Header(NamedTuple):
    """What can be known of a datagram's first packet without keys (RFC 8999).

    Attributes:
        is_long: long header, as during the handshake.
        version: QUIC version of a long header, 0 for a version negotiation packet and for short headers.
        destination: id of the connection it is for.
        source: id that the sender wants to be answered with; empty for short headers.
        is_initial: an Initial packet of a version spoken here, in a datagram large enough to open a connection.
        size: length of the whole datagram, bytes.
        original: on an Initial that brings a good Retry token, the destination id of the client's first one; None on all others.
    """

    is_long: bool
    version: int
    destination: bytes
    source: bytes
    is_initial: bool
    size: int
    original: bytes | None = None


def parse_header(data: bytes) -> Header | None:
    """Return the header of a datagram's first packet, None when it can be no QUIC packet for this side. Never raises.

    Connection ids in short headers are `CONNECTION_ID_LENGTH` bytes: all of ours are.
    """
    size = len(data)
    if not size:
        return None
    first = data[0]
    if not first & _LONG:
        if size <= CONNECTION_ID_LENGTH or not first & _FIXED_BIT:
            return None
        return Header(False, 0, data[1 : 1 + CONNECTION_ID_LENGTH], b"", False, size)
    if size < _LONG_FIXED_PART:
        return None
    version = int.from_bytes(data[1:5], "big")
    source_length_at = 6 + data[5]
    if source_length_at >= size:
        return None
    source_at = source_length_at + 1
    end = source_at + data[source_length_at]
    if end > size:
        return None
    destination, source = data[6:source_length_at], data[source_at:end]
    initial_type = _INITIAL_TYPE.get(version)
    if initial_type is None:
        # Another version: only the fields above have a fixed place, and ids may be up to 255 bytes.
        return Header(True, version, destination, source, False, size)
    if not first & _FIXED_BIT or len(destination) > _MAX_ID or len(source) > _MAX_ID:
        return None
    # RFC 9000 section 7.2: a client's first id has at least 8 bytes, as have ours, which come after a Retry.
    opens = size >= MIN_INITIAL_SIZE and len(destination) >= CONNECTION_ID_LENGTH
    is_initial = opens and first >> 4 & 3 == initial_type
    return Header(True, version, destination, source, is_initial, size)


def version_negotiation(header: Header) -> bytes | None:
    """Return the answer to a packet of a version not spoken here, None when it deserves none.

    Never answers a version negotiation packet (two servers would talk for ever), nor a datagram too small for an Initial (the answer
    could be larger than the question), nor a short header.
    """
    if not header.is_long or header.version == 0 or header.version in SUPPORTED_VERSIONS or header.size < MIN_INITIAL_SIZE:
        return None
    parts = [
        # The type bits are arbitrary; the fixed bit helps those who share the port with other protocols.
        bytes((_LONG | _FIXED_BIT,)),
        bytes(4),
        bytes((len(header.source),)),
        header.source,
        bytes((len(header.destination),)),
        header.destination,
        *(version.to_bytes(4, "big") for version in SUPPORTED_VERSIONS),
    ]
    return b"".join(parts)


class RoutingTable(Generic[Owner]):
    """Connection ids and who owns them. Both directions are indexed, so that an ended connection leaves nothing behind."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Owner] = {}
        # Lists, as an owner has about five: a set of five takes 0.7 KB.
        self._ids: dict[Owner, list[bytes]] = {}

    def __len__(self) -> int:
        """Return how many connection ids are known."""
        return len(self._owners)

    @property
    def owners(self) -> int:
        """How many owners have at least one id."""
        return len(self._ids)

    def add(self, connection_id: bytes, owner: Owner) -> bool:
        """Enter an id; False, and no change, when another owner has it."""
        if self._owners.setdefault(connection_id, owner) != owner:
            return False
        ids = self._ids.setdefault(owner, [])
        if connection_id not in ids:
            ids.append(connection_id)
        return True

    def remove(self, connection_id: bytes) -> None:
        """Take an id out; no effect on an unknown one."""
        owner = self._owners.pop(connection_id, None)
        if owner is None:
            return
        ids = self._ids[owner]
        ids.remove(connection_id)
        if not ids:
            del self._ids[owner]

    def remove_owner(self, owner: Owner) -> None:
        """Take all ids of an owner out; no effect when it has none."""
        for connection_id in self._ids.pop(owner, ()):
            del self._owners[connection_id]

    def lookup(self, connection_id: bytes) -> Owner | None:
        """Return the owner of an id, None when it is unknown."""
        return self._owners.get(connection_id)

    def ids_of(self, owner: Owner) -> frozenset[bytes]:
        """Return the ids of an owner."""
        return frozenset(self._ids.get(owner, ()))
