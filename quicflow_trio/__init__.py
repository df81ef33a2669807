r"""A messaging backbone for Trio programs, over QUIC.

Layers; imports point left only::

    errors, config, observe <- wire <- message, protocol \
                                                           link, connection, dispatch, peer <- client, server <- testing <- cli
    errors, config          <- quic <- net               /

``wire``, ``protocol`` and ``quic`` do no IO: bytes and ``now`` in, bytes and events out. ``net`` knows engines, not messages.
"""

from __future__ import annotations

from .broadcast import BroadcastReport
from .client import Client, ClientState, ClientStatistics, StateChange, open_client
from .config import ClientConfig, Limits, ServerConfig, TLSConfig
from .errors import (
    AckTimeout,
    AuthenticationFailed,
    ClientNotConnected,
    ConfigurationError,
    ConnectionClosed,
    ConnectionLost,
    ConnectionRefused,
    HandlerFailed,
    LaneLimitReached,
    LocalProtocolError,
    PayloadTooLarge,
    ProtocolError,
    QuicFlowError,
    RemoteProtocolError,
    SessionReplaced,
    SlowConsumer,
    WaitingTableFull,
)
from .message import Ack, AckStatus, Delivery, Message, MessageType
from .peer import Peer, PeerStatistics, Sent
from .router import Handler, Request, Router
from .server import Server, ServerStatistics, serve
from .sessions import Session, SessionChange

__all__ = [
    "Ack",
    "AckStatus",
    "AckTimeout",
    "AuthenticationFailed",
    "BroadcastReport",
    "Client",
    "ClientConfig",
    "ClientNotConnected",
    "ClientState",
    "ClientStatistics",
    "ConfigurationError",
    "ConnectionClosed",
    "ConnectionLost",
    "ConnectionRefused",
    "Delivery",
    "Handler",
    "HandlerFailed",
    "LaneLimitReached",
    "Limits",
    "LocalProtocolError",
    "Message",
    "MessageType",
    "PayloadTooLarge",
    "Peer",
    "PeerStatistics",
    "ProtocolError",
    "QuicFlowError",
    "RemoteProtocolError",
    "Request",
    "Router",
    "Sent",
    "Server",
    "ServerConfig",
    "ServerStatistics",
    "Session",
    "SessionChange",
    "SessionReplaced",
    "SlowConsumer",
    "StateChange",
    "TLSConfig",
    "WaitingTableFull",
    "open_client",
    "serve",
]
